-- What statistics of people with lesions are of: sizes, shares in percent and age bands, one row per person.
-- The filters stored with group_comparisons, correlations, regressions and descriptives are conditions on this view (those
-- of variant without_outliers: on its people who are not removed in outliers). Sex is 0 (F) or 1 (M), sizes are in `unit`.
-- Bands are the published ones: left-closed, none from 69 years on. Who has no lesion has 0 % in every zone, as published.
SELECT
    study, participant_id, age,
    CASE sex WHEN 'F' THEN 0 WHEN 'M' THEN 1 END AS sex,
    "group",
    intracranial AS intracranial_area,
    ventricle AS ventricle_area,
    lesion AS lesion_area,
    periventricular AS periventricular_area,
    paraventricular AS paraventricular_area,
    juxtacortical AS juxtacortical_area,
    100 * ventricle / (intracranial + 1e-10) AS ventricle_ratio,
    100 * lesion / (intracranial + 1e-10) AS lesion_ratio,
    100 * periventricular / (lesion + 1e-10) AS periventricular_ratio,
    100 * paraventricular / (lesion + 1e-10) AS paraventricular_ratio,
    100 * juxtacortical / (lesion + 1e-10) AS juxtacortical_ratio,
    CASE
        WHEN age < 18 OR age >= 69 THEN NULL
        WHEN age < 30 THEN '18-29'
        WHEN age < 40 THEN '30-39'
        WHEN age < 50 THEN '40-49'
        WHEN age < 60 THEN '50-59'
        WHEN age < 69 THEN '60+'
    END AS band,
    unit
FROM subjects
