"""Which voxels of a scan are inverted, q <- 1 - q, to see what a network loses without them.

Belongs here: the list of all inversions that one scan needs, and the inverted images. Does not belong here: masks by
quantile (`masks.py`), the network that looks at the images, scores over scans (`statistics/inversion.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from relevance_assets.evidence.masks import quantile_mask

__all__ = ["CONTROLS", "Inversions", "plan_inversions", "voxel_ranks"]

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Ranks = NDArray[np.int32]
# a mask of (voxel, contrast) pairs: of each contrast its brain voxels of a rank below the number; nested masks
# share the ranks, so that a scan's hundreds of masks weigh no more than its maps
Cut = tuple[tuple[Ranks, int], ...]

CONTROLS = ("own", "matched", "random", "planted", "random_planted", "matched_planted")


# ------------------------------------------------------------------------------------------------------------ voxels
def voxel_ranks(relevance: Array, brain: Mask) -> Ranks:
    """Rank of each brain voxel by signed relevance: 0 for the largest; of equal ones the lower flat index first.

    The top k voxels are those of rank < k: one sort gives all nested masks. A quantile mask (`masks.quantile_mask`)
    is the one with k its size.

    Returns
    -------
    (voxels of the brain,)
        In the order of `relevance[brain]`.

    Raises
    ------
    ValueError
        If shapes differ or the map is not finite inside the brain.
    """
    if relevance.shape != brain.shape:
        raise ValueError(f"map {relevance.shape} and brain mask {brain.shape} differ in shape")
    values = relevance[brain.astype(bool)]
    if not np.isfinite(values).all():
        raise ValueError("relevance map holds NaN or infinite values inside the brain")
    ranks = np.empty(len(values), np.int32)
    ranks[np.argsort(-values, kind="stable")] = np.arange(len(values), dtype=np.int32)
    return ranks


# ------------------------------------------------------------------------------------------------ a scan's inversions
@dataclass(frozen=True)
class Inversions:
    """All inversions of one scan; made by `plan_inversions`.

    Attributes
    ----------
    rows : one dict per inversion
        method, map ('individual', 'combined'), control, top_percent, draw, pairs (of voxel and contrast, really
        inverted), share_of_brain (pairs / all pairs of the brain; None for an empty brain), prediction (which of the
        images of `batches` it is). Several rows may share a prediction: their masks are the same.
    predictions
        How many different images there are; the first is the scan as it is.
    """

    rows: list[dict[str, Any]]
    images: Array
    brain: Mask
    cuts: list[Cut]

    @property
    def predictions(self) -> int:
        return len(self.cuts)

    def batches(self, size: int) -> Iterator[NDArray[np.float32]]:
        """The different images, (n, C, X, Y, Z) with n <= `size`, in the order of their numbers.

        The scan as it is comes first and alone: a batch's neighbours show in the last bits of what a network says, and
        nothing inverted shall be what it says of the scan anyway.
        """
        index = np.flatnonzero(self.brain)
        images = self.images.reshape(len(self.images), -1)
        as_is = images[:, index]
        inverted = 1 - as_is
        for start, stop in pairwise([0, *range(1, len(self.cuts), size), len(self.cuts)]):
            cuts = self.cuts[start:stop]
            batch = np.repeat(images[None], len(cuts), axis=0)
            for image, cut in zip(batch, cuts, strict=True):
                image[:, index] = np.where(_cut_mask(cut), inverted, as_is)
            yield batch.reshape(-1, *self.images.shape)


def plan_inversions(
    maps: Mapping[str, Array],
    combined: Mapping[str, Array],
    images: Array,
    brain: Mask,
    *,
    percents: Sequence[int],
    reference: tuple[str, str],
    draws: int,
    random: np.random.Generator,
    planted: Mask | None = None,
    controls: Collection[str] = CONTROLS,
) -> Inversions:
    """Every inversion that a scan needs, each different image once.

    Inverted is q <- 1 - q, of brain voxels only: background, which is 0, stays so (Lu et al. 2023, arXiv 2308.07611). A
    scenario is a method's maps used one by one, (method, 'individual'): the mask of contrast l's map inverts
    contrast l; or together, (method, 'combined'): the combined map's mask inverts every contrast. Controls:

    - 'own': the scenario's quantile masks. Their sizes differ between scenarios.
    - 'matched': as many pairs of voxel and contrast as the reference's own masks have at the same N, the scenario's
      top voxels by signed relevance (also negative ones, where it has not enough positive ones). Individual: shared
      out over contrasts in proportion to the own masks' sizes, by largest remainder, no contrast above the brain;
      combined: pairs / C voxels, rounded down, so up to C - 1 pairs fewer.
    - 'random': uniform masks of the reference's own sizes, `draws` of them, nested over N within a draw.
    - 'planted': the truth's region, on every contrast, and 'random_planted': uniform masks of its size; both have
      method 'planted', map 'combined', N = 100. Only where `planted` is given.
    - 'matched_planted': as 'matched', of the planted region's size in place of the reference's: each scenario's answer
      to 'planted'. N = 100, whose own sizes share the pairs out. Only where `planted` is given.

    'own', 'matched' and 'random' begin with N = 0, the scan as it is, which is prediction 0 of all of them.

    Parameters
    ----------
    maps : method -> (C, X, Y, Z)
    combined : method -> (X, Y, Z)
        May lack methods.
    images : (C, X, Y, Z)
        Within [0, 1].
    brain, planted : (X, Y, Z)
    percents
        N, each from 1 to 100.
    reference
        The scenario that sets the areas.
    random
        The only source of chance. Draws do not depend on the controls asked for.

    Raises
    ------
    ValueError
        If shapes differ, images leave [0, 1], a map is not finite inside the brain, a percent is out of range, or the
        reference or a control is unknown.
    """
    _check(images, brain)
    brain, images = brain.astype(bool), images.astype(np.float32)
    if unknown := sorted(set(controls) - set(CONTROLS)):
        raise ValueError(f"unknown controls {unknown}; known are {list(CONTROLS)}")
    percents, contrasts = sorted(set(percents)), len(images)
    scenarios = _scenarios(maps, combined, images.shape, brain, percents)
    if reference not in scenarios:
        raise ValueError(f"reference {reference} is not among the scenarios {sorted(scenarios)}")
    fixed = scenarios[reference]
    lots = [_lot(reference[1], contrasts, int(brain.sum()), random) for _ in range(draws)]

    plan = _Plan(images, brain)
    for scenario, nested in scenarios.items():
        for top_percent in (0, *percents):
            if "own" in controls:
                plan.add(scenario, "own", top_percent, 0, _own(nested, top_percent))
            if "matched" in controls:
                pairs = sum(one.sizes[top_percent] for one in fixed)
                plan.add(scenario, "matched", top_percent, 0, _matched(scenario, nested, top_percent, pairs))
    if "random" in controls:
        for draw, lot in enumerate(lots):
            for top_percent in (0, *percents):
                masks = [_Nested(ranks, one.sizes) for ranks, one in zip(lot, fixed, strict=True)]
                plan.add(reference, "random", top_percent, draw, _own(masks, top_percent))
    if planted is not None:
        if planted.shape != brain.shape:
            raise ValueError(f"planted region {planted.shape} and brain mask {brain.shape} differ in shape")
        inside = planted.astype(bool)[brain]
        truth, voxels = ("planted", "combined"), int(inside.sum())
        if "planted" in controls:
            plan.add(truth, "planted", 100, 0, (((~inside).astype(np.int32), 1),) * contrasts)
        if "random_planted" in controls:
            for draw, lot in enumerate(lots):
                plan.add(truth, "random_planted", 100, draw, ((lot[0], voxels),) * contrasts)
        if "matched_planted" in controls:
            for scenario, nested in scenarios.items():
                plan.add(scenario, "matched_planted", 100, 0, _matched(scenario, nested, 100, voxels * contrasts))
    return Inversions(plan.rows, images, brain, plan.cuts)


class _Nested(NamedTuple):
    """The ranks of one map's brain voxels, and the sizes of its quantile masks by N."""

    ranks: Ranks
    sizes: dict[int, int]


