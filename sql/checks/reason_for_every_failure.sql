-- A scan that is not used says why.
SELECT study, scan, status FROM scans WHERE status <> 'ok' AND reason IS NULL
ORDER BY ALL
