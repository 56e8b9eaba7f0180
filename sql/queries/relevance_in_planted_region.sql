-- Does the relevance sit in the planted region, and not in the decoy?
-- `mean_share`: of the positive relevance. `mean_chance`: the same of the region shifted elsewhere in the brain, which
-- also counts how clumped relevance is; `mean_even`: the region's share of the brain, if relevance were spread evenly.
-- `ci_low` to `ci_high`: of share minus chance, over people; with 0 inside, no more than a region elsewhere.
SELECT
    l.study, l.method, l.contrast, l.region,
    avg(l.value) AS mean_share,
    avg(l.chance) AS mean_chance,
    avg(l.chance_even) AS mean_even,
    avg(l.value) FILTER (l.chance IS NOT NULL) / nullif(avg(l.chance), 0) AS times_chance,
    any_value(s.ci_low) AS ci_low,
    any_value(s.ci_high) AS ci_high,
    count(*) FILTER (l.value > l.chance) AS scans_above_chance,
    count(*) AS scans
FROM localisation AS l
LEFT JOIN localisation_summary AS s USING (study, method, contrast, region, metric)
WHERE l.metric = 'share_of_positive' AND l.value IS NOT NULL
GROUP BY l.study, l.method, l.contrast, l.region
ORDER BY l.study, l.method, l.contrast, times_chance DESC NULLS LAST, l.region
