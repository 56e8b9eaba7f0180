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

RIM_MM = 6.0  # around the template's brain

__all__ = ["align", "on_native_grid", "quality_of", "shift_mm"]


def align(
    brain: Image,
    mask: np.ndarray,
    *,
    voxel_size_mm: int = 2,
    deformable: bool = True,
    start: np.ndarray | None = None,
) -> Alignment:
    """Register a brain with the template, whatever its contrast.

    The centres of both brains are laid on each other, then a rigid and an affine registration follow by normalised
    mutual information, with a rim around the template's brain in view: within the brain alone its size is not seen.
    Correlation, which the deformable one goes by, has a sign: a contrast in which white matter is darker than grey
    matter (FLAIR, T2w, a map of T1) is turned round for it.

    Parameters
    ----------
    brain : Image
        One contrast of a scan, 0 outside the brain.
    mask : (x, y, z) bool
        The brain; at least one voxel.
    voxel_size_mm : int
        Of the template.
    start : (4, 4), optional
        First guess of the affine way from the scan to the template, in place of the centres and the rigid one.

    Raises
    ------
    ValueError
        Nothing is found, or the field folds.
    """
    from relevance_assets.imaging import registration

    space = template(voxel_size_mm)
    seen = ndimage.distance_transform_edt(~space.brain) * voxel_size_mm <= RIM_MM
    if start is None:
        centres = np.eye(4)
        centres[:3, 3] = _centre(mask, brain.affine) - _centre(space.brain, space.grid.affine)
        guess = registration.rigid(space.image, brain, metric="NMI", fixed_mask=seen, start=centres)
    else:
        guess = np.linalg.inv(start)
    matrix = registration.affine(space.image, brain, metric="NMI", fixed_mask=seen, start=guess)
    back = np.linalg.inv(matrix)
    if not deformable:
        gain = float(np.linalg.det(matrix))
        return Alignment(back, jacobian=(gain, gain))
    inside = move(matrix, move(space.grid.affine, np.argwhere(space.brain)))
    alike = _correlation(_sampled(brain.data, Grid(mask.shape, brain.affine), inside), space.t1w[space.brain])
    if alike is not None and alike < 0:
        brain = Image(np.where(mask, brain.data[mask].max() - brain.data, np.float32(0)), brain.affine)
    found = registration.deformable(space.image, brain, matrix, fixed_mask=space.brain)
    return Alignment(back, found.to_fixed, found.to_moving, found.jacobian)


def _centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return move(affine, np.argwhere(mask)).mean(axis=0)


def shift_mm(matrix: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> float:
    """How far a matrix moves the voxels of a brain (at least one), mean, mm."""
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
    it there, and after; None where the image is constant there, NaN where it holds NaN.
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
    """Pearson's; None where `a` is constant, NaN where it holds NaN."""
    return None if a.min() == a.max() else float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])
