-- What do the models say of scans that came after they were trained?
SELECT
    p.study, p.scan, s.age, s.edss, p.target,
    p.output AS mean_output, p.probability,
    strftime(r.started, '%Y-%m-%d %H:%M') AS predicted_at
FROM unseen_predictions AS p
JOIN scans AS s USING (study, scan)
LEFT JOIN runs AS r ON r.study = p.study AND r.asset = 'predictions' AND r.item = p.scan
WHERE p.set = 'new'
ORDER BY r.started DESC, p.study, p.scan
