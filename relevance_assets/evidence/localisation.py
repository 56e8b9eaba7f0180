"""Whether a map lies in a region, beside what chance would put there.

Belongs here: measures of maps against regions of one scan. Does not belong here: where regions come from,
statistics over scans (`statistics/localisation.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from relevance_assets.evidence.inversion import voxel_ranks

__all__ = ["METRICS", "localise", "share_of_positive"]

METRICS = ("share_of_positive", "relevance_rank_accuracy", "iou", "pointing_game", "auc")


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


def localise(
    maps: Mapping[Any, NDArray[np.floating]],
    regions: Mapping[str, NDArray[np.bool_]],
    brain: NDArray[np.bool_],
    *,
    shifts: int,
    random: np.random.Generator,
) -> list[dict[str, Any]]:
    """How well each map finds each region, beside chance by shifted masks and by an even spread.

    Only brain voxels count. K is the region's size, 'top K' the K voxels with the largest signed relevance (of
    equal ones the lower flat index first, `inversion.voxel_ranks`).

    - share_of_positive: share of the positive relevance that lies in the region; relevance mass accuracy (Arras et
      al. 2022, Information Fusion 81:14).
    - relevance_rank_accuracy: share of the top K that lies in the region (ibid.).
    - iou: top K and region, intersection over union.
    - pointing_game: 1 if the largest voxel lies in the region, else 0 (Zhang et al. 2018, IJCV 126:1084, without
      their margin).
    - auc: of signed relevance, the region's voxels against the brain's others, ties count half (Mann-Whitney).

    Chance is the mean of the metric over random translations of the region: whole voxels, never the region itself,
    never around the edge of the grid, at least 90 % of its voxels still in the brain, those outside dropped (K is
    then smaller). All maps see the same ones. Unlike voxels drawn evenly, a shifted region keeps its shape, so that
    chance respects the smoothness of map and region, and that both lie away from the brain's edge. A small shift
    leaves an overlap with the region, which makes this chance a cautious one.

    Parameters
    ----------
    maps : key -> (X, Y, Z)
    regions : name -> (X, Y, Z)
    brain : (X, Y, Z)
    shifts
        How many different translations of each region; all of them where there are fewer.

    Returns
    -------
    One dict per map, region and metric, in this order: map (its key), region, metric, value, chance, chance_even.

    - value: None for an empty region or brain; share_of_positive also without positive relevance, auc where the region
      fills the brain, and the three that look at top voxels where the map has one value everywhere.
    - chance: None where the value is, or without any translation.
    - chance_even: what relevance spread evenly over the brain, or voxels drawn from it, would give: K / brain, for iou
      that of the overlap to be expected, for auc 0.5. None for an empty region or brain.

    Raises
    ------
    ValueError
        If shapes differ or a map is not finite inside the brain.
    """
    for name, region in regions.items():
        if region.shape != brain.shape:
            raise ValueError(f"region {name} {region.shape} and brain mask {brain.shape} differ in shape")
    brain = brain.astype(bool)
    ranked = {key: _ranked(relevance, brain) for key, relevance in maps.items()}
    placed = {name: _placed(region.astype(bool) & brain, brain, shifts, random) for name, region in regions.items()}
    voxels, rows = int(brain.sum()), []
    for key, one in ranked.items():
        for name, places in placed.items():
            measured = _measure(one, places) if len(places.sizes) else {}
            even = _even(int(places.sizes[0]), voxels) if len(places.sizes) else {}
            for metric in METRICS:
                values = measured.get(metric)
                rows.append(
                    {"map": key, "region": name, "metric": metric}
                    | {"value": None if values is None else float(values[0])}
                    | {"chance": None if values is None or len(values) < 2 else float(values[1:].mean())}
                    | {"chance_even": even.get(metric)}
                )
    return rows


class _Ranked(NamedTuple):
    """A map over the brain's voxels: its ranks from the top, mid-ranks from the bottom, and positive part."""

    ranks: NDArray[np.int32]
    midranks: NDArray[np.float64]
    positive: NDArray[np.float64]
    is_constant: bool


