"""What maps say of a network whose mistake is known: it has learnt an artefact.

Belongs here: planting an artefact that goes with the class, relevance per voxel in a region, and the verdicts on a
network trained so. Does not belong here: training (`training/fit.py`), explaining (`relevance/maps.py`), a network
that learnt nothing of the disease (`permutation.py`).

A network trained on `confounded_samples` decides by a bright block in a corner, as networks have decided by a
hospital's mark on the film. Maps that do not show it there would show no shortcut of a real study either.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relevance_assets.evidence.localisation import share_of_positive
from relevance_assets.evidence.verdicts import LEARNT, Verdict, differences, judged, mean_interval, shown
from relevance_assets.imaging.volumes import load_volume, save_volume
from relevance_assets.training.data import Samples

__all__ = [
    "Confounded",
    "add_artefact",
    "artefact_place",
    "confounded_samples",
    "confounder_verdicts",
    "density",
]

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

SMALLEST = 3  # voxels per edge: one 3x3x3 kernel
SHARE = 0.1  # of each axis
STRENGTH = 1.0  # the brightest that prepared images have
DENSITY = 10.0  # times the mean of the brain: what a reader of a heat map cannot overlook


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
    samples: Samples, brains: Mapping[str, Mask], folder: Path, *, strength: float = STRENGTH
) -> Confounded:
    """Write images in which the artefact goes with the class, for `fit`: scans with target 1 get it, no others.

    Parameters
    ----------
    samples
        With targets 0 and 1.
    brains
        Scan to brain mask.
    folder
        Scratch; one NIfTI per scan and contrast, `<scan>_<contrast>.nii.gz`, contrasts from 0.

    Raises
    ------
    ValueError
        Targets that are not 0 or 1, a scan without a brain mask.
    """
    if not np.isin(samples.targets, (0, 1)).all():
        raise ValueError("artefact: targets must be 0 or 1; a decoy for a regression target is not defined")
    if missing := [scan for scan in samples.scans if scan not in brains]:
        raise ValueError(f"artefact: no brain mask for {missing[0]}; prepare it or leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    present = samples.targets == 1
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


def density(maps: Array, region: Mask, brain: Mask) -> float | None:
    """Share of the positive relevance that a region holds, by the region's share of the brain's voxels.

    1 for an even map; at most the brain's voxels by the region's, for a map of the region alone.

    Parameters
    ----------
    maps : (C, X, Y, Z)
        Signed maps of one scan; the share is of the sum over contrasts of their positive parts.
    region, brain : (X, Y, Z)
        What of the region lies outside the brain does not count.

    Returns
    -------
    None where nothing is positive, or the whole region lies outside the brain.
    """
    positive = np.clip(maps.astype(np.float64), 0, None).sum(axis=0)
    value, chance = share_of_positive(positive, region, brain)
    return value / chance if value is not None and chance else None


def confounder_verdicts(
    confounded: Sequence[float | None],
    honest: Sequence[float | None],
    score: float,
    people: Sequence[Hashable] | None = None,
) -> list[Verdict]:
    """Do maps reveal that a network decides by the artefact, and do they accuse one that never learnt it?

    confounder
        The artefact's relevance `density` for the confounded network, mean over scans; at least 10, and the low end
        of the interval of its difference from the honest network's, scan by scan, above 0. Fails for a map that does
        not look at the network (an edge detector gives both networks one density) and for a map that is even or
        constant. Cannot be tested for an empty map, nor where the network did not learn the artefact (AUC below
        0.9), so that there is nothing to reveal.
    confounder_control
        The same density for the honest network; below 10. Fails for a map that lights up what is bright, used or
        not. It also fails where the honest network reacts to a block that it has never seen; then the map is right
        to say so, and the verdict warns that relevance in a corner is no proof of a learnt shortcut.

    Both means are sizes, compared as they are; that there is a difference at all is what the interval must show.

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
    what = "relevance per voxel in the artefact, in units of the brain's mean"
    found, control = mean_interval(confounded, people), mean_interval(honest, people)
    more = judged(mean_interval(differences(confounded, honest), people), "above", 0)
    note = f"{what}{shown(found)}; AUC {score:.3g}"
    passed = None if found.mean is None or more is None else more and found.mean >= DENSITY
    if more is False:
        note += "; not above the honest network's"
    if score < LEARNT:
        note += f", below {LEARNT}: the network does not use the artefact, nothing to reveal; train it for longer"
        passed = None
    quiet = None if control.mean is None or control.low is None else control.mean < DENSITY
    other = f"{what}, by the honest network{shown(control)}"
    return [
        Verdict("confounder", found.mean, "above", DENSITY, passed, found.n, note),
        Verdict("confounder_control", control.mean, "below", DENSITY, quiet, control.n, other),
    ]
