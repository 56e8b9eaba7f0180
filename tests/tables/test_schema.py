"""Tables are declared whole, and frames are made to conform or refused by name."""

from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest

from relevance_assets.tables.schema import TABLES, TableError


def splits(**columns: list) -> pl.DataFrame:
    rows = {"scan": ["sub-B", "sub-A"], "set": ["test", "train"], "participant_id": ["sub-B", "sub-A"]}
    return pl.DataFrame({**rows, **columns})


def test_every_table_of_the_design_is_declared_with_study_first() -> None:
    assert len(TABLES) == 57
    for name, table in TABLES.items():
        assert table.name == name
        assert table.key[0] == table.columns[0].name == "study"
        assert table.key == tuple(c.name for c in table.columns[: len(table.key)])
        assert len(table.schema) == len(table.columns), "a column appears twice"
        assert not any(c.nullable or c.volatile for c in table.columns if c.name in table.key)
        assert table.description
        assert all(c.description for c in table.columns)
        assert table.empty().schema == pl.Schema(table.schema)


def test_conform_adds_study_orders_and_fills_nullable_columns() -> None:
    frame = TABLES["splits"].conform(splits(), "demo")
    assert frame.columns == ["study", "scan", "set", "fold", "participant_id", "leaking", "draw"]
    assert frame.rows() == [
        ("demo", "sub-B", "test", None, "sub-B", None, None),
        ("demo", "sub-A", "train", None, "sub-A", None, None),
    ]
    assert frame.schema["fold"] == pl.Int64
    assert TABLES["splits"].conform(frame, "demo").equals(frame), "conforming twice changes nothing"
    assert TABLES["splits"].conform(pl.DataFrame(), "demo").schema == frame.schema


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (pl.Series([0, 1], dtype=pl.UInt8), [0, 1]),
        (pl.Series([0.0, 1.0], dtype=pl.Float32), [0, 1]),
        (pl.Series([None, 2]), [None, 2]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_conform_casts_where_no_value_changes(given: pl.Series, stored: list) -> None:
    frame = TABLES["splits"].conform(splits().with_columns(given.alias("fold")), "demo")
    assert frame["fold"].to_list() == stored


def test_conform_writes_whole_numbers_as_text_where_text_is_declared() -> None:
    frame = pl.DataFrame({"model": ["m"], "fold": [2], "epoch": [0], "loss": [1]})
    row = TABLES["training_epochs"].conform(frame, "demo").row(0, named=True)
    assert row["fold"] == "2"
    assert row["loss"] == 1.0


def test_conform_turns_times_into_utc() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    frame = pl.DataFrame(
        {"asset": ["a"], "item": ["all"], "outcome": ["ok"], "started": [noon.astimezone(UTC)]},
    ).with_columns(pl.col("started").dt.convert_time_zone("Europe/Helsinki"))
    assert TABLES["runs"].conform(frame, "demo")["started"][0] == datetime(2026, 1, 1, 10)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (splits(colour=["r", "g"]), ["splits", "column colour", "not a column"]),
        (splits().drop("set"), ["splits", "column set", "missing"]),
        (splits(set=["test", None]), ["splits", "column set", "null", "sub-A"]),
        (splits(scan=["sub-A", None]), ["splits", "column scan", "null"]),
        (splits(scan=["sub-A", "sub-A"]), ["splits", "key (study, scan)", "more than one row", "sub-A"]),
        (splits(fold=["0", "1"]), ["splits", "column fold", "String", "Int64"]),
        (splits(fold=[0.5, 1.0]), ["splits", "column fold", "fractions"]),
        (splits(fold=[float("nan"), 1.0]), ["splits", "column fold", "nan", "scan=sub-B"]),
        (splits(fold=[True, False]), ["splits", "column fold", "Boolean"]),
        (splits(set=[1.5, 2.5]), ["splits", "column set", "Float64"]),
        (splits(study=["demo", "other"]), ["splits", "column study", "'other'", "'demo'"]),
        (splits(study=["demo", None]), ["splits", "column study", "'demo'"]),
    ],
)
def test_conform_refuses_by_name(frame: pl.DataFrame, words: list[str]) -> None:
    with pytest.raises(TableError) as caught:
        TABLES["splits"].conform(frame, "demo")
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_conform_refuses_infinity() -> None:
    frame = pl.DataFrame({"model": ["m"], "fold": ["0"], "epoch": [3], "loss": [float("inf")]})
    with pytest.raises(TableError, match=r"training_epochs, column loss: inf at .*epoch=3"):
        TABLES["training_epochs"].conform(frame, "demo")
