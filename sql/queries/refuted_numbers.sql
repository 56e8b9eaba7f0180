-- Which printed numbers does the study's own data not bear out, and which cannot stand beside another of them?
-- `note` says what contradicts it, or which other recipe comes closest.
SELECT study, measure, published, ours, ours / nullif(published, 0) AS ratio, n, verdict, note
FROM published_comparison
WHERE comparable AND verdict IN ('contradicts itself', 'not reproducible', 'differs')
ORDER BY study, verdict, measure
