-- Which measures differ between the groups, by how much, and would the published recipe have said the same?
-- One row per sound comparison with its effect and interval; beside it the p of the published recipe for the same people
-- where there is one (the first, by analysis). `turns` is true where one of the two is below 0.05 and the other is not.
WITH published AS (
    SELECT study, variant, measure, stratum, group_a, group_b, test, p, n_a, n_b
    FROM group_comparisons
    WHERE recipe = 'as_published' AND p IS NOT NULL
    QUALIFY row_number() OVER (
        PARTITION BY study, variant, measure, stratum, group_a, group_b, n_a, n_b ORDER BY analysis, test
    ) = 1
)
SELECT
    s.study, s.analysis, s.variant, s.measure, s.stratum, s.group_a, s.group_b, s.test, s.effect_name, s.effect,
    s.ci_low, s.ci_high, s.p, s.p_corrected, s.correction, s.n_a, s.n_b,
    p.test AS published_test, p.p AS published_p,
    (p.p < 0.05) <> (coalesce(s.p_corrected, s.p) < 0.05) AS turns
FROM group_comparisons AS s
LEFT JOIN published AS p USING (study, variant, measure, stratum, group_a, group_b, n_a, n_b)
WHERE s.recipe = 'sound' AND s.p IS NOT NULL
ORDER BY s.study, s.variant, coalesce(s.p_corrected, s.p), s.measure, s.analysis, s.stratum, s.test
