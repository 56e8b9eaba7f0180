"""Inversion curves: how a model's AUC falls as the masks of each scenario grow (the paper's Fig. 4).

Belongs here: drawing table `inversion_curves`. Does not belong here: computing it (`evidence/`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from relevance_assets.report.figures import COLOURS, DPI, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Line", "inversion_curves_figure"]

MARKERS = "osD^vPX"
GREY = "#8c8c8c"
RANDOM_MEAN = "mean of random masks"  # not in the legend, which has its band


@dataclass(frozen=True)
class Line:
    """One scenario: which rows of the table, and what to call them."""

    method: str
    map: str
    label: str


def inversion_curves_figure(curves: pl.DataFrame, panels: Mapping[str, Sequence[Line]], reference: Line) -> Figure:
    """AUC against N, a line per scenario in panels by where relevance starts; the reference in each of them, in black.

    Around each line the range over folds. In grey, behind, what random masks of the reference's area do; as a
    dashed line what the planted region itself does, where there is one: the ceiling of any mask. Below 0.5 an inversion
    has reversed decisions, which is no more information lost than at 0.5; the line of chance says so.

    Parameters
    ----------
    curves : frame
        Columns method, map, control, fold (`0`, `1`, ..., `mean`), top_percent, draw, auc, low, high. Lines are rows of
        control `own` and fold `mean`; their band is low to high, or the folds' range where those are null. Controls
        `random` (a row per draw, or one with low and high), `planted` and `random_planted` are the reference's (or, for
        the planted region, anyone's) and may be absent.
    panels : dict of str to Lines
        By title, in order. The reference need not be repeated.
    reference : Line
        The scenario that all are compared with.

    Raises
    ------
    ValueError
        A column, or a line's rows, are missing; no panel, or one with more lines than colours.
    """
    absent = {"method", "map", "control", "fold", "top_percent", "auc", "low", "high"} - set(curves.columns)
    if absent:
        raise ValueError(f"inversion curves: no column {', '.join(sorted(absent))}")
    crowded = [title for title, lines in panels.items() if len(set(lines) - {reference}) > len(COLOURS)]
    if crowded or not panels:
        raise ValueError(f"inversion curves: panel {crowded or 'none'}; give panels of at most {len(COLOURS)} lines")
    numbers = curves.with_columns(pl.col("auc", "low", "high").cast(pl.Float64))
    with style():
        return _draw(numbers, panels, reference)


def _draw(curves: pl.DataFrame, panels: Mapping[str, Sequence[Line]], reference: Line) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    controls: list[Any] = []
    others = {title: [line for line in lines if line != reference] for title, lines in panels.items()}
    longest = 1 + max(len(lines) for lines in others.values())
    rows = longest + (2 if len(others) > 1 else 4)  # of the legends
    figure = Figure(figsize=(4.1 * len(others) + 0.5, 4.4 + 0.23 * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(others), sharey=True, squeeze=False)[0]
    for axis, (title, lines) in zip(axes, others.items(), strict=True):
        controls = _controls(axis, curves, reference)
        drawn = [_line(axis, curves, reference, "black", "o", 2.4)]
        for line, colour, marker in zip(lines, COLOURS, MARKERS[1:], strict=False):
            drawn.append(_line(axis, curves, line, colour, marker, 1.5))
        axis.set_title(title, loc="left")
        axis.set_xlim(-2, 102)
        axis.set_xticks(range(0, 101, 20))
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_xlabel("voxels inverted: top N % of the map")
        axis.legend(handles=drawn, loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, borderaxespad=0)
    shaded = Patch(color="black", alpha=0.15, linewidth=0, label="shaded: range over folds")
    figure.legend(handles=[*controls, shaded], loc="outside lower left", ncols=min(2, len(others)), frameon=False)
    axes[0].set_ylabel("AUC after inversion")
    low, high = axes[0].get_ylim()
    if low < 0.5 < high:
        for axis in axes:
            axis.axhline(0.5, color=GREY, linewidth=0.8, zorder=0)
        axes[0].text(0, 0.498, "chance; below: decisions reversed, no more lost", va="top", fontsize=9, color="#595959")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # done once: every further drawing would move things by a little
    return figure


def _line(axis: Any, curves: pl.DataFrame, line: Line, colour: str, marker: str, width: float) -> Any:
    """One scenario's mean and its band over folds."""
    own = curves.filter(pl.col("control") == "own", pl.col("method") == line.method, pl.col("map") == line.map)
    mean = own.filter(pl.col("fold") == "mean").sort("top_percent")
    if not mean.height:
        raise ValueError(f"inversion curves: no rows of control own, fold mean for {line.method}, {line.map}")
    low, high = _band(mean, own.filter(pl.col("fold") != "mean"))
    x = mean["top_percent"].to_numpy()
    axis.fill_between(x, low, high, color=colour, alpha=0.13 if colour == "black" else 0.08, linewidth=0)
    (drawn,) = axis.plot(
        x, mean["auc"].to_numpy(), color=colour, marker=marker, markersize=4.5, linewidth=width, label=line.label
    )
    return drawn


def _band(mean: pl.DataFrame, parts: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Low and high at each N of `mean`: its own, or the range of `parts`; without either there is no band."""
    ranges = parts.group_by("top_percent").agg(
        pl.col("auc").min().alias("least"), pl.col("auc").max().alias("greatest")
    )
    joined = mean.join(ranges, on="top_percent", how="left", maintain_order="left")
    band = joined.select(
        pl.coalesce("low", "least", "auc").alias("low"), pl.coalesce("high", "greatest", "auc").alias("high")
    )
    return band["low"].to_numpy(), band["high"].to_numpy()


def _controls(axis: Any, curves: pl.DataFrame, reference: Line) -> list[Any]:
    """Random masks and the planted region, behind the lines."""
    drawn = []
    of_reference = (pl.col("method") == reference.method) & (pl.col("map") == reference.map)
    random = curves.filter(pl.col("control") == "random", of_reference)
    draws = random.filter(pl.col("fold") == "mean") if "mean" in random["fold"] else random
    if draws.height:
        # the range over draws; each draw's own low and high are over folds, and count only where there is one draw
        point = draws.group_by("top_percent")
        single = draws.height == draws["top_percent"].n_unique()
        mean = point.agg(pl.col("auc").mean(), pl.col("low", "high").first()).sort("top_percent")
        mean = mean if single else mean.with_columns(low=None, high=None)
        low, high = _band(mean, draws)
        x = mean["top_percent"].to_numpy()
        label = "random masks of the black line's area, range over draws"
        drawn.append(
            axis.fill_between(x, low, high, facecolor="none", edgecolor=GREY, hatch="/////", linewidth=0.6, label=label)
        )
        axis.plot(x, mean["auc"].to_numpy(), color=GREY, linewidth=1.2, label=RANDOM_MEAN)
    for control, colour, pattern, label in (
        ("planted", "#7a4b00", (0, (6, 2)), "planted region itself inverted"),
        ("random_planted", "#595959", (0, (1, 1.5)), "random masks of the planted region's size"),
    ):
        rows = curves.filter(pl.col("control") == control)
        rows = rows.filter(pl.col("fold") == "mean") if "mean" in rows["fold"] else rows
        value = rows["auc"].drop_nulls().mean()
        if value is not None:
            drawn.append(axis.axhline(value, color=colour, linewidth=1.6, linestyle=pattern, label=label, zorder=2))
    return drawn
