"""Brains: relevance over two scans (the paper's Fig. 5) and the heat map of the groups (Fig. 6).

Belongs here: drawing volumes as slices. Does not belong here: computing what is drawn.

Every slice is in neurological orientation: the left of the person is on the left of the page, and letters say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relevance_assets.imaging.grid import Grid, canonical
from relevance_assets.report.figures import style

if TYPE_CHECKING:
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

__all__ = ["HEAT_MAP_Z_MM", "OverlayScan", "heatmap_figure", "scan_overlays_figure"]

HEAT_MAP_Z_MM = (-20, -10, 0, 8, 16, 24, 34, 46, 58)
PAPER_TOP = 0.65  # the colour scale of the paper's Fig. 6
OUTLINE = "#00c853"  # neither red, blue nor grey
CLEAR_BELOW, OPAQUE_FROM = 0.08, 0.5  # shares of a scale: the image shows through below, and less and less between
BACKGROUND = 0.08  # share of the template's 99th percentile; nilearn's is not quite 0 outside the brain
MARGIN = 1  # voxels around the brain


@dataclass(frozen=True, eq=False)
class OverlayScan:
    """One scan to draw; all arrays on one grid.

    Attributes
    ----------
    title : str
        `Mild disability: EDSS 2.5, predicted probability of severe 0.08`
    images : (contrast, x, y, z)
        In [0, 1]; 0 outside the brain.
    maps : (contrast, x, y, z)
        Signed relevance, one map per contrast.
    combined : (x, y, z)
    mask : (x, y, z) bool
        The top 40 % of the combined map: its outline is drawn on every contrast.
    affine : (4, 4)
        Voxel indices to RAS+ millimetres.
    """

    title: str
    images: np.ndarray
    maps: np.ndarray
    combined: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


def scan_overlays_figure(scans: Sequence[OverlayScan], contrasts: Sequence[str], mask_label: str) -> Figure:
    """An axial and a coronal slice of each scan (rows) on each contrast, and the combined map (columns).

    Relevance is red where it speaks for what is explained (the output, or the attention weight), blue against it,
    clear where it is small; each map is in shares of the 99th percentile of its own size in the brain, since totals
    differ between scans and contrasts.
    Slices go through where the mask holds most voxels.

    Parameters
    ----------
    scans : OverlayScans
        One mild and one severe, say.
    contrasts : names, in the order of `images`
    mask_label : what the outline is, `top 40 % of the combined map`

    Raises
    ------
    ValueError
        No scan, or arrays of a scan that do not match in shape or are not finite.
    """
    if not scans:
        raise ValueError("scan overlays: no scan to draw")
    for scan in scans:
        wanted = (len(contrasts), *scan.combined.shape)
        if scan.images.shape != wanted or scan.maps.shape != wanted or scan.mask.shape != wanted[1:]:
            raise ValueError(
                f"{scan.title}: images {scan.images.shape}, maps {scan.maps.shape} and mask {scan.mask.shape} do not "
                f"fit {len(contrasts)} contrasts and a combined map {scan.combined.shape}"
            )
        if not all(np.isfinite(values).all() for values in (scan.images, scan.maps, scan.combined)):
            raise ValueError(f"{scan.title}: images or maps hold NaN or infinite values")
    with style():
        return _draw_overlays(scans, contrasts, mask_label)


def _draw_overlays(scans: Sequence[OverlayScan], contrasts: Sequence[str], mask_label: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = [*contrasts, f"combined, on {contrasts[0]}"]
    rows = [(scan, axis) for scan in scans for axis in (2, 1)]
    heights = [_height(scan, axis) for scan, axis in rows]
    width, title, left, bar = 2.4, 0.55, 0.1, 1.25  # inches
    total = width * sum(heights) + title * len(scans) + 0.45
    figure = Figure(figsize=(left + width * len(names) + bar, total))
    colours = _clear_middle("bwr")
    top = total
    for row, ((scan, axis), height) in enumerate(zip(rows, heights, strict=True)):
        if row % 2 == 0:
            figure.text(
                left / figure.get_figwidth(), (top - 0.08) / total, scan.title, va="top", weight="bold", size=12
            )
            top -= title
        planes = _overlay_planes(scan, axis)
        for column, (name, (image, values, mask)) in enumerate(zip(names, planes, strict=True)):
            place = [left + width * column, top - width * height, width * 0.97, width * height * 0.97]
            cell = _cell(figure, place)
            _grey(cell, image, top=1.0)
            shown = cell.imshow(values.T, origin="lower", cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
            _outline(cell, mask, OUTLINE)
            cell.set_aspect(_voxel_aspect(scan, axis))
            if row % 2 == 0:
                cell.set_title(name, fontsize=11, pad=3)
            if column == 0:
                _sides(cell)
        top -= width * height
    bar_axis = _cell(figure, [left + width * len(names) + 0.15, total / 2 - 1.5, 0.16, 3.0], frame=True)
    scale = figure.colorbar(shown, cax=bar_axis, extend="both")
    scale.set_ticks([-1, 0, 1], labels=["−1\nagainst", "0", "1\nfor"])
    scale.set_label("relevance / its 99th percentile", labelpad=2)
    outline = Line2D([], [], color=OUTLINE, linewidth=1.8, label=f"{mask_label}; L and R are the person's")
    figure.legend(handles=[outline], loc="lower left", frameon=False)
    return figure


def _overlay_planes(scan: OverlayScan, axis: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Image, relevance and mask of one slice, for each contrast and for the combined map; cut to the brain."""
    mask = canonical(scan.mask, scan.affine)[0]
    size = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    index = int(size.argmax()) if size.any() else mask.shape[axis] // 2
    brain = _brain(scan)
    box = _box(canonical(brain, scan.affine)[0], axis)
    planes = []
    for image, values in zip([*scan.images, scan.images[0]], [*scan.maps, scan.combined], strict=True):
        inside = np.abs(values[brain])
        top = float(np.percentile(inside[inside > 0], 99)) if inside.any() else 1.0
        layers = (canonical(layer, scan.affine)[0] for layer in (image, values / top, scan.mask))
        picture, relevance, within = (np.take(layer, index, axis=axis)[box] for layer in layers)
        planes.append((picture, relevance, within))
    return planes


