-- Which contrast does the attention favour, and in how many scans is it the first?
-- Each scan counts once: its weight is the mean over the models that never saw it.
WITH unseen AS (
    SELECT a.study, a.model, a.scan, a.contrast, avg(a.weight) AS weight
    FROM attention_weights AS a
    JOIN predictions AS p USING (study, model, fold, scan)
    WHERE p.set IN ('validation', 'test', 'new')
    GROUP BY ALL
),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY study, model, scan ORDER BY weight DESC, contrast) AS place
    FROM unseen
)
SELECT
    study, model, contrast,
    avg(weight) AS mean_weight,
    stddev_samp(weight) AS standard_deviation,
    count(*) FILTER (place = 1) AS first_in_scans,
    count(*) AS scans
FROM ranked
GROUP BY ALL
ORDER BY study, model, mean_weight DESC
