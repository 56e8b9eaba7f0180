"""The Parquet store: whole files, many writers, old files readable, two stores comparable."""

import multiprocessing
import os
import time
from pathlib import Path

import polars as pl
import pytest

from relevance_assets.tables.schema import TABLES, TableError
from relevance_assets.tables.store import Store, comparable, differences, stored_path


def weights(scan: str, *values: float, fold: str = "0") -> pl.DataFrame:
    names = ["qT1", "MWF", "NDI"][: len(values)]
    return pl.DataFrame({"contrast": names, "weight": values}).with_columns(
        pl.lit("net").alias("model"), pl.lit(fold).alias("fold"), pl.lit(scan).alias("scan")
    )


def test_read_gives_what_was_written_sorted_by_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("attention_weights", "b", "sub-2", weights("sub-2", 0.5, 0.25, 0.25))
    store.write("attention_weights", "a", "sub-3", weights("sub-3", 1.0))
    store.write("attention_weights", "b", "sub-1", weights("sub-1", 0.1, 0.9))
    frame = store.read("attention_weights")
    assert frame.select("study", "scan", "contrast", "weight").rows() == [
        ("a", "sub-3", "qT1", 1.0),
        ("b", "sub-1", "MWF", 0.9),
        ("b", "sub-1", "qT1", 0.1),
        ("b", "sub-2", "MWF", 0.25),
        ("b", "sub-2", "NDI", 0.25),
        ("b", "sub-2", "qT1", 0.5),
    ]
    assert store.read("attention_weights", "b", "sub-1").height == 2
    assert store.read("attention_weights", partition="sub-1").height == 2
    assert store.partitions("attention_weights", "b") == ["sub-1", "sub-2"]
    assert store.studies() == ["a", "b"]
    assert (tmp_path / "attention_weights/b/sub-1.parquet").is_file()


def test_write_replaces_a_partition_and_delete_removes_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("attention_weights", "a", "sub-1.x", weights("sub-1", 0.1, 0.9))
    store.write("attention_weights", "a", "sub-1.x", weights("sub-1", 1.0))
    assert store.read("attention_weights")["weight"].to_list() == [1.0]
    assert store.partitions("attention_weights", "a") == ["sub-1.x"]
    store.delete("attention_weights", "a", "sub-1.x")
    store.delete("attention_weights", "a", "sub-1.x")
    assert store.read("attention_weights").equals(TABLES["attention_weights"].empty())


def test_nothing_there_reads_as_an_empty_table(tmp_path: Path) -> None:
    for name, table in TABLES.items():
        assert Store(tmp_path / "none").read(name, "a", "b").equals(table.empty())
        assert Store(tmp_path / "none").read(name).schema == pl.Schema(table.schema)


def test_empty_partition_is_written_and_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("scores", "a", "all", pl.DataFrame())
    assert store.partitions("scores", "a") == ["all"]
    assert store.read("scores").equals(TABLES["scores"].empty())


def test_a_refused_frame_leaves_the_old_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write("attention_weights", "a", "s", weights("sub-1", 1.0))
    before = path.read_bytes()
    with pytest.raises(TableError, match="column weight"):
        store.write("attention_weights", "a", "s", weights("sub-1", float("nan")))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["s.parquet"]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a b", "ä", "a\n", "x" * 201, "*"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(TableError, match="partition"):
        store.write("attention_weights", "a", name, weights("sub-1", 1.0))
    with pytest.raises(TableError, match="study"):
        store.write("attention_weights", name, "a", weights("sub-1", 1.0))
    with pytest.raises(TableError, match="study"):
        store.read("attention_weights", name)
    assert list(tmp_path.iterdir()) == []


def test_unknown_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="table wieghts: unknown; known are participants"):
        Store(tmp_path).read("wieghts")


def test_an_older_file_without_a_new_nullable_column_reads_as_null(tmp_path: Path) -> None:
    store = Store(tmp_path)
    frame = pl.DataFrame({"scan": ["sub-1"], "set": ["test"], "age": [50.0], "predicted_age": [52.0],
                          "gap_years": [2.0], "corrected_gap_years": [1.0]})  # fmt: skip
    path = store.write("brain_age_gap", "a", "new", frame)
    old = pl.read_parquet(path).drop("corrected_gap_years").with_columns(scan=pl.lit("sub-0"))
    old.select(reversed(old.columns)).write_parquet(path.with_name("old.parquet"))
    assert store.read("brain_age_gap").select("scan", "corrected_gap_years").rows() == [
        ("sub-0", None),
        ("sub-1", 1.0),
    ]
    assert store.read("brain_age_gap", "a", "old")["corrected_gap_years"].to_list() == [None]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: f.drop("weight"), "column weight"),
        (lambda f: f.with_columns(pl.col("weight").cast(pl.Float32)), "column weight"),
        (lambda f: f.with_columns(extra=1), "column extra"),
        (lambda f: f.with_columns(weight=pl.lit(None, dtype=pl.Float64)), "column weight"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, spoil, words: str) -> None:
    store = Store(tmp_path)
    path = store.write("attention_weights", "a", "good", weights("sub-1", 1.0))
    spoil(pl.read_parquet(path)).write_parquet(path.with_name("bad.parquet"))
    with pytest.raises(TableError, match=f"attention_weights, {words}: .*bad.parquet") as caught:
        store.read("attention_weights")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("attention_weights", "a", "good", weights("sub-1", 1.0))
    path = store.write("attention_weights", "a", "short", weights("sub-2", 1.0))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TableError, match=r"short\.parquet cannot be read .*; delete it and run again"):
        store.read("attention_weights")


