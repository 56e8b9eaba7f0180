"""The anatomy that everybody's brain is warped from: tissue fractions, ventricles, distances, regions.

Belongs here: what follows from nilearn's MNI152 template alone (made once per resolution), and sampling it
at points. Does not belong here: anything that differs between people.

The template is MNI152NLin2009aSym (Fonov et al. 2011, NeuroImage 54:313), bundled with nilearn, so nothing
is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array

from relevance_assets.cohort.synthetic.regions import decoy_membership, disability_membership

__all__ = ["Grid", "Template", "CHANNELS", "load_template", "sample"]

#: Columns of `Template.table`: fractions (0 to 1) of the voxel.
CHANNELS = ("brain", "white", "grey", "deep_grey", "ventricle", "disability", "decoy")
MARGIN_MM = 8.0
SHARPNESS = 1.6  # the template is a mean of 152 people: its tissue fractions are blurred
WARP_SPACING_MM = 4.0


@dataclass(frozen=True)
class Grid:
    """A regular grid along the axes of MNI space."""

    shape: tuple[int, int, int]
    origin_mm: np.ndarray  # (3,) centre of voxel (0, 0, 0)
    spacing_mm: float

    def axes(self) -> list[np.ndarray]:
        """MNI coordinates in mm along x (n, 1, 1), y (1, n, 1) and z (1, 1, n)."""
        return [
            self.origin_mm[i] + self.spacing_mm * open_axis
            for i, open_axis in enumerate(np.ogrid[*map(slice, self.shape)])
        ]

    def points(self, voxels: np.ndarray) -> np.ndarray:
        """(n, 3) MNI coordinates in mm of voxels, given by their flat indices in C order."""
        return self.origin_mm + np.stack(np.unravel_index(voxels, self.shape), axis=1) * self.spacing_mm


@dataclass(frozen=True, eq=False)
class Template:
    """The template at one resolution, cropped to the brain.

    Attributes
    ----------
    grid : Grid
        Of `table`, `to_ventricle_mm`, `to_cortex_mm`.
    table : (n, channels) float32
        Fractions of `CHANNELS`, one row per voxel in C order.
    to_ventricle_mm, to_cortex_mm : (n,) float32
        Distance to the lateral ventricles and to the cortex.
    warp_grid : Grid
        Coarse grid on which displacements are drawn.
    ventricle_push : (3, x, y, z) float32
        Unit-length field on `warp_grid` that points away from the lateral ventricles and fades with distance.
    to_brain_mm : (x, y, z) float32
        On `warp_grid`: distance to the brain, 0 within it.
    """

    grid: Grid
    table: np.ndarray
    to_ventricle_mm: np.ndarray
    to_cortex_mm: np.ndarray
    warp_grid: Grid
    ventricle_push: np.ndarray
    to_brain_mm: np.ndarray

    def channel(self, name: str) -> np.ndarray:
        """One column of `table`, (n,)."""
        return self.table[:, CHANNELS.index(name)]


@lru_cache(maxsize=2)
def load_template(spacing_mm: int) -> Template:
    """The template at 1 or 2 mm."""
    from nilearn import datasets

    white_image = datasets.load_mni152_wm_template(resolution=spacing_mm)
    whole = Grid(white_image.shape, np.asarray(white_image.affine[:3, 3]), float(spacing_mm))
    brain = datasets.load_mni152_brain_mask(resolution=spacing_mm).get_fdata() > 0
    white = np.asarray(white_image.get_fdata(), dtype=np.float32) * brain
    grey_image = datasets.load_mni152_gm_template(resolution=spacing_mm)
    grey = np.asarray(grey_image.get_fdata(), dtype=np.float32) * brain

    box, grid = _crop(whole, brain)
    brain, white, grey = brain[box], white[box], grey[box]
    ventricle = _lateral_ventricles(grid, brain, white + grey)
    white, grey, fluid = _sharpen(white, grey, brain)
    soft_ventricle = fluid * ndimage.binary_dilation(ventricle, iterations=max(1, 2 // spacing_mm))
    deep = _deep_share(grid)
    columns = {
        "brain": brain,
        "white": white,
        "grey": grey * (1 - deep),
        "deep_grey": grey * deep,
        "ventricle": soft_ventricle,
        "disability": _membership(disability_membership, grid, white) * brain,
        "decoy": _membership(decoy_membership, grid, white) * brain,
    }
    to_ventricle = ndimage.distance_transform_edt(~ventricle, sampling=spacing_mm)
    to_cortex = ndimage.distance_transform_edt(~(columns["grey"] > 0.5), sampling=spacing_mm)
    warp_grid, step = _coarse(grid)
    to_brain = ndimage.distance_transform_edt(~brain[step], sampling=WARP_SPACING_MM)
    return Template(
        grid=grid,
        table=np.stack([np.asarray(c, dtype=np.float32).ravel() for c in columns.values()], axis=1),
        to_ventricle_mm=to_ventricle.astype(np.float32).ravel(),
        to_cortex_mm=to_cortex.astype(np.float32).ravel(),
        warp_grid=warp_grid,
        ventricle_push=_push(ventricle, spacing_mm, step),
        to_brain_mm=to_brain.astype(np.float32),
    )


def sample(grid: Grid, points: np.ndarray, *tables: np.ndarray) -> list[np.ndarray]:
    """Trilinear values of tables at points; points outside the grid take its border's value.

    Parameters
    ----------
    grid : Grid
    points : (n, 3) float
        MNI coordinates in mm.
    *tables : (voxels, channels) float32
        One row per voxel of `grid`, in C order.

    Returns
    -------
    list of (n, channels) float32
        One per table.
    """
    shape = np.array(grid.shape)
    place = ((points - grid.origin_mm) / grid.spacing_mm).T.astype(np.float32)
    place = np.clip(place, 0.0, (shape[:, None] - 1.001).astype(np.float32))
    lower = place.astype(np.int32)
    up = place - lower
    down = 1 - up
    first = (lower[0] * shape[1] + lower[1]) * shape[2] + lower[2]
    columns = np.empty((len(points), 8), dtype=np.int32)
    weights = np.empty((len(points), 8), dtype=np.float32)
    for corner, (dx, dy, dz) in enumerate(product((0, 1), repeat=3)):
        columns[:, corner] = first + (dx * shape[1] + dy) * shape[2] + dz
        weights[:, corner] = (up if dx else down)[0] * (up if dy else down)[1] * (up if dz else down)[2]
    # The weights as a sparse matrix, so that one compiled product serves all channels.
    matrix = csr_array(
        (weights.ravel(), columns.ravel(), np.arange(0, columns.size + 1, 8, dtype=np.int32)),
        shape=(len(points), int(shape.prod())),
    )
    return [matrix @ table for table in tables]


def _crop(grid: Grid, brain: np.ndarray) -> tuple[tuple[slice, ...], Grid]:
    """The brain's box with a margin, and its grid."""
    margin = int(MARGIN_MM / grid.spacing_mm)
    filled = np.argwhere(brain)
    low = np.maximum(filled.min(axis=0) - margin, 0)
    high = np.minimum(filled.max(axis=0) + margin + 1, brain.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    shape = tuple(int(n) for n in high - low)
    return box, Grid(shape, grid.origin_mm + low * grid.spacing_mm, grid.spacing_mm)  # type: ignore[arg-type]


def _lateral_ventricles(grid: Grid, brain: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Deep fluid: the largest component on each side of the midline (7 ml each)."""
    depth = ndimage.distance_transform_edt(brain, sampling=grid.spacing_mm)
    labels, count = ndimage.label(brain & (tissue < 0.35) & (depth > 12.0))
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, count + 1))
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, np.arange(1, count + 1)))
    x = grid.origin_mm[0] + centres[:, 0] * grid.spacing_mm
    chosen = [1 + int(np.argmax(np.where(side, sizes, 0))) for side in ((x > 8) & (x < 25), (x < -8) & (x > -25))]
    return np.isin(labels, chosen)


def _sharpen(white: np.ndarray, grey: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crisper fractions that sum to 1 in the brain: each to a power, then divided by the sum."""
    fluid = np.clip(1.0 - white - grey, 0.0, 1.0) * brain
    powers = [np.clip(part, 0.0, 1.0) ** SHARPNESS for part in (white, grey, fluid)]
    total = np.maximum(sum(powers), 1e-6)
    white, grey, fluid = ((part / total * brain).astype(np.float32) for part in powers)
    return white, grey, fluid


def _membership(of: Callable[..., np.ndarray], grid: Grid, white: np.ndarray) -> np.ndarray:
    """A region's membership on the grid, slice by slice to save memory."""
    members = np.zeros(grid.shape, dtype=np.float32)
    size = grid.shape[1] * grid.shape[2]
    for index in range(grid.shape[0]):
        points = grid.points(np.arange(size) + index * size)
        if abs(points[0, 0]) < 50:  # all regions lie within
            members[index] = of(points, white[index].ravel(), grid.spacing_mm).reshape(grid.shape[1:])
    return members


def _deep_share(grid: Grid) -> np.ndarray:
    """1 where grey matter is basal ganglia or thalamus, 0 where it is cortex or cerebellum."""
    x, y, z = grid.axes()
    radius = np.sqrt((x / 33.0) ** 2 + ((y + 6.0) / 32.0) ** 2 + ((z - 4.0) / 19.0) ** 2)
    return np.clip((1.0 - radius) * 5.0, 0.0, 1.0).astype(np.float32)


def _coarse(grid: Grid) -> tuple[Grid, tuple[slice, ...]]:
    stride = round(WARP_SPACING_MM / grid.spacing_mm)
    step = (slice(None, None, stride),) * 3
    shape = tuple(-(-n // stride) for n in grid.shape)
    return Grid(shape, grid.origin_mm, WARP_SPACING_MM), step  # type: ignore[arg-type]


def _push(ventricle: np.ndarray, spacing_mm: float, step: tuple[slice, ...]) -> np.ndarray:
    """Gradient of the smoothed signed distance to the ventricles, fading over 14 mm outside them."""
    signed = ndimage.distance_transform_edt(~ventricle, sampling=spacing_mm)
    signed -= ndimage.distance_transform_edt(ventricle, sampling=spacing_mm)
    smooth = ndimage.gaussian_filter(signed, 3.0 / spacing_mm)
    fade = np.exp(-((np.maximum(smooth, 0.0) / 14.0) ** 2))
    gradient = np.stack(np.gradient(smooth, spacing_mm)) * fade
    return gradient[(slice(None), *step)].astype(np.float32)
