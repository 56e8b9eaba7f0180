"""How well maps find a mask of truth, by the published quantile mask and by themselves, beside chance and ceiling.

Belongs here: measures of the maps of one image against one mask over the whole image, and what chance and the sizes
alone make of each. Does not belong here: means over images (`statistics/rule_selection.py`), regions within a brain
and chance by shifts (`localisation.py`), masks of positive voxels only (`masks.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

__all__ = ["MAP_SCORES", "MASK_SCORES", "QUANTILE", "expected_iou", "mask_overlap", "published_mask", "score_maps"]

MASK_SCORES = ("iou", "dice", "precision", "recall", "accuracy", "f1")
MAP_SCORES = ("relevance_mass_accuracy", "relevance_rank_accuracy", "pointing_game", "auc")
QUANTILE = 0.95  # as published
SCHEMA = {
    "map": pl.Int64,
    "score": pl.String,
    **dict.fromkeys(("quantile", "value", "chance", "ceiling", "normalised"), pl.Float64),
    **dict.fromkeys(("mask_pixels", "truth_pixels", "pixels"), pl.Int64),
}

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def published_mask(relevance: Array, quantile: float = QUANTILE) -> Mask:
    """The pixels strictly above a quantile of the map without its negative part, over all pixels.

    t = quantile of max(map, 0), zeros included, by linear interpolation; mask = map > max(t, 0). Pixels that tie with
    t are left out. Where fewer pixels are positive than asked for, t is 0 and the mask all of them; a map without
    positive relevance has an empty one. (LRP-model-investigation, main.ipynb.)

    Parameters
    ----------
    relevance : any shape
        A signed map.
    quantile
        In (0, 1): 0.95 leaves at most 5 % of the pixels, but for rounding.

    Raises
    ------
    ValueError
        If the map is empty or not finite, or the quantile out of range.

    Examples
    --------
    >>> published_mask(np.array([4.0, 3.0, 2.0, 1.0, -5.0]), 0.5).tolist()
    [True, True, False, False, False]
    """
    clipped = _sound(relevance, 0, (quantile,)).astype(np.float64).clip(0)
    threshold = _thresholds(np.sort(clipped, axis=None), (quantile,))[0]
    return clipped > threshold


def mask_overlap(hits: ArrayLike, mask: ArrayLike, truth: int, pixels: int) -> dict[str, NDArray[np.float64]]:
    """The overlap scores of masks by their counts of pixels, with the published guards: 0 / 0 is 0.

    With h hits, p pixels in the mask, t in the truth, n in the image: iou = h / (p + t - h), dice = 2 h / (p + t),
    precision = h / p, recall = h / t, accuracy = (n - p - t + 2 h) / n, f1 = 2 precision recall / (precision +
    recall), which is dice. All but iou are linear in h, so that they give their own expectation from that of h.

    Parameters
    ----------
    hits, mask : one shape
        How many pixels of each mask are in the truth, and in the mask.
    truth, pixels
        In the truth; in the image.

    Returns
    -------
    score of `MASK_SCORES` -> array of that shape
    """
    h, p = np.asarray(hits, np.float64), np.asarray(mask, np.float64)
    dice = _ratio(2 * h, p + truth)
    return {
        "iou": _ratio(h, p + truth - h),
        "dice": dice,
        "precision": _ratio(h, p),
        "recall": _ratio(h, np.full_like(p, truth)),
        "accuracy": (pixels - p - truth + 2 * h) / pixels,
        "f1": dice,
    }


@lru_cache(maxsize=1 << 16)
def expected_iou(mask: int, truth: int, pixels: int) -> float:
    """Mean IoU of a mask of so many pixels drawn evenly from the image with a truth of so many: 0 where both are empty.

    Sum over h of P(h) h / (mask + truth - h), h hypergeometric. Counts further than 5 sqrt(min(mask, truth)) from the
    mean are left out: their probability together is below 2 exp(-50) (Hoeffding 1963, JASA 58:13, which also holds
    for draws without replacement). The score at the mean h is close, and smaller (convex in h).

    Raises
    ------
    ValueError
        A count is negative or larger than the image.
    """
    if not (0 <= mask <= pixels and 0 <= truth <= pixels):
        raise ValueError(f"mask of {mask} and truth of {truth} pixels: both must be from 0 to the image's {pixels}")
    small, mean = min(mask, truth), mask * truth / pixels
    if not small:
        return 0.0
    reach = 5 * np.sqrt(small) + 1
    low, high = max(0, mask + truth - pixels, int(mean - reach)), min(small, int(mean + reach) + 1)
    h = np.arange(low, high + 1)
    log = _log_factorials(pixels)
    chances = -(log[h] + log[truth - h] + log[mask - h] + log[pixels - truth - mask + h])
    chances = np.exp(chances - chances.max())
    return float(chances @ (h / (mask + truth - h)) / chances.sum())


def score_maps(
    maps: Iterable[Array],
    truth: Mask,
    *,
    quantiles: Sequence[float] = (QUANTILE,),
    tolerance: float = 0.0,
    auc: bool = True,
) -> pl.DataFrame:
    """Every score of each map of one image, beside its chance level and its ceiling.

    Of `published_mask`, for each quantile: the scores of `mask_overlap`. Chance is the exact expectation for a mask of
    the same number of pixels drawn evenly from the image (`expected_iou`; the others put the mean number of hits,
    p t / n, into their formula). The ceiling is the score with min(p, t) hits: for iou min(p, t) / max(p, t). An empty
    mask scores as the guards say and stays in any mean: a map that says nothing must not gain by it. With an empty
    truth they say 0 too, though nothing could be found: leave such images (truth_pixels 0) out of means.

    Of the map itself, with n pixels, t of them in the truth; null where the truth is empty:

    - relevance_mass_accuracy: share of the positive relevance that lies in the truth (Arras et al. 2022, Information
      Fusion 81:14; `localisation.share_of_positive`). Null without positive relevance. Chance t / n, a flat map's.
    - relevance_rank_accuracy: share in the truth of the t pixels with the largest signed relevance (ibid.). Pixels that
      tie for the last places count by their mean, the expectation over any order of them. Chance t / n.
    - pointing_game: 1 if the largest pixel lies within `tolerance` of the truth, else 0 (Zhang et al. 2018, IJCV
      126:1084); of equally large ones the share that does. Chance: the widened truth's share of the image.
    - auc: of signed relevance, pixels of the truth against the others, ties count half. Null where the truth fills the
      image. Chance 0.5.

    Their ceiling is 1, and their chance that of the same values spread over the image at random. A constant map has
    value = chance in the last three.

    Parameters
    ----------
    maps : (m, x, y), or any iterable of (x, y)
        Signed maps of one image.
    truth : (x, y) bool
    quantiles
        Each in (0, 1).
    tolerance
        Of the pointing game; pixels, from centre to centre.
    auc
        Without it, about half the time: the area alone needs all of the map in order.

    Returns
    -------
    polars.DataFrame
        map (place in `maps`), score, quantile (null for those of the map), value, chance, ceiling, normalised ((value -
        chance) / (ceiling - chance); null where the sizes leave no room between the two), mask_pixels (null for those
        of the map), truth_pixels, pixels.

    Raises
    ------
    ValueError
        If a map is not finite or not of the truth's shape, the truth is empty of pixels, a quantile is out of range, or
        the tolerance negative.
    """
    target = _target(truth, tolerance)
    found = [_measure(_sound(one, k, quantiles, truth.shape), target, quantiles, auc) for k, one in enumerate(maps)]
    if not found:
        return pl.DataFrame(schema=SCHEMA)
    sizes, hits, of_map = (np.array([one[part] for one in found]) for part in range(3))
    frames = [_mask_rows(sizes, hits, target, quantiles)]
    for number, score in enumerate(MAP_SCORES if auc else MAP_SCORES[:-1]):
        chance = 0.5 if score == "auc" else (target.near if score == "pointing_game" else target.truth) / target.pixels
        known = 0 < target.truth < (target.pixels if score == "auc" else target.pixels + 1)
        values = of_map[:, number] if known else np.full(len(found), np.nan)
        frames.append(_rows(score, values, np.full(len(found), chance if known else np.nan), np.ones(len(found))))
    return (
        pl.concat(frames, how="diagonal")
        .with_columns(truth_pixels=pl.lit(target.truth), pixels=pl.lit(target.pixels))
        .with_columns(ceiling=pl.when(pl.col("chance").is_not_null()).then("ceiling"))
        .select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
        .sort("map", maintain_order=True)
    )


class _Target(NamedTuple):
    """One truth, prepared for many maps: its pixels, those within the tolerance, and how many of each there are."""

    inside: Mask
    widened: Mask
    truth: int
    near: int
    pixels: int


def _target(truth: Mask, tolerance: float) -> _Target:
    if tolerance < 0:
        raise ValueError(f"tolerance of the pointing game must not be negative, not {tolerance}")
    inside = truth.astype(bool)
    if not inside.size:
        raise ValueError("mask of the truth has no pixels; give one of the image's shape")
    widened = inside
    if tolerance and inside.any():
        from scipy.ndimage import distance_transform_edt

        widened = distance_transform_edt(~inside) <= tolerance
    return _Target(inside.ravel(), widened.ravel(), int(inside.sum()), int(widened.sum()), inside.size)


def _sound(
    relevance: Array, number: int, quantiles: Sequence[float], shape: tuple[int, ...] | None = None
) -> NDArray[np.floating]:
    if wrong := [quantile for quantile in quantiles if not 0 < quantile < 1]:
        raise ValueError(f"quantiles of the mask must lie between 0 and 1, not {wrong}")
    if shape is not None and relevance.shape != shape:
        raise ValueError(f"map {number} {relevance.shape} and truth {shape} differ in shape")
    if not relevance.size or not np.isfinite(relevance).all():
        raise ValueError(f"relevance map {number} is empty or holds NaN or infinite values")
    return relevance


def _places(
    pixels: int, quantiles: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Between which two of the sorted pixels each quantile lies, and how far from the lower one."""
    place = (pixels - 1) * np.asarray(quantiles, dtype=np.float64)
    low = place.astype(np.intp)
    return low, np.minimum(low + 1, pixels - 1), place - low


