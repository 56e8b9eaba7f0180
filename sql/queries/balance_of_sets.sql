-- Are the sets alike: how many people and scans, how old, how disabled?
SELECT
    p.study, p.set, p.fold,
    count(*) AS scans,
    count(DISTINCT p.participant_id) AS people,
    avg(s.age) AS mean_age,
    stddev_samp(s.age) AS sd_age,
    median(s.edss) AS median_edss,
    avg(s.target) AS mean_target
FROM splits AS p
LEFT JOIN scans AS s USING (study, scan)
GROUP BY p.study, p.set, p.fold
ORDER BY p.study, p.set DESC, p.fold
