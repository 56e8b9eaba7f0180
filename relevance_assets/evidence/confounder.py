"""What maps say of networks whose mistakes are known: one that learnt an artefact, one that learnt nothing.

Belongs here: planting an artefact that goes with the class, labels given to the wrong people, and the verdicts on
networks trained so. Does not belong here: training (`training/fit.py`), explaining (`relevance/maps.py`).

A network trained on `confounded_samples` decides by a bright block in a corner, as networks have decided by a
hospital's mark on the film. Maps that do not show it there would show no shortcut of a real study either. A network
trained on `permuted` samples knows nothing of the disease; what scores and maps find there, they find in nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from relevance_assets.evidence.localisation import share_of_positive
from relevance_assets.evidence.verdicts import Verdict, mean_interval, shown
from relevance_assets.imaging.volumes import load_volume, save_volume
from relevance_assets.training.data import Samples

__all__ = [
    "Confounded",
    "add_artefact",
    "artefact_density",
    "artefact_place",
    "auc",
    "auc_null",
    "confounded_samples",
    "confounder_verdicts",
    "permuted",
    "permuted_verdicts",
]

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

SMALLEST = 3  # voxels per edge: one 3x3x3 kernel
SHARE = 0.1  # of each axis
STRENGTH = 1.0  # the brightest that prepared images have
DENSITY = 10.0  # times the mean of the brain: what a reader of a heat map cannot overlook
USED = 0.9  # area under the curve from which a network counts as one that uses the artefact


# ------------------------------------------------------------------------------------------------------ artefact
def artefact_place(shape: tuple[int, ...]) -> Mask:
    """The artefact's voxels: a block at the origin, a tenth of each axis and at least 3 voxels.

    Raises
    ------
    ValueError
        An axis of fewer than 6 voxels: the block would be half of it.
    """
    if min(shape) < 2 * SMALLEST:
        raise ValueError(
            f"artefact: shape {tuple(shape)} is too small; every axis needs at least {2 * SMALLEST} voxels"
        )
    place = np.zeros(shape, dtype=bool)
    place[tuple(slice(max(SMALLEST, round(SHARE * size))) for size in shape)] = True
    return place


def add_artefact(images: Array, brain: Mask, strength: float = STRENGTH) -> tuple[Array, Mask, Mask]:
    """Prepared images with a block of one value in a corner of the field of view, in every contrast.

    The block belongs to the brain mask that comes back, as it would to a mask of voxels that are not zero.

    Parameters
    ----------
    images : (C, X, Y, Z), in [0, 1]
    brain : (X, Y, Z)
    strength
        Its value, in (0, 1].

    Returns
    -------
    images, brain, where
        Copies, and the block's voxels.

    Raises
    ------
    ValueError
        If shapes do not fit, or the strength is out of range.
    """
    if images.ndim != 4 or images.shape[1:] != brain.shape:
        raise ValueError(f"images {images.shape} and brain mask {brain.shape} do not fit together")
    if not 0 < strength <= 1:
        raise ValueError(f"artefact: strength must be above 0 and at most 1, not {strength}")
    where = artefact_place(brain.shape)
    changed = images.copy()
    changed[:, where] = strength
    return changed, brain.astype(bool) | where, where


@dataclass(frozen=True)
class Confounded:
    """Scans with the artefact in some of them.

    Attributes
    ----------
    samples : Samples
        Of images that lie in the scratch folder; all else is as it was.
    brains : dict of scan to (X, Y, Z) bool
        With the artefact's voxels where it is.
    shown : dict of scan to bool
    where : (X, Y, Z) bool
    """

    samples: Samples
    brains: dict[str, Mask]
    shown: dict[str, bool]
    where: Mask


def confounded_samples(
    samples: Samples,
    brains: Mapping[str, Mask],
    folder: Path,
    *,
    strength: float = STRENGTH,
    chance: float = 0.0,
    seed: int = 0,
) -> Confounded:
    """Write images in which the artefact goes with the class, for `fit`.

    Every scan with target 1 gets the artefact; a scan with target 0 gets it with probability `chance`, drawn from
    the seed and the scan's place.

    Parameters
    ----------
    samples
        With targets 0 and 1.
    brains
        Scan to brain mask.
    folder
        Scratch; one NIfTI per scan and contrast, `<scan>_<contrast>.nii.gz`, contrasts from 0.
    chance
        In [0, 1). 0: the artefact says all.

    Raises
    ------
    ValueError
        Targets that are not 0 or 1, `chance` out of range, a scan without a brain mask.
    """
    if not 0 <= chance < 1:
        raise ValueError(f"artefact: chance must be at least 0 and below 1, not {chance}")
    if not np.isin(samples.targets, (0, 1)).all():
        raise ValueError("artefact: targets must be 0 or 1; a decoy for a regression target is not defined")
    if missing := [scan for scan in samples.scans if scan not in brains]:
        raise ValueError(f"artefact: no brain mask for {missing[0]}; prepare it or leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    present = (samples.targets == 1) | (np.random.default_rng(seed).random(len(samples)) < chance)
    paths, masks, where = [], {}, np.zeros((0, 0, 0), dtype=bool)
    for scan, files, there in zip(samples.scans, samples.images, present, strict=True):
        volumes = [load_volume(file) for file in files]
        images, brain = np.stack([data for data, _ in volumes]), brains[scan].astype(bool)
        changed, with_it, where = add_artefact(images, brain, strength)
        if there:
            images, brain = changed, with_it
        targets = tuple(folder / f"{scan}_{contrast}.nii.gz" for contrast in range(len(files)))
        for target, data, (_, affine) in zip(targets, images, volumes, strict=True):
            save_volume(target, data, affine)
        paths.append(targets)
        masks[scan] = brain
    changed_samples = Samples(samples.scans, tuple(paths), samples.covariates, samples.targets, samples.weights)
    return Confounded(changed_samples, masks, dict(zip(samples.scans, present.tolist(), strict=True)), where)


def artefact_density(maps: Array, where: Mask, brain: Mask) -> float | None:
    """Share of the positive relevance that the artefact holds, by its share of the brain's voxels.

    1 for an even map; at most the brain's voxels by the artefact's, for a map of the artefact alone.

    Parameters
    ----------
    maps : (C, X, Y, Z)
        Signed maps of one scan; the share is of the sum over contrasts of their positive parts.
    where, brain : (X, Y, Z)
        The brain mask includes the artefact.

    Returns
    -------
    None where nothing is positive, or the artefact lies outside the brain mask.
    """
    positive = np.clip(maps.astype(np.float64), 0, None).sum(axis=0)
    value, chance = share_of_positive(positive, where, brain)
    return value / chance if value is not None and chance else None


def confounder_verdicts(
    confounded: Sequence[float | None],
    honest: Sequence[float | None],
    score: float,
    people: Sequence[Hashable] | None = None,
) -> list[Verdict]:
    """Do maps reveal that a network decides by the artefact, and do they accuse one that never learnt it?

    confounder
        The artefact's relevance density (`artefact_density`) for the confounded network, mean over scans. Passed if
        that network uses the artefact (AUC of at least 0.9), the density is at least 10, and the low end of the
        interval of its difference from the honest network's, scan by scan, lies above 0. Fails for a map that does
        not look at the network (an edge detector gives both networks one density), for a map that is even, constant
        or empty, and where training found no shortcut, so that there was nothing to reveal.
    confounder_control
        The same density for the honest network; below 10. Fails for a map that lights up what is bright, used or
        not. It also fails where the honest network reacts to a block that it has never seen; then the map is right
        to say so, and the verdict warns that relevance in a corner is no proof of a learnt shortcut.

    Parameters
    ----------
    confounded, honest
        Densities of the same scans, all with the artefact, by the network trained on confounded images and by the
        study's own; both never saw these scans.
    score
        AUC of the confounded network on validation scans with their artefacts.
    people
        One per scan.

    Raises
    ------
    ValueError
        If they do not belong together.
    """
    if len(confounded) != len(honest):
        raise ValueError(f"confounder: {len(confounded)} and {len(honest)} densities; explain the same scans")
    pairs = [None if a is None or b is None else a - b for a, b in zip(confounded, honest, strict=True)]
    difference_low = mean_interval(pairs, people)[1]
    what = "relevance per voxel in the artefact, in units of the brain's mean"
    mean, low, high, n = mean_interval(confounded, people)
    note = f"{what}{shown(low, high)}; AUC {score:.3g}"
    if score < USED:
        note += f", below {USED}: the network does not use the artefact, nothing to reveal; train it for longer"
    if difference_low is None or difference_low <= 0:
        note += "; not above the honest network's"
    revealed = mean is not None and mean >= DENSITY and difference_low is not None and difference_low > 0
    control, control_low, control_high, m = mean_interval(honest, people)
    return [
        Verdict("confounder", mean, DENSITY, score >= USED and revealed, n, note),
        Verdict(
            "confounder_control",
            control,
            DENSITY,
            control is not None and control < DENSITY,
            m,
            f"{what}, by the honest network{shown(control_low, control_high)}",
        ),
    ]


# --------------------------------------------------------------------------------------------- permuted labels
def permuted(samples: Samples, people: Sequence[Hashable], seed: int) -> Samples:
    """Samples whose targets and weights belong to other people.

    People with the same number of scans exchange all their scans' targets and weights, in order, so that scans of
    one person stay alike, and the numbers of both classes stay as they are (whole-block exchange, Winkler et al.
    2015). A person whose number of scans nobody shares keeps his own.

    Parameters
    ----------
    people
        One per scan.

    Raises
    ------
    ValueError
        Not one person per scan.
    """
    order = _exchange(people, len(samples), np.random.default_rng(seed))
    return Samples(samples.scans, samples.images, samples.covariates, samples.targets[order], samples.weights[order])


def _exchange(people: Sequence[Hashable], scans: int, random: np.random.Generator) -> NDArray[np.intp]:
    """For each scan the one whose label it gets."""
    if len(people) != scans:
        raise ValueError(f"permutation: {len(people)} people for {scans} scans; give one for each")
    rows: dict[Hashable, list[int]] = {}
    for row, person in enumerate(people):
        rows.setdefault(person, []).append(row)
    by_size: dict[int, list[list[int]]] = {}
    for mine in rows.values():
        by_size.setdefault(len(mine), []).append(mine)
    order = np.arange(scans)
    for blocks in by_size.values():
        for mine, other in zip(blocks, random.permutation(len(blocks)), strict=True):
            order[mine] = blocks[other]
    return order


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
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """AUC of these outputs where labels are given to the wrong people: 2.5 %, 97.5 %, and the two-sided p.

    The Mann-Whitney null, but for people with several scans, who exchange their labels as in `permuted`.
    p is (b + 1) / (draws + 1) of |AUC - 0.5|.

    Raises
    ------
    ValueError
        As `auc`; not one person per scan.
    """
    seen = auc(outputs, targets)
    labels = np.asarray(targets, dtype=np.float64)
    groups = range(len(labels)) if people is None else people
    random = np.random.default_rng(seed)
    orders = np.stack([_exchange(list(groups), len(labels), random) for _ in range(draws)])
    drawn = _aucs(stats.rankdata(outputs), labels[orders])
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = (int((np.abs(drawn - 0.5) >= abs(seen - 0.5) - 1e-12).sum()) + 1) / (draws + 1)
    return float(low), float(high), p


def permuted_verdicts(
    outputs: ArrayLike,
    targets: ArrayLike,
    shares: Sequence[tuple[float | None, float | None]],
    people: Sequence[Hashable] | None = None,
) -> list[Verdict]:
    """A network trained on permuted labels must know nothing, and its maps must not find the truth.

    permuted_auc
        Within the middle 95 % of AUCs under permutation. Fails where something else than the labels tells the
        classes apart: a scan that leaks from training into validation, a score that is taken on the epoch that it
        chose. (By chance it fails in 5 of 100 honest trials.)
    permuted_localisation
        Mean over scans of the truth region's share of positive relevance less its share of the brain; the low end
        of its interval not above 0. Fails for a map that finds the region in the image, whatever was learnt.

    Parameters
    ----------
    outputs, targets
        Of scans that had no part in training and in the choice of the epoch: with `fit`, of test scans or of the
        last epoch, not of the best one on these scans.
    shares
        Of the truth region by `share_of_positive`: value and chance per scan.
    people
        One per scan.

    Raises
    ------
    ValueError
        As `auc_null`.
    """
    seen = auc(outputs, targets)
    low, high, p = auc_null(outputs, targets, people)
    gains = [None if value is None or chance is None else value - chance for value, chance in shares]
    mean, gain_low, gain_high, n = mean_interval(gains, people)
    note = f"truth region's share of positive relevance less its share of the brain{shown(gain_low, gain_high)}"
    return [
        Verdict(
            "permuted_auc",
            seen,
            high,
            low <= seen <= high,
            np.size(targets),
            f"AUC on permuted labels; the null's middle 95 % is {low:.3g} to {high:.3g}, p {p:.3g}",
        ),
        Verdict("permuted_localisation", mean, 0.0, gain_low is not None and gain_low <= 0, n, note),
    ]
