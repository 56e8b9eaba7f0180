-- Sets, states and outcomes are of the known words.
SELECT 'splits.set' AS what, study, scan AS item, set AS word FROM splits
WHERE set NOT IN ('train', 'test', 'new', 'buffer')
UNION ALL
SELECT 'predictions.set', study, scan, set FROM predictions WHERE set NOT IN ('train', 'validation', 'test', 'new')
UNION ALL
SELECT 'class_predictions.set', study, scan, set FROM class_predictions
WHERE set NOT IN ('train', 'validation', 'test', 'new', 'buffer')
UNION ALL
SELECT 'scans.status', study, scan, status FROM scans WHERE status NOT IN ('ok', 'failed', 'excluded')
UNION ALL
SELECT 'runs.outcome', study, item, outcome FROM runs WHERE outcome NOT IN ('ok', 'failed')
ORDER BY ALL
