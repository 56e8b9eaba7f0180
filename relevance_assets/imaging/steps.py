"""The steps of a preparation recipe, one function each: a scan's layers and the step's settings in, layers out.

A step also says in words what it did or why it was needless; what is needless leaves the layers as they are. Moves
(co-registration, the half-way space) change where a grid lies and no value: each image is interpolated once at most.

Belongs here: what a step does to layers. Does not belong here: the order of the steps (`recipe.py`), registration,
bias fields and brain masks themselves (modules of those names), interpolation (`grid.py`, `transforms.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from relevance_assets import study
from relevance_assets.home import TEMPLATE_SPACE
from relevance_assets.imaging.displacement import move
from relevance_assets.imaging.geometry import Alignment
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
from relevance_assets.imaging.layers import Layers, Visits, moved_mask
from relevance_assets.imaging.quality import brain_volume_mm3, signal_to_noise
from relevance_assets.imaging.template import template
from relevance_assets.imaging.transforms import pull
from relevance_assets.imaging.volumes import Image, ScanError, read_image

if TYPE_CHECKING:
    from relevance_assets.imaging.atlas import Atlas

ORDERS: dict[str, Literal[0, 1, 3]] = {"nearest": 0, "linear": 1, "cubic": 3}
NEEDLESS = "needless: "
NEAR_MM = 3.0  # mean over the brain: what an affine registration finds between a scan in the template and the template
Result = tuple[Layers, str]


# ------------------------------------------------------------------------------------------ where things lie
def reorient(layers: Layers, _: study.Reorient) -> Result:
    """Axes of every contrast to the closest canonical orientation (RAS+); no value changes."""
    before = {grid.orientation for grid in layers.grids}
    if before == {"RAS"}:
        return layers, NEEDLESS + "axes are RAS+"
    images, affines = zip(
        *(canonical(i, g.affine) for i, g in zip(layers.images, layers.grids, strict=True)), strict=True
    )
    grids = tuple(Grid(image.shape, affine) for image, affine in zip(images, affines, strict=True))
    mask = layers.mask if layers.mask is None else copy_between(layers.mask, layers.grids[0], grids[0])
    return replace(layers, images=images, grids=grids, mask=mask), f"{', '.join(sorted(before))} to RAS+"


def coregister(layers: Layers, step: study.Coregister) -> Result:
    """Every contrast rigidly to the reference; only its place changes."""
    from relevance_assets.imaging.registration import rigid

    reference = layers.index(step.reference)
    others = [index for index in range(len(layers.images)) if index != reference]
    if not others:
        return layers, NEEDLESS + "one contrast"
    said = []
    for index in others:
        if _space(layers.paths[index]) == _space(layers.paths[reference]) != "":
            said.append(f"{layers.names[index]} is in the same space by its name")
            continue
        to_other = rigid(layers.image(reference), layers.image(index))
        layers = layers.moved(index, np.linalg.inv(to_other))
        said.append(f"{layers.names[index]} by {_shift(to_other, layers.grids[reference]):.1f} mm")
    needless = all("same space" in words for words in said)
    return layers, (NEEDLESS if needless else "") + ", ".join(said)


def _space(path: Path) -> str:
    """The space that a BIDS file is named by; '' where it has none."""
    return next((part for part in path.name.split("_") if part.startswith("space-")), "")


def _shift(matrix: np.ndarray, grid: Grid) -> float:
    """How far the corners of a field of view are moved, mean, mm."""
    corners = grid.corners_mm()
    return float(np.linalg.norm(move(matrix, corners) - corners, axis=1).mean())


def halfway(layers: Layers, step: study.Halfway, visits: Visits) -> Result:
    """The scan into the space half-way between the person's visits, and the box that holds all of them.

    Each visit comes to the same space and box, whichever of them is being prepared.
    """
    from relevance_assets.imaging.registration import halfway as to_visits

    if len(visits.paths) < 2:
        return layers, NEEDLESS + "one visit"
    images = [read_image(path) for path in visits.paths]
    ways = [np.linalg.inv(way) for way in to_visits(images)]  # from each visit's points to half-way
    grids = [Grid(i.data.shape, way @ i.affine) for i, way in zip(images, ways, strict=True)]
    shift = _shift(ways[visits.own], grids[visits.own])
    for index in range(len(layers.images)):
        layers = layers.moved(index, ways[visits.own])
    return replace(layers, common=_box(grids)), f"{len(images)} visits, this one by {shift:.1f} mm"


def _box(grids: Sequence[Grid]) -> Grid:
    """The RAS+ grid of 1 mm around several grids."""
    corners = np.concatenate([grid.corners_mm() for grid in grids])
    low = np.floor(corners.min(axis=0))
    shape = np.ceil(corners.max(axis=0) - low).astype(int)
    affine = np.eye(4)
    affine[:3, 3] = low + 0.5
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


# ------------------------------------------------------------------------------------------------------ values
def denoise(layers: Layers, step: study.Denoise) -> Result:
    """Smooth noise along edges."""
    from relevance_assets.imaging.bias import denoise as denoised

    for index in layers.chosen(step.contrasts):
        layers = layers.with_image(index, denoised(layers.image(index), step.method).data)
    return layers, step.method


def bias_field(layers: Layers, step: study.BiasField) -> Result:
    """Divide the bias field out of the contrasts."""
    from relevance_assets.imaging.bias import correct_bias

    assert layers.mask is not None  # the recipe's order
    for index in layers.chosen(step.contrasts):
        grid = layers.grids[index]
        mask = layers.mask_on(grid)
        if not mask.any():
            raise ScanError(f"{layers.paths[index]}: lies nowhere in the brain; are the contrasts of one person?")
        before = layers.image(index)
        corrected, _ = correct_bias(before, mask, shrink=step.shrink, name=str(layers.paths[index]))
        layers = replace(
            layers.with_image(index, corrected.data), biased=(*layers.biased, (index, mask, before, corrected))
        )
    return layers, f"N4 of {', '.join(layers.names[index] for index in layers.chosen(step.contrasts))}"


# ------------------------------------------------------------------------------------------------------- brain
def brain_mask(layers: Layers, step: study.BrainMask) -> Result:
    """Brain on the first contrast's grid; images on that grid become 0 elsewhere.

    A contrast on another grid is set to 0 outside the brain once it is on the common grid (`onto_one_grid`).
    """
    said, found = "voxels > 0", None
    if step.source == "nonzero":
        mask = nonzero(layers)
    else:
        mask, said, found = _looked_for(layers, step)
    volume: dict[str, float | None] = {"native_brain_mm3": brain_volume_mm3(mask, layers.grids[0].affine)}
    layers = replace(layers, mask=mask, found=found, measures=layers.measures | volume)
    noise = {
        name: {"signal_to_noise": signal_to_noise(layers.image(index), layers.mask_on(layers.grids[index]))}
        for index, name in enumerate(layers.names)
    }
    return replace(_only_brain(layers), by_contrast=noise), said


def _only_brain(layers: Layers) -> Layers:
    """0 outside the brain, on the grid that the mask is on."""
    assert layers.mask is not None
    images = tuple(
        np.where(layers.mask, image, np.float32(0)) if same_grid(grid, layers.grids[0]) else image
        for image, grid in zip(layers.images, layers.grids, strict=True)
    )
    return replace(layers, images=images)


def nonzero(layers: Layers) -> np.ndarray:
    """Where some contrast is > 0; one on another grid votes where at least half of the voxel is."""
    first = layers.grids[0]
    mask = layers.images[0] > 0
    for image, grid in zip(layers.images[1:], layers.grids[1:], strict=True):
        mask |= (image > 0) if same_grid(grid, first) else moved_mask(image > 0, grid, first)
    if not mask.any():
        raise ScanError(f"{layers.path}: no voxel is > 0 in any contrast, so there is no brain; check the images")
    return mask


def _looked_for(layers: Layers, step: study.BrainMask) -> tuple[np.ndarray, str, np.ndarray | None]:
    """The brain in one contrast, on the first contrast's grid; in words; the way to the template, if it was found."""
    from relevance_assets.imaging.brain_mask import command_mask, foreground, is_stripped, template_mask

    index, found = layers.index(step.contrast), None
    image, path, grid = layers.image(index), layers.paths[index], layers.grids[index]
    already = is_stripped(image)
    if already.stripped:
        mask, said = foreground(image), f"{NEEDLESS}{already.reason}"
    elif step.source == "command":
        # the program sees the file, whose voxels may have been turned since
        native = layers.native[index]
        placed = Grid(native.shape, layers.moves[index] @ native.affine)
        mask, said = copy_between(command_mask(path, step.command), placed, grid), step.command[0]
    else:
        result = template_mask(image, name=str(path))
        mask, found, said = result.mask, np.linalg.inv(result.from_template), "template, affine"
    if not same_grid(grid, layers.grids[0]):
        mask = moved_mask(mask, grid, layers.grids[0])
    if not mask.any():
        raise ScanError(f"{path}: no brain was found; look at the image, or name another source for brain_mask")
    return mask, said, found


