"""Which rule explains best, in pictures: the grid of a score, maps over images, scores by class and method.

Belongs here: drawing what `statistics/rule_selection.py` found and maps of single images. Does not belong here:
choosing, scores, words (`rule_text.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from relevance_assets.report.figures import COLOURS, DPI, style
from relevance_assets.report.rule_text import PEOPLE, SCORES, cell, method_name, score_name
from relevance_assets.statistics.rule_images import KEYS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ImageMaps", "methods_by_class_figure", "rule_grid_figure", "rule_overlays_figure", "rule_scores_figure"]

GREY = "#595959"
MASK = "#F0E442"  # Okabe & Ito's yellow: on black as well as on red and blue
#: Shapes that may share a cell, and their size.
MARKS = {"chosen": ("o", 6.5), "published": ("s", 12.0), "worst": ("X", 8.0)}
SCALE = 99.5  # percentile of |relevance| at which the colours of a map end
INCHES = 2.1  # width of one image


def rule_grid_figure(cells: pl.DataFrame, comparison: pl.DataFrame, unit: str = PEOPLE) -> Figure:
    """A score over the grid, on validation and on test images, in one scale of colours; the cells that matter marked.

    γ from left to right and ε from bottom to top, a cell per pair that was tried; one without a value is hatched. Dots:
    cells that cannot be told from the chosen one on validation images.

    Parameters
    ----------
    cells, comparison : frame
        Those of a `Selection`, of one explained class, score and quantile.
    unit : str
        What intervals are over: `rule_text.PEOPLE` or `BLOCKS`.

    Raises
    ------
    ValueError
        Rows of no choice, or of several; no cell has a value.
    """
    key = _one_choice(cells)
    if cells["value"].null_count() == len(cells):
        raise ValueError("grid of rules: no cell has a value")
    from matplotlib.figure import Figure

    roles = comparison.filter(pl.col("stratum_kind") == "all", pl.col("role").is_in(list(MARKS))).rows(named=True)
    limits = cells["value"].min(), cells["value"].max()
    with style():
        across, down = (cells[name].n_unique() for name in ("gamma", "epsilon"))
        width = 2.4 + 2 * max(2.6, 0.36 * across)
        figure = Figure(figsize=(width, 2.5 + max(2.2, 0.36 * down)), dpi=DPI, layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, name in zip(axes, ("validation", "test"), strict=True):
            image = _grid(axis, cells.filter(pl.col("set") == name), limits, unit)
            _marks(axis, cells, roles)
        axes[0].set_ylabel("ε")
        bar = figure.colorbar(image, ax=list(axes), pad=0.02, aspect=25)
        name = score_name(key["score"], key["quantile"])
        bar.set_label(f"mean {name}")
        title = f"{name[0].upper()}{name[1:]}, {key['explained']} class explained"
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
        handles, labels = axes[0].get_legend_handles_labels()
        look: dict[str, Any] = {"frameon": False, "alignment": "left", "handletextpad": 0.4}
        figure.legend(handles, labels, title=_levels(roles), loc="outside lower left", **look)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return figure


def rule_scores_figure(cells: pl.DataFrame) -> Figure:
    """Every score over the grid on test images, each in its own colours; the cell that is chosen by it is marked.

    Parameters
    ----------
    cells : frame
        That of a `Selection`, of one explained class and any scores.

    Raises
    ------
    ValueError
        Rows of several explained classes; no cell has a value.
    """
    if cells["explained"].n_unique() != 1:
        raise ValueError("scores of rules: rows of one explained class")
    choices = [
        (key, part)
        for key, part in cells.group_by("score", "quantile", maintain_order=True)
        if part.filter(pl.col("set") == "test")["value"].drop_nulls().len()
    ]
    if not choices:
        raise ValueError("scores of rules: no cell has a value")
    from matplotlib.figure import Figure

    columns = min(4, len(choices))
    lines = -(-len(choices) // columns)
    with style():
        figure = Figure(figsize=(0.4 + 3.1 * columns, 0.7 + 2.4 * lines), dpi=DPI, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis, ((score, quantile), part) in zip(axes, choices, strict=False):
            test = part.filter(pl.col("set") == "test")
            image = _grid(axis, test, (test["value"].min(), test["value"].max()))
            for row in test.filter("is_chosen").iter_rows(named=True):
                _mark(axis, test, row, *MARKS["chosen"])
            name = SCORES.get(str(score), str(score))
            axis.set_title(name if quantile is None else f"{name}, {quantile:g} quantile", loc="left", fontsize=10)
            axis.set_ylabel("ε")
            axis.tick_params(labelsize=8)
            figure.colorbar(image, ax=axis, pad=0.02, aspect=18).ax.tick_params(labelsize=9)
        for axis in axes[len(choices) :]:
            axis.set_axis_off()
        n = max(cells.filter(pl.col("set") == "test")["n"].to_list())
        title = f"Means over {n:,} test images, {cells['explained'][0]} class explained; ○ chosen on validation images"
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return figure


def _grid(axis: Any, part: pl.DataFrame, limits: tuple[Any, Any], unit: str = PEOPLE) -> Any:
    gammas, epsilons = (sorted(part[name].unique()) for name in ("gamma", "epsilon"))
    values = np.full((len(epsilons), len(gammas)), np.nan)
    for row in part.iter_rows(named=True):
        if row["value"] is not None:
            values[epsilons.index(row["epsilon"]), gammas.index(row["gamma"])] = row["value"]
    # behind the cells, so that it shows only where there is no value
    axis.set_facecolor("#ffffff")
    axis.patch.set(hatch="////", edgecolor="#b0b0b0")
    low, high = limits
    image = axis.imshow(values, cmap="cividis", vmin=low, vmax=high if high > low else low + 1e-9, origin="lower")
    axis.set_aspect("auto")
    for ticks, found, most in ((axis.set_xticks, gammas, 7), (axis.set_yticks, epsilons, 12)):
        step = -(-len(found) // most)
        start = found.index(0) % step if 0 in found else 0
        places = range(start, len(found), step)
        ticks(places, [f"{found[place]:g}".replace("-", "−") for place in places], fontsize=10)
    axis.set_xlabel("γ")
    axis.tick_params(length=2)
    people, n = (max(part[name].to_list()) for name in ("people", "n"))
    axis.set_title(f"{part['set'][0]}: {n:,} images, {people:,} {unit}", loc="left", fontsize=11)
    return image


def _marks(axis: Any, cells: pl.DataFrame, roles: Sequence[Mapping[str, Any]]) -> None:
    gammas, epsilons = (sorted(cells[column].unique()) for column in ("gamma", "epsilon"))
    for row in roles:
        if row["gamma"] in gammas and row["epsilon"] in epsilons:
            values = [f"{row[name]:.3f}" if row[name] is not None else "none" for name in ("validation", "value")]
            said = f"{row['role']}: {cell(row)}; {values[0]} on validation, {values[1]} on test images"
            _mark(axis, cells, row, *MARKS[row["role"]], said)
    alike = cells.filter((pl.col("is_distinguishable") == False) & ~pl.col("is_chosen"))  # noqa: E712
    for number, row in enumerate(alike.iter_rows(named=True)):
        _mark(axis, cells, row, ".", 3.5, None if number else f"cannot be told from the chosen one ({len(alike)})")


def _mark(
    axis: Any, cells: pl.DataFrame, row: Mapping[str, Any], marker: str, size: float, label: str | None = None
) -> None:
    at = [sorted(cells[name].unique()).index(row[name]) for name in ("gamma", "epsilon")]
    look: dict[str, Any] = {"marker": marker, "linestyle": "none", "markersize": size, "markerfacecolor": "none"}
    # black within white shows on any colour
    axis.plot(*at, **look, markeredgecolor="white", markeredgewidth=3.5)
    axis.plot(*at, **look, markeredgecolor="black", markeredgewidth=1.5, label=label)


def _levels(roles: Sequence[Mapping[str, Any]]) -> str:
    chosen = next((row for row in roles if row["role"] == "chosen"), None)
    if chosen is None or chosen["chance"] is None or chosen["ceiling"] is None:
        return ""
    levels = f"chance {chosen['chance']:.3f}, ceiling {chosen['ceiling']:.3f}"
    return f"For masks as large as those of the chosen cell, on test images: {levels}"


def _one_choice(frame: pl.DataFrame) -> dict[str, Any]:
    choices = frame.select(KEYS).unique().rows()
    if len(choices) != 1:
        raise ValueError(f"figure of rules: rows of one explained class, score and quantile, not of {len(choices)}")
    return dict(zip(KEYS, choices[0], strict=True))


@dataclass(frozen=True)
class ImageMaps:
    """One image and what some rules make of it.

    Attributes
    ----------
    title : str
    image : (x, y)
        Grey levels; the first axis is drawn downwards, as images are stored.
    truth : (x, y) bool
    maps : by name, (relevance (x, y) signed, mask (x, y) bool, IoU or None)
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    maps: Mapping[str, tuple[np.ndarray, np.ndarray, float | None]]


