"""Values moved along transforms, with one interpolation, and the files of affine transforms.

Belongs here: chains of transforms, pulling images, labels and relevance maps along them, ITK's text files. Does not
belong here: how a transform is found (`registration.py`), fields and their files (`displacement.py`), values between
grids in the same space (`grid.resample`).

A mapping takes points of the target to points of the source (RAS+ mm), as values are pulled: a matrix (4, 4) or
anything to be called with points (n, 3), such as a `Displacement` or a `Chain`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from scipy import ndimage

from relevance_assets.files import atomic_path
from relevance_assets.imaging.displacement import Displacement, derivative, inverse, move, sampled, slabs
from relevance_assets.imaging.grid import TIE, Grid, axis_aligned, copy_between, resample, smoothing_sigma
from relevance_assets.imaging.volumes import ScanError

__all__ = [
    "Chain",
    "Mapping",
    "compose",
    "invert",
    "pull",
    "pull_density",
    "pull_labels",
    "read_affine",
    "write_affine",
]

Mapping: TypeAlias = np.ndarray | Callable[[np.ndarray], np.ndarray]
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's points run to left, posterior, superior


@dataclass(frozen=True, eq=False)
class Chain:
    """Mappings one after the other, the first one first; called with points (n, 3)."""

    parts: tuple[Mapping, ...]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        for part in self.parts:
            points = apply(part, points)
        return points


def apply(mapping: Mapping, points: np.ndarray) -> np.ndarray:
    """Points (n, 3) through a mapping."""
    return move(mapping, points) if isinstance(mapping, np.ndarray) else mapping(points)


def compose(*mappings: Mapping) -> Mapping:
    """One mapping for several, applied in the order given; matrices only give a matrix, none the identity."""
    if all(isinstance(mapping, np.ndarray) for mapping in mappings):
        matrix = np.eye(4)
        for mapping in mappings:
            matrix = np.asarray(mapping) @ matrix
        return matrix
    parts = (mapping.parts if isinstance(mapping, Chain) else (mapping,) for mapping in mappings)
    return Chain(tuple(part for inner in parts for part in inner))


def invert(mapping: np.ndarray | Displacement | Chain) -> Mapping:
    """The way back; of a field by iteration (`displacement.inverse`), on a grid around all it leads to.

    Raises
    ------
    ValueError
        A singular matrix, a field that folds.
    """
    if isinstance(mapping, Chain):
        return compose(*(invert(part) for part in reversed(mapping.parts)))  # type: ignore[arg-type]
    if isinstance(mapping, np.ndarray):
        try:
            return np.linalg.inv(mapping)
        except np.linalg.LinAlgError:
            raise ValueError("a transform's matrix is singular, there is no way back") from None
    if isinstance(mapping, Displacement):
        return inverse(mapping, _image_of(mapping))
    raise TypeError(f"no way back is known for {type(mapping).__name__}; take its field by `sampled` first")


def _image_of(field: Displacement) -> Grid:
    """A grid along RAS+ over everything that a field's grid is moved to, in voxels of about the same size."""
    ends = [np.array([moved.min(axis=0), moved.max(axis=0)]) for moved in (field(p) for _, p in slabs(field.grid))]
    low, high = np.min([end[0] for end in ends], axis=0), np.max([end[1] for end in ends], axis=0)
    box = np.diag([*np.maximum(high - low, 1e-3), 1.0])
    box[:3, 3] = (low + high) / 2
    size = min(field.grid.voxel_sizes_mm)
    return axis_aligned(Grid((1, 1, 1), box), (size, size, size))


