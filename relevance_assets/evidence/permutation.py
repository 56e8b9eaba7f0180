"""What scores and maps say of a network that has learnt nothing of the disease: its labels belonged to others.

Belongs here: labels given to the wrong people, what chance makes of an area under the curve, and the verdicts on a
network trained so. Does not belong here: training (`training/fit.py`), explaining (`relevance/maps.py`).

Such a network has learnt nothing but whose label is whose. A score that is good all the same has seen the answers,
and maps that show the disease all the same have not asked the network.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from relevance_assets.evidence.verdicts import LEARNT, Verdict, differences, judged, mean_interval, shown
from relevance_assets.training.data import Samples

__all__ = ["CHANCE", "auc", "auc_null", "permuted", "permuted_auc", "permuted_localisation"]

Array = NDArray[np.floating]

CHANCE = 0.05  # how often an honest training fails the test of permuted labels
DRAWS = 2000  # of labels
TRIES = 100  # until every set has both classes


def permuted(sets: Sequence[Samples], people: Sequence[Sequence[Hashable]], seed: int) -> list[Samples] | None:
    """The same sets with targets and weights that belong to other people, of whichever set.

    People with the same number of scans exchange all their scans' targets and weights, in order, so that scans of
    one person stay alike (whole-block exchange, Winkler et al. 2015). A person whose number of scans nobody shares
    keeps his own. Somebody with scans in two sets is one person: what a network learns of him in one is true in the
    other, and that is how a leak shows.

    Orders that leave a set with one class are drawn again. Whether they do is not changed by an exchange within one
    set, so that `auc_null` of that set stays exact.

    Parameters
    ----------
    sets
        For training, choosing the epoch and scoring.
    people
        For each set one per scan.

    Returns
    -------
    None where each of 100 orders leaves a set with one class.

    Raises
    ------
    ValueError
        Not one person per scan.
    """
    targets, weights = (np.concatenate([getattr(one, name) for one in sets]) for name in ("targets", "weights"))
    ends = np.cumsum([len(one) for one in sets])[:-1]
    random = np.random.default_rng(seed)
    everybody = [person for group in people for person in group]
    for order in _exchange(everybody, len(targets), random, TRIES):
        parts = [np.split(values[order], ends) for values in (targets, weights)]
        if all(np.ptp(part) > 0 for part in parts[0]):
            return [replace(one, targets=t, weights=w) for one, t, w in zip(sets, *parts, strict=True)]
    return None


def _exchange(people: Sequence[Hashable], scans: int, random: np.random.Generator, draws: int) -> NDArray[np.intp]:
    """(draws, scans): for each scan the one whose label it gets."""
    if len(people) != scans:
        raise ValueError(f"permutation: {len(people)} people for {scans} scans; give one for each")
    rows: dict[Hashable, list[int]] = {}
    for row, person in enumerate(people):
        rows.setdefault(person, []).append(row)
    by_size: dict[int, list[list[int]]] = {}
    for mine in rows.values():
        by_size.setdefault(len(mine), []).append(mine)
    orders = np.tile(np.arange(scans), (draws, 1))
    for same_size in by_size.values():
        blocks = np.array(same_size)  # (people, scans of each)
        drawn = random.permuted(np.tile(np.arange(len(blocks)), (draws, 1)), axis=1)
        orders[:, blocks] = blocks[drawn]
    return orders


def auc(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Area under the ROC curve: how often a scan of class 1 has the greater output, ties by half.

    Raises
    ------
    ValueError
        One class only, or targets other than 0 and 1.
    """
    labels = np.asarray(targets, dtype=np.float64)
    if not np.isin(labels, (0, 1)).all() or len(np.unique(labels)) < 2:
        raise ValueError("AUC: targets must be 0 and 1, and both must occur")
    return float(_aucs(stats.rankdata(outputs), labels[None])[0])


def _aucs(ranks: Array, targets: Array) -> Array:
    positive = targets.sum(axis=1)
    pairs = positive * (len(ranks) - positive)
    return (targets @ ranks - positive * (positive + 1) / 2) / pairs


