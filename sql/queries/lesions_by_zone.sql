-- How many lesions are in each zone, and how large and how far from the ventricles are they?
-- By each rule: `slice` is null where a lesion is one in three dimensions, else it is one of a single slice. `zone` is
-- null where a rule gives none.
SELECT
    study, source, rule, zone,
    count(*) AS lesions,
    count(DISTINCT scan) AS scans,
    quantile_cont(volume_mm3, 0.25) AS volume_q1_mm3,
    median(volume_mm3) AS volume_median_mm3,
    quantile_cont(volume_mm3, 0.75) AS volume_q3_mm3,
    sum(volume_mm3) / 1000 AS volume_ml,
    median(ventricle_edge_mm) AS ventricle_edge_median_mm,
    median(cortex_edge_mm) AS cortex_edge_median_mm,
    median(diameter_mm) AS diameter_median_mm
FROM lesions
GROUP BY study, source, rule, zone
ORDER BY study, source, rule, volume_ml DESC, zone