def pull(
    values: np.ndarray,
    source: Grid,
    target: Grid,
    mapping: Mapping,
    order: Literal[0, 1, 3] = 1,
    *,
    smooth: bool = True,
) -> np.ndarray:
    """Values at the voxel centres of `target`, moved along a mapping; as `grid.resample`, which it is for a matrix.

    Parameters
    ----------
    values : (x, y, z) on `source`
    mapping : matrix or callable
        Points of the target to points of the source, mm.
    order : 0, 1 or 3
        Nearest neighbour for labels and masks, linear or cubic spline for images.
    smooth : bool
        Gaussian against aliasing, after the affine part of the mapping (`smoothing_sigma`); never with order 0.

    Returns
    -------
    (x, y, z) on `target`, float32 (the type of `values` with order 0); 0 outside the source's field of view
    """
    if isinstance(mapping, np.ndarray):
        return resample(
            values, Grid(source.shape, np.linalg.inv(mapping) @ source.affine), target, order, smooth=smooth
        )
    _check_shape(values, source)
    if smooth and order:
        sigma = smoothing_sigma(source, Grid(target.shape, _affine_part(mapping, target) @ target.affine))
        values = ndimage.gaussian_filter(np.asarray(values, dtype=np.float32), sigma, mode="nearest")
    elif order:
        values = np.asarray(values, dtype=np.float32)
    coefficients = ndimage.spline_filter(values, order, output=np.float32, mode="nearest") if order > 1 else values
    result = np.zeros(target.shape, dtype=values.dtype)
    for layers, place, outside in _places(source, target, mapping):
        place = place + TIE if order == 0 else place
        found = ndimage.map_coordinates(coefficients, place, order=order, mode="nearest", prefilter=False)
        result[layers] = np.where(outside, 0, found).reshape(result[layers].shape)
    return result


def pull_labels(labels: np.ndarray, source: Grid, target: Grid, mapping: Mapping) -> np.ndarray:
    """Labels at the voxel centres of `target`: each label is interpolated linearly as a mask, the greatest share wins.

    Smoother borders than nearest neighbour, and small structures keep their volume better, while a label never turns
    into another one between two. greedy's label mode is the same with a Gaussian; this one follows any mapping.
    Equal shares go to the smaller label, background (0) included. Nothing is smoothed before.

    Returns
    -------
    (x, y, z) on `target`, the type of `labels`; 0 outside
    """
    _check_shape(labels, source)
    result = np.zeros(target.shape, dtype=labels.dtype)
    present = np.unique(labels)
    for layers, place, outside in _places(source, target, mapping):
        best, winner = np.zeros(len(outside)), np.zeros(len(outside), dtype=labels.dtype)
        for label in present:
            mask = (labels == label).astype(np.float64)
            share = ndimage.map_coordinates(mask, place, order=1, mode="nearest")
            more = share > best + 1e-9
            best[more], winner[more] = share[more], label
        result[layers] = np.where(outside, 0, winner).reshape(result[layers].shape)
    return result


def pull_density(values: np.ndarray, source: Grid, target: Grid, mapping: Mapping) -> np.ndarray:
    """A relevance map moved so that its sum stays: what a target voxel holds is what lies in it in the source.

    The source is read as a density (value per mm³, linear between voxel centres), which the change of volume |det J|
    of the mapping takes to the target. A target voxel's integral is the mean over points inside it, at most half a
    source voxel apart. Where both grids share their voxels nothing is interpolated, and the result is exact.

    Parameters
    ----------
    values : (x, y, z) on `source`
        Relevance per voxel. 0 near the edge of the field of view, else some of it is lost.
    mapping : matrix or callable
        Points of the target to points of the source, mm.

    Returns
    -------
    (x, y, z) on `target`, float32. The sum is kept within about 1 % where everything lies in both fields of view;
    a single voxel's alone, within a few per cent.
    """
    _check_shape(values, source)
    if isinstance(mapping, np.ndarray):
        try:
            return copy_between(values, Grid(source.shape, np.linalg.inv(mapping) @ source.affine), target)
        except ValueError:
            pass  # the voxels do not coincide
    density = np.asarray(values, dtype=np.float64)
    field = sampled(lambda points: apply(mapping, points), target)
    slopes = derivative(field)
    to_source = np.linalg.inv(source.affine)
    usual = to_source[:3, :3] @ np.median(slopes, axis=(0, 1, 2)) @ target.affine[:3, :3]  # source per target voxel
    per_axis = np.maximum(1, np.ceil(2 * np.abs(usual).max(axis=0))).astype(int)
    places = [(np.arange(n) + 0.5) / n - 0.5 for n in per_axis]
    within = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 3)
    result = np.empty(target.shape, dtype=np.float64)
    for layer in range(target.shape[0]):
        indices = np.indices((1, *target.shape[1:])).reshape(3, -1).T + np.array([layer, 0, 0])
        here = move(target.affine, indices) + field.values[layer].reshape(-1, 3)
        centre = move(to_source, here)
        step = to_source[:3, :3] @ slopes[layer].reshape(-1, 3, 3) @ target.affine[:3, :3]
        total = np.zeros(len(centre))
        for offset in within:
            total += ndimage.map_coordinates(density, (centre + step @ offset).T, order=1, mode="constant")
        result[layer] = (total / len(within) * np.abs(np.linalg.det(step))).reshape(result[layer].shape)
    return result.astype(np.float32)


