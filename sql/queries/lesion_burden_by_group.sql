-- How much lesion do the groups have, and in which zone?
-- Volumes are of everybody, with 0 where there is no lesion; shares only of scans with lesions. All scans count, also
-- several of one person.
SELECT
    b.study, b.source, b.rule, b.zone, s.group,
    count(*) AS scans,
    count(DISTINCT s.participant_id) AS people,
    count(*) FILTER (WHERE b.volume_mm3 > 0) AS scans_with_lesions,
    median(b.volume_mm3) / 1000 AS volume_median_ml,
    avg(b.volume_mm3) / 1000 AS volume_mean_ml,
    median(b.count) AS lesions_median,
    100 * avg(b.share) AS share_mean_percent,
    100 * avg(b.share_of_intracranial) AS share_of_intracranial_mean_percent
FROM lesion_burden AS b
JOIN scans AS s USING (study, scan)
GROUP BY b.study, b.source, b.rule, b.zone, s.group
ORDER BY b.study, b.source, b.rule, b.zone, s.group
