-- Which cell of the grid is best on validation slices, how good is it on test slices, and what of that is chance?
SELECT
    c.study, c.region, c.explained, c.measure, c.gamma, c.epsilon,
    c.validation, c.value AS test, c.ci_low, c.ci_high, c.chance, c.ceiling,
    p.value AS published_cell, p.difference, p.difference_low, p.difference_high,
    c.n AS slices, c.people
FROM rule_comparison AS c
LEFT JOIN rule_comparison AS p ON
    (p.study, p.region, p.explained, p.measure, p.stratum_kind) = (c.study, c.region, c.explained, c.measure, 'all')
    AND (p.role = 'published' OR p.method = 'published_cell')
    AND p.value IS NOT NULL
WHERE c.role = 'chosen' AND c.stratum_kind = 'all'
ORDER BY c.study, c.region, c.explained, c.measure
