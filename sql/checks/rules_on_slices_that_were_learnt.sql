-- Rules are scored on slices that the network did not learn from: those of the validation and of the test set.
SELECT DISTINCT g.study, g.scan, s.set, s.fold AS validated_in
FROM rule_grid AS g
LEFT JOIN splits AS s USING (study, scan)
WHERE s.set IS NULL OR NOT (s.set = 'test' OR (s.set = 'train' AND s.fold IS NOT NULL))
ORDER BY ALL
