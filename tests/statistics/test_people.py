"""Filters that are kept as text, and corrected families: against statsmodels and counting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from relevance_assets.statistics.people import People, correct, frame_of, group_is, variants

TABLE = pl.DataFrame(
    {"group": ["HC", "MS", "MS", None], "sex": [0.0, 1.0, None, 0.0], "age": [20.0, None, float("nan"), 30.0]}
)


def test_the_text_of_a_filter_gives_the_same_people() -> None:
    people = People(TABLE).where(group_is("HC", "MS"), "(sex = 0 OR sex = 1)").known("sex", "sex")
    assert people.filter == "\"group\" IN ('HC', 'MS') AND (sex = 0 OR sex = 1) AND sex IS NOT NULL"
    assert people.frame.equals(TABLE.filter(pl.sql_expr(people.filter)))
    assert people.frame.height == 2


def test_nobody_of_an_unknown_group_is_chosen_by_it() -> None:
    assert People(TABLE).where(group_is("MS")).frame.height == 2


def test_families_are_corrected_apart_and_only_what_is_sound() -> None:
    """statsmodels' own corrections of each family; ties and a p of 1 among them."""
    from statsmodels.stats.multitest import multipletests

    families = {"a": [0.04, 0.001, 0.03, 0.03, 1.0], "b": [0.02]}
    rows = [{"recipe": "sound", "of": name, "p": p} for name, some in families.items() for p in some]
    others = [
        {"recipe": "as_published", "of": "a", "p": 0.0},
        {"recipe": "sound", "of": "a", "p": None},
        {"recipe": "sound", "of": "a", "p": float("nan")},
    ]
    correct(rows + others, ["of"])
    for name, p in families.items():
        mine = [row for row in rows if row["of"] == name]
        np.testing.assert_allclose([row["p_corrected"] for row in mine], multipletests(p, method="holm")[1])
        np.testing.assert_allclose([row["p_fdr"] for row in mine], multipletests(p, method="fdr_bh")[1])
        assert {row["correction"] for row in mine} == {f"holm over {len(p)}: same of"}
    assert all("p_corrected" not in row for row in others)


def test_what_is_not_a_number_is_null() -> None:
    rows = [{"p": float("nan"), "n": 3, "test": "t"}, {"p": float("inf")}, {"p": 1, "more": 2}]
    found = frame_of(rows, ("p", "n", "test", "statistic"), ("statistic",))
    assert found["p"].to_list() == [None, None, 1.0]
    assert found.schema == {"p": pl.Float64, "n": pl.Int64, "test": pl.String, "statistic": pl.Float64}
    assert frame_of([], ("p", "n")).schema == {"p": pl.Float64, "n": pl.Int64}


@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_an_unknown_age_is_null_in_every_variant(unknown: float | None, made: Callable[..., pl.DataFrame]) -> None:
    found = variants(made(1, 1, age=[unknown, 30.0]))
    assert [people.frame["age"].to_list() for people in found.values()] == [[None, 30.0]] * 2
    assert [people.filter for people in found.values()] == ["", ""]
