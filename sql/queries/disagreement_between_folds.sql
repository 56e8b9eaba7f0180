-- Which scans do the folds' models explain differently? Worst first.
-- `spearman`: rank correlation of two models' maps inside the brain; `dice`: overlap of their top-40 % masks;
-- `dice_shifted`: the same with one mask shifted against the other. Means over pairs of folds and maps of a method,
-- then over methods. A Spearman near 0, or a Dice no larger than the shifted one: the explanation is the fold's, not
-- the scan's. `worst`: Spearman of the method that agrees least.
WITH of_method AS (
    SELECT
        study, scan, method,
        avg(spearman) AS spearman, avg(dice) AS dice, avg(dice_shifted) AS dice_shifted
    FROM fold_agreement
    GROUP BY study, scan, method
),
of_scan AS (
    SELECT
        study, scan,
        avg(spearman) AS spearman, avg(dice) AS dice, avg(dice_shifted) AS dice_shifted,
        arg_min(method, spearman) AS worst_method, min(spearman) AS worst
    FROM of_method
    GROUP BY study, scan
),
said AS (
    SELECT u.* FROM unseen_predictions AS u SEMI JOIN models AS m ON m.study = u.study AND m.model = u.model
)
SELECT
    o.study, o.scan, s.participant_id, s.edss, u.set, u.probability,
    (u.probability >= 0.5) = (u.target >= 0.5) AS correct,
    o.spearman, o.dice, o.dice_shifted, o.worst_method, o.worst
FROM of_scan AS o
LEFT JOIN scans AS s USING (study, scan)
LEFT JOIN said AS u USING (study, scan)
ORDER BY o.study, o.spearman NULLS LAST, o.dice NULLS LAST, o.scan
