-- A map is made by a model that never saw its scan: the scan's own fold, or any model for a test scan.
SELECT r.study, r.method, r.fold, r.scan, s.set, s.fold AS validated_in
FROM relevance_maps AS r
LEFT JOIN splits AS s USING (study, scan)
WHERE s.set IS NULL OR (s.set NOT IN ('test', 'new') AND r.fold IS DISTINCT FROM s.fold::VARCHAR)
ORDER BY ALL
