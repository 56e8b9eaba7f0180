"""The preparation recipe: a scan's images, step by step, onto one grid and into [0, 1].

Belongs here: the steps that `study.preparation` names, one function each, and the order in which they act.
Skull stripping, bias field and registration get their place as further steps. Does not belong here:
interpolation (`grid.py`), the way back (`geometry.py`), where results are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from relevance_assets import study
from relevance_assets.imaging.geometry import Geometry, to_native, to_prepared_labels
from relevance_assets.imaging.grid import (
    Grid,
    axis_aligned,
    canonical,
    centre_start,
    copy_between,
    moved,
    resample,
    same_grid,
    same_voxel_size,
)
from relevance_assets.imaging.intensity import scale
from relevance_assets.imaging.quality import volume_row
from relevance_assets.imaging.volumes import ScanError, read_image

__all__ = ["Geometry", "Prepared", "prepare", "to_native", "to_prepared_labels"]

ORDERS: dict[str, Literal[0, 1, 3]] = {"nearest": 0, "linear": 1, "cubic": 3}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan that is ready for a network.

    Attributes
    ----------
    images : ndarray (contrast, x, y, z), float32
        In [0, 1]; exactly 0 outside `mask`.
    mask : ndarray (x, y, z), bool
        The brain.
    affine : ndarray (4, 4), float64
    geometry : Geometry
        The way back to the native grid.
    quality : list of dict
        One row of table `volumes` per contrast, without study, scan, path and hash.
    share_cropped : float
        Share of the brain's voxels that `crop_or_pad` cut off.
    """

    images: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    geometry: Geometry
    quality: list[dict[str, Any]]
    share_cropped: float


@dataclass(frozen=True, eq=False)
class Layers:
    """A scan between two steps: an array and a grid per contrast, and the brain on the first contrast's grid.

    `path` is the first contrast's file, by which errors name the scan.
    """

    path: Path
    images: tuple[np.ndarray, ...]
    grids: tuple[Grid, ...]
    resampled: tuple[bool, ...]
    mask: np.ndarray | None = None


def prepare(paths: Sequence[Path], contrasts: Sequence[study.Contrast], steps: Sequence[study.Step]) -> Prepared:
    """Read a scan's images and put them through the study's recipe.

    The prepared grid is the first contrast's: reoriented, resampled, cropped or padded as the steps say. A
    contrast on another grid is interpolated onto it once, whether or not there is a step `resample`.

    Parameters
    ----------
    paths : sequence of Path
        One NIfTI file per contrast, in the order of `contrasts`.
    steps : sequence of Step
        In the order that `study.Study` asks for; brain_mask and scale are among them.

    Raises
    ------
    ScanError
        A file that `read_image` refuses, no brain voxel, or a percentile that is not positive.
    """
    if len(paths) != len(contrasts):
        raise ValueError(f"{len(paths)} files for {len(contrasts)} contrasts")
    if not {"brain_mask", "scale"} <= {step.step for step in steps}:
        raise ValueError("preparation: the steps brain_mask and scale are needed")
    loaded = [read_image(path) for path in paths]
    layers = Layers(
        paths[0],
        tuple(image.data for image in loaded),
        tuple(Grid(image.data.shape, image.affine) for image in loaded),
        (False,) * len(loaded),
    )
    native = layers.grids[0]
    shared = False
    share_cropped = 0.0
    for step in steps:
        if isinstance(step, study.Reorient):
            layers = reorient(layers)
        elif isinstance(step, study.BrainMask):
            layers = brain_mask(layers)
        elif isinstance(step, study.Resample):
            layers = onto_one_grid(layers, step)
            shared = True
        elif isinstance(step, study.CropOrPad):
            layers = layers if shared else onto_one_grid(layers)
            shared = True
            layers, share_cropped = crop_or_pad(layers, step)
    layers = layers if shared else onto_one_grid(layers)
    return _scaled(layers, native, contrasts, paths, share_cropped)


def reorient(layers: Layers) -> Layers:
    """Axes of every contrast to the closest canonical orientation (RAS+); no value changes."""
    images, affines = zip(
        *(canonical(i, g.affine) for i, g in zip(layers.images, layers.grids, strict=True)), strict=True
    )
    grids = tuple(Grid(image.shape, affine) for image, affine in zip(images, affines, strict=True))
    return replace(layers, images=images, grids=grids)


