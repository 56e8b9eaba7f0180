"""The published database: built anew from the Parquet store, checked, and put in place in one step.

Belongs here: how `results.duckdb` comes about. It is made under a temporary name and renamed, so an analyst
who has the old file open keeps reading it, and a build that fails or is killed changes nothing. What an
analyst wrote into the published file does not survive the next publishing.
Does not belong here: reading it (`query.py`); no stage of the pipeline reads it.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from relevance_assets.tables.cache import Gathered, Unsettled
from relevance_assets.tables.schema import TABLES, Table, TableError
from relevance_assets.tables.store import Store

__all__ = ["PublishError", "publish", "leading_comment", "duckdb_type"]

# Written so that DuckDB 1.x command lines open the file too.
_STORAGE_VERSION = "v1.0.0"
_DAY_S = 24 * 3600.0
# What does not fit is spilt beside the database. Rows are inserted in batches, so more would not make it faster.
_MEMORY = "300MB"
# An index of 2.4 million keys takes longer to make than the table, and 300 MB of memory that cannot be spilt.
# Keys are unique in larger tables too, only no index says so.
_INDEXED_ROWS = 200_000
_ARROW = pl.CompatLevel.newest()
_TYPES = {pl.String: "VARCHAR", pl.Int64: "BIGINT", pl.Float64: "DOUBLE", pl.Boolean: "BOOLEAN"}


class PublishError(ValueError):
    """The tables are not fit to be published; the old database stays."""


def publish(tables: Path, database: Path, sql: Path) -> dict[str, int]:
    """Build the database from all Parquet files and put it in the old one's place.

    Parameters
    ----------
    tables : root of the Parquet store.
    database : the file to replace, e.g. `results.duckdb`.
    sql : folder with `views/*.sql` (one SELECT each, the view has the file's name) and `checks/*.sql` (one
        SELECT each, which must find no rows).

    Returns
    -------
    Number of rows of each table.

    Raises
    ------
    PublishError
        A file that does not fit its table, a duplicate key, a value that is not finite, a row count that
        differs from the files', a broken view or a check that found rows. The old database stays.
    """
    store = Store(tables)
    store.clean()
    database = Path(database).resolve()
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(database)
        with _temporary(database) as temporary:
            counts = _build(temporary, store, sql)
            _replace(temporary, database)
    except (duckdb.Error, OSError) as error:
        full = "No space left" in str(error)
        reason = "its disk is full; make room and publish again" if full else _line(error)
        raise PublishError(f"{database} could not be built, the old one stays: {reason}") from error
    return counts


def _build(temporary: Path, store: Store, sql: Path) -> dict[str, int]:
    """Make the database and close it; the number of rows of each table."""
    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute(f"SET temp_directory = {_quoted(f'{temporary}.spilt')}")
        connection.execute(f"ATTACH {_quoted(str(temporary))} AS published (STORAGE_VERSION '{_STORAGE_VERSION}')")
        connection.execute("USE published")
        connection.execute("SET threads = 1")  # several write row groups twice, and are no faster
        connection.execute("BEGIN")  # one transaction: a thousand small ones would each wait for the disk
        counts = {name: _load(connection, table, store) for name, table in TABLES.items()}
        connection.execute("COMMIT")
        connection.execute("RESET threads")
        connection.execute("BEGIN")
        for name, table in TABLES.items():
            if counts[name] <= _INDEXED_ROWS:
                connection.execute(f'ALTER TABLE "{name}" ADD PRIMARY KEY ({_columns(table.key)})')
        connection.execute("COMMIT")
        _create_views(connection, sql / "views")
        _run_checks(connection, sql / "checks")
        connection.execute("CHECKPOINT published")
        connection.execute("USE memory")
        connection.execute("DETACH published")
    return counts


def leading_comment(text: str) -> str:
    """The comment lines at the top of an SQL text, as one line; '' if there are none."""
    lines = []
    for line in text.lstrip().splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    return " ".join(lines).strip()


def duckdb_type(dtype: pl.DataType) -> str:
    """Name of the DuckDB type of a declared polars type."""
    return "TIMESTAMP" if isinstance(dtype, pl.Datetime) else _TYPES[type(dtype)]


# ------------------------------------------------------------------------------------------------- contents
def _load(connection: duckdb.DuckDBPyConnection, table: Table, store: Store) -> int:
    """Create one table with its comments, fill it study by study, and verify keys, values and count."""
    columns = [f'"{c.name}" {duckdb_type(c.dtype)}{"" if c.nullable else " NOT NULL"}' for c in table.columns]
    connection.execute(f'CREATE TABLE "{table.name}" ({", ".join(columns)})')
    connection.execute(f'COMMENT ON TABLE "{table.name}" IS {_quoted(table.description)}')
    for column in table.columns:
        connection.execute(f'COMMENT ON COLUMN "{table.name}"."{column.name}" IS {_quoted(column.description)}')
    expected = 0
    for study in store.studies():
        with _gather(table, store, study) as gathered:
            expected += gathered.rows
            if gathered.rows:
                _insert(connection, table, gathered)
    stored = _number(connection, f'SELECT count(*) FROM "{table.name}"')
    if stored != expected:
        raise PublishError(f"table {table.name}: {stored} rows in the database, {expected} in its files")
    return stored


def _gather(table: Table, store: Store, study: str) -> Gathered:
    try:
        return store.gather(table.name, study)
    except TableError as error:
        raise PublishError(str(error)) from error
    except Unsettled as error:
        raise PublishError(
            f"table {table.name} of {study} is being written; publish again when that has ended"
        ) from error


def _insert(connection: duckdb.DuckDBPyConnection, table: Table, gathered: Gathered) -> None:
    """Put a study's rows into the database, piece by piece, if they are finite and their keys are unique."""
    hashes: list[pl.Series] = []
    refusals: list[PublishError] = []

    def pieces() -> Iterator[pa.RecordBatch]:
        for batch in gathered.batches():
            # Sorted where it costs nothing; it took longer than all else in a table of millions, and SQL has no order.
            frame = batch.frame if gathered.segments else batch.frame.sort(table.key)
            try:
                _check_finite(table, frame)
            except PublishError as refusal:  # DuckDB would tell it in its own words
                refusals.append(refusal)
                return
            hashes.append(frame.select(table.key).hash_rows())
            yield from frame.to_arrow(compat_level=_ARROW).to_batches()

    schema = table.empty().to_arrow(compat_level=_ARROW).schema
    connection.register("incoming", pa.RecordBatchReader.from_batches(schema, pieces()))
    connection.execute(f'INSERT INTO "{table.name}" BY NAME SELECT * FROM incoming')
    connection.unregister("incoming")
    if refusals:
        raise refusals[0]
    if pl.concat(hashes).is_duplicated().any():
        _refuse_doubled(connection, table)


