-- In which scans does it depend on the rule which zone the lesions are in?
-- `difference` is between the greatest and the least share of lesion volume that the rules give a zone. Scans without
-- a lesion have no shares and are left out.
WITH spread AS (
    SELECT
        study, scan, source, zone,
        min(share) AS least, arg_min(rule, share) AS least_rule,
        max(share) AS greatest, arg_max(rule, share) AS greatest_rule,
        count(DISTINCT rule) AS rules
    FROM lesion_burden
    WHERE zone <> 'all' AND share IS NOT NULL
    GROUP BY study, scan, source, zone
)
SELECT study, scan, source, zone, greatest - least AS difference, least, least_rule, greatest, greatest_rule
FROM spread
WHERE rules > 1
ORDER BY difference DESC, study, scan, source, zone
