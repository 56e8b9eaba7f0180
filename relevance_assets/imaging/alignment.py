"""Where a scan lies in the template: found by registration, in one place for masks, maps and quality.

Belongs here: registering a brain with the template, and how well that went. Does not belong here: the program that
registers (`registration.py`), what is moved along the way (`transforms.py`).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from relevance_assets.imaging.displacement import Displacement, move, sampled
from relevance_assets.imaging.geometry import Alignment
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.template import template
from relevance_assets.imaging.volumes import Image

__all__ = ["align", "on_native_grid", "quality_of", "shift_mm"]


def align(
    brain: Image, *, voxel_size_mm: int = 2, deformable: bool = True, start: np.ndarray | None = None
) -> Alignment:
    """Register a brain with the template.

    Parameters
    ----------
    brain : Image
        One contrast of a scan, 0 outside the brain.
    voxel_size_mm : int
        Of the template.
    start : (4, 4), optional
        First guess of the way from the scan to the template.

    Raises
    ------
    ValueError
        Nothing is found, or the field folds.
    """
    from relevance_assets.imaging import registration

    space = template(voxel_size_mm)
    guess = None if start is None else np.linalg.inv(start)
    matrix = registration.affine(
        space.image, brain, metric="NMI", fixed_mask=space.brain, start=guess, search=guess is None
    )
    if not deformable:
        gain = float(np.linalg.det(matrix))
        return Alignment(np.linalg.inv(matrix), jacobian=(gain, gain))
    found = registration.deformable(space.image, brain, matrix, fixed_mask=space.brain)
    return Alignment(np.linalg.inv(matrix), found.to_fixed, found.to_moving, found.jacobian)


def shift_mm(matrix: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> float:
    """How far a matrix moves the voxels of a brain, mean, mm."""
    points = move(affine, np.argwhere(mask))
    return float(np.linalg.norm(move(matrix, points) - points, axis=1).mean())


def on_native_grid(alignment: Alignment, native: Grid, moved: np.ndarray, spacing_mm: float) -> Displacement:
    """The way from a file's own millimetres to the template, as a field over the file's field of view.

    Parameters
    ----------
    moved : (4, 4)
        From the file's millimetres to those that `alignment` starts from.
    spacing_mm : float
        Between the field's vectors; along the file's own axes.
    """
    shape = tuple(
        max(2, round(n * size / spacing_mm) + 1) for n, size in zip(native.shape, native.voxel_sizes_mm, strict=True)
    )
    steps = np.array([(n - 1) / (m - 1) for n, m in zip(native.shape, shape, strict=True)])
    grid = Grid((shape[0], shape[1], shape[2]), native.affine @ np.diag([*steps, 1.0]))
    return sampled(lambda points: alignment.to_template(move(moved, points)), grid)


def quality_of(alignment: Alignment, brain: Image, mask: np.ndarray) -> dict[str, float | None]:
    """How well a brain and its mask lie on the template: columns of table `volumes`.

    `similarity` is the correlation with the template's T1w inside its mask: before, as the scan's own millimetres put
    it there, and after.
    """
    from relevance_assets.imaging.quality import dice

    space, grid = template(), Grid(mask.shape, brain.affine)
    points = move(space.grid.affine, np.indices(space.brain.shape).reshape(3, -1).T)
    there = alignment.to_scan(points)
    inside, known = space.brain.ravel(), space.t1w[space.brain]
    moved = _sampled(mask.astype(np.float32), grid, there).reshape(space.brain.shape) >= 0.5
    least, greatest = alignment.jacobian or (None, None)
    return {
        "template_overlap": dice(moved, space.brain),
        "similarity_before": _correlation(_sampled(brain.data, grid, points[inside]), known),
        "similarity_after": _correlation(_sampled(brain.data, grid, there[inside]), known),
        "jacobian_minimum": least,
        "jacobian_maximum": greatest,
    }


def _sampled(values: np.ndarray, grid: Grid, points: np.ndarray) -> np.ndarray:
    """Linear between voxel centres, 0 beyond the outermost."""
    to_voxels = np.linalg.inv(grid.affine)
    places = to_voxels[:3, :3] @ points.T + to_voxels[:3, 3:]
    return ndimage.map_coordinates(np.asarray(values, np.float32), places, order=1, mode="constant")


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1]) if a.min() < a.max() else None
