-- Where did a network of the study's own find lesions worst, of people it never saw: because there is little to find?
SELECT
    d.study, d.scan, d.fold AS network,
    d.value AS dice,
    s.volume_mm3 - v.value AS true_mm3,
    s.volume_mm3 AS found_mm3,
    f.value AS lesion_f1
FROM segmentation_scores AS d
JOIN segmentations AS s USING (study, scan, class)
JOIN segmentation_scores AS v ON
    (v.study, v.scan, v.class, v.metric) = (d.study, d.scan, d.class, 'volume_difference_mm3')
JOIN segmentation_scores AS f ON (f.study, f.scan, f.class, f.metric) = (d.study, d.scan, d.class, 'lesion_f1')
WHERE d.class = 'wmh' AND d.metric = 'dice' AND d.value IS NOT NULL
ORDER BY d.study, d.value, d.scan
LIMIT 50