def _brain(scan: OverlayScan) -> np.ndarray:
    return np.asarray((scan.images > 0).any(axis=0))


def _height(scan: OverlayScan, axis: int) -> float:
    """Height of the slice's box in widths."""
    brain, affine = canonical(_brain(scan), scan.affine)
    box, sizes = _box(brain, axis), Grid(brain.shape, affine).voxel_sizes_mm
    across, up = (cut.stop - cut.start for cut in box)
    return up * sizes[3 - axis] / (across * sizes[0])


def _voxel_aspect(scan: OverlayScan, axis: int) -> float:
    brain, affine = canonical(scan.mask, scan.affine)
    sizes = Grid(brain.shape, affine).voxel_sizes_mm
    return sizes[3 - axis] / sizes[0]


def heatmap_figure(
    mild: np.ndarray,
    severe: np.ndarray,
    difference: np.ndarray,
    template: np.ndarray,
    affine: np.ndarray,
    *,
    labels: tuple[str, str, str] = ("mild", "severe", "severe − mild"),
    significant: np.ndarray | None = None,
    significant_label: str = "p < 0.05, corrected over all voxels",
    z_mm: Sequence[float] = HEAT_MAP_Z_MM,
    note: str = "",
) -> Figure:
    """Axial slices (columns) of both groups' mask frequency and of their difference (rows), over the template.

    Frequencies share one scale from 0 to 0.65 as in the paper, or to the greatest where that is larger by more
    than a few voxels; the difference has its own, even around 0. Low values are clear.

    Parameters
    ----------
    mild, severe, difference, template : (x, y, z), on one grid along the axes of MNI space
    affine : (4, 4)
    labels : rows' names, `mild, 59 scans`
    significant : (x, y, z) bool, optional
        Outlined on the difference, and explained by `significant_label`.
    z_mm : slices; each at the voxel nearest to it
    note : one line below, about the scans

    Raises
    ------
    ValueError
        Shapes that differ, values that are not finite, an empty template, an oblique grid, or a slice outside it.
    """
    for name, values in (("mild", mild), ("severe", severe), ("difference", difference), ("significant", significant)):
        if values is not None and (values.shape != template.shape or not np.isfinite(values).all()):
            raise ValueError(
                f"heat map: {name} {values.shape} must be finite and on the template's grid {template.shape}"
            )
    if not (template > 0).any():
        raise ValueError("heat map: the template holds no voxel above 0")
    grid = Grid(*_ras(template, affine)[1:])
    if np.abs(grid.affine[:3, :3] - np.diag(grid.voxel_sizes_mm)).max() > 1e-3:
        raise ValueError("heat map: the template's grid is oblique; resample to one along the axes")
    indices = [round((z - grid.affine[2, 3]) / grid.voxel_sizes_mm[2]) for z in z_mm]
    if not indices or min(indices) < 0 or max(indices) >= grid.shape[2]:
        raise ValueError(f"heat map: slices at z = {list(z_mm)} mm are not all within the template")
    layers = [_ras(values, affine)[0] for values in (mild, severe, difference)]
    marked = None if significant is None else _ras(significant, affine)[0]
    with style():
        return _draw_heatmap(layers, _ras(template, affine)[0], grid, indices, labels, marked, significant_label, note)


