-- What does the ensemble say of scans that came after the split, and how sure is it?
-- `output` is the mean over the folds' models, which were trained without the scan. `sureness` goes from 0 (a toss-up)
-- to 1. `lowest` and `highest` are the models' outputs: of a binary target their signs should agree.
WITH folds AS (
    SELECT p.study, p.scan, count(*) AS models, min(p.output) AS lowest, max(p.output) AS highest
    FROM predictions AS p
    SEMI JOIN models AS m ON m.study = p.study AND m.model = p.model
    WHERE p.fold <> 'ensemble'
    GROUP BY p.study, p.scan
),
said AS (
    SELECT u.* FROM unseen_predictions AS u SEMI JOIN models AS m ON m.study = u.study AND m.model = u.model
)
SELECT
    p.study, p.scan, p.participant_id, s.age, s.edss, u.target, u.output, u.probability,
    abs(u.probability - 0.5) * 2 AS sureness,
    f.lowest, f.highest, coalesce(f.models, 0) AS models
FROM splits AS p
LEFT JOIN scans AS s USING (study, scan)
LEFT JOIN said AS u USING (study, scan)
LEFT JOIN folds AS f USING (study, scan)
WHERE p.set = 'new'
ORDER BY p.study, sureness DESC NULLS LAST, p.scan
