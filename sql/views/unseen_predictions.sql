-- What is predicted of each scan by models that never saw it: validation scans by their own fold's model,
-- test scans and those that came later by the mean output over the folds' models.
WITH per_scan AS (
    SELECT
        study, model, scan, set,
        any_value(target) AS target,
        coalesce(avg(output) FILTER (fold = 'ensemble'), avg(output) FILTER (fold <> 'ensemble')) AS output,
        bool_and(probability IS NOT NULL) AS is_binary
    FROM predictions
    WHERE set IN ('validation', 'test', 'new')
    GROUP BY study, model, scan, set
)
SELECT
    p.study, p.model, p.scan, s.participant_id, p.set, p.target, p.output,
    CASE WHEN p.is_binary THEN 1 / (1 + exp(-p.output)) END AS probability
FROM per_scan AS p
LEFT JOIN scans AS s USING (study, scan)