def _ras(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int], np.ndarray]:
    turned, turned_affine = canonical(values, np.asarray(affine, dtype=np.float64))
    return turned, turned.shape, turned_affine


def _draw_heatmap(
    layers: list[np.ndarray],
    template: np.ndarray,
    grid: Grid,
    indices: list[int],
    labels: tuple[str, str, str],
    significant: np.ndarray | None,
    significant_label: str,
    note: str,
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    white = float(np.percentile(template[template > 0], 99))
    template = np.where(template > BACKGROUND * white, template, 0)
    box = _box(template > 0, 2)
    sizes = grid.voxel_sizes_mm
    width, left, bar, top = 1.4, 0.45, 1.2, 0.35  # inches
    height = width * (box[1].stop - box[1].start) * sizes[1] / ((box[0].stop - box[0].start) * sizes[0])
    total = 3 * height + top + (0.4 if significant is not None or note else 0.12)
    figure = Figure(figsize=(left + width * len(indices) + bar, total))
    highest = max(float(np.percentile(layer, 99.99)) for layer in layers[:2])
    scale = max(PAPER_TOP, _up(highest))
    reach = max(0.05, _up(float(np.percentile(np.abs(layers[2]), 99.9))))
    limits = [(0.0, scale, _clear_low("plasma"))] * 2 + [(-reach, reach, _clear_middle("bwr"))]
    shown: list[Any] = []
    for row, (layer, label, (low, high, colours)) in enumerate(zip(layers, labels, limits, strict=True)):
        bottom = total - top - height * (row + 1)
        figure.text(
            0.1 / figure.get_figwidth(), (bottom + height / 2) / total, label, rotation=90, va="center", size=11
        )
        for column, index in enumerate(indices):
            cell = _cell(figure, [left + width * column, bottom, width * 0.98, height * 0.98])
            _grey(cell, template[:, :, index][box], top=white)
            plane = np.where(template[:, :, index] > 0, layer[:, :, index], 0.0)[box]
            image = cell.imshow(plane.T, origin="lower", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            cell.set_aspect(sizes[1] / sizes[0])
            if significant is not None and row == 2:
                _outline(cell, significant[:, :, index][box], "black")
            if row == 0:
                z = grid.affine[2, 3] + sizes[2] * index
                cell.set_title(f"z = {z:.0f} mm".replace("-", "−"), fontsize=11, pad=4)
            if column == 0:
                _sides(cell)
        shown.append(image)
    place = left + width * len(indices) + 0.12
    for image, bottom, length, label in (
        (shown[0], total - top - 2 * height, 2 * height, "share of scans whose mask\nholds the voxel"),
        (shown[2], total - top - 3 * height, height, "difference"),
    ):
        values = layers[2] if image is shown[2] else np.maximum(layers[0], layers[1])
        beyond = bool((np.abs(values) > image.norm.vmax + 1e-5).any())
        extend = ("both" if image is shown[2] else "max") if beyond else "neither"
        axis = _cell(figure, [place, bottom + 0.08 * length, 0.15, 0.84 * length], frame=True)
        figure.colorbar(image, cax=axis, extend=extend).set_label(label, fontsize=10, labelpad=3)
    if significant is not None:
        outline = Line2D([], [], color="black", linewidth=1.2, label=significant_label)
        figure.legend(handles=[outline], loc="lower left", frameon=False)
    figure.text(1 - 0.1 / figure.get_figwidth(), 0.12 / total, note, ha="right", size=10)
    return figure


def _up(value: float) -> float:
    """To the next 0.05; a rounding error of single precision does not count."""
    return math.ceil(round(value * 20, 4)) / 20


def _cell(figure: Figure, inches: Sequence[float], *, frame: bool = False) -> Any:
    """Axes at left, bottom, width, height in inches: brains fill their cells, so no layout engine is needed."""
    width, height = figure.get_size_inches()
    cell = figure.add_axes((inches[0] / width, inches[1] / height, inches[2] / width, inches[3] / height))
    if not frame:
        cell.set_axis_off()
    return cell


def _box(brain: np.ndarray, axis: int) -> tuple[slice, slice]:
    """The brain's extent, with a margin, along the two axes of a slice across `axis`."""
    cuts = []
    for other in (a for a in range(3) if a != axis):
        hit = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != other)))
        low, high = (int(hit[0]), int(hit[-1])) if len(hit) else (0, brain.shape[other] - 1)
        cuts.append(slice(max(0, low - MARGIN), min(brain.shape[other], high + 1 + MARGIN)))
    return cuts[0], cuts[1]


