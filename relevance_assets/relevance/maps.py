"""What is made of relevance maps as arrays: the combined map, and the numbers that describe a map.

Belongs here: functions of maps. Does not belong here: how maps come about, masks, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from relevance_assets.relevance.engine import Explanation

__all__ = ["account", "combined_map", "mean_explanation", "summary"]

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


def summary(relevance: Array, brain: NDArray[np.bool_]) -> dict[str, float | None]:
    """What table `relevance_maps` says of one map beside its account.

    Parameters
    ----------
    relevance, brain : (X, Y, Z)
        One map and the brain's voxels.

    Returns
    -------
    dict
        `total`, the map's sum; `share_outside_brain`, of the positive relevance; `share_positive`, of the absolute
        relevance. Shares are None where there is nothing to share.

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
    gained, size = float(positive.sum()), float(np.abs(relevance).sum())
    return {
        "total": float(relevance.sum()),
        "share_outside_brain": float(positive[~brain].sum()) / gained if gained else None,
        "share_positive": gained / size if size else None,
    }


def account(explanation: Explanation, index: int | None = None) -> dict[str, float]:
    """What went in, what came out, what rules are known to have lost, and what nobody accounts for.

    Parameters
    ----------
    explanation
        Of one scan.
    index
        The contrast, where each has its own start (attention); None for the whole explanation.

    Returns
    -------
    dict
        `start`; `total`, over voxels (and covariates, for the whole); `difference` = start - total; `lost`, the
        itemised part of it; `unexplained` = difference - lost, zero to rounding.
    """
    if index is None:
        start, lost = float(explanation.start.sum()), float(explanation.lost.sum())
        total = float(explanation.maps.sum() + explanation.covariates.sum())
    else:
        start, lost = float(explanation.start[index]), float(explanation.lost[index])
        total = float(explanation.maps[index].sum())
    difference = start - total
    return {
        "start": start,
        "total": total,
        "difference": difference,
        "lost": lost,
        "unexplained": difference - lost,
    }


def mean_explanation(explanations: Sequence[Explanation]) -> Explanation:
    """The mean over models of one scan's explanations; the account holds for it as for each."""
    first = explanations[0]
    weights = [e.attention for e in explanations if e.attention is not None]
    return replace(
        first,
        maps=np.mean([e.maps for e in explanations], axis=0),
        start=np.mean([e.start for e in explanations], axis=0),
        covariates=np.mean([e.covariates for e in explanations], axis=0),
        output=float(np.mean([e.output for e in explanations])),
        attention=np.mean(weights, axis=0) if weights else None,
        lost=np.mean([e.lost for e in explanations], axis=0),
        leaks={},
        clamped={},
    )
