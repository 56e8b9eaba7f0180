-- Which quantile mask correlates best with EDSS, after correction?
SELECT
    study, analysis, x, y, stratum, value AS rho, ci_low, ci_high, p_permutation, p_corrected, correction, n,
    p_corrected < 0.05 AS significant
FROM correlations
WHERE statistic = 'spearman_rho' AND y = 'edss' AND value IS NOT NULL
ORDER BY study, p_corrected, abs(value) DESC, x
