"""The figure of a cohort's segmentation: every scan is there, also one without lesions, and nothing overlaps."""

from __future__ import annotations

import numpy as np
import polars as pl
from test_figures import overlapping_texts

from relevance_assets.report.figures_segmentation import segmentation_figure


def scans(found: list[float], true: list[float], dice: list[float | None]) -> pl.DataFrame:
    parts = [
        pl.DataFrame({"found_mm3": found, "true_mm3": true, "dice": dice}, schema_overrides={"dice": pl.Float64})
        .cast({"found_mm3": pl.Float64, "true_mm3": pl.Float64})
        .with_columns(pl.lit(name).alias("class"))
        for name in ("ventricle", "wmh")
    ]
    return pl.concat(parts)


def points(axis, which: int) -> np.ndarray:
    return axis.collections[which].get_offsets()


def test_every_scan_is_drawn_where_it_belongs() -> None:
    figure = segmentation_figure(scans([100, 2000, 0, 0], [200, 1000, 500, 0], [0.5, 0.6, 0.0, None]))
    left, right = figure.axes
    np.testing.assert_allclose(points(left, 1)[:2], [[0.2, 0.1], [1, 2]])
    floor = 0.1 / 2.5  # below the smallest volume
    np.testing.assert_allclose(points(left, 1)[2:], [[0.5, floor], [floor, floor]])
    np.testing.assert_allclose(points(right, 1), [[0.2, 0.5], [1, 0.6], [0.5, 0]])
    low, high = left.get_xlim()
    assert low < floor
    assert high > 2
    said = [text.get_text() for text in right.get_legend().get_texts()]
    assert said == ["ventricles, mean 0.37 of 3 scans", "lesions, mean 0.37 of 3 scans"]
    assert "left edge: none" in left.get_xlabel()
    assert overlapping_texts(figure) == []


def test_nothing_found_anywhere() -> None:
    figure = segmentation_figure(scans([0], [0], [None]))
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == [
        "ventricles, none",
        "lesions, none",
    ]
