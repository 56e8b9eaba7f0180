-- Which scans failed or were left out, and why? Failures first.
SELECT study, scan, 'cohort' AS stage, status AS outcome, reason FROM scans WHERE status <> 'ok'
UNION ALL
SELECT study, item, asset, outcome, reason FROM runs WHERE outcome = 'failed'
ORDER BY study, outcome DESC, scan, stage
