"""The scans of one fold: which files, covariates, targets and weights, and their images in batches.

Belongs here: samples, the bounded memory of images, the order in which an epoch sees them, and the seeds from
which all of an epoch's randomness follows. Does not belong here: changing an image (`augment.py`), choosing
who is in which fold (`cohort.splits`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from relevance_assets.imaging.volumes import load_volume
from relevance_assets.study import Augmentation, Shape
from relevance_assets.training.augment import Change, draw

__all__ = [
    "TrainingError",
    "Samples",
    "Volumes",
    "Batch",
    "Batches",
    "epoch_changes",
    "epoch_order",
    "generator",
    "seed_of",
]

Purpose = Literal["weights", "order", "augmentation", "dropout"]
PURPOSES: tuple[Purpose, ...] = ("weights", "order", "augmentation", "dropout")


class TrainingError(ValueError):
    """A model cannot be fitted or applied; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Samples:
    """Scans with what a model takes and should say.

    Attributes
    ----------
    scans : tuple of str
        n scan names.
    images : tuple of tuple of Path
        Per scan one prepared NIfTI per contrast, in the study's order.
    covariates : (n, p) float32 array
        Already divided by the study's `divide_by`; p may be 0.
    targets : (n,) float32 array
        0 or 1, the value itself, or the place of the class, from 0.
    weights : (n,) float32 array
        Each scan's weight in the loss.
    """

    scans: tuple[str, ...]
    images: tuple[tuple[Path, ...], ...]
    covariates: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.scans)
        lengths = {len(self.images), len(self.covariates), len(self.targets), len(self.weights)}
        if lengths - {n} or self.covariates.ndim != 2 or self.targets.ndim != 1 or self.weights.ndim != 1:
            raise TrainingError(f"samples: {n} scans need as many images, covariates (n, p), targets and weights")
        if len({len(paths) for paths in self.images}) > 1:
            raise TrainingError("samples: every scan needs the same number of contrasts")
        for name in ("covariates", "targets", "weights"):
            values = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            bad = ~np.isfinite(values).reshape(n, -1).all(axis=1) if values.size else np.zeros(n, bool)
            if bad.any():
                raise TrainingError(f"samples: {name} of {self.scans[int(bad.argmax())]} is missing or not finite")
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.scans)


class Volumes:
    """Images of scans, read when they are wanted; those that fit into `gigabytes` stay in memory.

    What came first stays: an epoch visits every scan once, so that throwing out the oldest image would keep
    exactly those that are not wanted next.
    """

    def __init__(self, gigabytes: float) -> None:
        self._kept: dict[tuple[Path, ...], np.ndarray] = {}
        self._room = int(gigabytes * 2**30)
        self._shape: Shape | None = None

    @property
    def slices(self) -> bool:
        """Whether what was read are slices (x, y, 1)."""
        return self._shape is not None and self._shape[2] == 1

    @property
    def bytes_kept(self) -> int:
        return sum(volume.nbytes for volume in self._kept.values())

    def __call__(self, paths: tuple[Path, ...]) -> np.ndarray:
        """Images of one scan, (contrast, x, y, z) float32.

        Raises
        ------
        TrainingError
            An image has another shape than the first one read.
        ScanError
            A file cannot be read, or holds values that are not finite.
        """
        if (kept := self._kept.get(paths)) is not None:
            return kept
        images = []
        for path in paths:
            image = np.asarray(load_volume(path)[0], dtype=np.float32)
            self._shape = self._shape or image.shape
            if image.shape != self._shape:
                raise TrainingError(
                    f"{path}: shape {_shown(image.shape)} differs from the other scans' "
                    f"{_shown(self._shape)}; prepare all scans to one shape (crop_or_pad)"
                )
            images.append(image)
        volume = np.stack(images)
        volume.flags.writeable = False
        if volume.nbytes <= self._room:
            self._room -= volume.nbytes
            self._kept[paths] = volume
        return volume


class Batch(NamedTuple):
    """Scans that go through the network together; `changes` are still to be applied to `images`."""

    images: torch.Tensor  # (batch, contrast, x, y, z)
    covariates: torch.Tensor  # (batch, p)
    targets: torch.Tensor  # (batch,)
    weights: torch.Tensor  # (batch,)
    changes: tuple[Change, ...] | None


class Batches:
    """The batches of one epoch, in the order of `order`; iterating twice gives the same twice.

    Batches are of nearly equal size (they differ by at most one scan), so that batch statistics never rest
    on a lone last scan. Of every batch, process `rank` of `processes` has each `processes`-th scan.
    """

    def __init__(
        self,
        samples: Samples,
        volumes: Volumes,
        batch_size: int,
        order: Sequence[int] | np.ndarray | None = None,
        changes: Sequence[Change] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.samples, self.volumes, self.changes = samples, volumes, changes
        self.mine = slice(rank, None, processes)
        self.order = np.arange(len(samples)) if order is None else np.asarray(order, dtype=np.intp)
        self.parts = np.array_split(np.arange(len(self.order)), -(-len(self.order) // batch_size) or 1)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts:
            places = part[self.mine]
            rows = self.order[places]
            yield Batch(
                torch.from_numpy(np.stack([self.volumes(self.samples.images[row]) for row in rows])),
                torch.from_numpy(self.samples.covariates[rows]),
                torch.from_numpy(self.samples.targets[rows]),
                torch.from_numpy(self.samples.weights[rows]),
                None if self.changes is None else tuple(self.changes[place] for place in places),
            )


def seed_of(seed: int, fold: int, epoch: int, purpose: Purpose) -> int:
    """The seed for one purpose in one epoch: nothing that happened before has a say in it.

    Examples
    --------
    >>> seed_of(0, 1, 2, "order") == seed_of(0, 1, 2, "order") != seed_of(0, 1, 3, "order")
    True
    """
    words = np.random.SeedSequence([seed, fold, epoch, PURPOSES.index(purpose)]).generate_state(2, np.uint32)
    return int(words[0]) << 31 ^ int(words[1])  # below 2^63, as torch wants it


def generator(seed: int, fold: int, epoch: int, purpose: Purpose) -> np.random.Generator:
    """numpy's generator from `seed_of`."""
    return np.random.default_rng(seed_of(seed, fold, epoch, purpose))


def epoch_order(targets: np.ndarray, *, balanced: bool, random: np.random.Generator) -> np.ndarray:
    """Which scans an epoch visits, as n indices.

    Without `balanced` a permutation. With it, n draws with replacement in which each class of `targets` is
    expected equally often (Lu et al. 2023: weighted sampler against class imbalance).
    """
    if not balanced:
        return random.permutation(len(targets))
    _, classes, counts = np.unique(targets, return_inverse=True, return_counts=True)
    chance = 1 / counts[classes]
    return random.choice(len(targets), size=len(targets), p=chance / chance.sum())


def epoch_changes(
    settings: Augmentation, samples: int, random: np.random.Generator, *, slices: bool = False
) -> tuple[Change, ...] | None:
    """One drawn change per visited scan; None where the settings change nothing."""
    changes = tuple(draw(settings, random, slices=slices) for _ in range(samples))
    return None if all(change.nothing for change in changes) else changes


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
