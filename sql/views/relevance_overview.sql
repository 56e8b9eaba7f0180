-- Per study, method and contrast: how many maps, what part of the relevance put in is lost to biases and
-- stabilisers, what part nobody accounts for, and how much positive relevance lies outside the brain.
SELECT
    study, method, contrast,
    count(*) AS maps,
    median(total) AS median_total,
    median(abs(difference) / nullif(abs(start), 0)) AS median_share_lost,
    max(abs(difference) / nullif(abs(start), 0)) AS greatest_share_lost,
    max(abs(unexplained) / nullif(abs(start), 0)) AS greatest_share_unexplained,
    avg(share_positive) AS mean_share_positive,
    max(share_outside_brain) AS greatest_share_outside_brain
FROM relevance_maps
-- a test scan's map of one fold that went into the ensemble's is not counted again
WHERE path IS NOT NULL OR contrast = 'all'
GROUP BY study, method, contrast
