"""Scans with labels, cut into slices or patches: what is drawn, how it is changed and put on one scale.

Belongs here: reading, splitting check, sampling, augmentation and intensity of boxes cut from labelled scans. Does not
belong here: who is in which set, batches on their way through a network (`fit.py`), whole scans (`predict.py`).

Scans stay in memory from the first to the last epoch: 150 whole FLAIRs of 1 mm need about 6 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from relevance_assets.imaging.volumes import load_volume
from relevance_assets.study import Augmentation
from relevance_assets.training import augment
from relevance_assets.training.data import TrainingError

__all__ = [
    "LabelledScan",
    "Loaded",
    "Patches",
    "Place",
    "brain_of",
    "check_people",
    "cut",
    "load",
    "merge_masks",
    "scale_of",
]

Normalisation = Literal["slice", "volume"]
EPSILON = 1e-7  # as published: (x - mean) / (sd + 1e-7)


@dataclass(frozen=True)
class LabelledScan:
    """One scan of one person.

    Attributes
    ----------
    name, participant : str
    image : Path or (x, y, z) array
        FLAIR, third axis through the slices.
    labels : Path, tuple of Path, or (x, y, z) array
        0 background, 1, 2, .. classes. A tuple holds one mask per class, each `> 0`; see `merge_masks`.
    brain : Path, (x, y, z) array or None
        Where intensities are taken from for "volume"; image > 0 where None.
    """

    name: str
    participant: str
    image: Path | np.ndarray
    labels: Path | tuple[Path, ...] | np.ndarray
    brain: Path | np.ndarray | None = None


class Loaded(NamedTuple):
    """A scan in memory: float32 image and uint8 labels (x, y, z), and per slice what its intensities are scaled by."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    mean: np.ndarray  # (z,)
    sd: np.ndarray  # (z,)
    brain: np.ndarray


class Place(NamedTuple):
    """A box in a scan: its number, and its first voxel (which may lie outside)."""

    scan: int
    start: tuple[int, int, int]


def check_people(train: Sequence[LabelledScan], validation: Sequence[LabelledScan]) -> None:
    """Raise TrainingError without training scans, or if someone is on both sides: images of one person are alike."""
    if not train:
        raise TrainingError("the training set has no scans; use fewer folds or more scans")
    shared = sorted({scan.participant for scan in train} & {scan.participant for scan in validation})
    if shared:
        raise TrainingError(f"{shared[0]} is in the training and in the validation set; split by participant")


