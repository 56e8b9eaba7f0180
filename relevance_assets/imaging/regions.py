"""The built-in regions: rough shapes by MNI coordinates, for a study that names no atlas.

Belongs here: their coordinates (RAS mm, right side; the left is the mirror image) and which wins where two meet.
Does not belong here: an atlas of a user's, tables (`atlas.py`).

They are approximate. Ellipsoids and boxes were set from textbook positions and extents of each structure in MNI
space, cut to the brain (and to white matter where they are tracts) of nilearn's template, and stand for no
published parcellation. A finding that rests on a region's border needs a real atlas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from relevance_assets.imaging.grid import Grid, resample
from relevance_assets.imaging.template import template

__all__ = ["REGIONS", "Box", "Ellipsoid", "Region", "approximate_labels"]

Point = tuple[float, float, float]
WHITE_MATTER_FLOOR = 0.3  # share of white matter in a tract's voxel, by the template


@dataclass(frozen=True)
class Ellipsoid:
    """Semi-axes in mm: along `axis`, level and across it, and at right angles to both."""

    centre: Point
    semi_axes: Point
    axis: Point = (1, 0, 0)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which (n, 3) points lie within, (n,) bool."""
        first = np.asarray(self.axis, dtype=float) / np.linalg.norm(self.axis)
        across = np.array([-first[1], first[0], 0.0])
        across = across / np.linalg.norm(across) if across.any() else np.array([0.0, 1.0, 0.0])
        turn = np.stack([first, across, np.cross(first, across)])
        scaled = (points - np.asarray(self.centre)) @ turn.T / np.asarray(self.semi_axes)
        return np.asarray((scaled**2).sum(axis=1) <= 1)


