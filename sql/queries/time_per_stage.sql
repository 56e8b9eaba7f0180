-- How long did each stage take per scan, and how much memory?
SELECT
    study, asset,
    count(*) AS items,
    count(*) FILTER (outcome = 'failed') AS failed,
    median(seconds) AS median_seconds,
    max(seconds) AS longest_seconds,
    arg_max(item, seconds) AS longest_item,
    sum(seconds) / 60 AS total_minutes,
    max(peak_mb) AS peak_mb
FROM runs
GROUP BY study, asset
ORDER BY study, total_minutes DESC NULLS LAST, asset
