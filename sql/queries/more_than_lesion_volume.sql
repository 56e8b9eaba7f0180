-- Does relevance say more about disability than lesion volume?
-- What is tested: whether the mean of an image inside the relevance masks (mask_measures, not relevance itself) goes with
-- disability beyond lesion volume. Side by side: its correlation with disability, and what is left of it when lesion
-- volume (and whatever else `adjusted_for` names) is held fixed; p corrected over all methods, masks and images. Analyses
-- that do not hold lesion volume fixed, as truth region `lesion` or a column lesion_volume*, are left out. `remains`:
-- both are significant. A small partial rho with a small p is no proof: lesion volume is measured with error, so that
-- some of its effect is left after adjustment (residual confounding).
SELECT
    c.study, c.analysis, c.stratum AS mask, c.x AS image, c.y,
    split_part(p.analysis, ', adjusted for ', 2) AS adjusted_for,
    c.value AS rho, c.p_corrected,
    p.value AS partial_rho, p.ci_low AS partial_low, p.ci_high AS partial_high, p.p_corrected AS partial_p_corrected,
    p.n, c.p_corrected < 0.05 AND p.p_corrected < 0.05 AS remains
FROM correlations AS c
JOIN correlations AS p
    ON p.study = c.study AND p.x = c.x AND p.y = c.y AND p.stratum = c.stratum
    AND starts_with(p.analysis, c.analysis || ', adjusted for ')
WHERE starts_with(c.statistic, 'spearman') AND starts_with(p.statistic, 'partial_spearman')
    AND regexp_matches(p.analysis, ', adjusted for (.*, )?(lesion|lesion_volume\w*)(,|$)')
ORDER BY c.study, p.p_corrected NULLS LAST, abs(p.value) DESC NULLS LAST, c.analysis, c.stratum, c.x, p.analysis
