"""Correlation matrices and forest plots: the table's numbers in the right cells, legibly."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from test_figures import overlapping_texts, pixels

from relevance_assets.report.figures_groups import correlation_matrices_figure, forest_figure

NAMES = {
    "periventricular_ratio": "periventricular",
    "paraventricular_ratio": "paraventricular",
    "juxtacortical_ratio": "juxtacortical",
    "ventricle_ratio": "ventricles",
    "lesion_ratio": "lesions",
    "age": "age",
    "sex": "sex (male)",
}


def pairs(**of_stratum):
    random = np.random.default_rng(0)
    rows = []
    for stratum, n in of_stratum.items():
        for number, (x, y) in enumerate(itertools.combinations(NAMES, 2)):
            value = float(random.uniform(-1, 1))
            row = {"stratum": stratum, "x": x, "y": y, "value": value, "p_corrected": 0.01 * number, "n": n}
            rows.append(row if number % 2 else row | {"x": y, "y": x})
    return pl.DataFrame(rows)


def upright_overlaps(figure):
    """Overlaps, but for the boxes around names that are written at a slant: the letters do not meet."""
    return [bad for bad in overlapping_texts(figure) if isinstance(bad, str) or not set(bad) <= set(NAMES.values())]


def test_every_pair_is_in_its_cell_with_its_mark():
    table = pairs(HC=991, MS=380)
    figure = correlation_matrices_figure(table, NAMES, ["HC", "MS"])
    names = list(NAMES)
    for axis, stratum in zip(figure.axes, ("HC", "MS"), strict=False):
        cells = {text.get_position(): text for text in axis.texts}
        assert len(cells) == 21
        for row in table.filter(pl.col("stratum") == stratum).iter_rows(named=True):
            across, down = sorted((names.index(row["x"]), names.index(row["y"])))
            text = cells[across, down - 1]
            star = "*" if row["p_corrected"] < 0.05 else ""
            assert text.get_text() == f"{row['value']:.2f}{star}".replace("-", "−")
            assert (text.get_weight() == "bold") == bool(star)
            assert axis.images[0].get_array()[down - 1, across] == row["value"]
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == ["HC, n 991", "MS, n 380"]
    assert upright_overlaps(figure) == []


def test_a_variable_that_does_not_vary_and_a_group_without_rows():
    table = pairs(HC=5).with_columns(
        pl.when(pl.col("x") == "sex").then(None).otherwise(pl.col("value")).alias("value"), p_corrected=None
    )
    figure = correlation_matrices_figure(table, NAMES, ["HC", "MS"])
    for axis, dashes in zip(figure.axes, (table["value"].null_count(), 0), strict=False):
        assert [text.get_text() for text in axis.texts].count("–") == dashes
    assert not figure.axes[1].texts  # no rows, no cells
    assert upright_overlaps(figure) == []
    with pytest.raises(ValueError, match="at least two variables"):
        correlation_matrices_figure(table, {"age": "age"}, ["HC"])


def effects(*rows):
    return pl.DataFrame(rows, schema=["label", "estimate", "ci_low", "ci_high", "n"], orient="row")


RATIOS = effects(
    ("all, adjusted for age and sex", 8.7, 7.1, 10.7, 1371),
    ("women, adjusted for age", 0.9381, 0.892, 1.0, 940),
    ("one man", None, None, None, 1),
    ("without interval", 2.0, None, None, 12),
)


def test_effects_are_where_their_numbers_are():
    figure = forest_figure(RATIOS, "MS : HC, ratio", ratio=True)
    axis, beside = figure.axes
    assert axis.get_xscale() == "log"
    squares = [tuple(line.get_xydata()[0]) for line in axis.lines if line.get_marker() == "s"]
    assert squares == [(8.7, 0), (0.9381, 1), (2.0, 3)]
    spans = [tuple(line.get_xdata()) for line in axis.lines if line.get_marker() == "None"]
    assert spans == [(1, 1), (7.1, 10.7), (0.892, 1.0)]  # first the line of no effect
    said = [text.get_text() for text in beside.texts]
    for text in ("8.70 [7.10, 10.70]", "0.938 [0.892, 1.000]", "not estimated", "2.00", "1,371", "12"):
        assert text in said
    assert [label.get_text() for label in axis.get_yticklabels()] == RATIOS["label"].to_list()
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first row is on top
    assert overlapping_texts(figure) == []


def test_headings_are_above_their_rows_and_differences_are_about_zero():
    table = RATIOS.with_columns(heading=pl.Series(["lesions", "lesions", "ventricles", "ventricles"]))
    figure = forest_figure(table, "difference, %")
    axis = figure.axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["lesions", *table["label"][:2], "ventricles", *table["label"][2:]]
    assert list(axis.lines[0].get_xdata()) == [0, 0]
    assert axis.get_xscale() == "linear"
    assert overlapping_texts(figure) == []


@pytest.mark.parametrize("scale", [1e-3, 0.01, 1.0, 1e3])
@pytest.mark.parametrize("width", [1.001, 1.1, 3.0, 500.0])
def test_ratio_axes_have_ticks_that_do_not_meet(scale, width):
    figure = forest_figure(effects(("a", scale, scale / width, scale * width, 3)), "ratio", ratio=True)
    axis = figure.axes[0]
    assert len([t for t in axis.get_xticks() if axis.get_xlim()[0] <= t <= axis.get_xlim()[1]]) >= 2
    assert overlapping_texts(figure) == []
    assert len(pixels(figure))


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match="no effects"):
        forest_figure(RATIOS.clear(), "x")
    with pytest.raises(ValueError, match="a ratio is not positive"):
        forest_figure(effects(("a", -1.0, None, None, 3)), "x", ratio=True)
