-- Which published numbers were found again, which not, and where does the publication contradict itself?
-- Comparable ones first: synthetic people are not of the published kind, and their values prove nothing either way.
-- `note` says where the number is published and what contradicts it.
SELECT study, measure, published, ours, ours - published AS difference, unit, n, n_published, verdict, comparable, note
FROM published_comparison
ORDER BY
    comparable DESC, study,
    CASE verdict WHEN 'differs' THEN 0 WHEN 'contradicts itself' THEN 1 WHEN 'rounds to' THEN 2 ELSE 3 END, measure
