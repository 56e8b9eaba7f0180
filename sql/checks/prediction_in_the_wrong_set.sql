-- A prediction's set agrees with the split: test scans are test, new scans new, a scan validates its own fold only.
SELECT p.study, p.model, p.fold, p.scan, p.set, s.set AS split_set, s.fold AS validated_in
FROM predictions AS p
JOIN splits AS s USING (study, scan)
WHERE p.set <> CASE
    WHEN s.set IN ('test', 'new') THEN s.set
    WHEN p.fold = s.fold::VARCHAR THEN 'validation'
    WHEN p.fold = 'ensemble' THEN p.set
    ELSE 'train'
END
ORDER BY ALL
