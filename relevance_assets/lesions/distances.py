"""How far lesions are from ventricles, cortex, the brain's edge and the mid-plane, in mm.

Belongs here: Euclidean distances in 3D on any orthogonal grid, the mid-plane. Does not belong here: what a distance
means (`zones_3d.py`), distances within one slice (`zones_2d.py`).

Distances run from voxel centre to voxel centre, so a lesion that touches a ventricle is one voxel away from it. Of
voxels they come from a Euclidean distance transform; of centroids, which lie between voxels, from a search for the
nearest voxel of the target's surface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.spatial import cKDTree

from relevance_assets.lesions.components import world_mm

__all__ = ["Plane", "distances_mm", "lesion_distances", "mid_plane", "voxel_distances"]

Mask = NDArray[np.bool_]
SHEAR = 1e-3  # cosine between two voxel axes that may pass as rounding
SMOOTH_MM = 8.0  # wider than thick slices: by 4 mm, steps of 6.5 mm drew the mid-plane up to 3 degrees to the grid
COARSE_MM, SAMPLES = 2.0, 20_000  # of the mask whose symmetry is sought


@dataclass(frozen=True, eq=False)
class Plane:
    """Points x with normal . x = offset_mm, RAS+ mm; the normal is a unit vector towards the right."""

    normal: NDArray[np.float64]
    offset_mm: float

    def signed_mm(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Distance of points (n, 3) from the plane, positive to its right."""
        return points @ self.normal - self.offset_mm


