-- How good each model and baseline is on people held out from training: the mean output of the folds'
-- models where that is scored, else the mean over the folds.
SELECT study, model, metric, fold, value, ci_low, ci_high, n
FROM scores
WHERE set = 'test'
QUALIFY row_number() OVER (
    PARTITION BY study, model, metric
    ORDER BY CASE fold WHEN 'ensemble' THEN 0 WHEN 'mean' THEN 1 ELSE 2 END, fold
) = 1
