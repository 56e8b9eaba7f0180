"""Nobody is on two sides, but in the published split, which says so; gaps at borders; the published split itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relevance_assets.cohort.slice_splits import SHARES, How, resolve_split, split_slices
from relevance_assets.cohort.slices import index_slices
from relevance_assets.cohort.splits import SplitError

CLASSES = ("glioma", "meningioma", "pituitary")
SCHEMA = dict.fromkeys(("scan", "participant_id", "slice_id", "class", "patient"), pl.String) | {"fold": pl.Int64}


def by_patient(people: int, seed: int = 0) -> pl.DataFrame:
    """One to eight slices per person, in no order; a few have a slice of another class, and a fold of five."""
    generator = np.random.default_rng(seed)
    rows, number = [], 0
    for person in range(people):
        for _ in range(generator.integers(1, 9)):
            number += 1
            kind = CLASSES[person % 3] if generator.random() < 0.95 else "glioma"
            name = f"sub-P{person}"
            rows.append((f"{name}_ses-{number}", name, str(number), kind, f"P{person}", 1 + person % 5))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").sample(fraction=1.0, shuffle=True, seed=seed)


def by_block(ids: list[int], block: int) -> pl.DataFrame:
    """Classes take turns from block to block."""
    rows = [
        (f"sub-block{n // block}_ses-{n}", f"sub-block{n // block}", str(n), CLASSES[n // block % 3], None, None)
        for n in ids
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def sides(split: pl.DataFrame) -> dict[str, set[str]]:
    """Person to sets."""
    kept = split.filter(pl.col("set") != "buffer")
    return {person: set(kept.filter(pl.col("participant_id") == person)["set"]) for person in kept["participant_id"]}


@settings(max_examples=40, deadline=None)
@given(
    people=st.integers(12, 60),
    content=st.integers(0, 99),
    seed=st.integers(0, 2**32),
    shares=st.sampled_from([SHARES, (0.5, 0.25, 0.25), (0.8, 0.1, 0.1), (0.2, 0.2, 0.6)]),
)
def test_no_patient_is_on_two_sides(people: int, content: int, seed: int, shares: tuple[float, ...]) -> None:
    frame = by_patient(people, content)
    split = split_slices(frame, "patient", shares=shares, seed=seed)
    assert split.columns == ["scan", "participant_id", "set", "leaking"]
    assert split["scan"].to_list() == sorted(frame["scan"])
    assert all(len(there) == 1 for there in sides(split).values())
    assert set(split["set"]) == {"train", "validation", "test"}
    assert not split["leaking"].any()
    mode = frame.group_by("participant_id").agg(pl.col("class").value_counts(sort=True).first().struct.field("class"))
    ties = frame.group_by("participant_id", "class").len().group_by("participant_id").agg(pl.col("len").sort())
    if any(len(lens) > 1 and lens[-1] == lens[-2] for lens in ties["len"].to_list()):
        return  # whose class is a matter of taste
    persons = split.unique("participant_id").join(mode, on="participant_id")
    for kind in CLASSES:
        of_kind = persons.filter(pl.col("class") == kind)
        for name, share in zip(("train", "validation", "test"), shares, strict=True):
            there, exact = of_kind.filter(pl.col("set") == name).height, share * of_kind.height
            assert abs(there - exact) < 1 or there == 1 or exact - there < 2.01  # one may be given to an empty set
            assert there >= 1


@settings(max_examples=40, deadline=None)
@given(
    ids=st.sets(st.integers(0, 700), min_size=200, max_size=600),
    block=st.integers(5, 60),
    buffer=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_blocks_and_gaps_between_sets(ids: set[int], block: int, buffer: int, seed: int) -> None:
    frame = by_block(sorted(ids), block)
    try:
        split = split_slices(frame, "block", buffer=buffer, seed=seed)
    except SplitError as error:
        assume("lacks" not in str(error))
        raise
    assert split.height == frame.height
    assert all(len(there) == 1 for there in sides(split).values())
    joined = split.join(frame.select("scan", pl.col("slice_id").cast(pl.Int64)), on="scan")
    kept = {name: np.array(rows["slice_id"]) for (name,), rows in joined.partition_by("set", as_dict=True).items()}
    out = kept.pop("buffer", np.array([]))
    for one in kept:
        for other in kept:
            if one < other:
                assert np.abs(kept[one][:, None] - kept[other][None]).min() > 2 * buffer
    assert not split.filter(pl.col("set") == "buffer")["leaking"].any()
    without = split_slices(frame, "block", buffer=0, seed=seed)
    assert "buffer" not in set(without["set"])
    same = split.join(without, on="scan").filter(pl.col("set") != "buffer")
    assert (same["set"] == same["set_right"]).all()  # buffers move nobody
    side = dict(without.join(joined, on="scan").select("slice_id", "set").iter_rows())
    for number in out:  # nothing is left out without need: another set is near
        near = [n for n in range(number - 2 * buffer, number + 2 * buffer + 1) if n in side]
        assert len({side[n] for n in near}) > 1


def test_slices_left_out_at_a_border() -> None:
    """Blocks of 10, one class: where sets differ exactly the last and the first 2 go."""
    frame = by_block(list(range(100)), 10).with_columns(pl.lit("glioma").alias("class"))
    split = split_slices(frame, "block", buffer=2, seed=1)
    plain = split_slices(frame, "block", buffer=0, seed=1)
    at = {int(scan.rpartition("-")[2]): name for scan, name in plain.select("scan", "set").iter_rows()}
    expected = set()
    for first in range(10, 100, 10):
        if at[first - 1] != at[first]:
            expected |= {first - 2, first - 1, first, first + 1}
    assert expected
    assert {int(s.rpartition("-")[2]) for s in split.filter(pl.col("set") == "buffer")["scan"]} == expected


@pytest.mark.parametrize("how", ["patient", "block", "published"])
def test_the_order_of_rows_and_the_seed(how: How) -> None:
    frame = by_block(list(range(1, 500)), 20) if how == "block" else by_patient(40)
    one = split_slices(frame, how, seed=3)
    assert one.equals(split_slices(frame.sample(fraction=1.0, shuffle=True, seed=8), how, seed=3))
    assert one.equals(split_slices(frame, how, seed=4)) == (how == "published")


def test_the_published_split() -> None:
    """scikit-learn's own arithmetic, by NumPy: a permutation's head is the test part, the rest trains."""
    numbers = np.arange(1, 3065)
    frame = pl.DataFrame(
        {
            "scan": [f"sub-P{n // 13}_ses-{n}" for n in numbers],
            "participant_id": [f"sub-P{n // 13}" for n in numbers],
            "slice_id": list(map(str, numbers)),
            "class": [CLASSES[n // 13 % 3] for n in numbers],
            "patient": [f"P{n // 13}" for n in numbers],
        }
    )
    split = split_slices(frame, "published")
    counts = dict(split["set"].value_counts().iter_rows())
    assert counts == {"train": 2144, "validation": 460, "test": 460}  # as in the seed
    order = np.random.RandomState(42).permutation(3064)
    rest, train = order[:920], order[920:]
    again = np.random.RandomState(42).permutation(920)
    test, validation = rest[again[:460]], rest[again[460:]]
    side = dict(split.select("scan", "set").iter_rows())
    for name, places in (("train", train), ("validation", validation), ("test", test)):
        assert {side[frame["scan"][int(place)]] for place in places} == {name}


def test_the_published_split_says_that_it_leaks() -> None:
    split = split_slices(by_patient(60), "published")
    there = sides(split)
    expected = [len(there[person]) > 1 for person in split["participant_id"]]
    assert split["leaking"].to_list() == expected
    assert any(expected)


def test_published_folds() -> None:
    frame = by_patient(30)
    split = split_slices(frame, "patient", folds=(4, 2)).join(frame, on="scan")
    assert set(split.filter(pl.col("fold") == 4)["set"]) == {"validation"}
    assert set(split.filter(pl.col("fold") == 2)["set"]) == {"test"}
    assert set(split.filter(~pl.col("fold").is_in([2, 4]))["set"]) == {"train"}


def test_slices_with_a_problem_are_left_out() -> None:
    frame = by_patient(30).with_columns(pl.lit(None, dtype=pl.String).alias("problem"))
    bad = frame.head(3).with_columns(pl.lit("x: truncated; copy it again").alias("problem"))
    split = split_slices(pl.concat([bad, frame.tail(-3)]), "patient")
    assert split.height == frame.height - 3
    assert not set(split["scan"]) & set(bad["scan"])


def test_auto_is_by_patient_where_all_are_known_and_by_block_where_none_is() -> None:
    for frame, how in ((PEOPLE, "patient"), (BLOCKS, "block")):
        assert resolve_split(frame, "auto") == how
        assert split_slices(frame, "auto", seed=3).equals(split_slices(frame, how, seed=3))
        assert resolve_split(frame, "published") == "published"
    assert resolve_split(MIXED, "published") == "published"
    assert split_slices(PEOPLE, "auto", folds=(4, 2)).equals(split_slices(PEOPLE, "patient", folds=(4, 2)))
    assert resolve_split(PEOPLE.head(1), "auto") == "patient"
    bad = BLOCKS.head(2).with_columns(problem=pl.lit("x: has no patient; add it"), scan=pl.lit("x/") + "scan")
    sound = PEOPLE.with_columns(problem=pl.lit(None, dtype=pl.String))
    assert resolve_split(pl.concat([sound, bad.select(sound.columns)]), "auto") == "patient"


PEOPLE, BLOCKS = by_patient(30), by_block(list(range(1, 500)), 20)
MIXED = PEOPLE.with_columns(
    patient=pl.when(pl.col("slice_id").is_in(["1", "2", "3"])).then(None).otherwise(pl.col("patient"))
)
TORN = pl.concat(
    [
        PEOPLE,
        PEOPLE.filter(pl.col("fold") == 1).head(1).with_columns(fold=pl.lit(2, dtype=pl.Int64), scan=pl.lit("sub-x")),
    ]
)


@pytest.mark.parametrize(
    ("frame", "how", "settings", "says"),
    [
        (PEOPLE.head(0), "patient", {}, "no slice can be used"),
        (pl.concat([PEOPLE, PEOPLE.head(1)]), "patient", {}, "listed more than once"),
        (BLOCKS, "patient", {}, "no slice has a patient; add patients or set slices.split.how to auto or block"),
        (PEOPLE, "block", {}, "patients are known, so blocks are not needed; set slices.split.how to auto or patient"),
        (MIXED, "auto", {}, "3 of "),
        (MIXED, "auto", {}, "(sub-P0_ses-1 is one), so slices.split.how can be neither patient nor block; add their"),
        (MIXED, "patient", {}, "add their patients or take them out"),
        (MIXED, "block", {}, "add their patients or take them out"),
        (PEOPLE.head(0), "auto", {}, "no slice can be used"),
        (BLOCKS, "auto", {"folds": (1, 2)}, "by block leave slices.split.folds out"),
        (PEOPLE, "random", {}, "'random' is not known; choose auto, patient, block or published"),
        (PEOPLE, "patient", {"shares": (0.5, 0.5)}, "three positive numbers"),
        (PEOPLE, "patient", {"shares": (0.5, 0.5, 0.0)}, "three positive numbers"),
        (PEOPLE, "patient", {"shares": (0.5, 0.3, 0.3)}, "with sum 1"),
        (PEOPLE, "patient", {"shares": (0.5, 0.5, float("nan"))}, "three positive numbers"),
        (BLOCKS, "block", {"buffer": -1}, "a buffer of -1"),
        (BLOCKS, "block", {"buffer": 40}, "lacks"),
        (BLOCKS, "block", {"folds": (1, 2)}, "published folds are by patient"),
        (by_patient(8), "patient", {}, "has 2 patients, and 3 sets need one each; add slices of other patients, or"),
        (by_block([*range(60)], 10), "auto", {}, "has 2 blocks, and 3 sets need one each; lower slices.block, or"),
        (PEOPLE, "patient", {"folds": (1, 1)}, "are not two of"),
        (PEOPLE, "patient", {"folds": (1, 6)}, "are not two of"),
        (PEOPLE.with_columns(fold=pl.lit(None, dtype=pl.Int64)), "patient", {"folds": (1, 2)}, "no published fold"),
        (TORN, "patient", {"folds": (1, 2)}, "in more than one fold"),
        (PEOPLE.head(3), "published", {}, "too few"),
    ],
)
def test_what_cannot_be_split(frame: pl.DataFrame, how: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SplitError) as caught:
        split_slices(frame, how, **settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_real_slices(data: Any) -> None:
    frame = index_slices(data / "tumour")
    split = split_slices(frame, "block")
    counts = dict(split["set"].value_counts().iter_rows())
    assert counts["train"] > 1200
    assert min(counts["validation"], counts["test"]) > 200
    assert counts["buffer"] < 300
    assert not split["leaking"].any()
    assert split_slices(frame, "published")["leaking"].mean() > 0.95