# ---------------------------------------------------------------------------------------------------- template
def register(layers: Layers, step: study.Register) -> Result:
    """The way between the scan and the template; images stay where they are.

    Needless where the file's name says that it lies there, or where the affine way would move the brain by less than
    `NEAR_MM` and no deformable one is asked for.
    """
    from relevance_assets.imaging.alignment import align, quality_of, shift_mm

    index = layers.index(step.contrast)
    mask = layers.mask_on(layers.grids[index])
    brain = Image(np.where(mask, layers.images[index], np.float32(0)), layers.grids[index].affine)
    alignment, said = Alignment(np.eye(4)), f"{NEEDLESS}lies in {TEMPLATE_SPACE} by its name"
    if _space(layers.paths[index]) != f"space-{TEMPLATE_SPACE}":
        deformable = step.kind == "deformable"
        try:
            found = align(brain, mask, voxel_size_mm=step.voxel_size_mm, deformable=deformable, start=layers.found)
        except ValueError as error:
            raise ScanError(f"{layers.paths[index]}: {error}") from None
        shift = shift_mm(found.matrix, mask, brain.affine)
        if deformable or shift >= NEAR_MM:
            alignment, said = found, f"{step.kind}, by {layers.names[index]}; the affine part moves it {shift:.1f} mm"
        else:
            said = f"{NEEDLESS}lies in {TEMPLATE_SPACE} but for {shift:.1f} mm"
    measures = layers.measures | quality_of(alignment, brain, mask)
    return replace(layers, alignment=alignment, measures=measures), said


