"""The cache of a table with many partitions: never wrong, whatever happens to it, and quick."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import count
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relevance_assets.tables import cache, partitions, segments
from relevance_assets.tables.database import publish
from relevance_assets.tables.schema import TABLES, Column, Table, TableError
from relevance_assets.tables.store import Store

TABLE = TABLES["attention_weights"]
SQL = Path(__file__).parents[2] / "sql"
OLD = count(1_000_000_000)  # seconds: every file of these tests has its own time, long ago


def weights(scan: str, *values: float) -> pl.DataFrame:
    rows = [{"model": "net", "fold": "0", "scan": scan, "contrast": f"c{i}", "weight": w} for i, w in enumerate(values)]
    return pl.DataFrame(rows)


def write(store: Store, partition: str, *values: float, scan: str | None = None, age: bool = True) -> Path:
    path = store.write("attention_weights", "a", partition, weights(scan or partition, *values))
    if age:
        os.utime(path, (0, next(OLD)))
    return path


def fill(store: Store, partitions: int) -> None:
    for i in range(partitions):
        write(store, f"sub-{i:03d}", i, i + 0.5)


def known(store: Store) -> dict[str, list[str]]:
    """Names of the files that each segment knows."""
    folder = store.root / ".cache/attention_weights/a"
    with ExitStack() as opened:
        found = {name: segments.Segment.open(folder / name, TABLE) for name in ("base", "recent")}
        return {name: sorted(opened.enter_context(s).stamps) for name, s in found.items() if s}


def straight(store: Store) -> pl.DataFrame:
    """What lies in the files, read one by one."""
    frames = [pl.read_parquet(path) for path in store.files("attention_weights", "a")]
    return pl.concat([TABLE.empty(), *frames]).sort(TABLE.key, maintain_order=True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is used and written at small numbers."""
    monkeypatch.setattr(cache, "_FEW", 4)
    monkeypatch.setattr(cache, "_WORTH_WRITING", 2)
    monkeypatch.setattr(cache, "_SHARE", 3)
    monkeypatch.setattr(segments, "_PIECE_ROWS", 8)
    monkeypatch.setattr(partitions, "_FILES_AT_ONCE", 3)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the partition files that are opened, as they are."""
    names: list[str] = []
    whole = partitions._contents

    def noted(table: Table, files: list[Path]) -> list:
        names.extend(path.name for path in files)
        return whole(table, files)

    monkeypatch.setattr(partitions, "_contents", noted)
    return names


# -------------------------------------------------------------------------------------------- the same rows, always
NAMES = st.sampled_from([f"sub-{i}" for i in range(9)] + ["sub-1-x", "sub-1.x"])
VALUES = st.lists(st.integers(0, 3).map(float), max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("write"), NAMES, VALUES, st.booleans()),
    st.tuples(st.just("write"), NAMES, VALUES, st.booleans()),
    st.tuples(st.just("foreign key"), NAMES, VALUES, st.booleans()),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("read")),
    st.tuples(st.just("gather")),
    st.tuples(st.just("lose"), st.sampled_from(["base", "recent", ".cache"])),
    st.tuples(st.just("swap")),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=10, max_size=60))
def test_any_sequence_of_writes_and_deletes_reads_as_without_a_cache(
    small: None, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    folder = store.root / ".cache/attention_weights/a"
    for step in [*steps, ("read",), ("gather",)]:
        if step[0] == "write":
            write(store, step[1], *step[2], age=step[3])
        elif step[0] == "foreign key":  # rows of one key in two files: to be refused, but in the same order
            write(store, step[1], *step[2], scan="shared", age=step[3])
        elif step[0] == "delete":
            store.delete("attention_weights", "a", step[1])
        elif step[0] == "lose" and step[1] == ".cache":
            shutil.rmtree(store.root / ".cache", ignore_errors=True)
        elif step[0] == "lose":
            (folder / step[1]).unlink(missing_ok=True)
        elif step[0] == "swap" and (folder / "base").exists():  # an old segment as the newest
            shutil.copy(folder / "base", folder / "recent")
        elif step[0] == "read":
            assert store.read("attention_weights", "a").equals(straight(store))
        elif step[0] == "gather":
            with store.gather("attention_weights", "a") as gathered:
                frame = pl.concat([TABLE.empty(), *(batch.frame for batch in gathered.batches())])
                assert gathered.rows == frame.height
                assert frame.sort(list(TABLE.schema)).equals(straight(store).sort(list(TABLE.schema)))
    assert store.studies() in ([], ["a"])


def test_all_studies_together_read_as_each_by_itself(small: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 9)
    store.write("attention_weights", "0", "all", weights("sub-1", 0.5))
    store.write("attention_weights", "b", "all", weights("sub-1", 0.5))
    for _ in range(2):
        frame = store.read("attention_weights")
        assert frame.equals(pl.concat([store.read("attention_weights", study) for study in ("0", "a", "b")]))
        assert frame.height == 20


def test_a_file_of_the_same_time_and_size_is_another_if_its_inode_is(small: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 9)
    store.read("attention_weights", "a")
    path = store.root / "attention_weights/a/sub-003.parquet"
    before = path.stat()
    store.write("attention_weights", "a", "sub-003", weights("sub-003", 7, 7.5))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert "sub-003.parquet" in known(store)["base"]
    assert store.read("attention_weights", "a").equals(straight(store))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_file_replaced_around_its_opening_is_remembered_as_what_was_read(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between the listing and the opening, or between the opening and the reading."""
    store = Store(tmp_path)
    fill(store, 9)
    whole = Path.open

    def replaced(path: Path, mode: str = "r", **options: int) -> object:
        if path.suffix != ".parquet" or mode != "rb":
            return whole(path, mode, **options)
        if moment == "before":
            write(store, path.stem, 9, 9)
        file = whole(path, mode, **options)
        if moment == "after":
            write(store, path.stem, 9, 9)
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", replaced)
        store.read("attention_weights", "a")
    assert len(known(store)["base"]) == 9
    assert store.read("attention_weights", "a").equals(straight(store))


