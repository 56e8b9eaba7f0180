"""Figures of rules: the right numbers in the right cells and rows, marks, outlines, colours, and nothing overlaps."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from test_figures import overlapping_texts, pixels

from relevance_assets.report.figures import save, thumbnail
from relevance_assets.report.figures_rules import (
    MASK,
    ImageMaps,
    methods_by_class_figure,
    rule_grid_figure,
    rule_overlays_figure,
)
from relevance_assets.statistics.rule_images import GRID
from relevance_assets.statistics.rule_selection import Selection, select_rule

LEVELS = tuple(float(value) for value in range(-100, 101, 20))
REFERENCES = ("lrp_0", "gradient_x_input", "grad_cam", "integrated_gradients", "random_weights")
TUMOURS = ("glioma", "meningioma", "pituitary")


def selected(levels=LEVELS, references=REFERENCES, classes=TUMOURS, people=6, **columns) -> Selection:
    random, rows = np.random.default_rng(0), []
    for person in range(people):
        image = {"scan": f"s{person}", "participant_id": f"p{person}", "set": ("validation", "test")[person % 2]}
        image |= {"class": classes[person % len(classes)], "correct": True, "explained": "true", "score": "iou"}
        for gamma, epsilon in itertools.product(levels, levels):
            value = 0.3 - abs(gamma + 25) / 1000 - abs(epsilon - 18) / 500 + random.normal(0, 0.001)
            rows.append(image | {"method": GRID, "gamma": gamma, "epsilon": epsilon, "value": value})
        for number, name in enumerate(references):
            rows.append(image | {"method": name, "gamma": None, "epsilon": None, "value": 0.2 - number / 100})
    frame = pl.DataFrame(rows, infer_schema_length=None)
    added = {"quantile": 0.95, "chance": 0.02, "ceiling": 0.41} | columns
    return select_rule(frame.with_columns(**{name: pl.lit(value) for name, value in added.items()}), bootstrap=50)


@pytest.fixture(scope="module")
def published_grid():
    return selected()


def texts(figure):
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def test_every_mean_is_in_its_cell(published_grid, tmp_path):
    figure = rule_grid_figure(*published_grid)
    for axis, name in zip(figure.axes, ("validation", "test"), strict=False):
        shown = axis.images[0].get_array()
        assert shown.shape == (11, 11)
        for row in published_grid.cells.filter(pl.col("set") == name).iter_rows(named=True):
            assert shown[LEVELS.index(row["epsilon"]), LEVELS.index(row["gamma"])] == row["value"]
        assert axis.images[0].origin == "lower"  # epsilon grows upwards
    left, right = (axis.images[0].get_clim() for axis in figure.axes[:2])
    assert left == right == (published_grid.cells["value"].min(), published_grid.cells["value"].max())
    assert "0" in [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert overlapping_texts(figure) == []
    assert len(thumbnail(save(figure, tmp_path / "grid.png"))) > 1000


def test_marks_lie_on_their_cells_and_say_their_numbers(published_grid):
    figure = rule_grid_figure(*published_grid)
    said = texts(figure)
    for row in published_grid.comparison.filter(pl.col("stratum_kind") == "all").iter_rows(named=True):
        if row["role"] not in ("chosen", "published", "worst"):
            continue
        for axis in figure.axes[:2]:
            line = next(line for line in axis.lines if str(line.get_label()).startswith(f"{row['role']}: "))
            assert line.get_xdata() == LEVELS.index(row["gamma"])
            assert line.get_ydata() == LEVELS.index(row["epsilon"])
        assert f"{row['validation']:.3f} on validation, {row['value']:.3f} on test images" in said
    assert "chance 0.020, ceiling 0.410" in said
    assert "validation: 3 images, 3 people" in said
    alike = published_grid.cells.filter(pl.col("is_distinguishable") == False)  # noqa: E712
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "."]
    assert len(dots) == 2 * (len(alike) - 1)  # each white and black; not the chosen one


def test_a_small_grid_without_the_published_cell_and_without_chance():
    found = selected((0.0, 0.25, 1.0), (), chance=None, ceiling=None)
    figure = rule_grid_figure(*found)
    said = texts(figure)
    assert "published" not in said
    assert "chance" not in said
    assert "0.25" in said
    assert overlapping_texts(figure) == []


def test_a_cell_without_a_value_is_hatched_and_not_coloured(published_grid):
    gone = (pl.col("gamma") == 100) & (pl.col("epsilon") == 100)
    cells = published_grid.cells.with_columns(value=pl.when(gone).then(None).otherwise(pl.col("value")))
    figure = rule_grid_figure(cells, published_grid.comparison)
    assert np.isnan(figure.axes[0].images[0].get_array().filled(np.nan)[10, 10])
    assert figure.axes[0].patch.get_hatch()
    one = cells.with_columns(value=pl.lit(0.25))
    assert overlapping_texts(rule_grid_figure(one, published_grid.comparison)) == []
    with pytest.raises(ValueError, match="no cell has a value"):
        rule_grid_figure(cells.with_columns(value=pl.lit(None, pl.Float64)), published_grid.comparison)


def test_methods_have_their_scores_by_class(published_grid):
    figure = methods_by_class_figure(published_grid.comparison)
    axis = figure.axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert [name.split(" (")[0] for name in names[:3]] == ["chosen", "published", "worst"]
    assert names[3:] == ["LRP-0", "gradient x input", "Grad-CAM", "integrated gradients", "random weights"]
    rows = published_grid.comparison.filter(
        pl.col("role").is_in(["chosen", "published", "worst", "reference"]), pl.col("stratum_kind") != "prediction"
    )
    drawn = sorted(
        float(line.get_xdata()[0]) for line in axis.lines if line.get_marker() in "oD^s" and len(line.get_xdata())
    )
    assert drawn == pytest.approx(sorted(rows["value"].to_list()))
    chances = [line for line in axis.lines if line.get_marker() == "|" and len(line.get_xdata())]
    assert len(chances) == len(rows)
    assert {float(line.get_xdata()[0]) for line in chances} == {0.02}
    # by class one person is left, without interval
    spans = [
        line
        for line in axis.lines
        if len(line.get_xdata()) == 2 and line.get_linestyle() == "-" and line.get_color() == "black"
    ]
    overall = rows.filter(pl.col("stratum_kind") == "all")
    assert sorted(tuple(line.get_xdata()) for line in spans) == sorted(overall.select("ci_low", "ci_high").rows())
    for stratum in ("all (n 3)", "glioma (n 1)", "pituitary (n 1)", "chance"):
        assert stratum in texts(figure)
    assert overlapping_texts(figure) == []


def test_the_best_method_stands_first_and_one_cell_with_two_roles_once():
    found = selected(references=("a", "b"))
    turned = found.comparison.with_columns(
        value=pl.when(pl.col("method") == "b").then(0.9).otherwise(pl.col("value")),
        gamma=pl.when(pl.col("role") == "published").then(pl.lit(-20.0)).otherwise(pl.col("gamma")),
        epsilon=pl.when(pl.col("role") == "published").then(pl.lit(20.0)).otherwise(pl.col("epsilon")),
    )
    figure = methods_by_class_figure(turned)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["chosen, published (γ = −20, ε = 20)", "worst (γ = 100, ε = −100)", "b", "a"]
    assert overlapping_texts(figure) == []


def test_long_names_do_not_overlap():
    found = selected((0.0, 1.0), ("a_method_with_a_rather_long_name",), score="relevance_mass_accuracy", quantile=None)
    assert overlapping_texts(methods_by_class_figure(found.comparison)) == []
    assert overlapping_texts(rule_grid_figure(*found)) == []


def picture(title="glioma, slice 7", shape=(60, 48), scale=1.0):
    image = np.full(shape, 0.5)
    truth, relevance, mask = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape, bool)
    truth[10:20, 8:16] = True  # above, on the left
    relevance[10:20, 8:16] = 3 * scale
    relevance[40:50, 30:40] = -3 * scale  # below, on the right
    mask[0:5, 40:48] = True  # in the corner
    return ImageMaps(
        title, image, truth, {"chosen\nγ = 0, ε = 20": (relevance, mask, 0.25), "worst": (-relevance, mask, None)}
    )


def test_maps_are_red_and_blue_the_right_way_round():
    figure = rule_overlays_figure([picture(), picture("pituitary, slice 9", scale=1e-9)])
    for start in (0, 3):
        for axis, sign in zip(figure.axes[start + 1 : start + 3], (1, -1), strict=True):
            image = axis.images[1]
            red, _, blue, alpha = image.to_rgba(image.get_array()).transpose(2, 0, 1)
            assert alpha.shape == (60, 48)
            assert (red > blue)[12, 10] == (sign > 0)
            assert (red > blue)[45, 35] == (sign < 0)
            assert image.get_clim() == (-1, 1)
            strength = np.broadcast_to(image.get_alpha(), (60, 48))
            assert strength[12, 10] == 1
            assert strength[0, 0] == 0
    said = texts(figure)
    for words in ("glioma, slice 7", "pituitary, slice 9", "IoU 0.25", "tumour", "quantile mask", "its own scale"):
        assert words in said
    assert overlapping_texts(figure) == []


def test_outlines_are_drawn_where_the_masks_are(tmp_path):
    figure = rule_overlays_figure([picture()])
    shown = pixels(figure)
    yellow = np.array([int(MASK[i : i + 2], 16) for i in (1, 3, 5)])
    axis = figure.axes[1]
    box = axis.get_window_extent()
    scale = 80 / figure.dpi
    height = shown.shape[0]
    part = shown[int(height - box.y1 * scale) : int(height - box.y0 * scale), int(box.x0 * scale) : int(box.x1 * scale)]
    near = (np.abs(part - yellow) < 60).all(axis=-1)
    rows, columns = np.nonzero(near)
    assert len(rows)
    assert rows.max() < part.shape[0] * 5 / 60 + 3
    assert columns.min() > part.shape[1] * 40 / 48 - 3
    save(figure, tmp_path / "a.png")
    save(rule_overlays_figure([picture()]), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_nothing_to_outline_and_a_map_of_zeros():
    one = picture()
    empty = np.zeros(one.image.shape)
    maps = {"zero": (empty, empty > 0, 0.0)}
    figure = rule_overlays_figure([ImageMaps("no tumour", one.image, empty > 0, maps)])
    assert "no pixel is above 0" in texts(figure)
    assert overlapping_texts(figure) == []


def test_what_is_refused(published_grid):
    with pytest.raises(ValueError, match="at least one image"):
        rule_overlays_figure([])
    one = picture()
    with pytest.raises(ValueError, match="the same rules"):
        rule_overlays_figure([one, ImageMaps("x", one.image, one.truth, {"worst": one.maps["worst"]})])
    with pytest.raises(ValueError, match="glioma, slice 7: \\(48, 60\\) over an image of \\(60, 48\\)"):
        rule_overlays_figure([ImageMaps(one.title, one.image, one.truth.T, one.maps)])
    two = pl.concat([published_grid.comparison, published_grid.comparison.with_columns(score=pl.lit("auc"))])
    with pytest.raises(ValueError, match="not of 2"):
        methods_by_class_figure(two)
    with pytest.raises(ValueError, match="not of 0"):
        rule_grid_figure(published_grid.cells.clear(), published_grid.comparison)
    with pytest.raises(ValueError, match="no method has a value"):
        methods_by_class_figure(published_grid.comparison.with_columns(value=pl.lit(None, pl.Float64)))