def _thresholds(ordered: Array, quantiles: Sequence[float]) -> NDArray[np.float64]:
    """Quantiles as numpy's `linear` has them, of values that are in order at their places; negative ones count as 0."""
    low, high, part = _places(len(ordered), quantiles)
    a, b = (ordered[at].astype(np.float64).clip(0) for at in (low, high))
    found: NDArray[np.float64] = a + (b - a) * part
    return found


def _measure(
    relevance: Array, target: _Target, quantiles: Sequence[float], auc: bool
) -> tuple[list[int], list[int], list[float]]:
    """Pixels of each mask, those in the truth, and the scores of the map."""
    values = relevance.ravel()
    of_truth = values[target.inside]
    low, high, _ = _places(len(values), quantiles)
    last = min(len(values) - target.truth, len(values) - 1)  # the t-th largest
    # only the order at these places matters, but for the area under the curve
    ordered = np.sort(values) if auc else np.partition(values, [*low, *high, last, len(values) - 1])
    thresholds = _thresholds(ordered, quantiles)
    sizes, hits = ([int(np.count_nonzero(part > t)) for t in thresholds] for part in (values, of_truth))
    if not target.truth:
        return sizes, hits, [np.nan] * len(MAP_SCORES)
    total, gained = (float(part.clip(0).sum(dtype=np.float64)) for part in (values, of_truth))
    (above, ties), (above_in, ties_in) = (
        (np.count_nonzero(part > ordered[last]), np.count_nonzero(part == ordered[last])) for part in (values, of_truth)
    )
    ranked = (above_in + ties_in * (target.truth - above) / ties) / target.truth
    largest = values == ordered[-1]
    pointed = np.count_nonzero(largest & target.widened) / np.count_nonzero(largest)
    area = _area(ordered, np.sort(of_truth)) if auc else np.nan
    return sizes, hits, [gained / total if total else np.nan, ranked, pointed, area]


