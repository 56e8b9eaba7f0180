-- A quantile mask belongs to a relevance map.
SELECT q.study, q.method, q.scan, q.contrast, q.top_percent
FROM quantile_masks AS q
ANTI JOIN relevance_maps AS r USING (study, method, scan, contrast)
ORDER BY ALL