class _Plan:
    """Collects inversions and finds those that are the same."""

    def __init__(self, images: Array, brain: Mask) -> None:
        nothing: Cut = ((np.zeros(int(brain.sum()), np.int32), 0),) * len(images)
        self.rows: list[dict[str, Any]] = []
        self.cuts = [nothing]
        self._known = {self._key(_cut_mask(nothing)): 0}

    def add(self, scenario: tuple[str, str], control: str, top_percent: int, draw: int, cut: Cut) -> None:
        mask = _cut_mask(cut)
        number = self._known.setdefault(self._key(mask), len(self.cuts))
        if number == len(self.cuts):
            self.cuts.append(cut)
        pairs = int(np.count_nonzero(mask))
        self.rows.append(
            {"method": scenario[0], "map": scenario[1], "control": control, "top_percent": top_percent, "draw": draw}
            | {"pairs": pairs, "share_of_brain": pairs / mask.size if mask.size else None, "prediction": number}
        )

    @staticmethod
    def _key(mask: Mask) -> bytes:
        return hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=16).digest()


def _scenarios(
    maps: Mapping[str, Array],
    combined: Mapping[str, Array],
    shape: tuple[int, ...],
    brain: Mask,
    percents: Sequence[int],
) -> dict[tuple[str, str], list[_Nested]]:
    """Per scenario one `_Nested` for each contrast; a combined map's is the same for all."""
    found = {}
    for method, relevance in maps.items():
        if relevance.shape != shape:
            raise ValueError(f"maps of {method} {relevance.shape} and images {shape} differ in shape")
        found[method, "individual"] = [_nested(one, brain, percents) for one in relevance]
    for method, relevance in combined.items():
        found[method, "combined"] = [_nested(relevance, brain, percents)] * shape[0]
    return found