def merge_masks(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Labels from masks: class k where the k-th mask is > 0; where masks overlap the last one counts.

    So WMH wins over ventricles, as in MS-DeepBrain-Study's phase 2, whose masks mix 1 and 255.
    """
    labels = np.zeros(masks[0].shape, dtype=np.uint8)
    for number, mask in enumerate(masks, start=1):
        labels[np.asarray(mask) > 0] = number
    return labels


def load(scan: LabelledScan, normalisation: Normalisation, classes: int) -> Loaded:
    """Read a scan; its labels must lie on the image's grid and be whole numbers below `classes`.

    Raises
    ------
    TrainingError
        Grids that differ, or labels that are none.
    ScanError
        A file cannot be read.
    """
    image, affine = _read(scan.image)
    several = scan.labels if isinstance(scan.labels, tuple) else (scan.labels,)
    parts = [_on_grid(each, image, affine, scan.name, "labels") for each in several]
    labels = merge_masks(parts) if isinstance(scan.labels, tuple) else parts[0]
    if not np.array_equal(labels, np.clip(np.rint(labels), 0, classes - 1)):
        raise TrainingError(f"{scan.name}: labels must be whole numbers from 0 to {classes - 1}; relabel the mask")
    brain = None if scan.brain is None else _on_grid(scan.brain, image, affine, scan.name, "brain mask") > 0
    mean, sd = scale_of(image, normalisation, brain, scan.name)
    return Loaded(scan.name, image, labels.astype(np.uint8), mean, sd, brain_of(image, brain))


def brain_of(image: np.ndarray, brain: np.ndarray | None) -> np.ndarray:
    """The mask given, else image > 0; (x, y, z) bool."""
    return image > 0 if brain is None else np.asarray(brain) > 0


def scale_of(
    image: np.ndarray, normalisation: Normalisation, brain: np.ndarray | None, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (z,) that each slice's intensities are scaled by.

    "slice": of the slice's voxels, background included, as published. "volume": of the brain's voxels, one pair for
    all slices. A deviation of 0 gives values of 0, not infinity (1e-7 is added to it).
    """
    if normalisation == "slice":
        return image.mean(axis=(0, 1), dtype=np.float64), image.std(axis=(0, 1), dtype=np.float64) + EPSILON
    if normalisation != "volume":
        raise TrainingError(f"normalisation {normalisation!r} is not known; choose slice or volume")
    inside = image[brain_of(image, brain)]
    if not inside.size:
        raise TrainingError(f"{name}: no voxel of the brain to scale by; check the image or give a brain mask")
    depth = image.shape[2]
    mean, sd = inside.mean(dtype=np.float64), inside.std(dtype=np.float64) + EPSILON
    return np.full(depth, mean), np.full(depth, sd)


def cut(volume: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The box of a volume from `start`; 0 where it reaches beyond."""
    box = np.zeros(tuple(size), dtype=volume.dtype)
    pairs = [(max(0, first), min(n, first + m)) for first, n, m in zip(start, volume.shape, size, strict=True)]
    if all(first < last for first, last in pairs):
        there = tuple(slice(first - s, last - s) for (first, last), s in zip(pairs, start, strict=True))
        box[there] = volume[tuple(slice(*pair) for pair in pairs)]
    return box


@dataclass(frozen=True)
class Patches:
    """How boxes are drawn from scans, and what happens to them.

    Attributes
    ----------
    size : (x, y, z)
        In voxels; z is 1 for slices, which are cut around the middle of the scan's: take x and y large enough.
    foreground_share : float or None
        Share of an epoch's boxes that are drawn where there is a label, by class and with replacement; the others
        are drawn from the brain. None: every slice with brain once per epoch, in random order (slices only).
    per_epoch : int or None
        Boxes per epoch; None: as many as there are slices with brain (slices), or 8 per scan (patches).
    augmentation : Augmentation
        Flips, affine map and noise. The map turns and scales within the slice only, for slices are thick. Noise is in
        units of the scaled image, and everywhere.
    intensity_scale, intensity_shift : float
        The scaled image is multiplied by 1 + u intensity_scale and shifted by u intensity_shift, u from -1 to 1.
    """

    size: tuple[int, int, int]
    foreground_share: float | None = None
    per_epoch: int | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    intensity_scale: float = 0.0
    intensity_shift: float = 0.0

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise TrainingError(f"patch {self.size}: every side must have at least one voxel")
        if self.foreground_share is None and self.size[2] > 1:
            raise TrainingError("foreground_share: patches of several slices need one, for instance 0.5")
        if self.foreground_share is not None and not 0 <= self.foreground_share <= 1:
            raise TrainingError(f"foreground_share {self.foreground_share:g} must be from 0 to 1")
        if self.augmentation.rotate90 and self.size[0] != self.size[1]:
            raise TrainingError(f"augmentation: rotate90 needs a patch with equal first two sides, not {self.size}")

    def places(self, scans: Sequence[Loaded], random: np.random.Generator) -> list[Place]:
        """The boxes of one epoch, in the order in which they are seen.

        Raises
        ------
        TrainingError
            No scan has brain, or boxes with labels are wanted and no scan has any.
        """
        if self.size[2] == 1:
            slices = [
                Place(number, self._middle(scan, int(z)))
                for number, scan in enumerate(scans)
                for z in np.flatnonzero(scan.brain.any(axis=(0, 1)))
            ]
            if not slices:
                raise TrainingError("no slice of the training scans has brain; check the images")
            if self.foreground_share is None:
                order = random.permutation(len(slices))[: self.per_epoch]
                return [slices[index] for index in order]
        count = self.per_epoch or (len(slices) if self.size[2] == 1 else 8 * len(scans))
        labelled = {
            label: found
            for label in range(1, 1 + max(int(scan.labels.max()) for scan in scans))
            if (found := [number for number, scan in enumerate(scans) if (scan.labels == label).any()])
        }
        if self.foreground_share and not labelled:
            raise TrainingError("no training scan has a label; check the masks or set foreground_share to 0")
        return [self._draw(scans, labelled, random) for _ in range(count)]

    def _draw(self, scans: Sequence[Loaded], labelled: dict[int, list[int]], random: np.random.Generator) -> Place:
        """A box around a labelled voxel of a class drawn first, or around any voxel of a brain."""
        if random.random() < (self.foreground_share or 0):
            label = list(labelled)[random.integers(len(labelled))]
            number = labelled[label][random.integers(len(labelled[label]))]
            voxels = np.flatnonzero(scans[number].labels == label)
        else:
            number = int(random.integers(len(scans)))
            voxels = np.flatnonzero(scans[number].brain)
            if not len(voxels):
                raise TrainingError(f"{scans[number].name}: no voxel of the brain to draw from; check the image")
        scan = scans[number]
        centre = np.unravel_index(voxels[random.integers(len(voxels))], scan.image.shape)
        if self.size[2] == 1:
            return Place(number, self._middle(scan, int(centre[2])))
        starts = [
            (n - m) // 2 if n <= m else int(np.clip(c - m // 2, 0, n - m))
            for c, n, m in zip(centre, scan.image.shape, self.size, strict=True)
        ]
        return Place(number, (starts[0], starts[1], starts[2]))

    def _middle(self, scan: Loaded, z: int) -> tuple[int, int, int]:
        x, y = ((n - m) // 2 for n, m in zip(scan.image.shape[:2], self.size[:2], strict=True))
        return x, y, int(z)

    def tiles(self, scans: Sequence[Loaded]) -> list[Place]:
        """Boxes that cover every scan, for validation: the last along an axis is moved inwards to fit."""
        places = []
        for number, scan in enumerate(scans):
            axes = [_starts(n, m) for n, m in zip(scan.image.shape, self.size, strict=True)]
            places += [Place(number, (x, y, z)) for x in axes[0] for y in axes[1] for z in axes[2]]
        return places

    def draw_change(self, random: np.random.Generator) -> tuple[augment.Change, float, float]:
        """Geometry and noise, factor and shift of one box; the number of draws is always the same."""
        settings = self.augmentation
        change = augment.draw(settings, random)
        turn, grow, factor, shift = random.uniform(-1, 1, size=4)
        if change.matrix is not None:
            angle, scale = np.deg2rad(settings.rotate_degrees) * turn, 1 + settings.scale_share * grow
            c, s = float(scale * np.cos(angle)), float(scale * np.sin(angle))
            matrix = ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))
            change = replace(change, matrix=matrix, shift=(*change.shift[:2], 0.0))
        return change, 1 + self.intensity_scale * float(factor), self.intensity_shift * float(shift)

    def box(
        self,
        scan: Loaded,
        start: tuple[int, int, int],
        classes: int,
        change: tuple[augment.Change, float, float] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled image (1, x, y[, z]) float32 and labels (x, y[, z]) int64 of one box; z is left out for slices.

        Image and labels are moved together, the labels as one map per class of which the largest counts; what comes
        from outside is background with raw intensity 0.
        """
        image = torch.from_numpy(cut(scan.image, start, self.size))[None]
        labels = torch.from_numpy(cut(scan.labels, start, self.size)).long()
        depth = np.clip(np.arange(start[2], start[2] + self.size[2]), 0, scan.image.shape[2] - 1)
        mean, sd = (torch.from_numpy(each[depth].astype(np.float32)) for each in (scan.mean, scan.sd))
        if change is None:
            image = (image - mean) / sd
        else:
            how, factor, shift = change
            one_hot = functional.one_hot(labels, classes).movedim(-1, 0).float()
            both = torch.cat([image, one_hot])
            if self.size[2] == 1:  # torch's affine_grid frowns on an axis of one voxel
                both = both.expand(-1, -1, -1, 2)
            moved = augment.apply(replace(how, noise_sd=0.0), both)[..., : self.size[2]]
            labels = moved[1:].argmax(dim=0)
            image = (moved[:1] - mean) / sd * factor + shift
            if how.noise_sd:
                random = torch.Generator().manual_seed(how.noise_seed)
                image = image + how.noise_sd * torch.randn(image.shape, generator=random)
        return (image[..., 0], labels[..., 0]) if self.size[2] == 1 else (image, labels)


def _starts(extent: int, size: int) -> list[int]:
    if extent <= size:
        return [(extent - size) // 2]
    return sorted({min(first, extent - size) for first in range(0, extent, size)})


def _read(source: Path | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    if isinstance(source, Path):
        return load_volume(source)
    return np.asarray(source, dtype=np.float32), None


def _on_grid(
    source: Path | np.ndarray, image: np.ndarray, affine: np.ndarray | None, name: str, what: str
) -> np.ndarray:
    values, own = _read(source)
    where = source if isinstance(source, Path) else name
    if values.shape != image.shape:
        raise TrainingError(f"{where}: {what} of shape {values.shape}, the image has {image.shape}; resample the mask")
    if own is not None and affine is not None and not np.allclose(own, affine, atol=1e-2):
        raise TrainingError(f"{where}: {what} lie elsewhere than the image (affines differ); resample the mask")
    return values