def rule_overlays_figure(images: Sequence[ImageMaps]) -> Figure:
    """A row per image: it with the truth's outline, and each rule's map over it with its mask's outline.

    Each map has its own scale, symmetric about 0 and ending at the 99.5th percentile of its |relevance|: rules differ
    in scale by many orders of magnitude. Red is evidence for the explained class, blue against it.

    Raises
    ------
    ValueError
        No image; images with different rules; shapes that differ.
    """
    if not images or any(list(one.maps) != list(images[0].maps) for one in images):
        raise ValueError("overlays of rules: give at least one image, and the same rules for each")
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = list(images[0].maps)
    with style():
        columns = len(names) + 1
        figure = Figure(
            figsize=(INCHES * columns + 0.2, 1.1 + (INCHES + 0.3) * len(images)), dpi=DPI, layout="constrained"
        )
        axes = figure.subplots(len(images), columns, squeeze=False)
        for number, (line, one) in enumerate(zip(axes, images, strict=True)):
            _overlay(line[0], one, None, None)
            line[0].set_title(one.title, loc="left", fontsize=9)
            for axis, (name, (relevance, mask, iou)) in zip(line[1:], one.maps.items(), strict=True):
                shown = _overlay(axis, one, relevance, mask)
                said = "" if iou is None else f"IoU {iou:.2f}" if mask.any() else "no pixel is above 0"
                axis.set_title(f"{name}\n{said}" if number == 0 else said, loc="left", fontsize=9)
        bar = figure.colorbar(shown, ax=list(axes.ravel()), orientation="horizontal", shrink=0.35, aspect=30, pad=0.02)
        bar.set_ticks([-1, 0, 1], labels=["against", "0", "for the class"], fontsize=9)
        bar.set_label("relevance, each map to its own scale", fontsize=9)
        lines = [
            Line2D([], [], color=COLOURS[2], linewidth=1.5, label="tumour"),
            Line2D([], [], color=MASK, linewidth=1.5, label="quantile mask of the map"),
        ]
        figure.legend(handles=lines, loc="outside lower left", frameon=False, fontsize=9, ncols=2)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return figure


