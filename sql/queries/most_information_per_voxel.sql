-- Which scenario's masks carry most information per voxel?
-- `area` is the mean AUC over the study's N (`percents`, by trapezoids) when the same number of voxels is inverted for
-- every scenario (control 'matched', on average `percent` of the brain): the smaller, the more those voxels held;
-- `drop_per_percent` is how far that lies below `auc_0`, the AUC without inversion, per percent inverted. An AUC below
-- 0.5 has reversed decisions, which is no more lost than at 0.5. A scenario's own masks differ in size
-- (`own_percent`), so `own_area` says nothing about who holds more per voxel. Method 'random': random voxels, as many;
-- who does not get below it found nothing. `better_by`: the area of the reference (the row without it) minus this one,
-- with its interval, paired over people; its p is not corrected; in the row 'random' it is of the reference against
-- chance.
WITH steps AS (
    SELECT
        *,
        lead(top_percent) OVER n - top_percent AS width,
        (lead(share_of_brain) OVER n + share_of_brain) / 2 AS share
    FROM inversion_curves
    WHERE fold = 'mean' AND draw = 0
    WINDOW n AS (PARTITION BY study, method, map, control ORDER BY top_percent)
),
sizes AS (
    SELECT
        study, method, map, control,
        arg_min(auc, top_percent) FILTER (top_percent = 0) AS auc_0,
        100 * sum(share * width) / nullif(sum(width), 0) AS percent
    FROM steps
    GROUP BY study, method, map, control
),
areas AS (
    SELECT a.*, s.auc_0, s.percent
    FROM inversion_areas AS a
    LEFT JOIN sizes AS s USING (study, method, map, control)
    WHERE a.against = 'nothing'
)
SELECT
    a.study, s.number AS scenario, CASE a.control WHEN 'random' THEN 'random' ELSE a.method END AS method, a.map,
    a.auc_0, a.value AS area, a.ci_low, a.ci_high, a.percents, a.percent,
    (a.auc_0 - a.value) / nullif(a.percent, 0) AS drop_per_percent,
    d.value AS better_by, d.ci_low AS better_by_low, d.ci_high AS better_by_high, d.p,
    own.value AS own_area, own.percent AS own_percent
FROM areas AS a
LEFT JOIN areas AS own
    ON own.study = a.study AND own.method = a.method AND own.map = a.map AND own.control = 'own'
    AND a.control = 'matched'
LEFT JOIN inversion_areas AS d
    ON d.study = a.study AND d.control = a.control
    AND d.against = CASE a.control WHEN 'random' THEN 'random' ELSE a.method || ' ' || a.map END
LEFT JOIN scenarios AS s ON s.study = a.study AND s.method = a.method AND s.map = a.map AND a.control = 'matched'
WHERE a.control IN ('matched', 'random')
ORDER BY a.study, a.value NULLS LAST, s.number NULLS LAST, a.method, a.map
