"""Lesions: their zones over a FLAIR, how much of them by age, how they are shared between zones.

Belongs here: drawing labels, people and shares that others made. Does not belong here: making them (`lesions/`,
`statistics/`), correlations and effects (`figures_groups.py`).

Slices are in neurological orientation: the left of the person is on the left of the page, and letters say so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from nibabel.affines import obliquity, voxel_sizes
from scipy import ndimage, stats

from relevance_assets.imaging.grid import canonical
from relevance_assets.report.figures import COLOURS, DPI, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ZONES", "age_burden_figure", "overlap_figure", "zone_shares_figure", "zones_over_flair_figure"]

#: What each number of a zone image means, from 1.
ZONES = ("periventricular", "paraventricular", "juxtacortical")
#: The colours of the publication: ventricles, then the zones.
PAPER_COLOURS = {
    "ventricles": (0, 0, 255),
    "periventricular": (255, 0, 0),
    "paraventricular": (255, 165, 0),
    "juxtacortical": (255, 255, 0),
}
#: Okabe & Ito's green, vermilion and yellow.
OVERLAP = {
    "ventricles found": (0, 0, 255),
    "lesions found": (0, 158, 115),
    "missed": (213, 94, 0),
    "found, not in the truth": (240, 228, 66),
}
INSIDE, RIM = 0.35, 1.0  # opacity: the image shows through a region, and its outline is clear
#: Okabe & Ito's nearest to the publication's red, orange and yellow; told apart by lightness too.
ZONE_COLOURS = {"periventricular": "#D55E00", "paraventricular": "#E69F00", "juxtacortical": "#F0E442"}
GROUP_COLOURS, GROUP_MARKERS = (COLOURS[0], COLOURS[1]), "o^"
COLUMNS, MOST_SLICES = 4, 12
HEAD = 0.15  # share of the 99th percentile: brighter is head
MARGIN_MM = 4.0
FEW = 5  # people: fewer are no base for a band's mean
GREY = "#595959"


# ------------------------------------------------------------------------------------------------ zones over FLAIR
def zones_over_flair_figure(
    flair: np.ndarray,
    zones: np.ndarray,
    ventricles: np.ndarray,
    affine: np.ndarray,
    title: str,
    brain: np.ndarray | None = None,
) -> Figure:
    """Slices with lesions, ventricles and lesion zones in the publication's colours, and the volume of each.

    The slices are the image's own planes nearest to axial, never interpolated, so thick and oblique ones are shown as
    they were taken; pixels keep their proportions. At most twelve, evenly spread over those with lesions. Without
    a lesion, those with ventricles; without either, the middle ones.

    Parameters
    ----------
    flair : (x, y, z)
        Intensities, any scale.
    zones : (x, y, z) int
        0 where there is no lesion, else 1 to 3 as `ZONES`.
    ventricles : (x, y, z) bool
        Where both are, the lesion is drawn and counted.
    affine : (4, 4)
        Voxel indices to RAS+ millimetres.
    title : str
    brain : (x, y, z) bool, optional
        The pictures are cut to it; to the head if it is not given.

    Raises
    ------
    ValueError
        Shapes that differ, a zone that has no meaning.
    """
    shapes = {a.shape for a in (flair, zones, ventricles, brain) if a is not None}
    if len(shapes) > 1 or flair.ndim != 3:
        raise ValueError(f"zones: FLAIR and masks must be on one 3D grid, not {sorted(shapes)}; resample the masks")
    unknown = sorted(set(np.unique(zones).tolist()) - set(range(len(ZONES) + 1)))
    if unknown:
        raise ValueError(f"zones: {unknown[0]} is no zone; 0 to {len(ZONES)} are")
    values, turned = canonical(np.nan_to_num(flair.astype(np.float64)), np.asarray(affine, dtype=np.float64))
    labels, _ = canonical(np.where(zones > 0, zones + 1, ventricles > 0).astype(np.uint8), affine)
    inside = _head(values) if brain is None else canonical(brain, affine)[0] > 0
    with style():
        return _draw(values, labels, turned, inside, title, PAPER_COLOURS)


def overlap_figure(
    flair: np.ndarray, found: np.ndarray, truth: np.ndarray, affine: np.ndarray, title: str, brain: np.ndarray
) -> Figure:
    """Slices with what of the lesions was found, missed, and found where there is none; ventricles as found.

    Slices are chosen and drawn as in `zones_over_flair_figure`.

    Parameters
    ----------
    flair : (x, y, z)
        Intensities, any scale.
    found, truth : (x, y, z) int
        1 ventricles, 2 lesions.
    affine : (4, 4)
        Voxel indices to RAS+ millimetres.
    title : str
    brain : (x, y, z) bool
        The pictures are cut to it.
    """
    states = np.where(truth == 2, np.where(found == 2, 2, 3), np.where(found == 2, 4, found == 1)).astype(np.uint8)
    values, turned = canonical(np.nan_to_num(flair.astype(np.float64)), np.asarray(affine, dtype=np.float64))
    with style():
        return _draw(values, canonical(states, affine)[0], turned, canonical(brain, affine)[0] > 0, title, OVERLAP)


def _draw(
    values: np.ndarray,
    labels: np.ndarray,
    affine: np.ndarray,
    inside: np.ndarray,
    title: str,
    colours: dict[str, tuple[int, int, int]],
) -> Figure:
    """Labels from 1 over an image in RAS+, each in its colour and with its volume; lesions are those above 1."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    size = voxel_sizes(affine)
    chosen, said = _slices(labels)
    box = _box(inside | (labels > 0), size)
    across, up = ((b.stop - b.start) * s for b, s in zip(box, size, strict=False))
    width, top, bottom = 1.85, 0.62, 0.72  # inches
    height = width * up / across
    rows = math.ceil(len(chosen) / COLUMNS)
    page = width * COLUMNS, top + rows * height + bottom
    figure = Figure(figsize=page, dpi=DPI)
    # fat is far brighter than the brain: twice the middle of the head leaves lesions short of white
    white = min(np.percentile(values[inside], 99.5), 2 * np.median(values[inside])) if inside.any() else 1.0
    for place, index in enumerate(chosen):
        row, column = divmod(place, COLUMNS)
        corner = width * column / page[0], (page[1] - top - height * (row + 1)) / page[1]
        cell = figure.add_axes((*corner, 0.985 * width / page[0], 0.985 * height / page[1]))
        cell.set_axis_off()
        grey = values[(*box, index)].T
        cell.imshow(grey, origin="lower", cmap="gray", vmin=0, vmax=white, interpolation="nearest")
        cell.imshow(_overlay(labels[(*box, index)].T, colours.values()), origin="lower", interpolation="nearest")
        cell.set_aspect(size[1] / size[0])
        cell.text(0.03, 0.97, f"{index + 1}", transform=cell.transAxes, va="top", color="white", fontsize=10)
        if place == 0:
            for x, side in ((0.05, "L"), (0.95, "R")):
                cell.text(x, 0.03, side, transform=cell.transAxes, ha="center", color="white", fontsize=10)
    figure.text(0.01, 1 - 0.05 / page[1], title, va="top", fontsize=12)
    tilt = np.degrees(obliquity(affine)).max()
    about = f"voxels {size[0]:.2f} × {size[1]:.2f} mm, slices {size[2]:.1f} mm apart, tilted {tilt:.0f}°"
    figure.text(0.01, 1 - 0.33 / page[1], f"{said}; {about}", va="top", fontsize=10, color=GREY)
    counts = np.bincount(labels.ravel(), minlength=len(colours) + 1)[1:]
    handles = [
        Patch(facecolor=_rgb(colour), edgecolor="black", linewidth=0.5, label=f"{name} {_ml(n * size.prod())}")
        for (name, colour), n in zip(colours.items(), counts, strict=True)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False, columnspacing=3)
    return figure


