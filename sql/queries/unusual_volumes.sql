-- Which scans have unusual volumes (outliers)?
-- Robust z: distance from the study's median in units of 1.4826 x median absolute deviation; above 3.5 is
-- unusual (Iglewicz & Hoaglin 1993).
WITH measures AS (
    UNPIVOT (
        SELECT
            study, image, scan, brain_volume_mm3 / 1000 AS brain_volume_ml, mean, standard_deviation,
            share_clipped
        FROM volumes
    )
    ON brain_volume_ml, mean, standard_deviation, share_clipped
    INTO NAME measure VALUE value
),
scored AS (
    SELECT
        *,
        median(value) OVER (PARTITION BY study, image, measure) AS median,
        1.4826 * mad(value) OVER (PARTITION BY study, image, measure) AS deviation
    FROM measures
)
SELECT study, scan, image, measure, value, median, (value - median) / nullif(deviation, 0) AS robust_z
FROM scored
WHERE abs(robust_z) > 3.5
ORDER BY abs(robust_z) DESC, study, scan, image, measure
