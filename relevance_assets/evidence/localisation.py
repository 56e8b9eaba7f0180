"""How much of a map lies in a region, beside what chance would put there.

Belongs here: measures of one map against one region. Does not belong here: where regions come from, statistics
over scans.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["share_of_positive"]


def share_of_positive(
    relevance: NDArray[np.floating], region: NDArray[np.bool_], brain: NDArray[np.bool_]
) -> tuple[float | None, float | None]:
    """Share of the brain's positive relevance that lies in a region, and the region's share of the brain.

    Parameters
    ----------
    relevance, region, brain : one shape
        What of the region lies outside the brain does not count.

    Returns
    -------
    value, chance
        `value` is None where the brain has no positive relevance, `chance` where the brain is empty. A map that
        is even over the brain has value = chance.

    Raises
    ------
    ValueError
        If shapes differ or the map is not finite inside the brain.
    """
    if not relevance.shape == region.shape == brain.shape:
        raise ValueError(f"map {relevance.shape}, region {region.shape}, brain {brain.shape} differ in shape")
    inside = brain.astype(bool)
    if not np.isfinite(relevance[inside]).all():
        raise ValueError("relevance map holds NaN or infinite values inside the brain")
    within = inside & region.astype(bool)
    total = float(np.clip(relevance[inside].astype(np.float64), 0, None).sum())
    gained = float(np.clip(relevance[within].astype(np.float64), 0, None).sum())
    voxels = int(inside.sum())
    return (gained / total if total else None), (int(within.sum()) / voxels if voxels else None)
