"""How well a segmentation agrees with the truth: per scan, in millimetres and by lesion; and pooled as published.

Belongs here: measures of labels against labels. Does not belong here: statistics over scans.

A measure without a value is null. Where neither mask has a voxel, overlap is 0 / 0: null and not 1, for a mean over
scans must not gain from scans in which there was nothing to find; that nothing was found there shows in
`volume_difference_mm3`, which is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy import ndimage

from relevance_assets.segmentation.postprocess import structure

__all__ = ["CLASSES", "METRICS", "pooled", "pooled_counts", "scan_metrics"]

CLASSES = {1: "ventricle", 2: "wmh"}
METRICS = (
    "dice",
    "iou",
    "precision",
    "recall",
    "hd95_mm",
    "assd_mm",
    "volume_difference_mm3",
    "volume_difference_relative",
    "lesion_precision",
    "lesion_recall",
    "lesion_f1",
)
PUBLISHED_PIXEL_MM = 0.5
SMOOTH = 1e-6
SCHEMA = {"class": pl.String, "metric": pl.String, "value": pl.Float64}
COUNTS = {
    "class": pl.String,
    **dict.fromkeys(("both", "predicted", "true", "slices"), pl.Int64),
    "distance_pixels": pl.Float64,
}


def scan_metrics(
    predicted: np.ndarray,
    truth: np.ndarray,
    voxel_size_mm: Sequence[float],
    *,
    classes: Mapping[int, str] = CLASSES,
    connectivity: int = 26,
    least_iou: float | None = None,
) -> pl.DataFrame:
    """Agreement of one scan's labels with the truth, class by class.

    - dice, iou, precision, recall: of voxels. Null where the denominator is 0.
    - hd95_mm: the larger of the two directed 95th percentiles (linear) of distances from boundary voxels of one mask to
      those of the other. assd_mm: the mean over both directions' distances together. Boundary: voxels of the mask with
      a face outside it, or at the grid's edge. Distances are between voxel centres. Null where a mask is empty.
    - volume_difference_mm3: predicted - true; volume_difference_relative: that / true, null where the truth is empty.
    - lesion_precision: share of predicted components that meet a true one; lesion_recall: share of true components that
      meet a predicted one; lesion_f1: their harmonic mean, 0 where one side alone has components or none meet.

    Parameters
    ----------
    predicted, truth : (x, y, z)
        Labels on one grid.
    voxel_size_mm : (3,)
    classes
        Names of the labels that are measured.
    connectivity
        Of components: 6, 18 or 26.
    least_iou
        Two components meet where they share one voxel (None), or where their intersection over union is at least this.

    Returns
    -------
    polars.DataFrame
        class, metric, value: one row per class and metric of `METRICS`.

    Raises
    ------
    ValueError
        If shapes or voxel sizes do not fit.
    """
    size = np.asarray(voxel_size_mm, dtype=np.float64)
    if predicted.shape != truth.shape or predicted.ndim != 3 or size.shape != (3,) or not (size > 0).all():
        raise ValueError(
            f"labels {predicted.shape} and {truth.shape} with voxels of {size.tolist()} mm: two volumes of one shape "
            "and three positive sizes are needed; resample one of them"
        )
    rows = []
    for label, name in classes.items():
        a, b = predicted == label, truth == label
        values = _overlap(a, b) | _distances(a, b, size) | _volumes(a, b, float(size.prod()))
        values |= _lesions(a, b, connectivity, least_iou)
        rows += [{"class": name, "metric": metric, "value": values[metric]} for metric in METRICS]
    return pl.DataFrame(rows, schema=SCHEMA)


def pooled_counts(predicted: np.ndarray, truth: np.ndarray, *, classes: Mapping[int, str] = CLASSES) -> pl.DataFrame:
    """What one scan brings to `pooled`.

    Parameters
    ----------
    predicted, truth : (x, y, z)
        Labels, slices along z.
    classes

    Returns
    -------
    polars.DataFrame
        class, both, predicted, true (pixels), slices (in which both masks have the class, or neither), distance_pixels
        (sum over these of the 95th percentile of boundary distances, 0 where neither has it). Class "all": pixels
        labelled alike, and all pixels.
    """
    rows = []
    for label, name in classes.items():
        a, b = predicted == label, truth == label
        found = [value for z in range(a.shape[2]) if (value := _slice_hd95(a[:, :, z], b[:, :, z])) is not None]
        rows.append((name, int((a & b).sum()), int(a.sum()), int(b.sum()), len(found), float(sum(found))))
    rows.append(("all", int((predicted == truth).sum()), truth.size, truth.size, 0, 0.0))
    return pl.DataFrame(rows, schema=COUNTS, orient="row")


def pooled(counts: pl.DataFrame, *, pixel_mm: float = PUBLISHED_PIXEL_MM) -> pl.DataFrame:
    """MS-DeepBrain-Study's form: counts pooled over all pixels of all slices, so that large scans count most.

    Each metric is (count + 1e-6) / (count + 1e-6); IoU is D / (2 - D). HD95 per slice is the 95th percentile of both
    directions' boundary distances together, times a fixed pixel size whatever the scan's is. Its mean is over slices;
    those where one mask is empty are left out, those where both are count as 0. Accuracy (class "all") is over all
    pixels, dice and iou of class "all" are means over classes.

    Parameters
    ----------
    counts
        Rows of `pooled_counts` of all scans.
    pixel_mm
        0.5 as published.

    Returns
    -------
    polars.DataFrame
        class, metric, value. hd95_mm is null where no slice is left.
    """
    summed = counts.group_by("class", maintain_order=True).agg(pl.col(name).sum() for name in COUNTS if name != "class")
    rows: list[dict[str, Any]] = []
    for row in summed.filter(pl.col("class") != "all").iter_rows(named=True):
        dice = (2 * row["both"] + SMOOTH) / (row["predicted"] + row["true"] + SMOOTH)
        values = {
            "dice": dice,
            "iou": dice / (2 - dice),
            "precision": (row["both"] + SMOOTH) / (row["predicted"] + SMOOTH),
            "recall": (row["both"] + SMOOTH) / (row["true"] + SMOOTH),
            "hd95_mm": pixel_mm * row["distance_pixels"] / row["slices"] if row["slices"] else None,
        }
        rows += [{"class": row["class"], "metric": metric, "value": value} for metric, value in values.items()]
    if not rows:
        raise ValueError("pooled: no scans; give the counts of at least one")
    every = summed.row(by_predicate=pl.col("class") == "all", named=True)
    for metric in ("dice", "iou"):
        mean = float(np.mean([row["value"] for row in rows if row["metric"] == metric]))
        rows.append({"class": "all", "metric": metric, "value": mean})
    rows.append({"class": "all", "metric": "accuracy", "value": every["both"] / every["true"]})
    return pl.DataFrame(rows, schema=SCHEMA)


def _overlap(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    both, either, n_a, n_b = (int(part.sum()) for part in (a & b, a | b, a, b))
    return {
        "dice": _ratio(2 * both, n_a + n_b),
        "iou": _ratio(both, either),
        "precision": _ratio(both, n_a),
        "recall": _ratio(both, n_b),
    }


def _volumes(a: np.ndarray, b: np.ndarray, voxel_mm3: float) -> dict[str, float | None]:
    difference = int(a.sum()) - int(b.sum())
    return {
        "volume_difference_mm3": difference * voxel_mm3,
        "volume_difference_relative": _ratio(difference, int(b.sum())),
    }


def _distances(a: np.ndarray, b: np.ndarray, size: np.ndarray) -> dict[str, float | None]:
    if not (a.any() and b.any()):
        return {"hd95_mm": None, "assd_mm": None}
    there, back = _surface_distances(a, b, size)
    return {
        "hd95_mm": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "assd_mm": float(np.concatenate([there, back]).mean()),
    }


def _surface_distances(a: np.ndarray, b: np.ndarray, size: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """From each boundary voxel of one non-empty mask to the nearest of the other's, in both directions."""
    edges = []
    for mask in (a, b):
        inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1), border_value=0)
        edges.append(mask & ~inner)
    box = ndimage.find_objects((edges[0] | edges[1]).astype(np.uint8))[0]  # all boundaries lie in it
    one, other = (edge[box] for edge in edges)
    to_one, to_other = (ndimage.distance_transform_edt(~edge, sampling=size) for edge in (one, other))
    return to_other[one], to_one[other]


