"""Publishing: whole and checked or not at all, whoever is reading, however it is interrupted."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from relevance_assets.tables import cache
from relevance_assets.tables import database as tables_database
from relevance_assets.tables.cache import Gathered
from relevance_assets.tables.database import PublishError, leading_comment, publish
from relevance_assets.tables.partitions import Batch
from relevance_assets.tables.query import run_query
from relevance_assets.tables.schema import TABLES, Table
from relevance_assets.tables.store import Store

SQL = Path(__file__).parents[2] / "sql"


def scans(*labels: str, status: str = "ok") -> pl.DataFrame:
    rows = [{"scan": f"sub-{x}", "participant_id": f"sub-{x}", "status": status} for x in labels]
    return pl.DataFrame(rows)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with two scans, published."""
    Store(tmp_path / "tables").write("scans", "demo", "all", scans("1", "2"))
    publish(tmp_path / "tables", tmp_path / "results.duckdb", SQL)
    return tmp_path


def names(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir())


def count(home: Path) -> int:
    return run_query(home / "results.duckdb", "SELECT count(*) FROM scans").item()


# ------------------------------------------------------------------------------------------------- contents
def test_the_database_holds_what_the_store_holds(filled: Store, database: Path) -> None:
    for name, table in TABLES.items():
        keys = ", ".join(f'"{name}"' for name in table.key)  # some are words of SQL
        stored = run_query(database, f"SELECT * FROM {name} ORDER BY {keys}")
        assert stored.schema == pl.Schema(table.schema)
        assert stored.height > 0
        assert stored.equals(filled.read(name)), name


def test_every_table_and_column_carries_its_description(database: Path) -> None:
    tables = run_query(database, "SELECT table_name, comment FROM duckdb_tables()")
    assert dict(tables.rows()) == {name: table.description for name, table in TABLES.items()}
    columns = run_query(
        database,
        "SELECT c.table_name, c.column_name, c.comment, c.is_nullable FROM duckdb_columns() AS c "
        "JOIN duckdb_tables() USING (table_name)",
    )
    declared = {(t.name, c.name, c.description, c.nullable) for t in TABLES.values() for c in t.columns}
    assert set(columns.rows()) == declared
    views = run_query(database, "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal")
    assert dict(views.rows()) == {
        file.stem: leading_comment(file.read_text()) for file in (SQL / "views").glob("*.sql")
    }
    assert all(comment for _, comment in views.rows())


def test_primary_keys_are_declared(database: Path) -> None:
    keys = run_query(
        database,
        "SELECT table_name, constraint_column_names FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'",
    )
    assert {name: tuple(key) for name, key in keys.rows()} == {t.name: t.key for t in TABLES.values()}


def test_an_empty_store_makes_an_empty_database(tmp_path: Path) -> None:
    counts = publish(tmp_path / "tables", tmp_path / "new" / "results.duckdb", SQL)
    assert counts == dict.fromkeys(TABLES, 0)
    assert run_query(tmp_path / "new" / "results.duckdb", "FROM scan_overview").height == 0


def test_counts_are_returned_and_nothing_else_is_left(home: Path) -> None:
    Store(home / "tables").write("scans", "other", "all", scans("3"))
    counts = publish(home / "tables", home / "results.duckdb", SQL)
    assert counts["scans"] == 3
    assert sum(counts.values()) == 3
    assert names(home) == ["results.duckdb", "tables"]


def test_the_file_can_be_read_by_older_programs(database: Path) -> None:
    with duckdb.connect(str(database), read_only=True) as connection:
        tags = dict(connection.sql("SELECT database_name, tags FROM duckdb_databases()").fetchall())
    assert tags[database.stem]["storage_version"].startswith("v1.0.0")


