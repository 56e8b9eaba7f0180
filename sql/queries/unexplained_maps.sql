-- Which maps leave the most unexplained?
SELECT
    study, method, fold, scan, contrast, start, total, unexplained,
    abs(unexplained) / nullif(abs(start), 0) AS share_unexplained,
    path
FROM relevance_maps
WHERE unexplained IS NOT NULL
ORDER BY share_unexplained DESC NULLS LAST, study, method, scan, contrast
LIMIT 20
