-- Which correlations are there in patients and not in controls, or the other way round?
-- The difference is of Fisher's z; its standard error with 1.06 / (n - 3) is for rank correlations (Fieller et al. 1957),
-- a little wide for Pearson's.
WITH pairs AS (
    SELECT
        a.study, a.analysis, a.recipe, a.variant, a.statistic, a.x, a.y,
        a.value AS hc, a.n AS n_hc, a.p_corrected AS p_corrected_hc,
        b.value AS ms, b.n AS n_ms, b.p_corrected AS p_corrected_ms
    FROM correlations AS a
    JOIN correlations AS b USING (study, analysis, recipe, variant, statistic, x, y)
    WHERE a.stratum = 'HC' AND b.stratum = 'MS' AND abs(a.value) < 1 AND abs(b.value) < 1 AND least(a.n, b.n) > 3
)
SELECT
    *,
    ms - hc AS difference,
    (atanh(ms) - atanh(hc)) / sqrt(1.06 / (n_ms - 3) + 1.06 / (n_hc - 3)) AS z
FROM pairs
ORDER BY abs(z) DESC, study, analysis, recipe, variant, statistic, x, y
