-- Every scan that is in a set is a scan of the cohort that is in use, of the same person.
SELECT p.study, p.scan, p.participant_id, s.participant_id AS cohort_says, s.status
FROM splits AS p
LEFT JOIN scans AS s USING (study, scan)
WHERE s.status IS DISTINCT FROM 'ok' OR s.participant_id <> p.participant_id
ORDER BY ALL
