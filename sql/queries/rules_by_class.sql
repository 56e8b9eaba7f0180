-- Do rules find tumours of one class better than of another, and where the network is wrong?
-- Means over test slices of every cell, beside the chance that the tumours' sizes give. `class` is the tumour's own,
-- also where the class that the network predicted is explained.
SELECT
    g.study, g.explained, g.measure, t.class, g.map,
    t.is_predicted AS network_is_right,
    avg(g.value) AS value, avg(g.chance) AS chance, count(g.value) AS slices
FROM rule_grid AS g
JOIN class_predictions AS t ON (t.study, t.scan, t.is_true) = (g.study, g.scan, true)
WHERE t.set = 'test' AND g.score = 'iou'
GROUP BY ALL
ORDER BY g.study, g.explained, g.measure, t.class, network_is_right, value DESC, g.map
