"""Lesions as connected components of a mask, and what each one measures.

Belongs here: labelling with a stated connectivity, volume, place and shape of each component. Does not belong here:
distances to anatomy (`distances.py`), zones (`zones_2d.py`, `zones_3d.py`).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

__all__ = ["label_lesions", "lesion_measures", "voxel_mm3", "world_mm"]

RANKS = {6: 1, 18: 2, 26: 3}  # neighbours of a voxel: how many indices may differ
MANY_POINTS = 600  # from here the hull costs less than all pairs


def label_lesions(
    mask: np.ndarray, affine: NDArray[np.floating], *, connectivity: int = 26, minimum_mm3: float = 0.0
) -> NDArray[np.int32]:
    """Connected components of what is above 0 in a mask, numbered from 1 by their first voxel.

    Parameters
    ----------
    mask : (X, Y, Z)
        Finite.
    affine : (4, 4)
        Voxel indices to RAS+ mm; oblique and anisotropic ones are welcome.
    connectivity : 6, 18 or 26
        Voxels that share a face; or an edge too; or a corner too.
    minimum_mm3
        Smaller components are dropped, equal ones kept.

    Returns
    -------
    labels : (X, Y, Z) int32

    Raises
    ------
    ValueError
        Not a volume, values that are not finite, or another connectivity.
    """
    if mask.ndim != 3:
        raise ValueError(f"a lesion mask has three axes, not {mask.ndim}")
    if connectivity not in RANKS:
        raise ValueError(f"connectivity is 6, 18 or 26, not {connectivity}")
    if not np.isfinite(mask).all():
        raise ValueError("the lesion mask holds NaN or infinite values; give voxels that are no lesion a 0")
    structure = ndimage.generate_binary_structure(3, RANKS[connectivity])
    labels, _ = ndimage.label(mask > 0, structure, output=np.int32)
    sizes = np.bincount(labels.ravel())
    # a relative margin, so that "four voxels of 0.1 mm3" keeps those of four voxels whatever the rounding
    keep = sizes * voxel_mm3(affine) >= minimum_mm3 * (1 - 1e-9)
    keep[0] = False
    return np.where(keep, keep.cumsum(), 0).astype(np.int32)[labels]


def voxel_mm3(affine: NDArray[np.floating]) -> float:
    """Volume of a voxel, |det| of the affine's 3 x 3 part."""
    return float(abs(np.linalg.det(np.asarray(affine, np.float64)[:3, :3])))


def world_mm(voxels: np.ndarray, affine: np.ndarray) -> NDArray[np.float64]:
    """Voxel indices (n, 3) in RAS+ mm."""
    affine = np.asarray(affine, np.float64)
    return np.asarray(voxels, np.float64) @ affine[:3, :3].T + affine[:3, 3]


def lesion_measures(labels: np.ndarray, affine: np.ndarray) -> pl.DataFrame:
    """Volume, place and shape of each lesion.

    Parameters
    ----------
    labels : (X, Y, Z)
        0 is no lesion.
    affine : (4, 4)

    Returns
    -------
    One row per label, in ascending order:

    - lesion, voxels, volume_mm3
    - centroid_x_mm, centroid_y_mm, centroid_z_mm: mean of the voxel centres, RAS+
    - diameter_mm: greatest distance between centres of voxel faces, in 3D. These are the vertices of PyRadiomics'
      mesh; one voxel has its longest edge, a sphere of many voxels its diameter.
    - elongation: sqrt(second / largest eigenvalue) of the coordinates' covariance, 1 round to 0 a line (PyRadiomics).
      The voxels count as solid bodies, not as points, so that one voxel has a shape too.
    - slices: how many slices it is seen in, across the axis with the largest voxel size (the last of equal ones)
    """
    affine = np.asarray(affine, np.float64)
    voxels = np.argwhere(labels)
    numbers, of = np.unique(labels[tuple(voxels.T)], return_inverse=True)
    count, axes = len(numbers), affine[:3, :3]
    sizes = np.bincount(of, minlength=count)
    points = world_mm(voxels, affine)
    centre = _sums(points, of, count) / sizes[:, None]
    away = points - centre[of]
    products = _sums((away[:, :, None] * away[:, None, :]).reshape(-1, 9), of, count) / sizes[:, None]
    spread = np.linalg.eigvalsh(products.reshape(-1, 3, 3) + axes @ axes.T / 12)
    along = 2 - int(np.argmax(np.round(np.linalg.norm(axes, axis=0), 3)[::-1]))
    seen = np.unique(np.stack([of, voxels[:, along]]), axis=1)[0]
    order = np.argsort(of, kind="stable")
    parts = np.split(voxels[order], np.cumsum(sizes)[:-1]) if count else []
    return pl.DataFrame(
        {
            "lesion": numbers.astype(np.int64),
            "voxels": sizes.astype(np.int64),
            "volume_mm3": sizes * voxel_mm3(affine),
            "centroid_x_mm": centre[:, 0],
            "centroid_y_mm": centre[:, 1],
            "centroid_z_mm": centre[:, 2],
            "diameter_mm": np.array([_diameter(part, axes) for part in parts], np.float64),
            "elongation": np.sqrt(spread[:, 1] / spread[:, 2]),
            "slices": np.bincount(seen, minlength=count).astype(np.int64),
        }
    )


def _sums(values: NDArray[np.float64], of: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """Sum of each column (n, k) over each of `count` groups: (count, k)."""
    return np.stack([np.bincount(of, column, count) for column in values.T], axis=1)


def _diameter(voxels: NDArray[np.intp], axes: np.ndarray) -> float:
    """Greatest distance between face centres of voxels (n, 3), in lexicographic order."""
    # the two ends of every line along the last axis hold all corners of the convex hull
    new = (voxels[1:, :2] != voxels[:-1, :2]).any(axis=1)
    ends = voxels[np.append(True, new) | np.append(new, True)]
    faces = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    points = (ends[:, None, :] + faces).reshape(-1, 3) @ axes.T
    if len(points) > MANY_POINTS:
        points = points[ConvexHull(points).vertices]
    return float(pdist(points).max())
