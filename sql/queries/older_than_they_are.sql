-- Who looks much older than they are? (age-bias-corrected gap, held-out people first)
SELECT
    g.study, g.scan, s.sex, g.age, g.predicted_age, g.gap_years, g.corrected_gap_years, g.set,
    percent_rank() OVER (PARTITION BY g.study ORDER BY g.corrected_gap_years) AS rank_in_study
FROM brain_age_gap AS g
LEFT JOIN scans AS s USING (study, scan)
WHERE g.corrected_gap_years IS NOT NULL
ORDER BY g.study, g.corrected_gap_years DESC, g.scan
LIMIT 20