def test_a_file_replaced_by_a_young_one_after_the_listing_is_not_remembered(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    fill(store, 9)
    whole = partitions._contents

    def replaced(table: Table, files: list[Path]) -> list:
        if known(store) == {}:
            write(store, "sub-004", 9, 9, age=False)
        return whole(table, files)

    monkeypatch.setattr(partitions, "_contents", replaced)
    assert store.read("attention_weights", "a").equals(straight(store))
    assert known(store)["base"] == [f"sub-{i:03d}.parquet" for i in range(9) if i != 4]


def test_a_young_file_is_read_but_not_remembered(small: None, tmp_path: Path, opened: list[str]) -> None:
    store = Store(tmp_path)
    for i in range(9):
        write(store, f"sub-{i}", i, age=False)
    store.read("attention_weights", "a")
    assert known(store) == {}
    for path in store.files("attention_weights", "a")[2:]:
        os.utime(path, (0, next(OLD)))
    store.read("attention_weights", "a")
    assert known(store) == {"base": [f"sub-{i}.parquet" for i in range(2, 9)]}
    opened.clear()
    store.read("attention_weights", "a")
    assert opened == ["sub-0.parquet", "sub-1.parquet"]


# --------------------------------------------------------------------------------------------------- a spoilt cache
def spoilt(content: bytes) -> Iterator[bytes]:
    """Ways in which a segment may be broken, on any disk."""
    yield b""
    yield b"PAR1" * 100
    yield bytes(len(content))
    yield content + b"x"
    yield content[1:]
    yield from (content[:length] for length in (1, 19, 20, 21, len(content) // 2, len(content) - 1))
    chance = random.Random(0)
    for _ in range(150):
        place = chance.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    for place in range(1, 30):
        yield content[:-place] + bytes([content[-place] ^ 255]) + content[len(content) - place + 1 :]


@pytest.mark.parametrize("name", ["base", "recent"])
def test_a_broken_segment_is_ignored_and_written_anew(small: None, tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    fill(store, 12)
    store.read("attention_weights", "a")
    for i in range(2):
        write(store, f"sub-{i:03d}", 9)
    expected = store.read("attention_weights", "a")
    assert set(known(store)) == {"base", "recent"}
    path = tmp_path / ".cache/attention_weights/a" / name
    content = path.read_bytes()
    for broken in spoilt(content):
        path.write_bytes(broken)
        assert segments.Segment.open(path, TABLE) is None
    path.write_bytes(content[: len(content) // 2])
    assert store.read("attention_weights", "a").equals(expected)
    assert segments.Segment.open(path, TABLE) or name == "recent"
    assert sorted(set().union(*known(store).values())) == [f"sub-{i:03d}.parquet" for i in range(12)]


def test_a_segment_of_an_older_schema_is_ignored(small: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 9)
    store.read("attention_weights", "a")
    folder, kept = tmp_path / "attention_weights/a", tmp_path / ".cache/attention_weights/a"
    wider = dataclasses.replace(TABLE, columns=(*TABLE.columns, Column("new", pl.Int64(), "new", nullable=True)))
    frame = cache.read_whole(wider, folder, kept)
    assert frame.drop("new").equals(straight(store))
    assert frame["new"].null_count() == 18
    stricter = dataclasses.replace(wider, columns=(*TABLE.columns, Column("new", pl.Int64(), "new")))
    with pytest.raises(TableError, match=r"column new: missing or null in .*sub-000.parquet"):
        cache.read_whole(stricter, folder, kept)


def test_a_bad_file_is_named_although_the_others_are_remembered(small: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 9)
    store.read("attention_weights", "a")
    path = store.root / "attention_weights/a/sub-004.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TableError, match=r"sub-004\.parquet cannot be read .*; delete it and run again"):
        store.read("attention_weights", "a")


def test_rows_that_the_reader_loses_are_noticed(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    fill(store, 9)
    whole = partitions._decode
    monkeypatch.setattr(partitions, "_decode", lambda *a: whole(*a).head(-1))
    with pytest.raises(TableError, match=r"table attention_weights: 5 rows read, 6 in the files .*sub-000"):
        store.read("attention_weights", "a")


def test_a_cache_that_cannot_be_written_is_done_without(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    fill(store, 9)
    (tmp_path / ".cache").write_text("no folder")
    assert store.read("attention_weights", "a").equals(straight(store))
    (tmp_path / ".cache").unlink()
    store.read("attention_weights", "a")
    store.delete("attention_weights", "a", "sub-000")

    def full(batches: Iterator[partitions.Batch]) -> Iterator[partitions.Batch]:
        yield from list(batches)[:1]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments, "_pieces", full)
    for i in range(1, 6):
        write(store, f"sub-{i:03d}", 9)
    assert store.read("attention_weights", "a").equals(straight(store))
    store.gather("attention_weights", "a").opened.close()
    assert known(store) == {}, "rows that have to go leave the cache even if no new one can be written"
    assert [path for path in (tmp_path / ".cache").rglob("*") if path.is_file()] == []


# --------------------------------------------------------------------------------------------- neither seen nor kept
def test_the_cache_is_no_table_and_its_leftovers_are_cleaned(small: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 9)
    store.read("attention_weights")
    assert known(store)
    assert store.studies() == ["a"]
    assert len(store.files("attention_weights")) == len(store.partitions("attention_weights", "a")) == 9
    assert len(store.files("attention_weights", partition="sub-001")) == 1
    stale = tmp_path / ".cache/attention_weights/a/.0-base"
    stale.write_bytes(b"")
    assert store.clean() == 0
    os.utime(stale, (0, 0))
    assert store.clean() == 1
    assert known(store)
    assert publish(tmp_path, tmp_path / "results.duckdb", tmp_path / "no sql")["attention_weights"] == 18


def test_publishing_forgets_the_rows_of_removed_partitions(small: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 30)
    store.read("attention_weights", "a")
    store.delete("attention_weights", "a", "sub-007")
    store.read("attention_weights", "a")
    assert "sub-007.parquet" in known(store)["base"], "one is not worth writing all anew"
    publish(tmp_path, tmp_path / "results.duckdb", tmp_path / "no sql")
    assert "sub-007.parquet" not in known(store)["base"]
    assert b"sub-007" not in (tmp_path / ".cache/attention_weights/a/base").read_bytes()
    for i in range(3, 30):
        store.delete("attention_weights", "a", f"sub-{i:03d}")
    publish(tmp_path, tmp_path / "results.duckdb", tmp_path / "no sql")
    assert [path for path in (tmp_path / ".cache").rglob("*") if path.is_file()] == []


# ------------------------------------------------------------------------------------------------------------- costs
def test_only_what_changed_is_read_and_writing_stays_in_proportion(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    path = write(store, "sub-0000", 0.5)
    for i in range(1, 2000):
        copy = path.with_name(f"sub-{i:04d}.parquet")
        copy.write_bytes(path.read_bytes())
        os.utime(copy, (0, next(OLD)))
    written: list[tuple[str, int]] = []
    whole = cache.write_segment

    def noted(path: Path, table: Table, batches: Iterator[partitions.Batch]) -> None:
        whole(path, table, batches)
        with ExitStack() as stack:
            segment = segments.Segment.open(path, table)
            assert segment
            written.append((path.name, len(stack.enter_context(segment).stamps)))

    monkeypatch.setattr(cache, "write_segment", noted)

    def read_after(changed: int) -> int:
        for name in random.Random(0).sample(range(2000), changed):
            write(store, f"sub-{name:04d}", 0.25)
        opened.clear()
        store.read("attention_weights", "a")
        return len(opened)

    assert read_after(0) == 2000
    assert written == [("base", 2000)]
    assert read_after(0) == 0
    assert read_after(1) == 1
    assert read_after(63) == 63
    assert written == [("base", 2000)], "64 changes before anything is written"
    assert read_after(80) == 80
    assert written[1:] == [("recent", 80)]
    assert read_after(20) == 20
    assert read_after(190) == 190
    assert written[2:] == [("recent", 190)]
    assert read_after(201) == 201
    assert written[3:] == [("base", 2000)]
    assert read_after(0) == 0
    assert known(store).keys() == {"base"}


def test_few_files_have_no_cache(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 199)
    store.read("attention_weights")
    assert not (tmp_path / ".cache").exists()
    fill(store, 200)
    store.read("attention_weights")
    assert known(store).keys() == {"base"}


def test_the_index_is_what_it_says(small: None, tmp_path: Path) -> None:
    """The format in words: pieces of Parquet, an index in JSON, its length, a CRC-32 and the kind of file."""
    store = Store(tmp_path)
    fill(store, 9)
    store.read("attention_weights", "a")
    content = (tmp_path / ".cache/attention_weights/a/base").read_bytes()
    length, _checksum, kind = segments._END.unpack(content[-segments._END.size :])
    index = json.loads(content[-segments._END.size - length : -segments._END.size])
    assert kind == b"rowseg-1"
    assert index["files"] == [f"sub-{i:03d}.parquet" for i in range(9)]
    assert index["rows"] == [2] * 9
    frames = []
    for _files, place, size in index["pieces"]:
        frames.append(pl.read_parquet(content[place : place + size]))
    assert len(frames) > 1
    assert pl.concat(frames).equals(straight(store))


# --------------------------------------------------------------------------------------------------- many processes
PARTITIONS = 24
READS, FROM_CACHE = 2, 3  # places in `state`; 0 and 1: whether that writer has ended


def hurried() -> None:
    """A small cache, written often; files are remembered after 40 ms, several ticks of the clock."""
    cache._FEW, cache._WORTH_WRITING, cache._SHARE, segments._PIECE_ROWS = 4, 2, 4, 10
    cache._YOUNG_NS = 40_000_000
    cache._PATIENCE_S = 0.2


def write_versions(root: Path, versions: SynchronizedArray, worker: int, state: SynchronizedArray) -> None:
    """Write partitions of this worker again and again; `versions` says which version surely lies there."""
    store, chance = Store(root), random.Random(worker)
    while state[READS] < 4:
        time.sleep(0.01)
    for _ in range(60):
        mine = chance.randrange(worker, PARTITIONS, 2)
        version = versions[mine] + 1
        store.write("attention_weights", "a", f"sub-{mine}", weights(f"sub-{mine}", *[version] * 3))
        versions[mine] = version
        if chance.random() < 0.03:
            shutil.rmtree(root / ".cache", ignore_errors=True)
        time.sleep(chance.choice([0.0, 0.01, 0.1]))
    state[worker] = 1


def read_versions(root: Path, versions: SynchronizedArray, state: SynchronizedArray) -> None:
    hurried()
    store, writing = Store(root), True
    while writing:
        writing = not (state[0] and state[1])
        before = list(versions)
        frames = [store.read("attention_weights", "a")]
        with suppress(cache.Unsettled), store.gather("attention_weights", "a") as gathered:
            state[FROM_CACHE] += sum(len(names) for _, names in gathered.segments)
            frames.append(gathered.frame())
        for frame in frames:
            after = list(versions)
            assert frame.height == 3 * PARTITIONS
            seen = frame.group_by("scan").agg(pl.col("weight").min().alias("low"), pl.col("weight").max().alias("high"))
            for scan, low, high in seen.iter_rows():
                number = int(scan.removeprefix("sub-"))
                assert low == high, "rows of two versions"
                assert before[number] <= low <= after[number] + 1, "not the version that lay there"
        state[READS] += 1


def test_processes_that_read_and_write_at_once_never_see_wrong_rows(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for i in range(PARTITIONS):
        store.write("attention_weights", "a", f"sub-{i}", weights(f"sub-{i}", 0, 0, 0))
    context = multiprocessing.get_context("spawn")
    versions, state = context.Array("q", PARTITIONS), context.Array("q", 4)
    writers = [context.Process(target=write_versions, args=(tmp_path, versions, w, state)) for w in range(2)]
    readers = [context.Process(target=read_versions, args=(tmp_path, versions, state)) for _ in range(2)]
    for process in (*writers, *readers):
        process.start()
    for process in readers:
        process.join()
    for process in writers:
        process.kill()  # only if the readers failed
        process.join()
    assert [process.exitcode for process in readers] == [0, 0]
    assert sum(versions) == 120
    assert state[FROM_CACHE] > 0, "the cache was in use"


def test_the_database_is_the_same_with_and_without_a_cache(small: None, tmp_path: Path) -> None:
    store = Store(tmp_path / "tables")
    fill(store, 12)

    def published() -> list[tuple]:
        publish(store.root, tmp_path / "results.duckdb", tmp_path / "no sql")
        with duckdb.connect(str(tmp_path / "results.duckdb"), read_only=True) as connection:
            return connection.sql("FROM attention_weights ORDER BY ALL").fetchall()

    without = published()
    assert known(store)
    assert published() == without == straight(store).rows()
    write(store, "sub-003", 8, 8)
    store.delete("attention_weights", "a", "sub-005")
    assert published() == straight(store).rows()
