-- The attention weights of a scan sum to 1.
SELECT study, model, fold, scan, sum(weight) AS sum_of_weights
FROM attention_weights
GROUP BY ALL
HAVING abs(sum(weight) - 1) > 1e-4 OR min(weight) < 0
ORDER BY ALL
