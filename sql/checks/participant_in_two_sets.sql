-- All scans of a person are in one set and one fold.
SELECT study, participant_id, count(DISTINCT set || coalesce(fold, -1)::VARCHAR) AS sets
FROM splits
GROUP BY study, participant_id
HAVING count(DISTINCT set || coalesce(fold, -1)::VARCHAR) > 1
ORDER BY ALL
