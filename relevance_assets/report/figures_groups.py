"""Statistics of groups: correlation matrices side by side, effects with intervals.

Belongs here: drawing tables `correlations`, `group_comparisons` and `regressions`. Does not belong here: computing
them (`statistics/`), people and images (`figures_lesions.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from relevance_assets.report.figures import COLOURS, DPI, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["correlation_matrices_figure", "forest_figure"]

LEVEL = 0.05
GREY = "#595959"


def correlation_matrices_figure(
    correlations: pl.DataFrame, variables: Mapping[str, str], strata: Sequence[str], correction: str = "Holm"
) -> Figure:
    """A matrix per group: the coefficient in each cell, in bold with a star where it is significant after correction.

    Parameters
    ----------
    correlations : DataFrame
        Columns stratum, x, y, value, p_corrected, n: a row per pair, in either order. A null value is drawn as a
        dash: one of the two does not vary. A pair without a row stays empty.
    variables : mapping of str to str
        The table's names and what they are called, in order.
    strata : sequence of str
        The groups, from left to right.
    correction : str
        How p was corrected.

    Raises
    ------
    ValueError
        Fewer than two variables, no group.
    """
    if len(variables) < 2 or not strata:
        raise ValueError("correlation matrices: give at least two variables and one group")
    from matplotlib.figure import Figure

    with style():
        cells = len(variables) - 1
        figure = Figure(figsize=(2.6 + 0.62 * cells * len(strata), 2.4 + 0.48 * cells), dpi=DPI, layout="constrained")
        axes = figure.subplots(1, len(strata), sharey=True, squeeze=False)[0]
        image: Any = None
        for axis, stratum in zip(axes, strata, strict=True):
            image = _matrix(axis, correlations.filter(pl.col("stratum") == stratum), variables, stratum)
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.02)
        bar.set_label("correlation")
        shown = correlations.filter(pl.col("stratum").is_in(list(strata)))
        said = f"* p < {LEVEL} after {correction}"
        said += "; – one of the two does not vary" if shown["value"].null_count() else ""
        figure.legend([], [], title=said, loc="outside lower left", frameon=False)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return figure


def _matrix(axis: Any, rows: pl.DataFrame, variables: Mapping[str, str], stratum: str) -> Any:
    names = list(variables)
    pairs = {frozenset((row["x"], row["y"])): row for row in rows.iter_rows(named=True)}
    # the lower triangle, without the diagonal: every pair once
    values = np.full((len(names) - 1, len(names) - 1), np.nan)
    for down, across in zip(*np.tril_indices(len(names) - 1), strict=True):
        row = pairs.get(frozenset((names[down + 1], names[across])))
        if row is None:
            continue
        value = math.nan if row["value"] is None else row["value"]
        values[down, across] = value
        found = row["p_corrected"] is not None and row["p_corrected"] < LEVEL
        said = "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−") + ("*" if found else "")
        colour = "white" if abs(value) > 0.6 else "black"
        weight = "bold" if found else "normal"
        axis.text(across, down, said, ha="center", va="center", fontsize=9, color=colour, weight=weight)
    image = axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axis.set_xticks(range(len(names) - 1), [variables[n] for n in names[:-1]], rotation=40, ha="right", fontsize=10)
    axis.set_yticks(range(len(names) - 1), [variables[n] for n in names[1:]], fontsize=10)
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    counts = sorted(set(rows["n"].to_list()))
    people = "" if not counts else f", n {counts[0]}" if len(counts) == 1 else f", n {counts[0]} to {counts[-1]}"
    axis.set_title(f"{stratum}{people}", loc="left")
    return image


def forest_figure(effects: pl.DataFrame, label: str, ratio: bool = False) -> Figure:
    """Effects with their intervals, one below the other, with numbers beside them.

    Parameters
    ----------
    effects : DataFrame
        Columns label, estimate, ci_low, ci_high, n, from top to bottom. A null estimate is written as 'not
        estimated'; null ends of an interval are left out. Optional column heading: written above the first row of each
        run of the same heading.
    label : str
        What the estimates are, with their unit.
    ratio : bool
        Ratios: a logarithmic axis about 1. Else differences about 0.

    Raises
    ------
    ValueError
        No row; a ratio that is not positive.
    """
    if effects.is_empty():
        raise ValueError("forest plot: no effects to draw")
    numbers = effects.select(pl.col("estimate", "ci_low", "ci_high").cast(pl.Float64))
    if ratio and any((numbers[name].drop_nulls() <= 0).any() for name in numbers.columns):
        raise ValueError("forest plot: a ratio is not positive; give exp of the estimates on the log scale")
    with style():
        return _draw_forest(effects.with_columns(numbers), label, ratio)


def _draw_forest(effects: pl.DataFrame, label: str, ratio: bool) -> Figure:
    from matplotlib.figure import Figure

    lines: list[dict[str, Any]] = []
    heading = None
    for row in effects.iter_rows(named=True):
        if row.get("heading") != heading:
            heading = row.get("heading")
            lines.append({"label": heading})
        lines.append(row)
    figure = Figure(figsize=(9.0, 1.3 + 0.32 * len(lines)), dpi=DPI, layout="constrained")
    axis, beside = figure.subplots(1, 2, sharey=True, width_ratios=(5, 3))
    beside.set_axis_off()
    beside.text(0, -0.75, "estimate [95 % interval]", fontsize=10, color=GREY, va="center")
    beside.text(1, -0.75, "n", fontsize=10, color=GREY, va="center", ha="right")
    rule: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 2)), "zorder": 0}
    axis.axvline(1 if ratio else 0, **rule)
    if ratio:
        axis.set_xscale("log")
    for y, row in enumerate(lines):
        if "estimate" in row:
            _effect(axis, beside, y, row)
    axis.set_ylim(len(lines) - 0.4, -0.9)
    axis.set_yticks(range(len(lines)), [row["label"] for row in lines])
    for row, tick in zip(lines, axis.get_yticklabels(), strict=True):
        tick.set_fontweight("normal" if "estimate" in row else "bold")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(label)
    if ratio:
        _ratio_ticks(axis)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _effect(axis: Any, beside: Any, y: int, row: Mapping[str, Any]) -> None:
    said = "not estimated"
    if row["estimate"] is not None:
        places = _places(row["estimate"])
        said = _number(row["estimate"], places)
        if row["ci_low"] is not None and row["ci_high"] is not None:
            axis.plot([row["ci_low"], row["ci_high"]], [y, y], color=COLOURS[0], linewidth=2, solid_capstyle="butt")
            said += f" [{_number(row['ci_low'], places)}, {_number(row['ci_high'], places)}]"
        axis.plot(row["estimate"], y, marker="s", markersize=6, color=COLOURS[0])
    beside.text(0, y, said, fontsize=10, va="center")
    beside.text(1, y, f"{row['n']:,}", fontsize=10, va="center", ha="right")


def _places(value: float) -> int:
    """Decimals that leave three digits of a value, at most six."""
    return 2 if value == 0 else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))


def _number(value: float, places: int) -> str:
    return f"{value:.{places}f}".replace("-", "−")


def _ratio_ticks(axis: Any) -> None:
    """Ratios written as numbers: 0.5, 1, 2, 5 rather than powers of ten."""
    low, high = axis.get_xlim()
    steps = [m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)]
    inside = [s for s in steps if low <= s <= high]
    if len(inside) < 3:
        places = 1 - math.floor(math.log10(high - low))
        inside = np.round(np.linspace(low, high, 6)[1:-1], places).tolist()
    if len(inside) > 10:
        inside = [s for s in inside if math.isclose(math.log10(s), round(math.log10(s)), abs_tol=1e-9)]
    axis.set_xticks(inside, [f"{s:g}" for s in inside])
    axis.minorticks_off()
