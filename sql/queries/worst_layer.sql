-- Which layer of which study's networks loses the most relevance, to what, and is every loss accounted for?
WITH layers AS (
    SELECT
        study, method, layer,
        any_value(kind) AS kind,
        any_value(rule) AS rule,
        count(*) AS maps,
        -- against what was put in, and not what arrives here: that is what the map's reader loses
        median(abs(bias) / nullif(abs(start), 0)) AS bias,
        median(abs(stabiliser) / nullif(abs(start), 0)) AS stabiliser,
        median(abs(dead) / nullif(abs(start), 0)) AS dead,
        median(abs(clamped) / nullif(abs(start), 0)) AS clamped,
        median(abs(relevance_in - relevance_out) / nullif(abs(start), 0)) AS lost,
        max(abs(unexplained) / nullif(abs(start), 0)) AS greatest_unexplained
    FROM relevance_ledger
    JOIN (
        SELECT study, method, fold, scan, coalesce(max(start) FILTER (contrast = 'all'), sum(start)) AS start
        FROM relevance_maps
        GROUP BY study, method, fold, scan
    ) USING (study, method, fold, scan)
    GROUP BY study, method, layer
)

SELECT
    study, method, layer, kind, rule, maps,
    lost AS median_share_lost, bias, stabiliser, dead, clamped, greatest_unexplained
FROM layers
QUALIFY row_number() OVER (PARTITION BY study, method ORDER BY lost DESC NULLS LAST, layer) <= 3
ORDER BY study, method, median_share_lost DESC NULLS LAST, layer
