"""A scan while it is being prepared: what one step of the recipe hands to the next.

Belongs here: arrays, grids and what is known of them. Does not belong here: what a step does (`steps.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from relevance_assets.imaging.geometry import Alignment
from relevance_assets.imaging.grid import Grid, resample, same_grid
from relevance_assets.imaging.volumes import Image, read_image

__all__ = ["Layers", "Visits", "moved_mask", "read_layers"]


@dataclass(frozen=True)
class Visits:
    """One file per visit of the person, the same contrast of each, and which of them this scan is."""

    paths: tuple[Path, ...]
    own: int


@dataclass(frozen=True, eq=False)
class Layers:
    """A scan between two steps: an array and a grid per contrast, and the brain on the first contrast's grid.

    Attributes
    ----------
    paths : tuple of Path
        File of each contrast; errors name the scan by them.
    native : tuple of Grid
        Of each contrast's file.
    moves : tuple of ndarray (4, 4)
        Of each contrast, from its file's millimetres to the scan's; grids have it in them already.
    found : ndarray (4, 4) or None
        First guess of the way from the scan to the template: what a brain mask by the template found.
    alignment : Alignment or None
        The way between scan and template, once `register` has found it.
    common : Grid or None
        The box around all visits in half-way space.
    in_template : bool
        Whether the grids lie in the template's space.
    biased : tuple of (int, ndarray, Image, Image)
        Contrasts with the brain on their grid, before and after their bias field was divided out.
    measures, by_contrast : dict
        Columns of table `volumes`: of the scan, and of its contrasts by name.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    grids: tuple[Grid, ...]
    native: tuple[Grid, ...]
    moves: tuple[np.ndarray, ...]
    resampled: tuple[bool, ...]
    mask: np.ndarray | None = None
    found: np.ndarray | None = None
    alignment: Alignment | None = None
    common: Grid | None = None
    in_template: bool = False
    biased: tuple[tuple[int, np.ndarray, Image, Image], ...] = ()
    measures: dict[str, float | None] = field(default_factory=dict)
    by_contrast: dict[str, dict[str, float | None]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The first contrast's file."""
        return self.paths[0]

    def index(self, name: str | None) -> int:
        """Which contrast this is; the first where none is named."""
        return 0 if name is None else self.names.index(name)

    def chosen(self, names: Sequence[str]) -> list[int]:
        """Which contrasts these are; all where none is named."""
        return [self.index(name) for name in names or self.names]

    def image(self, index: int) -> Image:
        return Image(self.images[index], self.grids[index].affine)

    def mask_on(self, grid: Grid) -> np.ndarray:
        """The brain on another grid."""
        assert self.mask is not None  # the recipe's order
        return self.mask if same_grid(grid, self.grids[0]) else moved_mask(self.mask, self.grids[0], grid)

    def with_image(self, index: int, values: np.ndarray) -> Layers:
        return replace(self, images=(*self.images[:index], values, *self.images[index + 1 :]))

    def moved(self, index: int, move: np.ndarray) -> Layers:
        """The contrast elsewhere: `move` leads from where its points were to where they are."""
        grids, moves = list(self.grids), list(self.moves)
        grids[index] = Grid(grids[index].shape, move @ grids[index].affine)
        moves[index] = move @ moves[index]
        return replace(self, grids=tuple(grids), moves=tuple(moves))


def read_layers(paths: Sequence[Path], names: Sequence[str]) -> Layers:
    """A scan as its files have it; errors as `read_image`."""
    loaded = [read_image(path) for path in paths]
    grids, many = tuple(Grid(image.data.shape, image.affine) for image in loaded), len(loaded)
    images = tuple(image.data for image in loaded)
    return Layers(tuple(paths), tuple(names), images, grids, grids, (np.eye(4),) * many, (False,) * many)


def moved_mask(mask: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Linear interpolation, >= 0.5 is inside; the margin keeps ties inside whatever the rounding."""
    return resample(mask.astype(np.float32), source, target) >= 0.5 - 1e-5