@dataclass(frozen=True)
class Box:
    """Between two corners, mm."""

    low: Point
    high: Point

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which (n, 3) points lie within, (n,) bool."""
        return np.asarray(((points >= self.low) & (points <= self.high)).all(axis=1))


@dataclass(frozen=True)
class Region:
    """A union of shapes, cut to a tissue; `paired` ones exist left (x < 0) and right (x > 0)."""

    name: str
    tissue: Literal["brain", "white"]
    shapes: tuple[Ellipsoid | Box, ...]
    paired: bool = True


# A voxel belongs to the first region that holds it: tracts and deep nuclei before what surrounds them.
REGIONS = (
    Region(
        "internal_capsule",
        "white",
        (
            Ellipsoid((18, 8, 8), (12, 4, 10), (9, 18, 0)),  # anterior limb
            Ellipsoid((20, -12.5, 8), (13, 4, 10.5), (13, -20, 0)),  # posterior limb
        ),
    ),
    Region("thalamus", "brain", (Ellipsoid((12, -18, 7), (15, 10, 9.5), (-0.3, 1, 0)),)),
    Region(
        "caudate",
        "brain",
        (
            Ellipsoid((13, 13, 6), (9.5, 4.5, 8.5), (-0.2, 1, 0)),
            Ellipsoid((16, -3, 20), (13, 3.5, 4.5), (-0.2, 1, -0.3)),
        ),
    ),
    Region("pallidum", "brain", (Ellipsoid((20, -4, -1), (8, 4, 5.5), (-0.5, 1, 0)),)),
    Region("putamen", "brain", (Ellipsoid((26.5, 2, 1), (16, 5.5, 10), (-0.4, 1, 0)),)),
    Region(
        "corticospinal_tract",
        "white",
        (
            Ellipsoid((7, -27, -36), (12, 4.5, 5), (5, 9, 20)),  # pons
            Ellipsoid((12, -19, -13), (15, 5, 5), (8, 9, 23)),  # peduncle
            Ellipsoid((25, -20, 26), (13, 6, 5), (3, -3, 20)),  # corona radiata
            Ellipsoid((30, -24, 48), (18, 6, 6), (9, -5, 28)),  # to the precentral gyrus
        ),
    ),
    Region(
        "hippocampus",
        "brain",
        (Ellipsoid((26, -13, -18), (11, 6.5, 5), (4, -11, 4)), Ellipsoid((29, -26, -9), (12, 6, 5), (1, -12, 10))),
    ),
    Region(
        "corpus_callosum",
        "white",
        (
            Ellipsoid((0, 27, 8), (12, 18, 6), (0, -6, 11)),  # genu
            Ellipsoid((0, 9, 23), (17, 18, 5), (0, 18, -7)),
            Ellipsoid((0, -14, 27), (17, 18, 5), (0, 18, 1)),
            Ellipsoid((0, -37, 17), (13, 18, 6.5), (0, 6, 11)),  # splenium
        ),
        paired=False,
    ),
    Region(
        "periventricular_white_matter",
        "white",
        (
            Ellipsoid((16, 30, 8), (17, 12, 15), (0, 1, 0)),  # around the frontal horn
            Ellipsoid((19, -5, 25), (27, 10, 9), (-0.1, 1, 0)),  # beside the body
            Ellipsoid((26, -42, 15), (18, 11, 15), (0.4, -1, -0.5)),  # around the atrium
            Ellipsoid((25, -64, 9), (18, 10, 11), (0, -1, -0.1)),  # around the occipital horn
        ),
    ),
    Region(
        "brainstem",
        "brain",
        (
            Ellipsoid((0, -26, -13), (16, 13, 9)),  # midbrain
            Ellipsoid((0, -27, -32), (17, 14, 15)),  # pons
            Ellipsoid((0, -38, -52), (11, 9, 15)),  # medulla
        ),
        paired=False,
    ),
    Region("cerebellum", "brain", (Ellipsoid((20, -63, -37), (35, 30, 23)),)),
    Region("temporal_lobe", "brain", (Box((16, -60, -50), (80, 22, -8)), Box((38, -58, -8), (80, 5, 12)))),
    Region("occipital_lobe", "brain", (Box((0, -115, -22), (80, -66, 36)),)),
    Region("parietal_lobe", "brain", (Box((0, -90, 12), (80, -22, 90)),)),
    Region(
        "frontal_lobe",
        "brain",
        (Box((0, -22, 30), (80, 90, 90)), Box((0, 6, -30), (80, 90, 30)), Box((38, -12, 12), (80, 6, 30))),
    ),
)


def approximate_labels(shape: Sequence[int], affine: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Labels of `REGIONS` at the voxel centres of a grid in MNI space, and their names.

    Left regions come before right ones and end in `_left`, `_right`; a voxel at x = 0 is in no paired region.

    Returns
    -------
    labels : (x, y, z) int32
    names : dict of int to str
    """
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    brain, white = _tissues(grid)
    voxels = np.argwhere(brain)
    points = voxels @ affine[:3, :3].T + affine[:3, 3]
    in_tissue = {"brain": np.ones(len(points), dtype=bool), "white": white[brain] >= WHITE_MATTER_FLOOR}
    mirrored = points * (-1.0, 1.0, 1.0)
    found = np.zeros(len(points), dtype=np.int32)
    names: dict[int, str] = {}
    for region in REGIONS:
        sides = [("_left", mirrored), ("_right", points)] if region.paired else [("", points)]
        for suffix, seen in sides:
            label = len(names) + 1
            names[label] = region.name + suffix
            inside = np.any([shape.contains(seen) for shape in region.shapes], axis=0)
            if region.paired:
                inside &= seen[:, 0] > 0
            found[inside & in_tissue[region.tissue] & (found == 0)] = label
    labels = np.zeros(grid.shape, dtype=np.int32)
    labels[brain] = found
    return labels, names


def _tissues(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The template's brain (bool) and share of white matter on a grid."""
    space = template()
    return resample(space.brain.astype(np.uint8), space.grid, grid, 0) > 0, resample(space.white, space.grid, grid)
