"""How a scan was prepared, on one page: brain mask and registration over the image, and what is known of the scan.

Belongs here: which planes of a `Prepared` are shown, with which outlines and words. Does not belong here: pixels
(`drawing.py`), the page of all scans (`overview.py`), measures (`imaging/quality.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.affines import obliquity, voxel_sizes
from scipy import ndimage

from relevance_assets.files import atomic_path
from relevance_assets.imaging.geometry import Alignment, to_native
from relevance_assets.imaging.grid import Grid, canonical, moved
from relevance_assets.report.drawing import (
    FRONT,
    LETTERS,
    MASK,
    WHITE,
    below,
    beside,
    legend,
    png,
    row,
    shortened,
    text,
    tile,
)

if TYPE_CHECKING:
    from relevance_assets.imaging.recipe import Prepared

__all__ = ["mosaic_path", "preparation_figure"]

FIGURE_BYTES, MOSAIC_BYTES = 150_000, 5_000
PAGE = 1150  # pixels, the page's width
TILE, REGISTERED, MOSAIC_TILE = 140, 164, 72  # pixels, the longest side of a plane
MARGIN_MM = 8.0  # around the brain, where a plane is cut to it
TEMPLATE_MM = ((2.0, 32.0), (-44.0, 4.0), (6.0, 40.0))  # planes across x, y, z: ventricles and deep grey, then cortex
NOTE = 90  # characters of a step's note; the table has all of it
AXES = (2, 1, 0)  # rows: axial, coronal, sagittal


@dataclass(frozen=True, eq=False)
class _Plane:
    """Values (a, b) across one axis, masks over the same field of view with their colours, and its extent."""

    axis: int
    values: np.ndarray
    outlines: tuple[tuple[np.ndarray, int], ...]
    size_mm: tuple[float, float]


def preparation_figure(prepared: Prepared, title: str, path: Path) -> None:
    """Draw a scan as its file has it, as it was prepared, and on the template; beside it a mosaic for the overview.

    Parameters
    ----------
    prepared : Prepared
    title : str
        The scan.
    path : Path
        PNG of at most 150 kB; the mosaic (at most 5 kB) lies at `mosaic_path(path)`.
    """
    native, window = _native(prepared, 3 if prepared.alignment else 6)
    said = [
        text(shortened(f"{prepared.quality[0]['image']} as the file has it", 13, 400), 13),
        text(_about(prepared.geometry.native), 11),
        legend([(MASK, "brain mask")], 11, 200),
    ]
    upper = [below([*said, *_rows(native, window, TILE)], 3)]
    if prepared.alignment:
        upper += _registration(prepared.before, prepared.alignment, window)
    lower = []
    for name, planes in _contrasts(prepared):
        rows = _rows(planes, (0.0, 1.0), TILE)
        lower.append(below([text(shortened(name, 13, max(r.shape[1] for r in rows)), 13), *rows], 3))
    grid = Grid(prepared.mask.shape, prepared.affine)
    page = [
        text(title, 18, PAGE),
        *(text(line, 13, PAGE) for line in _caption(prepared)),
        text(
            "Radiological view: the person's right (R) is on the left of the page. Voxels are drawn in millimetres.",
            11,
            PAGE,
        ),
        beside(upper, 10),
        text(f"Prepared, 0 (black) to 1 (white), cut to the brain: {_about(grid)}", 13, PAGE),
        beside(lower, 10),
    ]
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(np.pad(below(page, 6), ((8, 8), (8, 8), (0, 0))), FIGURE_BYTES))
    with atomic_path(mosaic_path(path)) as temporary:
        temporary.write_bytes(png(_mosaic(prepared), MOSAIC_BYTES, (13, 8, 4)))


def mosaic_path(figure: Path) -> Path:
    """Where the small mosaic of a scan lies: beside its figure."""
    return figure.with_name(f"{figure.stem}_mosaic.png")


# ------------------------------------------------------------------------------------------------------ planes
def _native(prepared: Prepared, count: int) -> tuple[list[_Plane], tuple[float, float]]:
    """Planes of the first contrast's file where there is brain, and the values that are black and white.

    Only the planes' share of the mask is brought back to the native grid.
    """
    values, affine = canonical(prepared.before.data, prepared.before.affine)
    grid, geometry = Grid(values.shape, affine), prepared.geometry
    way = geometry.alignment.matrix if geometry.alignment else geometry.moved
    places = _voxels(prepared.mask) @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
    to_voxels = np.linalg.inv(way @ affine)
    planes, brain = [], []
    for axis, index in _chosen(places @ to_voxels[:3, :3].T + to_voxels[:3, 3], grid.shape, count):
        one = _one_plane(grid, axis, index)
        size_mm = _size_mm(grid, axis)
        if geometry.resampled:  # no finer than it is drawn
            one = _pixels(one, axis, _size(size_mm, TILE / _extent(grid)))
        mask = to_native(prepared.mask, replace(geometry, native=one), order=0).squeeze(axis)
        plane = np.nan_to_num(_across(values, axis, index))
        planes.append(_Plane(axis, plane, ((mask, MASK),), size_mm))
        if mask.shape == plane.shape:
            brain.append(plane[mask])
        else:
            at = [np.arange(m) * n // m for n, m in zip(plane.shape, mask.shape, strict=True)]
            brain.append(plane[np.ix_(*at)][mask])
    shown = np.concatenate([plane.values.ravel() for plane in planes])
    inside = np.concatenate(brain)
    return planes, (float(np.percentile(shown, 1)), float(np.percentile(inside if inside.size else shown, 99.5)))


def _contrasts(prepared: Prepared) -> Iterator[tuple[str, list[_Plane]]]:
    """Name and planes of every contrast, as prepared."""
    mask, affine = canonical(prepared.mask, prepared.affine)
    around = _around(mask, affine)
    mask = mask[around]
    grid = Grid(mask.shape, affine)  # only its shape and voxel sizes are used
    chosen = _chosen(_voxels(mask), grid.shape, (4, 3, 2, 1)[min(3, len(prepared.images) - 1)])
    for image, known in zip(prepared.images, prepared.quality, strict=True):
        values = canonical(image, prepared.affine)[0][around]
        planes = [
            _Plane(axis, _across(values, axis, i), ((_across(mask, axis, i), MASK),), _size_mm(grid, axis))
            for axis, i in chosen
        ]
        yield known["image"], planes


def _registration(before: Any, alignment: Alignment, window: tuple[float, float]) -> list[np.ndarray]:
    """The scan on the template's planes: by its own millimetres, and by what registration found."""
    from relevance_assets.imaging.template import template

    space = template()
    around = _around(space.brain, space.grid.affine)
    mask, white = space.brain[around], space.white[around]
    grid = moved(space.grid, (around[0].start, around[1].start, around[2].start), mask.shape)
    to_voxels = np.linalg.inv(before.affine)
    shown = [(axis, mm) for axis in AXES for mm in TEMPLATE_MM[axis]]
    sections = []
    for name, registered in (("Before registration", False), ("After registration", True)):
        planes = []
        for axis, mm in shown:
            index = round((mm - grid.affine[axis, 3]) / grid.affine[axis, axis])
            one = _one_plane(grid, axis, index)
            points = alignment.to_scan(_points(one)) if registered else _points(one)
            voxels = to_voxels[:3, :3] @ points.T + to_voxels[:3, 3:]
            values = ndimage.map_coordinates(before.data, voxels, order=1, output=np.float32)
            smooth = ndimage.gaussian_filter(_across(white, axis, index), 1) > 0.5  # thin strands hide the image
            outlines = (smooth, WHITE), (_across(mask, axis, index), FRONT)
            plane = np.nan_to_num(values.reshape(one.shape).squeeze(axis))
            planes.append(_Plane(axis, plane, outlines, _size_mm(grid, axis)))
        said = legend([(FRONT, "template's brain"), (WHITE, "template's white matter")], 11, 200)
        rows = _rows(planes, window, REGISTERED)
        sections.append(below([text(name, 13), text("in the template's space", 11), said, *rows], 3))
    return sections


