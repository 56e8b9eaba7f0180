-- Is the chosen cell better than gradients, Grad-CAM, and the same rules on a network that learnt nothing?
-- `difference` is the chosen cell minus the other, on the same test slices; `forwards` is what a map costs, in forward passes.
SELECT
    study, region, explained, measure, map, value, difference, difference_low, difference_high, p_corrected, n_pairs,
    difference_low > 0 AND p_corrected <= 0.05 AS chosen_is_better, forwards
FROM rule_comparison
LEFT JOIN (SELECT study, explained, map, avg(forwards) AS forwards FROM rule_maps GROUP BY ALL)
    USING (study, explained, map)
WHERE role IN ('reference', 'published', 'worst') AND stratum_kind = 'all'
ORDER BY study, region, explained, measure, difference DESC NULLS LAST, map