def test_clean_removes_only_stale_temporary_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write("attention_weights", "a", "s", weights("sub-1", 1.0))
    stale, fresh = path.with_name(".0-s.parquet"), path.with_name(".1-s.parquet")
    stale.write_bytes(b"")
    fresh.write_bytes(b"")
    os.utime(stale, (0, 0))
    assert store.partitions("attention_weights", "a") == ["s"], "temporary files are not partitions"
    assert store.clean() == 1
    assert sorted(p.name for p in path.parent.iterdir()) == [".1-s.parquet", "s.parquet"]


def _write_often(root: Path, worker: int, times: int) -> None:
    store = Store(root)
    for turn in range(times):
        scan = f"sub-{worker}"
        store.write("attention_weights", "a", scan, weights(scan, *[turn / times] * 3))
        store.write("attention_weights", "a", "shared", weights("sub-shared", *[turn / times] * 3))


def test_many_writers_and_a_reader_lose_nothing(tmp_path: Path) -> None:
    _write_often(tmp_path, 0, 1)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(tmp_path, w, 100)) for w in range(3)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        frame = Store(tmp_path).read("attention_weights")
        per_scan = frame.group_by("scan").agg(pl.len(), pl.col("weight").n_unique().alias("values"))
        assert set(per_scan["len"]) == {3}
        assert set(per_scan["values"]) == {1}, "rows of two writes in one file"
        reads += 1
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert reads > 3
    assert Store(tmp_path).read("attention_weights").height == 12
    assert all(not path.name.startswith(".") for path in tmp_path.rglob("*.parquet"))


def test_a_thousand_files_are_read_in_a_second(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write("attention_weights", "a", "p0", weights("sub-0", 0.2, 0.3, 0.5))
    for i in range(1, 1000):
        path.with_name(f"p{i}.parquet").write_bytes(path.read_bytes())
    start = time.process_time()
    assert store.read("attention_weights").height == 3000
    assert time.process_time() - start < 2.0, "two cores' worth of one second"


def test_differences_ignore_times_and_order_and_name_what_differs(tmp_path: Path) -> None:
    def runs(seconds: float, outcome: str = "ok") -> pl.DataFrame:
        return pl.DataFrame({"asset": ["x"], "item": ["all"], "seconds": [seconds], "run_id": [str(seconds)],
                             "outcome": [outcome]})  # fmt: skip

    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    for store, seconds in ((a, 1.0), (b, 2.0)):
        store.write("runs", "s", "x", runs(seconds))
        store.write("splits", "s", "all", pl.DataFrame(
            {"scan": ["sub-1"], "set": ["test"], "participant_id": ["sub-1"]}))  # fmt: skip
    a.write("attention_weights", "s", "all", pl.concat([weights("sub-1", 0.5), weights("sub-2", 0.75)]))
    b.write("attention_weights", "s", "2", weights("sub-2", 0.75))
    b.write("attention_weights", "s", "1", weights("sub-1", 0.5))
    assert set(comparable(a.root)) == {("runs", "s"), ("splits", "s"), ("attention_weights", "s")}
    columns = comparable(a.root)["runs", "s"].columns
    assert {"asset", "item", "outcome", "reason"} < set(columns)
    assert not {"run_id", "started", "seconds", "peak_mb"} & set(columns)
    assert differences(a.root, b.root) == []

    b.write("attention_weights", "s", "1", weights("sub-1", 0.5 + 1e-15))
    b.write("runs", "s", "x", runs(3.0, "failed"))
    b.write("scores", "s", "all", pl.DataFrame())
    b.delete("splits", "s", "all")
    b.write("splits", "s", "all", pl.DataFrame(
        {"scan": ["sub-1", "sub-9"], "set": ["test"] * 2, "participant_id": ["p"] * 2}))  # fmt: skip
    found = differences(a.root, b.root)
    assert len(found) == 5
    assert "attention_weights of s, column weight: 1 rows differ" in found[0]
    assert "'ok' and 'failed'" in found[1]
    assert found[2] == f"scores of s: only in {b.root}"
    assert "splits of s: 1 rows only in" in found[3]
    assert "sub-9" in found[3]
    assert "column participant_id" in found[4]


def test_stored_paths_are_the_same_below_two_homes(tmp_path: Path) -> None:
    for home in ("a", "b"):
        file = tmp_path / home / "derivatives" / "x.nii.gz"
        assert stored_path(file, tmp_path / home) == "derivatives/x.nii.gz"
    assert stored_path(tmp_path / "bids/sub-1/x.nii", tmp_path / "a", tmp_path / "bids") == "sub-1/x.nii"
    with pytest.raises(ValueError, match="lies outside"):
        stored_path(tmp_path / "c/x.nii", tmp_path / "a")
