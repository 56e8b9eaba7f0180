-- Does the relevance sit in the planted region, and not in the decoy?
-- `times_chance` is the share of positive relevance in the region over the region's share of the brain.
SELECT
    study, method, contrast, region,
    avg(value) AS mean_share,
    avg(chance) AS mean_chance,
    avg(value) / nullif(avg(chance), 0) AS times_chance,
    count(*) FILTER (value > chance) AS scans_above_chance,
    count(value) AS scans
FROM localisation
WHERE metric = 'share_of_positive'
GROUP BY study, method, contrast, region
ORDER BY study, method, contrast, times_chance DESC