def auc_null(
    outputs: ArrayLike,
    targets: ArrayLike,
    people: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float, float]:
    """AUC of these outputs where labels are given to the wrong people: 2.5 %, 97.5 %, and the two-sided p.

    The Mann-Whitney null, but for people with several scans, who exchange their labels as in `permuted`. Exact only
    for labels that were dealt out at random: no network, however it was trained, can know them then. It is not for
    true labels, of which a network fitted to noise tells something, in one direction or the other.
    p is (b + 1) / (draws + 1) of |AUC - 0.5|.

    Raises
    ------
    ValueError
        As `auc`; not one person per scan.
    """
    seen = auc(outputs, targets)
    labels = np.asarray(targets, dtype=np.float64)
    groups = range(len(labels)) if people is None else people
    orders = _exchange(groups, len(labels), np.random.default_rng(seed), draws)
    drawn = _aucs(stats.rankdata(outputs), labels[orders])
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = (int((np.abs(drawn - 0.5) >= abs(seen - 0.5) - 1e-12).sum()) + 1) / (draws + 1)
    return float(low), float(high), p


def permuted_auc(
    outputs: ArrayLike, targets: ArrayLike, learnt: float, people: Sequence[Hashable] | None = None
) -> Verdict:
    """Has a network that learnt permuted labels seen the answers?

    The value is the two-sided p of its AUC against the permuted labels of scans that it should not know, by
    `auc_null`; above 0.05, which 95 of 100 honest trainings reach. Fails where a person is in the training set and in
    the test set, or where the test set chose the epoch. What one person brings into both sets under two names is not
    found. Cannot be tested with so few people that not even perfect outputs would fail, and a network that fails
    nowhere is believed only if it has learnt by heart what it was given, since else no leak would show.

    Parameters
    ----------
    outputs, targets
        Of scans that had no part in training and in the choice of the epoch; targets as `permuted` gives them.
    learnt
        AUC of the same network on its own training scans, with their permuted labels.
    people
        One per scan.

    Raises
    ------
    ValueError
        As `auc_null`.
    """
    low, high, p = auc_null(outputs, targets, people)
    note = (
        f"p of the AUC {auc(outputs, targets):.3g} on permuted labels of test scans (middle 95 % of chance: {low:.3g} "
        f"to {high:.3g}); AUC on its own training scans {learnt:.3g}"
    )
    passed: bool | None = p > CHANCE
    if auc_null(targets, targets, people)[2] > CHANCE:
        note += "; too few people for any AUC to fail"
        passed = None
    elif passed and learnt < LEARNT:
        note += f", below {LEARNT}: a leak would not show; train it for longer"
        passed = None
    return Verdict("permuted_auc", p, "above", CHANCE, passed, np.size(targets), note)


def permuted_localisation(
    honest: Sequence[float | None], permuted: Sequence[float | None], people: Sequence[Hashable] | None = None
) -> Verdict:
    """Do maps find the truth because the network has learnt it?

    The truth region's relevance `density` in the honest network's maps less that in the maps of the network that
    learnt permuted labels, of the same scans, mean over scans; the low end of its interval above 0. Fails for a map
    that finds the region in the image, whatever was learnt. Chance is the same for both, and so is whatever makes
    a region bright or dark. The interval is over people, for these two networks: another permutation is another
    network.

    Parameters
    ----------
    honest, permuted
        Densities of the same scans, which neither network has seen.
    people
        One per scan.

    Raises
    ------
    ValueError
        If they do not belong together.
    """
    found = mean_interval(differences(honest, permuted), people)
    means = [mean_interval(each).mean for each in (honest, permuted)]
    both = " and ".join("none" if mean is None else f"{mean:.3g}" for mean in means)
    note = (
        f"relevance per voxel in the truth region, in units of the brain's mean, honest less permuted labels"
        f"{shown(found)}; {both}"
    )
    return Verdict("permuted_localisation", found.mean, "above", 0.0, judged(found, "above", 0), found.n, note)