def _overlay(axis: Any, one: ImageMaps, relevance: np.ndarray | None, mask: np.ndarray | None) -> Any:
    for array in (one.truth, relevance, mask):
        if array is not None and array.shape != one.image.shape:
            raise ValueError(f"overlays of rules: {one.title}: {array.shape} over an image of {one.image.shape}")
    axis.set_axis_off()
    axis.imshow(one.image, cmap="gray", interpolation="nearest")
    shown = None
    if relevance is not None and mask is not None:
        size = np.abs(relevance)
        end = float(np.percentile(size, SCALE)) or float(size.max()) or 1.0
        strength = np.clip(size / end, 0, 1)
        shown = axis.imshow(relevance / end, cmap="RdBu_r", vmin=-1, vmax=1, alpha=strength, interpolation="nearest")
        _outline(axis, mask, MASK, 0.8)
    _outline(axis, one.truth, COLOURS[2], 1.5)
    return shown


def _outline(axis: Any, mask: np.ndarray, colour: str, width: float) -> None:
    if mask.any():  # a border, so that a mask that reaches the edge is closed
        rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
        axis.contour(columns, rows, np.pad(mask.astype(float), 1), levels=[0.5], colors=[colour], linewidths=width)
        axis.set_xlim(-0.5, mask.shape[1] - 0.5)
        axis.set_ylim(mask.shape[0] - 0.5, -0.5)