# ------------------------------------------------------------------------------------------------- refusals
def refused(home: Path, sql: Path = SQL, tables: Path | None = None) -> str:
    """The one line with which publishing fails; the old database stays as it was and nothing is left over."""
    before = (home / "results.duckdb").read_bytes()
    with pytest.raises(PublishError) as caught:
        publish(tables or home / "tables", home / "results.duckdb", sql)
    assert (home / "results.duckdb").read_bytes() == before
    assert [n for n in names(home) if n.startswith("results")] == ["results.duckdb"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_key_in_two_partitions_is_refused(home: Path) -> None:
    Store(home / "tables").write("scans", "demo", "again", scans("2"))
    assert refused(home) == ("table scans, key (study, scan): more than one row with study=demo, scan=sub-2")


def test_a_value_that_is_not_finite_is_refused(home: Path) -> None:
    path = home / "tables/scans/demo/all.parquet"
    pl.read_parquet(path).with_columns(age=pl.Series([50.0, float("inf")])).write_parquet(path)
    assert refused(home) == "table scans, column age: inf at study=demo, scan=sub-2"


def test_a_spoilt_file_is_refused_by_name(home: Path) -> None:
    path = home / "tables/scans/demo/all.parquet"
    path.write_bytes(path.read_bytes()[:200])
    assert str(path) in refused(home)


def test_rows_that_get_lost_are_noticed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Gathered.batches
    monkeypatch.setattr(Gathered, "batches", lambda g: (replace(b, frame=b.frame.head(1)) for b in whole(g)))
    assert refused(home) == "table scans: 1 rows in the database, 2 in its files"


def test_a_table_that_never_settles_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cache.read_batches

    def write_meanwhile(table: Table, folder: Path, names: list[str]) -> list[Batch]:
        batches = list(whole(table, folder, names))
        if table.name == "scans":
            Store(home / "tables").write("scans", "demo", "all", scans("1", "2"))
        return batches

    monkeypatch.setattr(cache, "read_batches", write_meanwhile)
    monkeypatch.setattr(cache, "_PATIENCE_S", 0.5)
    assert refused(home) == "table scans of demo is being written; publish again when that has ended"


@pytest.mark.parametrize("change", ["write", "replace", "delete"])
def test_a_change_while_reading_is_in_the_database_whole(
    home: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    store, whole = Store(home / "tables"), cache.read_batches
    store.write("scans", "demo", "more", scans("3"))
    changes = {
        "write": lambda: store.write("scans", "demo", "new", scans("4")),
        "replace": lambda: store.write("scans", "demo", "more", scans("5", "6")),
        "delete": lambda: store.delete("scans", "demo", "more"),
    }
    due = [changes[change]]

    def write_once(table: Table, folder: Path, names: list[str]) -> list[Batch]:
        if table.name == "scans" and due:
            due.pop()()
        return list(whole(table, folder, names))

    monkeypatch.setattr(cache, "read_batches", write_once)
    publish(home / "tables", home / "results.duckdb", SQL)
    assert count(home) == {"write": 4, "replace": 4, "delete": 2}[change]


def test_a_key_twice_is_refused_in_a_table_too_large_for_an_index(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_database, "_INDEXED_ROWS", 1)
    publish(home / "tables", home / "results.duckdb", SQL)
    query = "SELECT table_name FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'"
    assert set(run_query(home / "results.duckdb", query)["table_name"]) == set(TABLES) - {"scans"}
    Store(home / "tables").write("scans", "demo", "again", scans("2"))
    assert refused(home) == ("table scans, key (study, scan): more than one row with study=demo, scan=sub-2")


def test_equal_hashes_of_different_keys_are_no_duplicates(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.DataFrame, "hash_rows", lambda frame: pl.Series([7] * frame.height, dtype=pl.UInt64))
    Store(home / "tables").write("scans", "demo", "more", scans("3"))
    publish(home / "tables", home / "results.duckdb", SQL)
    assert count(home) == 3
    Store(home / "tables").write("scans", "demo", "again", scans("2"))
    assert "more than one row with study=demo, scan=sub-2" in refused(home)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 6 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_in_one_line_and_the_old_database_stays(tmp_path: Path, tiny_disk: Path) -> None:
    store = Store(tmp_path / "tables")
    store.write("scans", "demo", "all", scans("1", "2"))
    publish(store.root, tiny_disk / "results.duckdb", SQL)
    numbers = np.random.default_rng(0).permutation(150_000).astype(str)
    store.write("scans", "demo", "all", scans(*numbers).with_columns(other="participant_id"))
    assert refused(tiny_disk, tables=store.root) == (
        f"{tiny_disk / 'results.duckdb'} could not be built, the old one stays: "
        "its disk is full; make room and publish again"
    )
    assert names(tiny_disk) == ["results.duckdb"]
    assert count(tiny_disk) == 2
    store.write("scans", "demo", "all", scans("1", "2", "3"))
    publish(store.root, tiny_disk / "results.duckdb", SQL)
    assert count(tiny_disk) == 3


@pytest.mark.parametrize(
    ("folder", "text", "words"),
    [
        ("views", "SELECT colour FROM scans", "colour"),
        ("views", "SELECT * FROM nowhere", "nowhere"),
        ("views", "SELEC 1", "syntax error"),
        ("views", "SELECT 1; SELECT 2", "exactly one SELECT"),
        ("views", "DROP TABLE scans", "exactly one SELECT"),
        ("views", "-- only a comment", "exactly one SELECT"),
        ("views", "SELECT error('boom') AS x FROM scans", "boom"),
        ("checks", "SELECT colour FROM scans", "colour"),
        (
            "checks",
            "-- No scan is called 2.\nSELECT scan FROM scans WHERE scan = 'sub-2'",
            "No scan is called 2.",
        ),
    ],
)
def test_broken_sql_is_refused_by_file(home: Path, folder: str, text: str, words: str) -> None:
    file = home / "sql" / folder / "mine.sql"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    message = refused(home, home / "sql")
    assert "mine.sql" in message
    assert words in message


def test_a_view_may_use_another_that_comes_later(home: Path) -> None:
    folder = home / "sql" / "views"
    folder.mkdir(parents=True)
    (folder / "a.sql").write_text("-- Twice b.\nSELECT 2 * n AS n FROM b;\n")
    (folder / "b.sql").write_text("SELECT count(*) AS n FROM scans")
    publish(home / "tables", home / "results.duckdb", home / "sql")
    assert run_query(home / "results.duckdb", "FROM a").item() == 4


def predictions(**columns: str) -> pl.DataFrame:
    row = {"model": "net", "fold": "0", "scan": "sub-1", "set": "test", "target": 1, "output": 0.0}
    return pl.DataFrame([{**row, **columns}])


def split(*rows: tuple[str, str, str, int | None]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["scan", "participant_id", "set", "fold"], orient="row")


SPLIT = split(("sub-1", "sub-1", "train", 0), ("sub-2", "sub-2", "test", None))
MAP = pl.DataFrame([{"method": "lrp", "fold": "1", "scan": "sub-1", "contrast": "T1w", "path": "x", "total": 1}])
RULE = pl.DataFrame(
    [
        {"scan": "sub-1", "explained": "true", "map": "grad_cam", "measure": "iou at 0.95", "score": "iou"}
        | {"method": "grad_cam", "truth_pixels": 1, "pixels": 9}
    ]
)
MASK = pl.DataFrame(
    [
        {"method": "l", "scan": "sub-1", "contrast": "T1w", "sign": "positive"}
        | {"top_percent": 10, "voxels": 1, "volume_mm3": 1}
    ]
)


@pytest.mark.parametrize(
    ("check", "tables"),
    [
        ("participant_in_two_sets", {
            "scans": scans("1", "2").with_columns(participant_id=pl.lit("p")),
            "splits": split(("sub-1", "p", "train", 0), ("sub-2", "p", "test", None))}),
        ("participant_in_two_sets", {
            "scans": scans("1", "2").with_columns(participant_id=pl.lit("p")),
            "splits": split(("sub-1", "p", "train", 0), ("sub-2", "p", "train", 1))}),
        ("prediction_without_scan", {"predictions": predictions(scan="sub-9")}),
        ("prediction_without_scan", {"predictions": predictions(), "scans": scans("1", status="failed")
            .with_columns(reason=pl.lit("broken"))}),
        ("prediction_in_the_wrong_set", {"predictions": predictions(), "splits": SPLIT}),
        ("prediction_in_the_wrong_set", {"splits": SPLIT,
            "predictions": predictions(set="validation", fold="1")}),
        ("map_by_a_model_that_saw_the_scan", {"relevance_maps": MAP, "splits": SPLIT}),
        ("map_by_a_model_that_saw_the_scan", {"relevance_maps": MAP.with_columns(fold=pl.lit("ensemble")),
            "splits": SPLIT}),
        ("map_by_a_model_that_saw_the_scan", {"relevance_maps": MAP}),
        ("rules_on_slices_that_were_learnt", {"rule_grid": RULE}),
        ("rules_on_slices_that_were_learnt", {"rule_grid": RULE, "splits": split(("sub-1", "sub-1", "train", None))}),
        ("words", {"splits": split(("sub-1", "sub-1", "left", None))}),
        ("mask_without_map", {"quantile_masks": MASK}),
        ("split_without_scan", {"splits": split(("sub-9", "sub-9", "train", 0))}),
        ("split_without_scan", {"splits": split(("sub-1", "sub-2", "train", 0))}),
        ("words", {"splits": split(("sub-1", "sub-1", "Train", 0))}),
        ("reason_for_every_failure", {"scans": scans("1", status="failed")}),
        ("attention_sums_to_one", {"attention_weights": pl.DataFrame(
            [{"model": "net", "fold": "0", "scan": "sub-1", "contrast": "qT1", "weight": 0.9}])}),
    ],
)  # fmt: skip
def test_a_check_that_finds_rows_stops_publishing(home: Path, check: str, tables: dict) -> None:
    for name, frame in tables.items():
        Store(home / "tables").write(name, "demo", "all", frame)
    assert f"check {check}.sql (" in refused(home)


# -------------------------------------------------------------------------------------- others at the file
ANALYST = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
if sys.argv[2] == "write":
    connection.execute("CREATE TABLE mine AS SELECT 1 AS x")
print(connection.sql("SELECT count(*) FROM scans").fetchall()[0][0], flush=True)
for line in sys.stdin:
    print(connection.sql("SELECT count(*) FROM scans").fetchall()[0][0], flush=True)
"""


@pytest.mark.parametrize("mode", ["read", "write"])
@pytest.mark.parametrize("killed", [False, True])
def test_publishing_while_an_analyst_has_the_file_open(home: Path, mode: str, killed: bool) -> None:
    command = [sys.executable, "-c", ANALYST, str(home / "results.duckdb"), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as analyst:
        assert analyst.stdin is not None
        assert analyst.stdout is not None
        assert analyst.stdout.readline() == "2\n"
        Store(home / "tables").write("scans", "demo", "more", scans("3"))
        publish(home / "tables", home / "results.duckdb", SQL)
        assert count(home) == 3, "new sessions see the new data"
        print("again", file=analyst.stdin, flush=True)
        assert analyst.stdout.readline() == "2\n", "the open session keeps what it had"
        if killed:
            analyst.kill()
        else:
            analyst.stdin.close()
    assert count(home) == 3
    publish(home / "tables", home / "results.duckdb", SQL)
    assert count(home) == 3


WRITER = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("open", flush=True)
for number, line in enumerate(sys.stdin):
    connection.execute(f"CREATE TABLE mine{number} AS SELECT * FROM scans")
    print(connection.sql(f"SELECT count(*) FROM mine{number}").fetchall()[0][0], flush=True)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_an_analyst_who_begins_to_write_after_publishing_goes_on_and_so_does_publishing(
    home: Path, killed: bool
) -> None:
    command = [sys.executable, "-c", WRITER, str(home / "results.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as analyst:
        assert analyst.stdin is not None
        assert analyst.stdout is not None
        assert analyst.stdout.readline() == "open\n"
        for label in ("3", "4"):
            Store(home / "tables").write("scans", "demo", label, scans(label))
            publish(home / "tables", home / "results.duckdb", SQL)
            assert count(home) == int(label), "new sessions see the new data"
            print("write", file=analyst.stdin, flush=True)
            assert analyst.stdout.readline() == "2\n", "the open session writes into what it had"
        if killed:
            analyst.kill()
        else:
            analyst.stdin.close()
    publish(home / "tables", home / "results.duckdb", SQL)
    assert count(home) == 4


SLOW = """-- Takes for ever.
SELECT a.range FROM range(10_000_000) a, range(10_000_000) b WHERE a.range + b.range < 0"""


def test_a_killed_build_leaves_the_old_database_and_is_cleaned_up(home: Path) -> None:
    (home / "sql/checks").mkdir(parents=True)
    (home / "sql/checks/slow.sql").write_text(SLOW)
    Store(home / "tables").write("scans", "demo", "more", scans("3"))
    program = (
        "from pathlib import Path; from relevance_assets.tables.database import publish; "
        f"h = Path({str(home)!r}); publish(h / 'tables', h / 'results.duckdb', h / 'sql')"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as builder:
        owner = f"results.duckdb.tmp-{socket.gethostname()}-{builder.pid}-"
        deadline = time.monotonic() + 30
        while not any(name.startswith(owner) for name in names(home)) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        assert builder.poll() is None, "still at the slow check"
        builder.send_signal(signal.SIGKILL)
    assert any(name.startswith(owner) for name in names(home))
    assert count(home) == 2
    publish(home / "tables", home / "results.duckdb", SQL)
    assert count(home) == 3
    assert names(home) == ["results.duckdb", "sql", "tables"]


def test_only_stale_temporary_files_are_removed(home: Path) -> None:
    host, prefix = socket.gethostname(), "results.duckdb.tmp-"
    at_work = home / f"{prefix}{host}-{os.getppid()}-0.wal"
    elsewhere, old = home / f"{prefix}elsewhere-1-0", home / f"{prefix}elsewhere-2-0"
    dead = home / f"{prefix}{host}-{2**22 + 1}-0.wal"
    for path in (at_work, elsewhere, old, dead):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    publish(home / "tables", home / "results.duckdb", SQL)
    assert at_work.exists()
    assert elsewhere.exists()
    assert not old.exists()
    assert not dead.exists()


def test_leading_comment() -> None:
    assert leading_comment("\n-- One\n-- two?\nSELECT 1 -- three") == "One two?"
    assert leading_comment("SELECT 1") == ""
