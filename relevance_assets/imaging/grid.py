"""Grids: a shape and an affine, how one is made from another, and how values move between them.

Belongs here: pure functions on arrays and affines. Does not belong here: files (`volumes.py`), which grids a
study wants and in which order (`recipe.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

__all__ = [
    "Grid",
    "axis_aligned",
    "canonical",
    "centre_start",
    "copy_between",
    "moved",
    "resample",
    "same_grid",
    "same_voxel_size",
    "smoothing_sigma",
    "uncanonical",
]

Shape = tuple[int, int, int]
SAME_SIZE_MM = 1e-3  # voxel sizes, and corners of two grids, that differ by less than this are the same
TIE = 1e-6  # voxels; a point midway between two voxels belongs to the upper one, whatever the rounding


@dataclass(frozen=True, eq=False)
class Grid:
    """Where an array's voxels lie.

    Attributes
    ----------
    shape : (int, int, int)
    affine : ndarray (4, 4), float64
        Voxel indices to RAS+ millimetres.
    """

    shape: Shape
    affine: np.ndarray

    @property
    def voxel_sizes_mm(self) -> Shape:
        """Lengths of the three voxel axes, mm."""
        return tuple(float(size) for size in voxel_sizes(self.affine))  # type: ignore[return-value]

    @property
    def orientation(self) -> str:
        """The direction of each array axis: `RAS`, `LAS`, `PSR` …"""
        return "".join(aff2axcodes(self.affine))

    def corners_mm(self) -> np.ndarray:
        """The 8 outer corners of the field of view (voxel edges, not centres), mm, shape (8, 3)."""
        ends = [(-0.5, n - 0.5) for n in self.shape]
        indices = np.array([(x, y, z) for x in ends[0] for y in ends[1] for z in ends[2]])
        return indices @ self.affine[:3, :3].T + self.affine[:3, 3]


def same_grid(a: Grid, b: Grid) -> bool:
    """Equal shapes, and corners less than 0.001 mm apart."""
    return a.shape == b.shape and float(np.abs(a.corners_mm() - b.corners_mm()).max()) < SAME_SIZE_MM


def same_voxel_size(grid: Grid, voxel_size_mm: tuple[float, float, float]) -> bool:
    """Voxel sizes that differ by no more than 0.001 mm."""
    return bool(np.abs(np.subtract(grid.voxel_sizes_mm, voxel_size_mm)).max() <= SAME_SIZE_MM)


def canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip the axes so that they point as nearly as possible to right, anterior, superior.

    No value changes; an oblique affine stays oblique by the same angle.
    """
    orientation = io_orientation(affine)
    return apply_orientation(array, orientation), affine @ inv_ornt_aff(orientation, array.shape)


