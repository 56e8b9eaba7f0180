-- Which sanity tests did an explanation not pass, and so should not be believed?
-- `note` says what was measured and against what; `passes_if`, on which side of the threshold (below, above) a value
-- passes. `failed` and `not_tested` of `tests` count all of the method's tests. No row: all passed, or none was made
-- (then table `sanity` is empty, too).
SELECT
    study, method, test,
    CASE WHEN passed IS NULL THEN 'could not be tested' ELSE 'failed' END AS verdict,
    value, passes_if, threshold, n, note,
    count(*) FILTER (NOT passed) OVER (PARTITION BY study, method) AS failed,
    count(*) FILTER (passed IS NULL) OVER (PARTITION BY study, method) AS not_tested,
    count(*) OVER (PARTITION BY study, method) AS tests
FROM sanity
QUALIFY passed IS DISTINCT FROM true
ORDER BY study, failed DESC, method, verdict DESC, test
