-- Which held-out scans does the network get wrong, and how sure was it?
SELECT
    u.study, u.model, u.scan, u.set, s.edss, u.target, u.probability,
    abs(u.probability - 0.5) * 2 AS sureness
FROM unseen_predictions AS u
SEMI JOIN models AS m ON m.study = u.study AND m.model = u.model
LEFT JOIN scans AS s USING (study, scan)
WHERE u.probability IS NOT NULL AND (u.probability >= 0.5) <> (u.target >= 0.5)
ORDER BY sureness DESC, u.study, u.scan
