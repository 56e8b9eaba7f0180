"""How often a voxel of the template is in a scan's mask: one map per group, and their difference.

Belongs here: masks onto the template grid, and their mean over scans, one scan in memory at a time. Does not
belong here: how a scan is registered (`imaging/`), names of regions (`imaging/atlas.py`), tests of the
difference (`statistics/voxelwise.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from relevance_assets.imaging.grid import TIE, Grid, resample

__all__ = ["Frequency", "MaskedScan", "Warp", "difference", "group_frequencies", "to_template"]

Shape = tuple[int, int, int]
#: Template mm (n, 3) to scan mm (n, 3), or the 4 x 4 matrix that does it: the way in which values are fetched.
Warp = Callable[[np.ndarray], np.ndarray] | NDArray[np.floating]
_POINTS = 1 << 19  # template points that go through a warp at a time


@dataclass(frozen=True, eq=False)
class MaskedScan:
    """One scan's mask and how it lies to the template.

    Attributes
    ----------
    group : str
        `mild`, `severe`, or any other name.
    mask : (x, y, z) bool
    affine : (4, 4)
        Voxel indices to the scan's RAS+ millimetres.
    warp : Warp, optional
        None where the scan is in template space already.
    """

    group: str
    mask: np.ndarray
    affine: np.ndarray
    warp: Warp | None = None


@dataclass(frozen=True, eq=False)
class Frequency:
    """Share of a group's scans whose mask holds the voxel.

    Attributes
    ----------
    values : (x, y, z) float32, on the template grid
    scans : int
        How many scans the mean is over.
    warped : int
        How many of these came by a warp; the others were taken to lie in template space.
    """

    values: np.ndarray
    scans: int
    warped: int = 0


def to_template(
    mask: np.ndarray,
    affine: np.ndarray,
    template_shape: Shape,
    template_affine: np.ndarray,
    warp: Warp | None = None,
    where: np.ndarray | None = None,
) -> np.ndarray:
    """A mask at the template's voxel centres by nearest neighbour; False outside the scan's field of view.

    Parameters
    ----------
    mask : (x, y, z) bool
    affine, template_affine : (4, 4)
        Voxel indices to RAS+ millimetres.
    warp : Warp, optional
        Where a point of the template lies in the scan, in mm: a function of (n, 3) points, or a 4 x 4 matrix.
        Without it millimetres of the scan are millimetres of the template.
    where : (x, y, z) bool, optional
        The template's brain, say: elsewhere the result is False, and a warp, which costs most, need not be followed.

    Returns
    -------
    (x, y, z) bool, `template_shape`

    Raises
    ------
    ValueError
        Arrays that are not 3D or not on the template's grid, or a warp that does not give finite (n, 3) points.
    """
    if where is not None and where.shape != tuple(template_shape):
        raise ValueError(f"where is {where.shape}, not on the template's grid {tuple(template_shape)}")
    if mask.ndim != 3 or len(template_shape) != 3:
        raise ValueError(f"a mask {mask.shape} and a template {tuple(template_shape)} must both be 3D")
    target = Grid(template_shape, np.asarray(template_affine, dtype=np.float64))
    affine = np.asarray(affine, dtype=np.float64)
    values = mask.astype(np.uint8)
    if callable(warp):
        return _pull(values, np.linalg.inv(affine), target, warp, where)
    if warp is not None:
        affine = np.linalg.inv(_matrix(warp)) @ affine  # the scan's voxels, in template mm
    to_voxels = np.linalg.inv(affine) @ target.affine
    if np.abs(to_voxels[:3, :3] - np.diag(np.diag(to_voxels[:3, :3]))).max() * max(target.shape) < TIE / 10:
        inside = _along_axes(mask.astype(bool), to_voxels, target.shape)
    else:
        inside = resample(values, Grid(mask.shape, affine), target, 0) > 0
    return inside if where is None else inside & where


def _along_axes(mask: np.ndarray, to_voxels: np.ndarray, shape: Shape) -> np.ndarray:
    """As `resample` for two grids whose axes are the same, the usual case: some ten times as fast."""
    nearest, within = [], []
    for axis, n in enumerate(mask.shape):
        place = to_voxels[axis, axis] * np.arange(shape[axis]) + to_voxels[axis, 3]
        nearest.append(np.floor(place + 0.5 + TIE).astype(int).clip(0, n - 1))
        within.append((place >= -0.5 - TIE) & (place <= n - 0.5 + TIE))
    return mask[np.ix_(*nearest)] & within[0][:, None, None] & within[1][:, None] & within[2]


def _matrix(warp: NDArray[np.floating]) -> np.ndarray:
    matrix = np.asarray(warp, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise ValueError("an affine warp must be an invertible 4 x 4 matrix from template mm to scan mm")
    return matrix


def _pull(
    values: np.ndarray,
    to_voxels: np.ndarray,
    target: Grid,
    warp: Callable[[np.ndarray], np.ndarray],
    where: np.ndarray | None,
) -> np.ndarray:
    """The voxel of `values` nearest to each warped template point, some of them at a time."""
    inside = np.zeros(math.prod(target.shape), dtype=bool)
    chosen = np.arange(inside.size) if where is None else np.flatnonzero(where)
    ends = np.array(values.shape)[:, None] - 0.5
    for start in range(0, len(chosen), _POINTS):
        part = chosen[start : start + _POINTS]
        indices = np.stack(np.unravel_index(part, target.shape), axis=1)
        points = indices @ target.affine[:3, :3].T + target.affine[:3, 3]
        there = np.asarray(warp(points), dtype=np.float64)
        if there.shape != points.shape or not np.isfinite(there).all():
            raise ValueError(f"a warp must turn (n, 3) points into (n, 3) finite points, not into {there.shape}")
        place = to_voxels[:3, :3] @ there.T + to_voxels[:3, 3:]
        within = ((place >= -0.5 - TIE) & (place <= ends + TIE)).all(axis=0)
        # ties go to the upper voxel and the edge belongs to the field of view, as in `resample`
        found = ndimage.map_coordinates(values, place + TIE, order=0, mode="nearest")
        inside[part] = (found > 0) & within
    return inside.reshape(target.shape)


def group_frequencies(
    scans: Iterable[MaskedScan],
    template_shape: Shape,
    template_affine: np.ndarray,
    where: np.ndarray | None = None,
) -> dict[str, Frequency]:
    """Mean mask of each group on the template grid (decision Z; the paper's Fig. 6).

    Every scan that is given counts once: give each person's first scan only, where repeated scans should not
    weigh more. A scan whose field of view does not reach a voxel counts as one without it. Masks are summed as
    they come, so memory does not grow with their number.

    Parameters
    ----------
    scans : iterable
        May be a generator; an empty mask counts as a scan.
    where : (x, y, z) bool, optional
        See `to_template`.

    Returns
    -------
    By group, in the order of their names.
    """
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    warped: dict[str, int] = {}
    for scan in scans:
        moved = to_template(scan.mask, scan.affine, template_shape, template_affine, scan.warp, where)
        total = sums.setdefault(scan.group, np.zeros(template_shape, dtype=np.uint32))
        np.add(total, moved, out=total)
        counts[scan.group] = counts.get(scan.group, 0) + 1
        warped[scan.group] = warped.get(scan.group, 0) + (scan.warp is not None)
    return {
        name: Frequency((sums[name] / counts[name]).astype(np.float32), counts[name], warped[name])
        for name in sorted(sums)
    }


def difference(frequencies: Mapping[str, Frequency], more: str = "severe", less: str = "mild") -> np.ndarray:
    """`more` minus `less`, voxel by voxel, in [-1, 1], float32.

    Raises
    ------
    ValueError
        A group without scans.
    """
    absent = [name for name in (more, less) if name not in frequencies]
    if absent:
        raise ValueError(f"heat map: no scan in group {', '.join(absent)}; there is {', '.join(frequencies) or 'none'}")
    return frequencies[more].values - frequencies[less].values