def _check_shape(values: np.ndarray, source: Grid) -> None:
    if values.shape != source.shape:
        raise ValueError(f"an array of shape {values.shape} is not on a grid of shape {source.shape}")


def _places(source: Grid, target: Grid, mapping: Mapping) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Layers of the target, where their centres lie in source voxels (3, n), which lie outside the field of view."""
    to_source = np.linalg.inv(source.affine)
    last = np.array(source.shape)[:, None] - 0.5 + TIE
    for start, points in slabs(target):
        place = move(to_source, apply(mapping, points)).T
        outside = ~((place >= -0.5 - TIE) & (place <= last)).all(axis=0)  # NaN is outside
        yield slice(start, start + len(points) // (target.shape[1] * target.shape[2])), place, outside


def _affine_part(mapping: Mapping, grid: Grid) -> np.ndarray:
    """The matrix nearest to a mapping, by least squares over 5 x 5 x 5 points of a grid."""
    ends = [np.linspace(-0.5, n - 0.5, 5) for n in grid.shape]
    points = move(grid.affine, np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3))
    found = np.linalg.lstsq(np.column_stack([points, np.ones(len(points))]), apply(mapping, points), rcond=None)[0]
    return np.vstack([found.T, [0, 0, 0, 1]])


def write_affine(path: Path, matrix: np.ndarray) -> None:
    """Write a matrix as ITK text (`*_mode-image_xfm.txt`), atomically; every digit is kept.

    ITK's transform leads as ours from points of the target to points of the source: BIDS names the file of
    `rigid(fixed, moving)` `from-<moving>_to-<fixed>`. In the file points run to left, posterior, superior.
    """
    flipped = _FLIP @ matrix @ _FLIP
    numbers = [*flipped[:3, :3].ravel(), *flipped[:3, 3]]
    text = (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {' '.join(repr(float(number) + 0.0) for number in numbers)}\nFixedParameters: 0 0 0\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def read_affine(path: Path) -> np.ndarray:
    """Read any linear transform of ITK as matrix (4, 4), RAS+ mm; the direction as `write_affine` has it.

    Raises
    ------
    ScanError
        No such file, not ITK's, not linear or not in three dimensions, singular.
    """
    import SimpleITK as sitk

    if not path.is_file():
        raise ScanError(f"{path}: no such file")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError:
        raise ScanError(f"{path}: cannot be read as a transform of ITK; export it again") from None
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise ScanError(f"{path}: is not a linear transform in three dimensions")
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    for axis in range(3):
        matrix[:3, axis] = np.array(transform.TransformPoint(np.eye(3)[axis].tolist())) - origin
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise ScanError(f"{path}: the matrix is singular or not finite; register again")
    return _FLIP @ matrix @ _FLIP