def distances_mm(
    points: NDArray[np.floating], target: Mask | None, affine: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Distance of each point to the nearest voxel centre of a target; 0 in the target, NaN if there is no target.

    Parameters
    ----------
    points : (n, 3)
        RAS+ mm.
    target : (X, Y, Z) or None
    affine : (4, 4)
        Of the target.

    Raises
    ------
    ValueError
        If the voxel axes are not at right angles.
    """
    _spacing_mm(affine)
    if target is None or not target.any():
        return np.full(len(points), np.nan)
    target = target.astype(bool)
    found = cKDTree(world_mm(np.argwhere(_surface(target)), affine)).query(points)[0]
    at = np.rint(world_mm(points, np.linalg.inv(affine))).astype(np.intp)
    here = np.flatnonzero(((at >= 0) & (at < target.shape)).all(axis=1))
    here = here[target[tuple(at[here].T)]]
    found[here] = 0
    return np.asarray(found, np.float64)


def _spacing_mm(affine: NDArray[np.floating]) -> NDArray[np.float64]:
    """Lengths of the voxel axes, which must be at right angles."""
    axes = np.asarray(affine, np.float64)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    unit = axes / lengths
    if np.abs(unit.T @ unit - np.eye(3)).max() > SHEAR:
        raise ValueError("the grid is sheared: its voxel axes are not at right angles; resample the masks first")
    return lengths


def _surface(target: Mask) -> Mask:
    """Voxels with a face outside the target: one of them is the nearest to any voxel outside."""
    surface = target & ~ndimage.binary_erosion(target, border_value=1)
    # what fills the grid has none; seen from beyond the grid, the nearest may be any
    return surface if surface.any() else target


def _transform(voxels: NDArray[np.intp], target: Mask | None, spacing_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance transform to a target at voxels (n, 3), within the smallest box that holds both."""
    if target is None or not target.any() or not len(voxels):
        return np.full(len(voxels), np.nan)
    surface = _surface(target)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    for axis in range(3):
        hit = np.flatnonzero(surface.any(axis=tuple(other for other in range(3) if other != axis)))
        low[axis], high[axis] = min(low[axis], hit[0]), max(high[axis], hit[-1] + 1)
    box = target[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    found: NDArray[np.float64] = ndimage.distance_transform_edt(~box, sampling=spacing_mm)
    return found[tuple((voxels - low).T)]


def voxel_distances(
    labels: NDArray[np.integer], affine: NDArray[np.floating], targets: Mapping[str, Mask | None]
) -> pl.DataFrame:
    """Every lesion voxel and its distance to each target.

    Parameters
    ----------
    labels : (X, Y, Z)
        0 is no lesion.
    affine : (4, 4)
    targets : name -> (X, Y, Z) or None
        As `{"ventricle": …, "cortex": …, "outside": ~brain}`.

    Returns
    -------
    One row per lesion voxel, in C order: lesion, voxel (flat index), `<name>_mm`, null where there is no such target.
    """
    for name, target in targets.items():
        if target is not None and target.shape != labels.shape:
            raise ValueError(f"{name} {target.shape} and lesions {labels.shape} lie on different grids; resample one")
    flat, spacing = np.flatnonzero(labels), _spacing_mm(affine)
    at = np.stack(np.unravel_index(flat, labels.shape), axis=1)
    columns = {
        f"{name}_mm": _transform(at, target if target is None else target.astype(bool), spacing)
        for name, target in targets.items()
    }
    values = {"lesion": labels.ravel()[flat].astype(np.int64), "voxel": flat} | columns
    return pl.DataFrame(values).fill_nan(None)


def lesion_distances(
    lesions: pl.DataFrame,
    voxels: pl.DataFrame,
    affine: NDArray[np.floating],
    targets: Mapping[str, Mask | None],
    plane: Plane | None = None,
) -> pl.DataFrame:
    """Least distance and the centroid's, to each target, beside what is known of each lesion.

    Parameters
    ----------
    lesions : frame of `components.lesion_measures`
    voxels : frame of `voxel_distances`, with the same targets
    affine : (4, 4)
    targets : name -> (X, Y, Z) or None
    plane
        The mid-plane, if known.

    Returns
    -------
    `lesions` with `<name>_edge_mm` and `<name>_centroid_mm`, null where there is no such target, and midplane_mm: the
    centroid's distance from the mid-plane, positive to the right, null without one.
    """
    edges = voxels.group_by("lesion").agg(pl.col(f"{name}_mm").min().alias(f"{name}_edge_mm") for name in targets)
    centres = lesions.select("centroid_x_mm", "centroid_y_mm", "centroid_z_mm").to_numpy()
    columns = {f"{name}_centroid_mm": distances_mm(centres, target, affine) for name, target in targets.items()}
    columns["midplane_mm"] = plane.signed_mm(centres) if plane else np.full(len(centres), np.nan)
    found = lesions.join(edges, on="lesion", how="left", maintain_order="left")
    return found.with_columns(pl.Series(name, values).fill_nan(None) for name, values in columns.items())


def mid_plane(brain: Mask, affine: NDArray[np.floating]) -> Plane:
    """The plane in which a brain mask mirrors itself best.

    Sought from the plane through the mask's centroid across the world's left-right axis, with the mask smoothed by 8
    mm: tilt, turn and offset by Nelder and Mead's simplex, so a head turned by more than about 20 degrees needs
    alignment first. In a template's space take `Plane(np.array([1.0, 0, 0]), 0.0)`.

    Raises
    ------
    ValueError
        If the mask is empty.
    """
    if not brain.any():
        raise ValueError("the brain mask is empty: it has no mid-plane")
    # every second voxel of a 1 mm grid is more than the smoothed mask needs
    steps = np.maximum(1, COARSE_MM // (np.linalg.norm(np.asarray(affine)[:3, :3], axis=0) - 1e-3)).astype(int)
    thin = brain[tuple(slice(None, None, step) for step in steps)]
    if thin.any():
        brain, affine = thin, np.asarray(affine, np.float64) @ np.diag([*steps, 1.0])
    back = np.linalg.inv(affine)
    smooth = ndimage.gaussian_filter(brain.astype(np.float32), SMOOTH_MM / np.linalg.norm(affine[:3, :3], axis=0))
    voxels = np.argwhere(brain)
    centre = world_mm(voxels, affine).mean(axis=0)
    # between voxels, not on them: on them a plane along the grid would mirror voxels on voxels and look better
    points = np.random.default_rng(0).uniform(voxels.min(axis=0) - 1, voxels.max(axis=0) + 1, (SAMPLES, 3))
    values, points = ndimage.map_coordinates(smooth, points.T, order=1), world_mm(points, affine)

    def plane(tilts: NDArray[np.float64]) -> Plane:
        normal = np.array([1.0, tilts[0], tilts[1]])
        normal /= np.linalg.norm(normal)
        return Plane(normal, float(normal @ centre + 100 * tilts[2]))

    def asymmetry(tilts: NDArray[np.float64]) -> float:
        where = plane(tilts)
        mirrored = points - 2 * where.signed_mm(points)[:, None] * where.normal
        other = ndimage.map_coordinates(smooth, world_mm(mirrored, back).T, order=1)
        return float(((other - values) ** 2).mean())

    start = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.05]])
    options = {"initial_simplex": start, "xatol": 1e-4, "fatol": 1e-7}
    return plane(optimize.minimize(asymmetry, start[0], method="Nelder-Mead", options=options).x)
