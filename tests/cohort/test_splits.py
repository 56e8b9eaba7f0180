"""Nobody is on two sides, both sides resemble each other, and the rows' order changes nothing."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relevance_assets.cohort.splits import SplitError, check_no_leakage, extend_splits, fold_people, split_scans
from relevance_assets.study import Split, Target

SEVERE = Target(column="edss", kind="binary", threshold=5)
AGE = Target(column="age", kind="regression")


def cohort(people: int, seed: int = 0, positive: float = 0.3) -> pl.DataFrame:
    """One to three scans per person; the value rises from scan to scan, so that some people change class."""
    generator = np.random.default_rng(seed)
    rows = []
    for person in range(people):
        value = 6.0 if person < positive * people else generator.uniform(0, 4)
        for session in range(generator.integers(1, 4)):
            rows.append((f"sub-{person:03}_ses-{session}", f"sub-{person:03}", value + 0.5 * session))
    return pl.DataFrame(rows, schema=["scan", "participant_id", "target"], orient="row")


@settings(max_examples=40, deadline=None)
@given(
    people=st.integers(16, 60),
    seed=st.integers(0, 999),
    folds=st.integers(2, 4),
    share=st.floats(0.1, 0.4),
    positive=st.floats(0.35, 0.6),
    target=st.sampled_from([SEVERE, AGE]),
)
def test_nobody_is_on_two_sides(
    people: int, seed: int, folds: int, share: float, positive: float, target: Target
) -> None:
    frame = cohort(people, seed, positive)
    splits = split_scans(frame, target, Split(test_share=share, folds=folds, seed=seed))
    sides: dict[str, set] = {}
    for _, person, side, fold in splits.iter_rows():
        sides.setdefault(person, set()).add((side, fold))
    assert all(len(side) == 1 for side in sides.values())
    assert check_no_leakage(splits) == []
    assert splits["scan"].to_list() == sorted(frame["scan"])
    assert set(splits["set"]) == {"train", "test"}
    assert {fold for side in sides.values() for _, fold in side} == {None, *range(folds)}
    assert all((side == "test") == (fold is None) for (side, fold) in (next(iter(s)) for s in sides.values()))
    if target.kind == "binary":
        label = dict(frame.select("scan", pl.col("target") >= 5).iter_rows())
        for _, part in splits.group_by("set", "fold"):
            assert len({label[scan] for scan in part["scan"]}) == 2


def test_the_order_of_rows_changes_nothing() -> None:
    frame = cohort(40)
    first = split_scans(frame, SEVERE, Split(seed=3))
    assert first.equals(split_scans(frame.sample(fraction=1, shuffle=True, seed=1), SEVERE, Split(seed=3)))
    assert first.equals(split_scans(frame.with_columns(age=pl.lit(1)), SEVERE, Split(seed=3)))
    assert not first.equals(split_scans(frame, SEVERE, Split(seed=4)))


def test_the_test_share_counts_people_and_keeps_the_classes() -> None:
    frame = cohort(100, positive=0.3)
    splits = split_scans(frame, SEVERE, Split(test_share=0.2))
    test = splits.filter(pl.col("set") == "test")["participant_id"].unique()
    assert len(test) == 20
    assert sum(int(person[4:]) < 30 for person in test) == 6


def test_a_person_with_one_positive_scan_counts_as_positive() -> None:
    """Half of the people become severe at their last scan: half of the test people are of them."""
    rows = [(f"sub-{p:02}_ses-{s}", f"sub-{p:02}", 6.0 if p % 2 and s else 2.0) for p in range(40) for s in (0, 1)]
    frame = pl.DataFrame(rows, schema=["scan", "participant_id", "target"], orient="row")
    test = split_scans(frame, SEVERE, Split(test_share=0.25)).filter(pl.col("set") == "test")
    people = test["participant_id"].unique().to_list()
    assert len(people) == 10
    assert sum(int(person[4:]) % 2 for person in people) == 5


def test_folds_of_a_regression_resemble_each_other() -> None:
    ages = np.random.default_rng(5).uniform(18, 96, 150)
    names = [f"sub-{i:03}" for i in range(150)]
    frame = pl.DataFrame({"scan": names, "participant_id": names, "target": ages})
    splits = split_scans(frame, AGE, Split(test_share=0.2, folds=3, strata=5)).join(frame, on="scan")
    parts = splits.group_by("set", "fold").agg(pl.col("target").mean().alias("mean"), pl.len())
    assert parts.filter(pl.col("set") == "test")["len"].to_list() == [30]
    assert sorted(parts.filter(pl.col("set") == "train")["len"]) == [40, 40, 40]
    assert np.ptp(parts["mean"].to_numpy()) < 4  # by chance alone about 10


def test_equal_values_of_a_regression() -> None:
    frame = cohort(12).with_columns(target=pl.lit(50.0))
    assert check_no_leakage(split_scans(frame, AGE, Split())) == []


def test_too_few_people() -> None:
    with pytest.raises(SplitError, match="3 people are too few for a test set and 3 folds"):
        split_scans(cohort(3), AGE, Split(folds=3))


def test_one_class_only() -> None:
    with pytest.raises(SplitError, match="one class only: 0 people with edss >= 5, 20 without"):
        split_scans(cohort(20, positive=0), SEVERE, Split())


def test_a_class_with_too_few_people() -> None:
    with pytest.raises(SplitError, match=r"2 people with edss >= 5, 18 without.*need 4 of each"):
        split_scans(cohort(20, positive=0.1), SEVERE, Split(folds=3))


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_scan_without_target(value: float | None) -> None:
    frame = cohort(20)
    frame = frame.with_columns(target=pl.when(pl.col("scan") == "sub-007_ses-0").then(value).otherwise(1.0))
    with pytest.raises(SplitError, match="sub-007_ses-0 has no person or no target"):
        split_scans(frame, AGE, Split())


def test_a_scan_listed_twice() -> None:
    frame = cohort(20)
    with pytest.raises(SplitError, match="sub-000_ses-0 is listed more than once"):
        split_scans(pl.concat([frame, frame.head(1)]), AGE, Split())


def test_leakage_names_the_people() -> None:
    splits = pl.DataFrame(
        {
            "participant_id": ["sub-C", "sub-C", "sub-B", "sub-B", "sub-A", "sub-A"],
            "set": ["train", "test", "train", "train", "train", "train"],
            "fold": [0, None, 0, 1, 2, 2],
        }
    )
    assert check_no_leakage(splits) == ["sub-B", "sub-C"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), more=st.integers(0, 20), fewer=st.integers(0, 10))
def test_who_comes_later_is_new_and_nobody_else_moves(seed: int, more: int, fewer: int) -> None:
    """Also a later visit of somebody who is in the split already: it goes where the person is."""
    frame = cohort(30 + more, seed)
    numbers = pl.col("participant_id").str.slice(4).cast(pl.Int64)
    first = frame.filter((numbers < 30) & (pl.col("scan").str.ends_with("ses-0")))
    before = split_scans(first, AGE, Split(folds=3, seed=seed))
    today = frame.filter(numbers >= fewer)
    after = extend_splits(before, today)
    assert after["scan"].to_list() == sorted(today["scan"])
    assert check_no_leakage(after) == []
    side = {person: (where, fold) for _, person, where, fold in before.iter_rows()}
    for _, person, where, fold in after.select("scan", "participant_id", "set", "fold").iter_rows():
        assert (where, fold) == side.get(person, ("new", None))


@settings(max_examples=40, deadline=None)
@given(people=st.integers(2, 30), folds=st.integers(2, 8), seed=st.integers(0, 99))
def test_folds_of_people_without_a_target(people: int, folds: int, seed: int) -> None:
    frame = cohort(people, seed).drop("target")
    split = Split(folds=folds, seed=seed)
    if people < folds:
        with pytest.raises(SplitError, match=f"people with masks: {people}, too few for {folds} folds"):
            fold_people(frame, split)
        return
    found = fold_people(frame.sample(fraction=1, shuffle=True, seed=seed), split)
    assert found.equals(fold_people(frame, split)), "the order of rows changes nothing"
    assert check_no_leakage(found) == []
    assert found["scan"].to_list() == sorted(frame["scan"])
    sizes = found.select("participant_id", "fold").unique().group_by("fold").len()["len"]
    assert len(sizes) == folds
    assert sizes.max() - sizes.min() <= 1


def test_as_many_folds_as_people_leave_each_out_once() -> None:
    found = fold_people(cohort(7), Split(folds=7))
    assert sorted(found.select("participant_id", "fold").unique()["fold"]) == list(range(7))
    assert set(found["set"]) == {"train"}
    other = fold_people(cohort(7), Split(folds=7, seed=1))
    assert not other.equals(found), "another seed is another draw"
