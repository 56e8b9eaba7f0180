"""Registration by greedy: where the points of one image lie in another.

Belongs here: rigid, affine and deformable registration of two images, the half-way space of several. Does not belong
here: moving values along a transform and its file (`transforms.py`), the choice of images, masks and settings for a
study (`recipe.py`).

Every matrix is float64, RAS+ mm, and takes points of the fixed image to points of the moving image: the direction in
which values are pulled. The program is greedy (https://greedy.readthedocs.io, Yushkevich), by its Python package
picsl_greedy; its seed is set, so that the same images give the same bits. With more threads the sums run in another
order, and the last digits differ: `threads` belongs to what a result is known by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relevance_assets.imaging.displacement import Displacement, jacobian, move, sampled
from relevance_assets.imaging.greedy import checked_matrix, field_values, greedy, itk_pair, levels, metric_option
from relevance_assets.imaging.grid import Grid, axis_aligned
from relevance_assets.imaging.volumes import Image

__all__ = ["Deformation", "affine", "deformable", "halfway", "rigid"]

ITERATIONS = "100x50x10"  # from a quarter of the resolution to the full one
SEARCH = "-search 200 12 15"  # tries; standard deviations of the random rotation (degrees) and shift (mm)
DECIMALS = 9  # of rigid matrices: the last bit of LAPACK's results depends on where arrays lie in memory
RIGID = 1e-6  # a rotation's matrix may be this far from orthogonal


def rigid(
    fixed: Image,
    moving: Image,
    *,
    metric: str = "NMI",
    fixed_mask: np.ndarray | None = None,
    start: np.ndarray | None = None,
    search: bool = False,
    iterations: str = ITERATIONS,
    threads: int = 1,
) -> np.ndarray:
    """Rotation and shift that take points of `fixed` to the same anatomy in `moving`.

    Parameters
    ----------
    fixed, moving : Image
        On grids of any kind; no image is resampled beforehand.
    metric : str
        As greedy names it: `NMI` for two contrasts, `NCC 4x4x4` (with its radius in voxels) for one.
    fixed_mask : (x, y, z) of `fixed`, optional
        Where the images are compared: above 0.
    start : (4, 4), optional
        Matrix to begin with, rigid for a rigid registration. Without it the centres of both fields of view are put on
        each other.
    search : bool
        200 random starts around the first one before the optimisation, for heads in very different positions.
    iterations : str
        Per level, from the coarsest to the full resolution, as `100x50x10`; none (0) at a level skips it. The coarsest
        of a rigid or affine registration needs at least one.

    Returns
    -------
    (4, 4) float64

    Raises
    ------
    ValueError
        An image that is constant, not finite or too small, an empty mask or one on another grid, iterations or a
        metric that greedy does not know, no result.
    """
    if start is not None and np.abs(_nearest_rigid(start) - start).max() > RIGID:
        raise ValueError("a rigid registration cannot start from a matrix that scales or shears")
    return _nearest_rigid(_linear(6, fixed, moving, metric, fixed_mask, start, search, iterations, threads))


def affine(
    fixed: Image,
    moving: Image,
    *,
    metric: str = "NCC 4x4x4",
    fixed_mask: np.ndarray | None = None,
    start: np.ndarray | None = None,
    search: bool = False,
    iterations: str = ITERATIONS,
    threads: int = 1,
) -> np.ndarray:
    """As `rigid`, with scaling and shear: 12 degrees of freedom."""
    return _linear(12, fixed, moving, metric, fixed_mask, start, search, iterations, threads)


def _linear(
    freedom: int,
    fixed: Image,
    moving: Image,
    metric: str,
    fixed_mask: np.ndarray | None,
    start: np.ndarray | None,
    search: bool,
    iterations: str,
    threads: int,
) -> np.ndarray:
    images = itk_pair(fixed, moving, fixed_mask)
    begin = "-ia-image-centers" if start is None else "-ia {start}"
    options = f"-a -dof {freedom} {begin} {SEARCH if search else ''} {levels(iterations, 1)} -o result"
    found = greedy(f"{options} {metric_option(metric, images)}", threads, images, start, ("result",))["result"]
    matrix = np.array(found, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.linalg.det(matrix[:3, :3]) <= 0:
        raise ValueError("the registration found no transform; do the images show the same part of the body?")
    return matrix


def _nearest_rigid(matrix: np.ndarray) -> np.ndarray:
    """The rotation nearest to a matrix, with its shift, to `DECIMALS`."""
    left, _, right = np.linalg.svd(checked_matrix(matrix)[:3, :3])
    result = np.array(matrix, dtype=np.float64)
    result[:3, :3] = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
    return np.round(result, DECIMALS) + 0.0  # no negative zeros


@dataclass(frozen=True, eq=False)
class Deformation:
    """A deformable registration, both ways.

    Attributes
    ----------
    to_moving : Displacement
        Points of the fixed image to points of the moving one, the affine included; on the grid of the fixed image.
    to_fixed : Displacement
        The way back, over the field of view of the moving image, in voxels of the fixed image's sizes along RAS+.
    jacobian : (float, float)
        Least and greatest determinant of `to_moving` where it is judged: volume in `moving` per volume in `fixed`.
    round_trip_mm : (float, float)
        How far from where they began points end, there and back: median and greatest distance, of those where the
        field is judged that `moving` shows.
    """

    to_moving: Displacement
    to_fixed: Displacement
    jacobian: tuple[float, float]
    round_trip_mm: tuple[float, float]


def deformable(
    fixed: Image,
    moving: Image,
    start: np.ndarray,
    *,
    metric: str = "NCC 2x2x2",
    iterations: str = ITERATIONS,
    sigmas: tuple[str, str] = ("2vox", "0.5vox"),
    fixed_mask: np.ndarray | None = None,
    threads: int = 1,
) -> Deformation:
    """A smooth field on top of an affine matrix, by greedy's diffeomorphic registration.

    Parameters
    ----------
    start : (4, 4)
        What `affine(fixed, moving)` found.
    sigmas : (str, str)
        Width of the Gaussians that smooth each update and the whole field, in `vox` or `mm`.
    fixed_mask : (x, y, z) of `fixed`, optional
        Where the images are compared and the field is judged. Without it the images are compared everywhere, and the
        field is judged where `fixed` is brighter than its mean: in an empty background it means nothing.

    Raises
    ------
    ValueError
        As `rigid`; a field that folds (a determinant that is not positive); a way back that misses by more than
        half a voxel of the fixed image in 1 % of the mask.

    Notes
    -----
    greedy's field w lies on the fixed grid, and a point goes to start (x + w(x)). Its inverse is greedy's (`-oinv`).
    """
    images = itk_pair(fixed, moving, fixed_mask)
    smoothing = f"-s {sigmas[0]} {sigmas[1]} -wp 0"  # not 0: fields are rounded to a tenth of a voxel
    options = f"-it {{start}} {levels(iterations, 0)} {smoothing} -o there -oinv back {metric_option(metric, images)}"
    found = greedy(options, threads, images, start, ("there", "back"))
    grid = Grid(fixed.data.shape, fixed.affine)
    warp, unwarp = (Displacement(field_values(found[name]), grid) for name in ("there", "back"))
    to_moving = sampled(lambda points: move(start, warp(points)), grid)
    cover = axis_aligned(Grid(moving.data.shape, moving.affine), grid.voxel_sizes_mm)
    to_fixed = sampled(lambda points: unwarp(move(np.linalg.inv(start), points)), cover)
    inside = fixed.data > fixed.data.mean() if fixed_mask is None else fixed_mask > 0
    determinants = jacobian(to_moving)[inside]
    if not determinants.min() > 0:
        raise ValueError(
            f"the registration folds: the Jacobian is {determinants.min():.3g} at its least; "
            "look whether the mask holds a whole brain, or take kind: affine"
        )
    points = move(grid.affine, np.argwhere(inside))
    there = to_moving(points)
    place = move(np.linalg.inv(moving.affine), there)
    seen = ((place >= 0) & (place <= np.array(moving.data.shape) - 1)).all(axis=1)
    if not seen.any():
        raise ValueError("the registration led out of the moving image; do the images show the same part of the body?")
    missed = np.linalg.norm(to_fixed(there[seen]) - points[seen], axis=1)
    if np.percentile(missed, 99) > max(grid.voxel_sizes_mm) / 2:  # at the steepest places single points miss by more
        raise ValueError(
            f"the registration's way back misses by up to {missed.max():.2g} mm; "
            "look whether the mask holds a whole brain, or take kind: affine"
        )
    ends = (float(determinants.min()), float(determinants.max()))
    return Deformation(to_moving, to_fixed, ends, (float(np.median(missed)), float(missed.max())))


def halfway(
    images: Sequence[Image],
    *,
    masks: Sequence[np.ndarray] | None = None,
    metric: str = "NMI",
    search: bool = False,
    iterations: str = ITERATIONS,
    threads: int = 1,
) -> list[np.ndarray]:
    """The rigid space midway between the visits of one person, so that no visit is interpolated more than another.

    Every pair is registered in both directions and the two results are averaged, so that they are each other's
    inverse. Half-way is the barycentre of the visits' positions: the space in which the matrix logarithms of the
    ways to the visits add up to 0. Where ways through a third visit disagree, every visit is taken once as the
    reference, and the results are averaged in the same manner.

    Parameters
    ----------
    images : sequence of Image
        One per visit, of the same contrast. The order plays no part, to the last bit; of equal images one counts.
    masks : sequence of (x, y, z), optional
        Each image's own: where it is compared when it is the fixed one.

    Returns
    -------
    list of (4, 4) float64, as `images`: points of half-way space to points of that visit. Identity for one visit.

    References
    ----------
    Reuter et al. 2012, NeuroImage 61:1402; Pennec and Arsigny 2013, Exponential barycenters, section 3.
    """
    if not images or (masks is not None and len(masks) != len(images)):
        raise ValueError("half-way space needs an image per visit, and a mask per image or none")
    given = [(image, masks[number] if masks else None) for number, image in enumerate(images)]
    keys = [_digest(*visit) for visit in given]
    visits = [visit for _, visit in sorted(dict(zip(keys, given, strict=True)).items())]
    n = len(visits)
    how: dict[str, Any] = {"metric": metric, "search": search, "iterations": iterations, "threads": threads}
    there = {
        (i, j): rigid(visits[i][0], visits[j][0], fixed_mask=visits[i][1], **how)
        for i in range(n)
        for j in range(n)
        if i != j
    }
    pairs = {(i, j): _midway([there[i, j], np.linalg.inv(there[j, i])]) for i, j in there}
    ways = []
    for reference in range(n):
        from_reference = [np.eye(4) if j == reference else pairs[reference, j] for j in range(n)]
        middle = _midway([np.linalg.inv(way) for way in from_reference])  # half-way space to the reference
        ways.append([way @ middle for way in from_reference])
    found = [_nearest_rigid(_midway([way[j] for way in ways])) for j in range(n)]
    place = {key: number for number, key in enumerate(sorted(set(keys)))}
    return [found[place[key]].copy() for key in keys]


def _digest(image: Image, mask: np.ndarray | None) -> str:
    """What a visit is sorted by: its content, as names would depend on who asks."""
    parts = (image.data, image.affine, np.zeros(0, bool) if mask is None else mask > 0)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def _midway(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """The exponential barycentre m of rigid matrices: the logarithms of m^-1 times each add up to 0."""
    from scipy.linalg import expm, logm

    mean = matrices[0]
    for _ in range(20):
        step = np.mean([np.real(logm(np.linalg.inv(mean) @ matrix)) for matrix in matrices], axis=0)
        mean = mean @ expm(step)
        if np.abs(step).max() < 1e-12:
            break
    return mean
