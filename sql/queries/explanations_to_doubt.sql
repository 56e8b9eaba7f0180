-- Which sanity tests did an explanation not pass, and so should not be believed?
-- `note` says what was measured and against what; `failed` of `tests` counts all of the method's tests. No row: all
-- passed, or none was made (then table `sanity` is empty, too).
SELECT
    study, method, test,
    CASE WHEN value IS NULL OR passed IS NULL THEN 'could not be tested' ELSE 'failed' END AS verdict,
    value, threshold, n, note,
    count(*) FILTER (passed IS DISTINCT FROM true) OVER (PARTITION BY study, method) AS failed,
    count(*) OVER (PARTITION BY study, method) AS tests
FROM sanity
QUALIFY passed IS DISTINCT FROM true
ORDER BY study, failed DESC, method, verdict DESC, test