def measured(layers: Layers) -> dict[str, dict[str, float | None]]:
    """Measures by contrast; of those whose bias field was divided out also the variation in white matter."""
    from relevance_assets.imaging.quality import coefficient_of_variation, white_matter

    measures = {name: dict(found) for name, found in layers.by_contrast.items()}
    to_template = layers.found if layers.alignment is None else layers.alignment.matrix
    if to_template is None:
        return measures
    for index, mask, before, after in layers.biased:
        inside = white_matter(mask, before.affine, np.linalg.inv(to_template))
        measures.setdefault(layers.names[index], {}).update(
            white_matter_cv_before=coefficient_of_variation(before.data, inside),
            white_matter_cv_after=coefficient_of_variation(after.data, inside),
        )
    return measures


def remove(layers: Layers, step: study.Remove) -> Result:
    """Regions of an atlas out of the brain; images become 0 there."""
    assert layers.mask is not None
    assert layers.alignment is not None  # the recipe's order
    files = [path for path in (step.atlas, step.atlas_names) if path]
    atlas = _atlas(*files, changed=tuple(path.stat().st_mtime_ns for path in files)) if files else _approximate_atlas()
    places = move(layers.grids[0].affine, np.argwhere(layers.mask))
    try:
        out = atlas.contains(layers.alignment.to_template(places), step.regions)
    except ValueError as error:
        raise ScanError(f"{layers.path}: preparation, remove.regions: {error}") from None
    mask = layers.mask.copy()
    mask[mask] = ~out
    if not mask.any():
        raise ScanError(f"{layers.path}: nothing is left of the brain without {', '.join(step.regions)}")
    return _only_brain(replace(layers, mask=mask)), f"{', '.join(step.regions)}: {out.mean():.1%} of the brain"


@lru_cache(maxsize=1)  # the same for all scans
def _atlas(image: Path, names: Path, changed: tuple[int, ...]) -> Atlas:
    from relevance_assets.imaging.atlas import load_atlas

    return load_atlas(image, names)


@cache
def _approximate_atlas() -> Atlas:
    from relevance_assets.imaging.atlas import approximate_atlas

    grid = template().grid
    return approximate_atlas(grid.shape, grid.affine)


