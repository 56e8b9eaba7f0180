-- Which maps lose the most of their relevance, and is every loss accounted for?
SELECT
    study, method, fold, scan, contrast, start, total,
    abs(difference) / nullif(abs(start), 0) AS share_lost,
    abs(unexplained) / nullif(abs(start), 0) AS share_unexplained,
    path
FROM relevance_maps
WHERE unexplained IS NOT NULL
ORDER BY share_lost DESC NULLS LAST, study, method, scan, contrast, fold
LIMIT 20