def uncanonical(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """What `canonical` made of an array with this affine, as it was before."""
    upright = io_orientation(np.eye(4))
    return apply_orientation(array, ornt_transform(upright, io_orientation(affine)))


def axis_aligned(grid: Grid, voxel_size_mm: tuple[float, float, float]) -> Grid:
    """The RAS+ grid without rotation, of this voxel size, over the whole field of view of `grid`.

    The centre of the field of view is kept; where it is not a multiple of the voxel size it grows (rounded
    up). For an oblique grid the field of view is the box around its corners.
    """
    corners = grid.corners_mm()
    low, high = corners.min(axis=0), corners.max(axis=0)
    shape = np.maximum(1, np.ceil((high - low) / voxel_size_mm - SAME_SIZE_MM)).astype(int)
    affine = np.diag([*voxel_size_mm, 1.0])
    affine[:3, 3] = (low + high) / 2 - np.array(voxel_size_mm) * (shape - 1) / 2
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def smoothing_sigma(source: Grid, target: Grid) -> np.ndarray:
    """Width of the Gaussian that precedes a reduction, in source voxels per source axis; 0 where none is
    needed.

    (factor - 1) / 2, as scikit-image's `resize` does it, along axes that shrink by more than a factor of
    1.5. The factor of a source axis is the target's voxel extent along it.
    """
    to_source = np.linalg.inv(source.affine)[:3, :3] @ target.affine[:3, :3]
    factors = np.abs(to_source).max(axis=1)
    return np.where(factors > 1.5, (factors - 1) / 2, 0.0)


def resample(
    array: np.ndarray, source: Grid, target: Grid, order: Literal[0, 1, 3] = 1, *, smooth: bool = True
) -> np.ndarray:
    """Values of `array` at the voxel centres of `target`; 0 outside the source's field of view.

    Between the outermost voxel centres and the edge of the field of view the outermost value holds.

    Parameters
    ----------
    array : ndarray, `source.shape`
    order : 0, 1 or 3
        Nearest neighbour (a tie goes to the higher index), linear, cubic spline.
    smooth : bool
        Gaussian against aliasing before a reduction by more than 1.5 (`smoothing_sigma`); never with order 0.

    Returns
    -------
    ndarray, `target.shape`, float32 (the type of `array` with order 0)
    """
    if array.shape != source.shape:
        raise ValueError(f"an array of shape {array.shape} is not on a grid of shape {source.shape}")
    to_source = np.linalg.inv(source.affine) @ target.affine
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    values = array if order == 0 else np.asarray(array, dtype=np.float32)
    sigma = smoothing_sigma(source, target)
    if smooth and order and sigma.any():
        values = ndimage.gaussian_filter(values, sigma, mode="nearest")
    shift = TIE if order == 0 else 0.0
    result = ndimage.affine_transform(
        values, matrix, offset + shift, output_shape=target.shape, order=order, mode="nearest"
    )
    result[_outside(source.shape, target.shape, matrix, offset)] = 0
    return result


def _outside(source: Shape, target: Shape, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Which target voxels have their centre beyond the source's voxel edges; bool, `target` shape."""
    indices = np.ogrid[tuple(slice(n) for n in target)]
    outside = np.zeros(target, dtype=bool)
    for axis, n in enumerate(source):
        position = sum(weight * index for weight, index in zip(matrix[axis], indices, strict=True)) + offset[axis]
        outside |= (position < -0.5 - TIE) | (position > n - 0.5 + TIE)
    return outside


def centre_start(shape: Shape, wanted: Shape, mask: np.ndarray | None = None) -> Shape:
    """Index, in the old grid, of the first voxel of a grid of shape `wanted` around the old one's middle.

    Negative where the grid is padded. With `mask` the middle is that of the mask's bounding box. A remainder
    of one voxel goes to the upper end when cropping, to the lower end when padding.
    """
    starts = []
    for axis, (n, m) in enumerate(zip(shape, wanted, strict=True)):
        low, high = 0, n
        if mask is not None:
            hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
            low, high = int(hit[0]), int(hit[-1]) + 1
        starts.append(math.floor((low + high - m) / 2))
    return (starts[0], starts[1], starts[2])


def moved(grid: Grid, start: Shape, shape: Shape) -> Grid:
    """The grid of `shape` whose first voxel is voxel `start` of `grid`."""
    affine = grid.affine.copy()
    affine[:3, 3] = grid.affine[:3, :3] @ start + grid.affine[:3, 3]
    return Grid(shape, affine)


def copy_between(array: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """`array` on another grid over the same voxels: permuted, flipped, cropped or padded with 0; bits
    unchanged.

    Raises
    ------
    ValueError
        The voxels of the two grids do not coincide.
    """
    to_target = np.linalg.inv(target.affine) @ source.affine
    rounded = np.rint(to_target)
    if np.abs(to_target - rounded).max() > SAME_SIZE_MM or not _is_signed_permutation(rounded[:3, :3]):
        raise ValueError("the two grids do not share their voxels: interpolate instead")
    turned = np.stack([np.abs(rounded[:3, :3]).argmax(axis=0), rounded[:3, :3].sum(axis=0)], axis=1)
    values = apply_orientation(array, turned)
    # after turning, voxel 0 of `values` lies at this index of the target
    first = [int(rounded[axis, 3]) for axis in range(3)]
    for old, (new, sign) in enumerate(turned.astype(int)):
        if sign < 0:
            first[new] -= array.shape[old] - 1
    result = np.zeros(target.shape, dtype=array.dtype)
    into, out_of = [], []
    for start, n, m in zip(first, values.shape, target.shape, strict=True):
        low, high = max(0, start), min(m, start + n)
        into.append(slice(low, max(low, high)))
        out_of.append(slice(low - start, max(low, high) - start))
    result[tuple(into)] = values[tuple(out_of)]
    return result


def _is_signed_permutation(matrix: np.ndarray) -> bool:
    return bool((np.abs(matrix).sum(axis=0) == 1).all() and (np.abs(matrix).sum(axis=1) == 1).all())
