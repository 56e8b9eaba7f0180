-- Every predicted scan is a scan of the cohort that is in use.
SELECT p.study, p.model, p.fold, p.scan, s.status
FROM predictions AS p
LEFT JOIN scans AS s USING (study, scan)
WHERE s.status IS DISTINCT FROM 'ok'
ORDER BY ALL
