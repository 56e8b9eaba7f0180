"""The top N % of a relevance map's positive voxels, and what the images hold there.

Belongs here: masks made of one map, measures inside a mask. Does not belong here: comparisons of masks with
regions (`localisation.py`), statistics over scans.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["mask_measures", "quantile_mask"]

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def quantile_mask(relevance: Array, brain: Mask, top_percent: float) -> tuple[Mask, float | None]:
    """Positive brain voxels of at least the (100 - N)-th percentile of themselves, by linear interpolation.

    P = {v in the brain: map > 0}, t = quantile of map[P] at 1 - N/100, mask = {v in P: map >= t}. Voxels that tie
    with t all belong to it, so it may be larger than N %; N = 100 gives P.

    Parameters
    ----------
    relevance, brain : one shape
        A signed map and the brain's voxels.
    top_percent
        N, in (0, 100].

    Returns
    -------
    mask, threshold
        The threshold is None, and the mask empty, where no brain voxel is positive.

    Raises
    ------
    ValueError
        If shapes differ, the map is not finite inside the brain, or N is out of range.

    Examples
    --------
    >>> values = np.arange(1.0, 11.0)
    >>> mask, threshold = quantile_mask(values, np.ones(10, bool), 40)
    >>> threshold, values[mask].tolist()
    (6.4, [7.0, 8.0, 9.0, 10.0])
    """
    if not 0 < top_percent <= 100:
        raise ValueError(f"top_percent must be above 0 and at most 100, not {top_percent}")
    if relevance.shape != brain.shape:
        raise ValueError(f"map {relevance.shape} and brain mask {brain.shape} differ in shape")
    inside, relevance = brain.astype(bool), relevance.astype(np.float64)
    if not np.isfinite(relevance[inside]).all():
        raise ValueError("relevance map holds NaN or infinite values inside the brain")
    positive = inside & (relevance > 0)
    values = np.sort(relevance[positive])
    if not len(values):
        return positive, None
    # the rank as one division of whole numbers, so that it is whole where it should be; numpy's
    # (n - 1) * (1 - N / 100) may fall just above, and the voxel of that rank would be left out
    rank = (len(values) - 1) * (100 - top_percent) / 100
    low = int(rank)
    high = min(low + 1, len(values) - 1)
    threshold = float(values[low] + (values[high] - values[low]) * (rank - low))
    return positive & (relevance >= threshold), threshold


def mask_measures(images: Array, mask: Mask) -> list[tuple[float | None, float | None]]:
    """Mean and median of each image inside a mask; (None, None) for an empty mask.

    Parameters
    ----------
    images : (C, X, Y, Z)
    mask : (X, Y, Z)

    Raises
    ------
    ValueError
        If shapes differ or an image is not finite inside the mask.
    """
    if images.shape[1:] != mask.shape:
        raise ValueError(f"images {images.shape} and mask {mask.shape} do not fit together")
    values = images[:, mask.astype(bool)].astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("images hold NaN or infinite values inside the mask")
    if not values.shape[1]:
        return [(None, None)] * len(images)
    return [(float(row.mean()), float(np.median(row))) for row in values]