def _slice_hd95(a: np.ndarray, b: np.ndarray) -> float | None:
    if not (a.any() or b.any()):
        return 0.0
    if not (a.any() and b.any()):
        return None
    return float(np.percentile(np.concatenate(_surface_distances(a, b, None)), 95))


def _lesions(a: np.ndarray, b: np.ndarray, connectivity: int, least_iou: float | None) -> dict[str, float | None]:
    (found_a, n_a), (found_b, n_b) = (ndimage.label(mask, structure(connectivity)) for mask in (a, b))
    sizes_a, sizes_b = (np.bincount(found.ravel(), minlength=n + 1) for found, n in ((found_a, n_a), (found_b, n_b)))
    shared = a & b
    pairs, both = np.unique(np.stack([found_a[shared], found_b[shared]]), axis=1, return_counts=True)
    iou = both / (sizes_a[pairs[0]] + sizes_b[pairs[1]] - both)
    pairs = pairs[:, iou >= (least_iou or 0)]
    precision, recall = _ratio(len(set(pairs[0])), n_a), _ratio(len(set(pairs[1])), n_b)
    together = (precision or 0) + (recall or 0)
    f1 = None if n_a == n_b == 0 else 2 * (precision or 0) * (recall or 0) / together if together else 0.0
    return {"lesion_precision": precision, "lesion_recall": recall, "lesion_f1": f1}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
