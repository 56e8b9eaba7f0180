-- All scans of a person are in one set and one fold, but those that are in no set and those of a split that leaks by wish.
SELECT study, participant_id, count(DISTINCT set || coalesce(fold, -1)::VARCHAR) AS sets
FROM splits
WHERE set <> 'buffer' AND NOT coalesce(leaking, false)
GROUP BY study, participant_id
HAVING count(DISTINCT set || coalesce(fold, -1)::VARCHAR) > 1
ORDER BY ALL