def _voxels(mask: np.ndarray) -> np.ndarray:
    """Some of a mask's voxels, (n, 3), evenly; of a small one all."""
    step = max(1, round((mask.size / 300_000) ** (1 / 3)))
    some = np.argwhere(mask[::step, ::step, ::step]) * step
    return some if len(some) else np.argwhere(mask)


def _chosen(voxels: np.ndarray, shape: tuple[int, int, int], count: int) -> list[tuple[int, int]]:
    """Axis and index of planes that divide the brain into equal parts along each axis; each plane once."""
    shares = (np.arange(count) + 0.5) / count
    planes = []
    for axis in AXES:
        places = np.quantile(voxels[:, axis], shares) if len(voxels) else shares * shape[axis] - 0.5
        planes += [(axis, int(i)) for i in np.unique(np.rint(places).clip(0, shape[axis] - 1))]
    return planes


def _across(values: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One plane; no copy, as `take` would make of a whole turned array."""
    return np.moveaxis(values, axis, 0)[index]


def _around(mask: np.ndarray, affine: np.ndarray) -> tuple[slice, slice, slice]:
    """The box of a mask with a margin; all where it is empty."""
    box = []
    for axis, (n, size) in enumerate(zip(mask.shape, voxel_sizes(affine), strict=True)):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = round(MARGIN_MM / size)
        box.append(slice(max(0, hit[0] - margin), min(n, hit[-1] + 1 + margin)) if len(hit) else slice(0, n))
    return box[0], box[1], box[2]


def _one_plane(grid: Grid, axis: int, index: int) -> Grid:
    start, shape = [0, 0, 0], list(grid.shape)
    start[axis], shape[axis] = index, 1
    return moved(grid, (start[0], start[1], start[2]), (shape[0], shape[1], shape[2]))


def _pixels(plane: Grid, axis: int, size: tuple[int, int]) -> Grid:
    """The same field of view in as many voxels as it is drawn in pixels."""
    shape = [*size]
    shape.insert(axis, 1)
    factors = np.divide(plane.shape, shape)
    affine = plane.affine @ np.diag([*factors, 1.0])
    affine[:3, 3] += plane.affine[:3, :3] @ ((factors - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine)


def _points(grid: Grid) -> np.ndarray:
    return np.indices(grid.shape).reshape(3, -1).T @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def _size_mm(grid: Grid, axis: int) -> tuple[float, float]:
    a, b = (n * size for i, (n, size) in enumerate(zip(grid.shape, grid.voxel_sizes_mm, strict=True)) if i != axis)
    return a, b


def _extent(grid: Grid) -> float:
    return max(n * size for n, size in zip(grid.shape, grid.voxel_sizes_mm, strict=True))


def _size(size_mm: tuple[float, float], pixels_per_mm: float) -> tuple[int, int]:
    return max(1, round(size_mm[0] * pixels_per_mm)), max(1, round(size_mm[1] * pixels_per_mm))


# ----------------------------------------------------------------------------------------------- blocks and words
def _rows(planes: Sequence[_Plane], window: tuple[float, float], longest: int) -> list[np.ndarray]:
    """A row of planes per axis; one scale for all."""
    return [row(tiles, LETTERS[axis]) for axis, tiles in zip(AXES, _tiles(planes, window, longest), strict=True)]


def _tiles(planes: Sequence[_Plane], window: tuple[float, float], longest: int) -> Iterator[list[np.ndarray]]:
    low, high = window
    scale = longest / max(side for plane in planes for side in plane.size_mm)
    for axis in AXES:
        tiles = []
        for plane in (plane for plane in planes if plane.axis == axis):
            grey = ((plane.values - low) / (high - low if high > low else 1.0)).clip(0, 1) * 255
            tiles.append(tile(grey.astype(np.uint8), plane.outlines, _size(plane.size_mm, scale)))
        yield tiles


def _mosaic(prepared: Prepared) -> np.ndarray:
    """The middle planes of the first contrast, beside each other."""
    mask, affine = canonical(prepared.mask, prepared.affine)
    around = _around(mask, affine)
    mask, values = mask[around], canonical(prepared.images[0], prepared.affine)[0][around]
    grid = Grid(mask.shape, affine)
    planes = [
        _Plane(axis, _across(values, axis, i), ((_across(mask, axis, i), MASK),), _size_mm(grid, axis))
        for axis, i in _chosen(_voxels(mask), grid.shape, 1)
    ]
    return beside([tiles[0] for tiles in _tiles(planes, (0.0, 1.0), MOSAIC_TILE)])


def _about(grid: Grid) -> str:
    """`96 x 96 x 112 voxels of 1.8 x 1.8 x 1.8 mm, RAS, oblique by 12°`"""
    sizes = " x ".join(f"{size:.3g}" for size in grid.voxel_sizes_mm)
    turned = float(np.rad2deg(obliquity(grid.affine)).max())
    oblique = f", oblique by {turned:.0f}°" if turned >= 0.5 else ""
    return f"{' x '.join(map(str, grid.shape))} voxels of {sizes} mm, {grid.orientation}{oblique}"


def _caption(prepared: Prepared) -> list[str]:
    """Steps, then measures."""
    done = [_said(step) for step in prepared.steps if step["done"]]
    needless = [_said(step) for step in prepared.steps if not step["done"]]
    lines = [f"Steps: {', '.join(done) or 'none'}."]
    if needless:
        lines.append(f"Needless: {', '.join(needless)}.")
    return [*lines, f"Measures: {'; '.join(_measures(prepared.quality))}."]


def _said(step: dict[str, Any]) -> str:
    note = step["note"]
    short = note if len(note) <= NOTE else note[: NOTE - 1] + "…"
    return f"{step['step']} ({short})" if short else str(step["step"])


def _measures(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    first = rows[0]
    yield f"brain {first['brain_volume_mm3'] / 1000:,.0f} ml"
    if first.get("template_overlap") is not None:
        yield f"overlap with the template's brain {first['template_overlap']:.3f}"
    if first.get("similarity_after") is not None:
        before = first.get("similarity_before")
        was = "" if before is None else f"{before:.2f} before and "
        yield f"similarity to the template {was}{first['similarity_after']:.2f} after registration"
    if first.get("jacobian_minimum") is not None:
        yield f"Jacobian {first['jacobian_minimum']:.2f} to {first['jacobian_maximum']:.2f}"
    varies = [
        f"{one['image']} {one['white_matter_cv_before']:.1%} and {one['white_matter_cv_after']:.1%}"
        for one in rows
        if one.get("white_matter_cv_after") is not None
    ]
    if varies:
        yield f"variation in white matter before and after N4: {', '.join(varies)}"
    clipped = max(one["share_clipped"] for one in rows)
    yield f"clipped {clipped:.2%} at most"
    if first.get("share_cropped"):
        yield f"cropped {first['share_cropped']:.2%} of the brain"
