"""What is made of relevance maps as arrays: the combined map, and the numbers that describe a map.

Belongs here: functions of maps. Does not belong here: how maps come about, masks, files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relevance_assets.relevance.engine import Explanation

__all__ = ["combined_map", "path_starts", "summary"]

Array = NDArray[np.floating]


def combined_map(maps: Array, images: Array) -> NDArray[np.float64]:
    """sum_l R_l * q_l, signed (Lu et al. 2023, equation 8); 0 wherever all contrasts are 0.

    Parameters
    ----------
    maps, images : (C, X, Y, Z)
        Relevance, and the scaled images it explains.

    Raises
    ------
    ValueError
        If their shapes differ.
    """
    if maps.shape != images.shape or maps.ndim != 4:
        raise ValueError(f"maps {maps.shape} and images {images.shape} must both be (contrast, x, y, z)")
    return np.einsum("cxyz,cxyz->xyz", maps.astype(np.float64), images.astype(np.float64))


def path_starts(explanation: Explanation) -> tuple[float | None, ...]:
    """Relevance put into each contrast's own path, (C,).

    Attention weights; for one contrast and start = output, f(x) less what the covariates hold; None where
    several contrasts share one start.
    """
    contrasts = len(explanation.maps)
    if contrasts == len(explanation.start) == 1:
        return (float(explanation.start[0] - explanation.covariates.sum()),)
    if contrasts == len(explanation.start):
        return tuple(float(value) for value in explanation.start)
    return (None,) * contrasts


def summary(relevance: Array, brain: NDArray[np.bool_], start: float | None = None) -> dict[str, float | None]:
    """What table `relevance_maps` says of one map.

    Parameters
    ----------
    relevance, brain : (X, Y, Z)
        One map and the brain's voxels.
    start
        Relevance put into it; None for a map that has no start of its own, as the combined map.

    Returns
    -------
    dict
        `start`; `total`, the map's sum; `unexplained`, start - total; `share_outside_brain`, of the positive
        relevance; `share_positive`, of the absolute relevance. None where undefined.

    Raises
    ------
    ValueError
        If shapes differ or the map is not finite.
    """
    if relevance.shape != brain.shape:
        raise ValueError(f"map {relevance.shape} and brain mask {brain.shape} differ in shape")
    if not np.isfinite(relevance).all():
        raise ValueError("relevance map holds NaN or infinite values")
    relevance = relevance.astype(np.float64)
    positive = np.clip(relevance, 0, None)
    gained, size, total = float(positive.sum()), float(np.abs(relevance).sum()), float(relevance.sum())
    return {
        "start": start,
        "total": total,
        "unexplained": None if start is None else start - total,
        "share_outside_brain": float(positive[~brain].sum()) / gained if gained else None,
        "share_positive": gained / size if size else None,
    }
