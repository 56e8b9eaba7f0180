-- One row per scan: who, whether it is used and why not, its set and fold, its brain, what is predicted.
WITH brain AS (
    SELECT
        study, scan,
        any_value(brain_volume_mm3) / 1000 AS brain_volume_ml,
        max(share_clipped) AS share_clipped
    FROM volumes
    GROUP BY study, scan
),
predicted AS (
    SELECT u.study, u.scan, u.output, u.probability
    FROM unseen_predictions AS u
    SEMI JOIN models AS m ON m.study = u.study AND m.model = u.model
)
SELECT
    s.study, s.scan, s.participant_id, s.session, s.age, s.sex, s."group", s.edss, s.target, s.status,
    s.reason, p.set, p.fold, b.brain_volume_ml, b.share_clipped, predicted.output, predicted.probability
FROM scans AS s
LEFT JOIN splits AS p USING (study, scan)
LEFT JOIN brain AS b USING (study, scan)
LEFT JOIN predicted USING (study, scan)
