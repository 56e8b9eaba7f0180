"""The queries on rules answer on the rows of the filled database."""

from __future__ import annotations

from pathlib import Path

import pytest

from relevance_assets.tables.query import run_query

QUERIES = Path(__file__).parents[2] / "sql" / "queries"


def test_best_rules(database: Path) -> None:
    (row,) = run_query(database, QUERIES / "best_rules.sql").rows(named=True)
    assert (row["gamma"], row["epsilon"], row["measure"]) == (-20, 0, "iou at 0.95")
    assert (row["test"], row["chance"], row["ceiling"], row["slices"]) == pytest.approx((0.3, 0.02, 0.5, 1))
    assert row["published_cell"] is None  # no such role here


def test_rules_against_other_methods(database: Path) -> None:
    (row,) = run_query(database, QUERIES / "rules_against_other_methods.sql").rows(named=True)
    assert (row["map"], row["value"]) == ("grad_cam", pytest.approx(0.3))


def test_rules_by_class(database: Path) -> None:
    rows = run_query(database, QUERIES / "rules_by_class.sql").rows(named=True)
    assert {row["map"] for row in rows} == {"gamma -20, epsilon 0", "grad_cam"}
    assert all((row["class"], row["network_is_right"], row["slices"]) == ("glioma", True, 1) for row in rows)