def _refuse_doubled(connection: duckdb.DuckDBPyConnection, table: Table) -> None:
    """Look for a key that is there twice: hashes say so, but of many keys two may have one hash by chance."""
    key = _columns(table.key)
    query = f'SELECT {key} FROM "{table.name}" GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1'
    doubled = connection.execute(query).fetchall()
    if doubled:
        where = ", ".join(f"{name}={value}" for name, value in zip(table.key, doubled[0], strict=True))
        raise PublishError(f"table {table.name}, key ({', '.join(table.key)}): more than one row with {where}")


def _check_finite(table: Table, frame: pl.DataFrame) -> None:
    for column in table.columns:
        if column.dtype.is_float() and not frame[column.name].is_finite().all():
            bad = frame.filter(~pl.col(column.name).is_finite())
            where = ", ".join(f"{name}={bad[name][0]}" for name in table.key)
            raise PublishError(f"table {table.name}, column {column.name}: {bad[column.name][0]} at {where}")


def _create_views(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """One view per file, whatever their order: a view that needs another waits for it."""
    waiting = sorted(folder.glob("*.sql"))
    while waiting:
        failed: dict[Path, duckdb.Error] = {}
        for file in waiting:
            text = file.read_text()
            try:
                connection.execute(f'CREATE VIEW "{file.stem}" AS {_one_select(file, text)}')
                connection.execute(f'SELECT * FROM "{file.stem}" LIMIT 1000').fetchall()
            except duckdb.CatalogException as error:
                failed[file] = error
            except duckdb.Error as error:
                raise PublishError(f"view {file}: {_line(error)}") from error
            else:
                comment = _quoted(leading_comment(text))
                connection.execute(f'COMMENT ON VIEW "{file.stem}" IS {comment}')
        if len(failed) == len(waiting):
            file, reason = next(iter(failed.items()))
            raise PublishError(f"view {file}: {_line(reason)}")
        waiting = list(failed)


def _run_checks(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    for file in sorted(folder.glob("*.sql")):
        text = file.read_text()
        try:
            found = connection.sql(_one_select(file, text)).pl()
        except duckdb.Error as error:
            raise PublishError(f"check {file}: {_line(error)}") from error
        if found.height:
            first = ", ".join(f"{name}={value}" for name, value in found.row(0, named=True).items())
            raise PublishError(f"check {file.name} ({leading_comment(text)}) found {found.height} rows, first: {first}")


def _one_select(file: Path, text: str) -> str:
    """The file's only statement, which must be a SELECT."""
    try:
        statements = duckdb.extract_statements(text)
    except duckdb.Error as error:
        raise PublishError(f"{file}: {_line(error)}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise PublishError(f"{file}: must hold exactly one SELECT")
    return statements[0].query.strip().removesuffix(";")


# ---------------------------------------------------------------------------------------------------- files
@contextmanager
def _temporary(database: Path) -> Iterator[Path]:
    """A name beside `database` that says which process is at work; whatever is left there is removed."""
    owner = f"{socket.gethostname()}-{os.getpid()}"
    path = database.with_name(f"{database.name}.tmp-{owner}-{uuid.uuid4().hex[:8]}")
    try:
        yield path
    finally:
        for leftover in database.parent.glob(f"{path.name}*"):
            _remove(leftover)


def _replace(temporary: Path, database: Path) -> None:
    """Rename, without leaving an analyst's write-ahead log beside a file that it does not belong to."""
    log = database.with_name(f"{database.name}.wal")
    log.unlink(missing_ok=True)
    os.replace(temporary, database)  # noqa: PTH105  atomic, also onto an existing file
    log.unlink(missing_ok=True)


def _remove_stale(database: Path) -> None:
    """Remove what killed builds left: those of dead processes of this machine, and any older than a day."""
    for path in database.parent.glob(f"{database.name}.tmp-*"):
        host, _, rest = path.name.removeprefix(f"{database.name}.tmp-").rpartition("-")[0].rpartition("-")
        dead = host == socket.gethostname() and rest.isdigit() and not _alive(int(rest))
        with suppress(FileNotFoundError):
            if dead or path.stat().st_mtime < time.time() - _DAY_S:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _number(connection: duckdb.DuckDBPyConnection, query: str, values: dict | None = None) -> int:
    # fetchall: DuckDB 2 refuses other work on a connection whose last result was not read to its end
    return int(connection.execute(query, values).fetchall()[0][0])


def _columns(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
