-- What is left of the differences between groups and between sexes when age and each other are taken into account?
-- `estimate` is the term's, with robust intervals; `filter` says whom it is of, as an SQL condition.
SELECT
    study, analysis, variant, outcome, term, estimate, ci_low, ci_high, p, p_corrected, n, filter,
    coalesce(p_corrected, p) < 0.05 AS significant
FROM regressions
WHERE recipe = 'sound' AND (starts_with(term, 'group') OR starts_with(term, 'sex')) AND estimate IS NOT NULL
ORDER BY study, analysis, variant, outcome, term, n DESC, filter