def _area(ordered: Array, of_truth: Array) -> float:
    """Share of pairs of a pixel of the truth and another in which the first is larger, ties half; both are sorted."""
    truth, others = len(of_truth), len(ordered) - len(of_truth)
    if not others:
        return np.nan
    below = (ordered.searchsorted(of_truth).sum() + ordered.searchsorted(of_truth, "right").sum()) / 2
    return float(below - truth**2 / 2) / (truth * others)


def _mask_rows(
    sizes: NDArray[np.int64], hits: NDArray[np.int64], target: _Target, quantiles: Sequence[float]
) -> pl.DataFrame:
    """All rows of all masks: (maps, quantiles)."""
    n, t = target.pixels, target.truth
    value = mask_overlap(hits, sizes, t, n)
    chance = mask_overlap(sizes * (t / n), sizes, t, n)
    chance["iou"] = np.array([[expected_iou(int(p), t, n) for p in row] for row in sizes]).reshape(sizes.shape)
    ceiling = mask_overlap(np.minimum(sizes, t), sizes, t, n)
    return pl.concat(
        _rows(score, value[score][:, k], chance[score][:, k], ceiling[score][:, k]).with_columns(
            quantile=pl.lit(float(quantile)), mask_pixels=pl.Series(sizes[:, k], dtype=pl.Int64)
        )
        for k, quantile in enumerate(quantiles)
        for score in MASK_SCORES
    )


def _rows(score: str, value: Array, chance: Array, ceiling: Array) -> pl.DataFrame:
    room = ceiling - chance
    normalised = (value - chance) / np.where(room > 1e-12, room, np.nan)
    numbers = {"value": value, "chance": chance, "ceiling": ceiling, "normalised": normalised}
    columns = {"map": np.arange(len(value)), "score": [score] * len(value)} | numbers
    return pl.DataFrame(columns).with_columns(pl.selectors.float().fill_nan(None))


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


@lru_cache(maxsize=4)
def _log_factorials(most: int) -> NDArray[np.float64]:
    from scipy.special import gammaln

    found: NDArray[np.float64] = gammaln(np.arange(most + 1) + 1.0)
    return found