# -------------------------------------------------------------------------------------------------------- grid
def onto_one_grid(layers: Layers, step: study.Resample | None = None) -> Result:
    """Every contrast on one grid.

    That is the first contrast's own, or what the step says: the axis-aligned RAS+ grid of its voxel size over the first
    contrast's field of view (over all visits' in half-way space, over the template's in its space), or the grid of
    another contrast. Where the grid has this voxel size already it stays, oblique or not, and what lies on it is not
    interpolated. A reduction by more than 1.5 along an axis is preceded by a Gaussian of (factor - 1) / 2 voxels
    against aliasing.
    """
    if step is None:
        return _onto(layers, layers.grids[0], 1), "the first contrast's grid"
    layers, _ = reorient(layers, study.Reorient())  # voxel sizes of a step are along right, anterior, superior
    order = ORDERS[step.interpolation]
    if step.like is not None:
        target = layers.grids[layers.index(step.like)]
    else:
        assert step.voxel_size_mm is not None  # the settings' own check
        if step.space == "template":
            return _into_template(layers, step.voxel_size_mm, order)
        field_of_view = layers.common or layers.grids[0]
        there = layers.common is None and same_voxel_size(field_of_view, step.voxel_size_mm)
        target = field_of_view if there else axis_aligned(field_of_view, step.voxel_size_mm)
    placed = _onto(layers, target, order)
    if not any(placed.resampled):
        return placed, NEEDLESS + "the grid is this one already"
    return placed, f"{' x '.join(f'{size:g}' for size in target.voxel_sizes_mm)} mm, {step.interpolation}"


def _onto(layers: Layers, target: Grid, order: Literal[0, 1, 3]) -> Layers:
    mask = layers.mask
    if mask is not None and not same_grid(layers.grids[0], target):
        mask = _kept(layers, moved_mask(mask, layers.grids[0], target))
    images, resampled = [], []
    for image, grid, before in zip(layers.images, layers.grids, layers.resampled, strict=True):
        interpolate = not same_grid(grid, target)
        values = resample(image, grid, target, order) if interpolate else image
        images.append(values if mask is None else np.where(mask, values, np.float32(0)))
        resampled.append(before or interpolate)
    grids = (target,) * len(images)
    return replace(layers, images=tuple(images), grids=grids, resampled=tuple(resampled), mask=mask)


def _kept(layers: Layers, mask: np.ndarray) -> np.ndarray:
    if not mask.any():
        raise ScanError(f"{layers.path}: no brain voxel is left on the grid; take smaller voxels")
    return mask


def _into_template(layers: Layers, voxel_size_mm: tuple[float, float, float], order: Literal[0, 1, 3]) -> Result:
    """All contrasts in the template's space, each interpolated once from where it was."""
    assert layers.mask is not None
    assert layers.alignment is not None  # the settings' own check
    alignment, target = layers.alignment, axis_aligned(template().grid, voxel_size_mm)
    said = f"{TEMPLATE_SPACE}, {' x '.join(f'{size:g}' for size in voxel_size_mm)} mm"
    if alignment.forward is None and np.array_equal(alignment.matrix, np.eye(4)):
        placed = replace(_onto(layers, target, order), in_template=True)  # what lies on this grid stays as it is
        return placed, said if any(placed.resampled) else f"{NEEDLESS}on the grid of {said} already"
    mask = pull(layers.mask.astype(np.float32), layers.grids[0], target, alignment.to_scan, 1) >= 0.5 - 1e-5
    mask = _kept(layers, mask)
    images = tuple(
        np.where(mask, pull(image, grid, target, alignment.to_scan, order), np.float32(0))
        for image, grid in zip(layers.images, layers.grids, strict=True)
    )
    many = len(images)
    placed = replace(
        layers, images=images, grids=(target,) * many, resampled=(True,) * many, mask=mask, in_template=True
    )
    return placed, said


def crop_or_pad(layers: Layers, step: study.CropOrPad) -> Result:
    """To the step's shape, around the middle of the grid or of the brain; padded voxels are 0.

    All contrasts are on one grid before. Counts the share of the brain's voxels that is cut off.
    """
    grid, mask = layers.grids[0], layers.mask
    start = centre_start(grid.shape, step.shape, mask if step.centre == "brain" else None)
    target = moved(grid, start, step.shape)
    if same_grid(grid, target):
        return layers, NEEDLESS + "the shape is this one already"
    images = tuple(copy_between(image, grid, target) for image in layers.images)
    layers = replace(layers, images=images, grids=(target,) * len(images))
    said = f"{' x '.join(map(str, grid.shape))} to {' x '.join(map(str, step.shape))}"
    if mask is None:
        return layers, said
    kept = copy_between(mask, grid, target)
    if not kept.any():
        raise ScanError(f"{layers.path}: no brain is left within {step.shape} voxels; centre the crop on the brain")
    measures = layers.measures | {"share_cropped": 1 - int(kept.sum()) / int(mask.sum())}
    return replace(layers, mask=kept, measures=measures), said