def _grey(cell: Any, plane: np.ndarray, top: float) -> None:
    """An image in grey; the page shows where it is 0."""
    cell.imshow(
        np.ma.masked_less_equal(plane.T, 0), origin="lower", cmap="gray", vmin=0, vmax=top, interpolation="nearest"
    )


def _outline(cell: Any, mask: np.ndarray, colour: str) -> None:
    """The mask's outline along the edges of its voxels."""
    if mask.any() and not mask.all():
        fine = np.kron(mask.T, np.ones((8, 8)))
        across, up = ((np.arange(n * 8) + 0.5) / 8 - 0.5 for n in mask.shape)
        cell.contour(across, up, fine, levels=[0.5], colors=[colour], linewidths=1.2)


def _sides(cell: Any) -> None:
    for x, side, letter in ((0.02, "left", "L"), (0.98, "right", "R")):
        cell.text(x, 0.02, letter, transform=cell.transAxes, ha=side, va="bottom", fontsize=10, color="#404040")


def _clear_low(name: str) -> ListedColormap:
    """A colour map that is clear at its low end."""
    return _with_alpha(name, np.linspace(0, 1, 256))


def _clear_middle(name: str) -> ListedColormap:
    """A colour map that is clear in its middle."""
    return _with_alpha(name, np.abs(np.linspace(-1, 1, 256)))


def _with_alpha(name: str, strength: np.ndarray) -> ListedColormap:
    import matplotlib
    from matplotlib.colors import ListedColormap

    colours = matplotlib.colormaps[name](np.linspace(0, 1, 256))
    colours[:, 3] = 0.9 * np.clip((strength - CLEAR_BELOW) / (OPAQUE_FROM - CLEAR_BELOW), 0, 1)
    return ListedColormap(colours)