def _nested(relevance: Array, brain: Mask, percents: Sequence[int]) -> _Nested:
    ranks = voxel_ranks(relevance, brain)
    positive = relevance[brain]
    # a quantile mask is the top voxels in number of its size, so only the size is needed; sorted values sort fast
    positive = np.sort(positive[positive > 0])
    every = np.ones(len(positive), bool)
    sizes = {percent: int(quantile_mask(positive, every, percent)[0].sum()) for percent in percents}
    return _Nested(ranks, {0: 0, 100: len(positive), **sizes})


def _lot(kind: str, contrasts: int, voxels: int, random: np.random.Generator) -> list[Ranks]:
    """Random ranks for each contrast: one draw for all of them for a combined mask, else one each."""
    ranks = [random.permutation(voxels).astype(np.int32) for _ in range(1 if kind == "combined" else contrasts)]
    return ranks * contrasts if kind == "combined" else ranks


def _shares(pairs: int, weights: Sequence[int], limit: int) -> list[int]:
    """`pairs` in whole numbers in proportion to `weights`, by largest remainder, none above `limit`.

    What is above the limit goes to the others by the same rule; weights that are all 0 count as equal. Equal
    remainders: the first contrast's.
    """
    shares = [0] * len(weights)
    while left := pairs - sum(shares):
        room = [i for i, share in enumerate(shares) if share < limit]
        parts = {i: weights[i] for i in room} if any(weights[i] for i in room) else dict.fromkeys(room, 1)
        total = sum(parts.values())
        given = {i: left * part // total for i, part in parts.items()}
        by_remainder = sorted((-(left * part % total), i) for i, part in parts.items())
        for _, i in by_remainder[: left - sum(given.values())]:
            given[i] += 1
        for i in room:
            shares[i] = min(limit, shares[i] + given[i])
    return shares


def _own(nested: Sequence[_Nested], top_percent: int) -> Cut:
    """The quantile masks."""
    return tuple((one.ranks, one.sizes[top_percent]) for one in nested)


def _matched(scenario: tuple[str, str], nested: Sequence[_Nested], top_percent: int, pairs: int) -> Cut:
    """A scenario's top voxels, so many pairs of voxel and contrast in all."""
    if scenario[1] == "combined":
        return tuple((one.ranks, pairs // len(nested)) for one in nested)
    sizes = _shares(pairs, [one.sizes[top_percent] for one in nested], len(nested[0].ranks))
    return tuple((one.ranks, size) for one, size in zip(nested, sizes, strict=True))


def _cut_mask(cut: Cut) -> Mask:
    """(C, voxels of the brain)"""
    return np.stack([ranks < size for ranks, size in cut])


def _check(images: Array, brain: Mask) -> None:
    if images.shape[1:] != brain.shape:
        raise ValueError(f"images {images.shape} and brain mask {brain.shape} do not fit together")
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError("images to invert must lie in [0, 1]: normalise them, and replace NaN")