def brain_mask(layers: Layers) -> Layers:
    """Brain is where some contrast is > 0, on the first contrast's grid; its images become 0 elsewhere.

    A contrast on another grid votes where at least half of the interpolated voxel is > 0, and is itself set
    to 0 outside the brain once it is on the common grid (`onto_one_grid`).
    """
    first = layers.grids[0]
    mask = layers.images[0] > 0
    for image, grid in zip(layers.images[1:], layers.grids[1:], strict=True):
        mask |= (image > 0) if same_grid(grid, first) else _move_mask(image > 0, grid, first)
    if not mask.any():
        raise ScanError(f"{layers.path}: no voxel is > 0 in any contrast, so there is no brain; check the images")
    images = tuple(
        np.where(mask, image, np.float32(0)) if same_grid(grid, first) else image
        for image, grid in zip(layers.images, layers.grids, strict=True)
    )
    return replace(layers, images=images, mask=mask)


def _move_mask(mask: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Linear interpolation, >= 0.5 is inside; the margin keeps ties inside whatever the rounding."""
    return resample(mask.astype(np.float32), source, target) >= 0.5 - 1e-5


def onto_one_grid(layers: Layers, step: study.Resample | None = None) -> Layers:
    """Every contrast on one grid: the first's own, or the axis-aligned RAS+ grid of the step's voxel size.

    The grid covers the first contrast's field of view around the same centre. Where the first contrast has
    this voxel size already its grid stays, oblique or not, and what lies on it is not interpolated. A
    reduction by more than 1.5 along an axis is preceded by a Gaussian of (factor - 1) / 2 voxels against
    aliasing.
    """
    order: Literal[0, 1, 3] = 1
    if step is not None:
        layers, order = _reoriented_with_mask(layers), ORDERS[step.interpolation]
    target = layers.grids[0]
    if step is not None and not same_voxel_size(target, step.voxel_size_mm):
        target = axis_aligned(target, step.voxel_size_mm)
    mask = layers.mask
    if mask is not None and not same_grid(layers.grids[0], target):
        mask = _move_mask(mask, layers.grids[0], target)
        if not mask.any():
            raise ScanError(f"{layers.path}: no brain voxel is left on the grid; take smaller voxels")
    images, resampled = [], []
    for image, grid, before in zip(layers.images, layers.grids, layers.resampled, strict=True):
        interpolate = not same_grid(grid, target)
        values = resample(image, grid, target, order) if interpolate else image
        images.append(values if mask is None else np.where(mask, values, np.float32(0)))
        resampled.append(before or interpolate)
    return Layers(layers.path, tuple(images), (target,) * len(images), tuple(resampled), mask)


def _reoriented_with_mask(layers: Layers) -> Layers:
    """Voxel sizes of a step are along right, anterior, superior: the axes must be, too."""
    turned = reorient(layers)
    if layers.mask is None:
        return turned
    return replace(turned, mask=copy_between(layers.mask, layers.grids[0], turned.grids[0]))


def crop_or_pad(layers: Layers, step: study.CropOrPad) -> tuple[Layers, float]:
    """To the step's shape, around the middle of the grid or of the brain; padded voxels are 0.

    All contrasts are on one grid before. Also returns the share of the brain's voxels that was cut off.
    """
    grid, mask = layers.grids[0], layers.mask
    start = centre_start(grid.shape, step.shape, mask if step.centre == "brain" else None)
    target = moved(grid, start, step.shape)
    images = tuple(copy_between(image, grid, target) for image in layers.images)
    layers = replace(layers, images=images, grids=(target,) * len(images))
    if mask is None:
        return layers, 0.0
    kept = copy_between(mask, grid, target)
    if not kept.any():
        raise ScanError(f"{layers.path}: no brain is left within {step.shape} voxels; centre the crop on the brain")
    return replace(layers, mask=kept), 1 - int(kept.sum()) / int(mask.sum())


def _scaled(
    layers: Layers,
    native: Grid,
    contrasts: Sequence[study.Contrast],
    paths: Sequence[Path],
    share_cropped: float,
) -> Prepared:
    """The last step, and what is known of the scan by then."""
    grid, mask = layers.grids[0], layers.mask
    assert mask is not None  # prepare() asks for the step
    scaled, rows = [], []
    for contrast, path, image, resampled in zip(contrasts, paths, layers.images, layers.resampled, strict=True):
        values, share_clipped = scale(image, mask, contrast.scale, path)
        scaled.append(values)
        rows.append(volume_row(contrast.name, image, mask, grid, resampled=resampled, share_clipped=share_clipped))
    geometry = Geometry(native, grid, layers.resampled[0])
    return Prepared(np.stack(scaled), mask, grid.affine, geometry, rows, share_cropped)
