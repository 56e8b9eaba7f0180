-- Which regions are more often among the most relevant in severe than in mild scans, or less often?
-- `mild` and `severe`: share of people whose mask (of the first scan) holds a voxel, mean over the region's voxels.
-- `peak_difference`: the largest difference of any voxel, and where it lies (mm of the template). `p_corrected`: the
-- smallest p of a voxel of the region, corrected over the whole brain; without a small one a difference may be chance,
-- and without any nothing was tested (fewer than two people in a group). `people`: of both groups; `warped`: whose scan
-- was moved to the template along a warp; the others were taken to lie there already.
SELECT
    study, atlas, region,
    any_value(mean) FILTER ("group" = 'mild') AS mild,
    any_value(mean) FILTER ("group" = 'severe') AS severe,
    any_value(mean) FILTER ("group" = 'severe - mild') AS difference,
    any_value(peak) FILTER ("group" = 'severe - mild') AS peak_difference,
    any_value(peak_x_mm) FILTER ("group" = 'severe - mild') AS x_mm,
    any_value(peak_y_mm) FILTER ("group" = 'severe - mild') AS y_mm,
    any_value(peak_z_mm) FILTER ("group" = 'severe - mild') AS z_mm,
    any_value(p_corrected) FILTER ("group" = 'severe - mild') AS p_corrected,
    any_value(p_corrected) FILTER ("group" = 'severe - mild') < 0.05 AS significant,
    any_value(n) FILTER ("group" = 'severe - mild') AS people,
    any_value(n_warped) FILTER ("group" = 'severe - mild') AS warped
FROM region_frequencies
GROUP BY study, atlas, region
ORDER BY study, atlas, p_corrected NULLS LAST, abs(difference) DESC NULLS LAST, region