def _rgb(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def _ml(volume_mm3: float) -> str:
    return f"{volume_mm3 / 1000:.2f} ml" if volume_mm3 else "none"


def _head(values: np.ndarray) -> np.ndarray:
    """What is brighter than air, without specks of noise; slice by slice, since slices may be thick."""
    bright = values > HEAD * np.percentile(values, 99)
    return ndimage.binary_opening(bright, np.ones((3, 3, 1)), iterations=3)


def _slices(labels: np.ndarray) -> tuple[list[int], str]:
    """Which slices are shown, and in words."""
    lesions, ventricles = (np.flatnonzero(m.any(axis=(0, 1))) for m in (labels > 1, labels == 1))
    indices, kind = (lesions, "with lesions") if lesions.size else (ventricles, "with ventricles; no lesion")
    if not indices.size:
        middle = labels.shape[2] // 2
        indices, kind = np.arange(max(0, middle - 2), min(labels.shape[2], middle + 2)), "in the middle; no lesion"
    count = min(MOST_SLICES, indices.size)
    chosen = indices[np.round(np.linspace(0, indices.size - 1, count)).astype(int)]
    number = f"{count} of the {indices.size} slices" if count < indices.size else f"the {count} slices"
    number = "the one slice" if count == 1 else number
    return chosen.tolist(), f"{number} {kind}"


def _box(inside: np.ndarray, size: np.ndarray) -> tuple[slice, slice]:
    """The extent within a slice, with a margin; everything if there is nothing inside."""
    cuts = []
    for axis in (0, 1):
        hit = np.flatnonzero(inside.any(axis=(1 - axis, 2)))
        margin = math.ceil(MARGIN_MM / size[axis])
        low, high = (int(hit[0]) - margin, int(hit[-1]) + margin + 1) if hit.size else (0, inside.shape[axis])
        cuts.append(slice(max(0, low), min(inside.shape[axis], high)))
    return cuts[0], cuts[1]


def _overlay(labels: np.ndarray, colours: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """(a, b) labels as (a, b, 4) colours, their rims opaque."""
    found = np.zeros((*labels.shape, 4))
    for number, colour in enumerate(colours, 1):
        mask = labels == number
        rim = mask & ~ndimage.binary_erosion(mask)
        found[mask] = [*_rgb(colour), INSIDE]
        found[rim, 3] = RIM
    return found


# ---------------------------------------------------------------------------------------------------- burden by age
def age_burden_figure(
    people: pl.DataFrame,
    measure: str,
    label: str,
    edges: Sequence[float] = (18, 30, 40, 50, 60, 69),
    groups: Sequence[str] = ("HC", "MS"),
) -> Figure:
    """A burden against age in women and in men: everybody, and the medians of age bands with 95 % intervals.

    The axis is logarithmic; who has none is in a strip of its own below it, and counts in the medians. The interval of
    a median is by order statistics (binomial); fewer than six people have none, and
    the median of fewer than five is hollow. A median of 0 is drawn in the strip;
    a black tip at the lower edge says that an interval reaches 0.

    Parameters
    ----------
    people : DataFrame
        Columns age (years, or null: not drawn, but counted in the caption), sex (0 female, 1 male), group, and the
        measure (at least 0).
    measure : str
        Column to draw.
    label : str
        Its name and unit.
    edges : sequence of float
        Ends of the age bands, years, left-closed.
    groups : sequence of str
        At most two, the one compared with first. One without people is left out.

    Raises
    ------
    ValueError
        More than two groups, nobody to draw.
    """
    if len(groups) > len(GROUP_COLOURS):
        raise ValueError(f"burden: {len(groups)} groups; give at most {len(GROUP_COLOURS)}")
    known = people.filter(
        pl.col("group").is_in(groups), (pl.col("sex") == 0) | (pl.col("sex") == 1), pl.col(measure).is_not_null()
    )
    aged = known.filter(pl.col("age").is_not_null())
    if aged.is_empty():
        raise ValueError(f"burden: nobody of {', '.join(groups)} has an age, a sex and {measure}")
    present = {group: number for number, group in enumerate(groups) if group in aged["group"]}
    with style():
        return _draw_burden(aged, measure, label, edges, present, known.height - aged.height)


def _draw_burden(
    people: pl.DataFrame, measure: str, label: str, edges: Sequence[float], groups: dict[str, int], ageless: int
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(9.0, 5.2), dpi=DPI, layout="constrained")
    share = 0.22 * len(groups)
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(4, share))
    positive = people.filter(pl.col(measure) > 0)[measure]
    low, high = np.quantile(positive, (0, 1)) if positive.len() else (1.0, 10.0)
    handles: list[Any] = []
    for column, (sex, name) in enumerate(((0, "women"), (1, "men"))):
        upper, strip = axes[:, column]
        part = people.filter(pl.col("sex") == sex)
        upper.set_yscale("log")
        upper.set_ylim(low / 2.2, high * 1.6)  # a median half-way between 0 and the least is on the axis
        upper.set_title(name, loc="left")
        upper.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        upper.yaxis.set_minor_formatter(NullFormatter())
        for edge in edges:
            upper.axvline(edge, color="#d9d9d9", linewidth=0.8, zorder=0)
        drawn = [
            _burden_of(upper, strip, part.filter(pl.col("group") == group), measure, edges, (place, number), group)
            for place, (group, number) in enumerate(groups.items())
        ]
        handles = handles or [one for kind in zip(*drawn, strict=True) for one in kind]
        strip.set_ylim(len(groups) - 0.5, -0.5)
        strip.set_yticks(range(len(groups)), [f"none, {group}" for group in groups])
        strip.tick_params(axis="y", length=0)
        strip.spines["left"].set_visible(False)
        strip.set_facecolor("#f2f2f2")
        strip.set_xlabel("age, years")
    axes[0, 0].set_ylabel(label)
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False)
    notes = [f"hollow: fewer than {FEW} people"] if _few_in_a_band(people, edges) else []
    notes += [f"not drawn: {ageless} without an age"] if ageless else []
    if notes:
        figure.legend([], [], title="\n".join(notes), loc="outside lower right", frameon=False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _burden_of(
    upper: Any,
    strip: Any,
    part: pl.DataFrame,
    measure: str,
    edges: Sequence[float],
    places: tuple[int, int],
    group: str,
) -> tuple[Any, Any]:
    """One group in one panel; gives what stands for its people and for its medians in the legend."""
    place, number = places  # row of the strip, colour
    colour, marker = GROUP_COLOURS[number], GROUP_MARKERS[number]
    some, none = part.filter(pl.col(measure) > 0), part.filter(pl.col(measure) == 0)
    dots = {"color": colour, "marker": marker, "linewidth": 0}
    people = upper.scatter(some["age"], some[measure], s=9, alpha=0.35, label=f"{group}, a person", **dots)
    jitter = 0.5 * (np.arange(none.height) * 0.618 % 1 - 0.5)
    strip.scatter(none["age"], place + jitter, s=7, alpha=0.5, **dots)
    strip.text(
        1.01, place, f"{none.height} of {part.height}", transform=strip.get_yaxis_transform(), va="center", fontsize=9
    )
    shift = (number - 0.5) * 1.4  # years: groups beside each other
    mean = {"color": colour, "marker": marker, "markersize": 8, "markeredgecolor": "black", "markeredgewidth": 0.8}
    bars = upper.errorbar([], [], [], label=f"{group}, median of a band, 95 % interval", linestyle="", **mean)
    floor = upper.get_ylim()[0]
    for start, end in itertools.pairwise(edges):
        values = part.filter((pl.col("age") >= start) & (pl.col("age") < end))[measure].to_numpy()
        if not values.size:
            continue
        x, (middle, low, high) = (start + end) / 2 + shift, _median(values)
        look = mean | ({"markerfacecolor": "white", "markeredgecolor": colour} if values.size < FEW else {})
        if middle == 0:
            strip.plot(x, place, clip_on=False, **look)
        else:
            upper.plot(x, middle, zorder=4, **look)
        if low is not None and high > 0:
            upper.plot([x, x], [max(low, floor), high], color="black", linewidth=3.2, zorder=3)
            upper.plot([x, x], [max(low, floor), high], color=colour, linewidth=1.8, zorder=3)
            if low == 0:
                upper.plot(x, floor, marker="v", markersize=6, color="black", clip_on=False)
    return people, bars


def _few_in_a_band(people: pl.DataFrame, edges: Sequence[float]) -> bool:
    inside = people.filter(pl.col("age") >= edges[0], pl.col("age") < edges[-1])
    band = pl.col("age").cut(list(edges), left_closed=True)
    return bool((inside.group_by("group", "sex", band.alias("band")).len()["len"] < FEW).any())


def _median(values: np.ndarray) -> tuple[float, float | None, float]:
    """Median and the order statistics that hold it with at least 95 %; no interval below six values."""
    ordered, n = np.sort(values), values.size
    below = int(stats.binom.ppf(0.025, n, 0.5))
    if stats.binom.cdf(below, n, 0.5) > 0.025:
        below -= 1
    if below < 0:
        return float(np.median(ordered)), None, math.nan
    return float(np.median(ordered)), float(ordered[below]), float(ordered[n - 1 - below])


# ----------------------------------------------------------------------------------------------------- shares by age
def zone_shares_figure(
    shares: pl.DataFrame,
    strata: Sequence[str],
    bands: Sequence[str],
    label: str = "mean share of lesion volume, %",
) -> Figure:
    """Mean share of each zone in the lesions of an age band, stacked, with the number of people.

    Bands of fewer than five people are pale and hatched: their mean says little.

    Parameters
    ----------
    shares : DataFrame
        Columns stratum, band, zone (as in `ZONES`), share (mean, %, of people with lesions), n (people of the band).
    strata, bands : sequences of str
        Panels and bars, in order. A band that is not in the table stays empty.
    label : str
        What the shares are of.

    Raises
    ------
    ValueError
        No stratum or no band.
    """
    if not strata or not bands:
        raise ValueError("zone shares: no stratum or no band to draw")
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    with style():
        figure = Figure(figsize=(1.2 + 2.6 * len(strata), 4.0), dpi=DPI, layout="constrained")
        axes = figure.subplots(1, len(strata), sharey=True, squeeze=False)[0]
        few = False
        for axis, stratum in zip(axes, strata, strict=True):
            few |= _stacks(axis, shares.filter(pl.col("stratum") == stratum), bands)
            axis.set_title(stratum, loc="left", pad=20)
        axes[0].set_ylabel(label)
        handles = [Patch(color=colour, label=zone) for zone, colour in reversed(ZONE_COLOURS.items())]
        if few:
            handles.append(Patch(facecolor="white", edgecolor=GREY, hatch="////", label=f"fewer than {FEW} people"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4 if len(strata) > 2 else 2, frameon=False)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return figure


def _stacks(axis: Any, shares: pl.DataFrame, bands: Sequence[str]) -> bool:
    """One panel; whether a band is of few people."""
    few = False
    for place, band in enumerate(bands):
        rows = {row["zone"]: row for row in shares.filter(pl.col("band") == band).iter_rows(named=True)}
        bottom, n = 0.0, max((row["n"] for row in rows.values()), default=0)
        for zone, colour in ZONE_COLOURS.items():
            share = (rows.get(zone) or {}).get("share") or 0.0
            look: dict[str, Any] = {"alpha": 0.45, "hatch": "////", "edgecolor": GREY} if n < FEW else {}
            axis.bar(place, share, 0.82, bottom=bottom, color=colour, linewidth=0, **look)
            if share >= 6:
                axis.text(place, bottom + share / 2, f"{share:.0f}", ha="center", va="center", fontsize=9)
            bottom += share
        few |= 0 < n < FEW
        axis.text(place, 101.5, f"{n}", ha="center", va="bottom", fontsize=9, color=GREY)
    axis.text(-0.55, 101.5, "n", ha="right", va="bottom", fontsize=9, color=GREY)
    axis.set_xticks(range(len(bands)), bands, fontsize=9)
    axis.set_xlim(-0.6, len(bands) - 0.4)
    axis.set_ylim(0, 100)
    axis.set_xlabel("age, years")
    return few
