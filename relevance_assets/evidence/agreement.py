"""Do models of other folds explain a scan alike? Maps of one scan, pair by pair.

Belongs here: rank correlation and overlap of maps of one scan, with what chance gives, and the verdict over scans.
Does not belong here: which models may explain which scan, maps of different scans.

Agreement is needed, and proves little: a map that is made of the image alone agrees perfectly with itself. Read it
beside `randomisation.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import fft, stats

from relevance_assets.evidence.masks import quantile_mask
from relevance_assets.evidence.verdicts import Verdict, judged, mean_interval, shown
from relevance_assets.imaging.quality import dice

__all__ = ["agreement_verdicts", "chance_dice", "dice", "pair_agreement", "shifted_dice"]

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

TOP_PERCENT = 40
NUMBERS = ("spearman", "dice", "dice_chance", "dice_shifted")
SCHEMA = {"fold_a": pl.String, "fold_b": pl.String, **dict.fromkeys(NUMBERS, pl.Float64)}


def chance_dice(first: int, second: int, voxels: int) -> float | None:
    """Mean Dice of two random sets of these sizes among so many voxels: 2 a b / (n (a + b)); None where both are empty.

    |A and B| of two independent sets is hypergeometric with mean a b / n.

    Raises
    ------
    ValueError
        A set is larger than the whole.

    Examples
    --------
    >>> chance_dice(40, 40, 100)
    0.4
    """
    if not 0 <= min(first, second) <= max(first, second) <= voxels:
        raise ValueError(f"sets of {first} and {second} voxels do not fit into {voxels}")
    return 2 * first * second / (voxels * (first + second)) if first + second else None


def shifted_dice(first: Mask, second: Mask, brain: Mask) -> float | None:
    """Mean Dice over all shifts of `second`, each in the voxels that the brain and the shifted brain share.

    Masks are clumps, and clumps meet either not at all or thoroughly; shifts keep them as they are. Only shifts
    count whose shared part is at least half of the brain, and no shift at all does not. In the shared part alone,
    what a shift carries out of the brain lessens neither mask: two masks of the whole brain have 1 for every shift.
    Small shifts overlap for their smoothness, so this chance is on the safe side.

    Parameters
    ----------
    first, second, brain : (X, Y, Z)
        What of the masks lies outside the brain does not count.

    Returns
    -------
    None where a mask is empty, or no shift leaves half of the brain.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    if not first.shape == second.shape == brain.shape:
        raise ValueError(f"masks {first.shape}, {second.shape} and brain {brain.shape} differ in shape")
    inside = brain.astype(bool)
    fixed, moving = first & inside, second & inside
    if not fixed.any() or not moving.any():
        return None
    # every shift at once: correlations by FFT, padded so that nothing comes in at the other side
    size = [2 * n for n in first.shape]
    still, moved = (
        {name: fft.rfftn(mask.astype(np.float64), size) for name, mask in masks.items()}
        for masks in ({"brain": inside, "mask": fixed}, {"brain": inside, "mask": moving})
    )

    def met(stays: str, moves: str) -> NDArray[np.float64]:
        return np.rint(fft.irfftn(still[stays] * np.conj(moved[moves]), size))

    total = met("mask", "brain") + met("brain", "mask")
    allowed = (2 * met("brain", "brain") >= inside.sum()) & (total > 0)
    allowed.flat[0] = False
    if not allowed.any():
        return None
    return float((2 * met("mask", "mask")[allowed] / total[allowed]).mean())


def pair_agreement(maps: Mapping[str, Array], brain: Mask, top_percent: float = TOP_PERCENT) -> pl.DataFrame:
    """Every pair of one scan's maps.

    Parameters
    ----------
    maps
        Fold to map (X, Y, Z), signed.
    brain : (X, Y, Z)
    top_percent
        Of the masks that are compared (`quantile_mask`).

    Returns
    -------
    One row per pair, none for a single fold: fold_a, fold_b; `spearman` of the signed relevance of the brain's
    voxels, null where a map is constant; `dice` of the masks, null where both are empty; `dice_chance` for random
    masks of those sizes and `dice_shifted` for shifted ones, each null where it is not defined.

    Raises
    ------
    ValueError
        As `quantile_mask`.
    """
    inside = brain.astype(bool)
    masks = {fold: quantile_mask(one, brain, top_percent)[0] for fold, one in maps.items()}
    rows = []
    for a, b in combinations(maps, 2):
        values = [maps[fold][inside].astype(np.float64) for fold in (a, b)]
        varies = all(one.size and np.ptp(one) > 0 for one in values)
        rows.append(
            {
                "fold_a": a,
                "fold_b": b,
                "spearman": float(stats.spearmanr(*values).statistic) if varies else None,
                "dice": dice(masks[a], masks[b]),
                "dice_chance": chance_dice(int(masks[a].sum()), int(masks[b].sum()), int(inside.sum())),
                "dice_shifted": shifted_dice(masks[a], masks[b], inside),
            }
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def agreement_verdicts(pairs: pl.DataFrame, people: Mapping[str, Hashable] | None = None) -> list[Verdict]:
    """Over scans: do the folds agree more than chance?

    agreement_spearman
        Mean over scans of the mean over pairs; the low end of its interval above 0. Fails for maps of unrelated
        networks, for noise, and for maps that are constant for half of the scans and more; cannot be tested where
        all are.
    agreement_dice
        Mean over scans of Dice less the Dice of shifted masks; the low end of its interval above 0. Fails for masks
        that lie anywhere in the brain.

    Both pass for a map that is made of the image alone: see `randomisation.py`.

    Parameters
    ----------
    pairs
        Of `pair_agreement`, with a column `scan`. Of several contrasts, one below the other, the mean is taken.
    people
        Scan to person; the interval is over people.

    Raises
    ------
    ValueError
        A scan without a person.
    """
    pairs = pairs.with_columns(excess=pl.col("dice") - pl.col("dice_shifted"))
    scans = pairs.group_by("scan", maintain_order=True).agg(pl.col(*NUMBERS, "excess").mean())
    names = scans["scan"].to_list()
    if people is not None and (missing := [name for name in names if name not in people]):
        raise ValueError(f"agreement: no person for scan {missing[0]}")
    groups = None if people is None else [people[name] for name in names]
    verdicts = []
    for test, column, what in (
        ("agreement_spearman", "spearman", "Spearman of maps, pairs of folds"),
        ("agreement_dice", "excess", f"Dice of top-{TOP_PERCENT} % masks less that of shifted masks"),
    ):
        found = mean_interval(scans[column].to_list(), groups)
        note = f"{what}{shown(found)}"
        if column == "excess" and found.n:
            seen = scans.select(pl.col("dice", "dice_shifted", "dice_chance").mean()).row(0)
            note += "; Dice {:.3g}, shifted {:.3g}, random {:.3g}".format(*seen)
        if found.n < len(names):
            note += f"; not defined for {len(names) - found.n} of {len(names)} scans"
        passed = judged(found, "above", 0)
        if found.n and 2 * found.n <= len(names):
            passed = False
        verdicts.append(Verdict(test, found.mean, "above", 0.0, passed, found.n, note))
    return verdicts
