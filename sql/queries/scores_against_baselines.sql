-- How well does each study's model do on people it never saw, against its baselines?
-- `better_by` is positive where the network is better, in the metric's own unit.
WITH network AS (
    SELECT t.* FROM test_scores AS t SEMI JOIN models AS m ON m.study = t.study AND m.model = t.model
),
baseline AS (
    SELECT t.* FROM test_scores AS t ANTI JOIN models AS m ON m.study = t.study AND m.model = t.model
)
SELECT
    n.study, n.metric, n.model, n.value, n.ci_low, n.ci_high, n.n,
    b.model AS baseline, b.value AS baseline_value,
    CASE WHEN n.metric IN ('mae', 'rmse') THEN b.value - n.value ELSE n.value - b.value END AS better_by
FROM network AS n
LEFT JOIN baseline AS b USING (study, metric)
ORDER BY n.study, n.metric, n.model, baseline
