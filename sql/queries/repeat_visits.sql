-- Do two visits of one person get similar predictions?
-- `spread` is the difference between two people's predictions that one would expect: median over all pairs.
WITH network AS (
    SELECT u.*, s.session, s.age
    FROM unseen_predictions AS u
    SEMI JOIN models AS m ON m.study = u.study AND m.model = u.model
    JOIN scans AS s USING (study, scan)
),
pairs AS (
    SELECT
        a.study, a.model, a.participant_id AS person_a, b.participant_id AS person_b, a.scan AS scan_a,
        b.scan AS scan_b, b.age - a.age AS years_between, b.output - a.output AS difference
    FROM network AS a
    JOIN network AS b ON a.study = b.study AND a.model = b.model AND a.scan < b.scan
),
strangers AS (
    SELECT study, model, median(abs(difference)) AS spread
    FROM pairs
    WHERE person_a <> person_b
    GROUP BY study, model
)
SELECT
    p.study, p.model, p.person_a AS participant_id, p.scan_a, p.scan_b, p.years_between, p.difference,
    s.spread, abs(p.difference) / nullif(s.spread, 0) AS of_spread
FROM pairs AS p
LEFT JOIN strangers AS s USING (study, model)
WHERE p.person_a = p.person_b
ORDER BY p.study, p.model, abs(p.difference) DESC, p.scan_a