class _Places(NamedTuple):
    """A region and its translations, one after the other: numbers of brain voxels, and how many each has."""

    voxels: NDArray[np.intp]
    sizes: NDArray[np.intp]


def _ranked(relevance: NDArray[np.floating], brain: NDArray[np.bool_]) -> _Ranked:
    ranks = voxel_ranks(relevance, brain)
    values = relevance[brain].astype(np.float64)
    ordered = np.empty_like(values)
    ordered[ranks] = values
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(values)])
    ties = np.diff(first, append=len(values))
    midranks = (len(values) - np.repeat(first + (ties - 1) / 2, ties))[ranks]
    return _Ranked(ranks, midranks, np.clip(values, 0, None), len(first) < 2)


def _placed(region: NDArray[np.bool_], brain: NDArray[np.bool_], shifts: int, random: np.random.Generator) -> _Places:
    """The region first, then its translations; nothing of an empty one."""
    number = np.full(brain.shape, -1, dtype=np.intp)
    number[brain] = np.arange(int(brain.sum()))
    inside = np.argwhere(region)
    found = [number[region]] if len(inside) else []
    if len(inside) and shifts:
        moves = _translations(region, brain)
        if len(moves) > shifts:
            moves = moves[random.choice(len(moves), shifts, replace=False, shuffle=False)]
        for move in moves:
            moved = inside + move
            moved = moved[((moved >= 0) & (moved < brain.shape)).all(axis=1)]
            voxels = number[tuple(moved.T)]
            found.append(voxels[voxels >= 0])
    return _Places(np.concatenate([*found, np.empty(0, np.intp)]), np.array([len(one) for one in found], np.intp))


def _translations(region: NDArray[np.bool_], brain: NDArray[np.bool_]) -> NDArray[np.intp]:
    """All whole translations but none that keep at least 90 % of a region in the brain: (n, axes)."""
    from scipy.signal import fftconvolve

    region_low, small = _box(region)
    brain_low, large = _box(brain)
    # how much stays, for every translation at once: the cross-correlation of the two
    stays = np.rint(fftconvolve(large.astype(np.float64), np.flip(small).astype(np.float64)))
    none = np.array(small.shape) - 1 + region_low - brain_low
    stays[tuple(none)] = 0
    return np.argwhere(10 * stays >= 9 * small.sum()) - none


def _box(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The lowest corner of what a mask holds, and the mask cut to it."""
    at = np.argwhere(mask)
    low, high = at.min(axis=0), at.max(axis=0) + 1
    return low, mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]


def _measure(one: _Ranked, places: _Places) -> dict[str, NDArray[np.float64]]:
    """Each metric that is defined: of the region, then of its translations."""
    voxels, sizes = places
    starts = np.cumsum(sizes) - sizes
    found = {}
    if total := one.positive.sum():
        found["share_of_positive"] = np.add.reduceat(one.positive[voxels], starts) / total
    if not one.is_constant:
        ranks = one.ranks[voxels]
        hits = np.add.reduceat((ranks < np.repeat(sizes, sizes)).astype(np.int64), starts)
        found["relevance_rank_accuracy"] = hits / sizes
        found["iou"] = hits / (2 * sizes - hits)
        found["pointing_game"] = (np.minimum.reduceat(ranks, starts) == 0).astype(np.float64)
    others = len(one.ranks) - sizes
    if others.all():
        above = np.add.reduceat(one.midranks[voxels], starts) - sizes * (sizes + 1) / 2
        found["auc"] = above / (sizes * others)
    return found


def _even(size: int, voxels: int) -> dict[str, float]:
    """Each metric's value for chance without space."""
    share = size / voxels
    return dict.fromkeys(METRICS, share) | {"iou": share / (2 - share), "auc": 0.5}
