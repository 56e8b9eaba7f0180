-- Per study, method and contrast: how many maps, what part of the relevance put in is unexplained, and how
-- much positive relevance lies outside the brain.
SELECT
    study, method, contrast,
    count(*) AS maps,
    median(total) AS median_total,
    median(abs(unexplained) / nullif(abs(start), 0)) AS median_share_unexplained,
    max(abs(unexplained) / nullif(abs(start), 0)) AS greatest_share_unexplained,
    avg(share_positive) AS mean_share_positive,
    max(share_outside_brain) AS greatest_share_outside_brain
FROM relevance_maps
WHERE path IS NOT NULL -- a test scan's map of one fold that went into the ensemble's is not counted again
GROUP BY study, method, contrast