def methods_by_class_figure(comparison: pl.DataFrame, unit: str = PEOPLE) -> Figure:
    """Each method's score on test images with its interval, for all images and by class; chance as a bar beside it.

    Parameters
    ----------
    comparison : frame
        That of a `Selection`, of one explained class, score and quantile.

    Raises
    ------
    ValueError
        Rows of no choice, or of several; no method has a value.
    """
    key = _one_choice(comparison)
    kinds = pl.col("stratum_kind").is_in(["all", "class"])
    shown = comparison.filter(kinds, pl.col("role").is_in([*MARKS, "reference"]), pl.col("value").is_not_null())
    if shown.is_empty():
        raise ValueError("methods by class: no method has a value on test images")
    strata = (
        shown.unique("stratum", maintain_order=True)
        .sort("stratum_kind", "stratum")
        .select("stratum")
        .to_series()
        .to_list()
    )
    lines = _lines(shown)
    from matplotlib.figure import Figure

    with style():
        height = 0.15 * len(strata) + 0.15
        figure = Figure(figsize=(8.4, 1.6 + height * len(lines)), dpi=DPI, layout="constrained")
        axis = figure.subplots()
        for number, stratum in enumerate(strata):
            colour = "black" if number == 0 else COLOURS[(number - 1) % len(COLOURS)]
            _dots(
                axis,
                shown.filter(pl.col("stratum") == stratum),
                lines,
                (number + 0.5) / len(strata) - 0.5,
                colour,
                "oD^sv"[number % 5],
            )
        for y in range(len(lines) - 1):
            axis.axhline(y + 0.5, color="#e0e0e0", linewidth=0.8, zorder=0)
        axis.set_ylim(len(lines) - 0.5, -0.5)
        axis.set_yticks(range(len(lines)), [row["name"] for row in lines])
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel(f"mean {score_name(key['score'], key['quantile'])}, test images", loc="right")
        axis.plot([], [], color=GREY, marker="|", markersize=9, markeredgewidth=1.5, linestyle="none", label="chance")
        title = f"{key['explained']} class explained; lines are intervals over {unit}"
        figure.legend(title=title, loc="outside lower left", frameon=False, ncols=3, alignment="left")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return figure


def _dots(
    axis: Any, part: pl.DataFrame, lines: Sequence[Mapping[str, Any]], shift: float, colour: str, marker: str
) -> None:
    same = ("role", "method", "gamma", "epsilon")
    rows = {tuple(row[name] for name in same): row for row in part.iter_rows(named=True)}
    label = f"{part['stratum'][0]} (n {max(part['n'].to_list()):,})" if len(part) else None
    for y, line in enumerate(lines):
        row = rows.get(tuple(line[name] for name in same))
        if row is None:
            continue
        at = y + 0.84 * shift
        if row["chance"] is not None:
            axis.plot(row["chance"], at, marker="|", markersize=9, markeredgewidth=1.5, color=GREY, zorder=1)
        if row["ci_low"] is not None:
            axis.plot([row["ci_low"], row["ci_high"]], [at, at], color=colour, linewidth=1.5, zorder=2)
        axis.plot(
            row["value"], at, marker=marker, markersize=5.5, color=colour, linestyle="none", label=label, zorder=3
        )
        label = None


def _lines(shown: pl.DataFrame) -> list[dict[str, Any]]:
    """A row per method: the cells of the grid, then the others from the highest score; `name` is what it is called."""
    overall = shown.filter(pl.col("stratum_kind") == "all")
    cells = overall.filter(pl.col("role") != "reference").rows(named=True)
    lines: list[dict[str, Any]] = []
    for row in cells:
        same = next(
            (line for line in lines if (line["gamma"], line["epsilon"]) == (row["gamma"], row["epsilon"])), None
        )
        if same is None:
            lines.append(row | {"name": f"{row['role']} ({cell(row)})"})
        else:
            same["name"] = f"{same['role']}, {row['role']} ({cell(row)})"
    others = overall.filter(pl.col("role") == "reference").sort("value", "method", descending=[True, False])
    return lines + [row | {"name": method_name(row["method"])} for row in others.iter_rows(named=True)]
