-- Per study and metric, the model or baseline that does best on the held-out people.
SELECT
    study, metric, model, value, ci_low, ci_high, n,
    metric IN ('mae', 'rmse') AS lower_is_better
FROM test_scores
WHERE value IS NOT NULL
QUALIFY row_number() OVER (
    PARTITION BY study, metric
    ORDER BY CASE WHEN metric IN ('mae', 'rmse') THEN value ELSE -value END, model
) = 1
