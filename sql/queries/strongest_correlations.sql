-- Which quantile mask correlates best with EDSS, after correction?
-- `analysis` is the method that made the map, `stratum` the mask, `x` the image that was averaged inside it.
SELECT
    study, analysis, stratum, x, value AS rho, ci_low, ci_high, p_permutation, p_corrected, correction, n,
    p_corrected < 0.05 AS significant
FROM correlations
WHERE starts_with(statistic, 'spearman') AND y = 'edss' AND value IS NOT NULL
ORDER BY study, p_corrected, abs(value) DESC, analysis, stratum, x
