"""Reading partition files: which there are, and the rows of many of them at once.

A file is opened once, and what is said of it (time, size, inode) is said of what was opened: whatever others put in
its place meanwhile, the rows are one writer's, and it is known whose.

Belongs here: files of one study and table. Does not belong here: keeping their rows (`cache.py`), where they lie
(`store.py`), what a table is (`table.py`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from relevance_assets.tables.table import Table, TableError

__all__ = ["Batch", "Stamp", "look", "read_batches", "read_files"]

Stamp = tuple[int, int, int]  # time of change in ns, size, inode: files are never changed in place, only replaced

_FILES_AT_ONCE = 256


@dataclass(frozen=True)
class Batch:
    """Rows of some partition files, file after file; `rows` is how many each file's own footer states."""

    frame: pl.DataFrame
    files: list[str]
    stamps: list[Stamp]
    rows: list[int]

    def only(self, wanted: Collection[str]) -> Batch:
        """The part of it that comes from the files `wanted`."""
        keep = [name in wanted for name in self.files]
        if all(keep):
            return self
        frame = self.frame.filter(pl.Series(np.repeat(np.array(keep, bool), self.rows), dtype=pl.Boolean))
        return Batch(frame, *([x for x, k in zip(xs, keep, strict=True) if k] for xs in self._of_files))

    @property
    def _of_files(self) -> tuple[list, list, list]:
        return self.files, self.stamps, self.rows

    @staticmethod
    def joined(batches: list[Batch]) -> Batch:
        lists = ([x for batch in batches for x in batch._of_files[i]] for i in range(3))
        return Batch(pl.concat([batch.frame for batch in batches]), *lists)


def look(folder: Path) -> dict[str, Stamp]:
    """Names of the partition files in a folder, in no order, with their stamps; no writers' temporary files."""
    found = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.endswith(".parquet") and not name.startswith("."):
                try:
                    found[name] = _stamp(entry.stat())
                except FileNotFoundError:
                    continue  # removed meanwhile
    return found


def read_files(table: Table, files: list[Path]) -> pl.DataFrame:
    """Rows of `files` in the order given, with the table's schema; files that have gone are left out.

    A nullable column that an older file lacks is null.

    Raises
    ------
    TableError
        A file that cannot be read as this table: it names the file.
    """
    contents = _contents(table, files)
    return _decode(table, [path for path, _, _ in contents], [content for _, _, content in contents])


def read_batches(table: Table, folder: Path, names: list[str]) -> Iterator[Batch]:
    """Rows of the named files, some hundred files at once, with the number that each footer states.

    The footers are read by pyarrow, the rows by polars: rows that either loses are noticed.
    """
    for first in range(0, len(names), _FILES_AT_ONCE):
        contents = _contents(table, [folder / name for name in names[first : first + _FILES_AT_ONCE]])
        if not contents:
            continue
        paths = [path for path, _, _ in contents]
        frame = _decode(table, paths, [content for _, _, content in contents])
        rows = [_rows_in_footer(table, path, content) for path, _, content in contents]
        if frame.height != sum(rows):
            raise TableError(
                f"table {table.name}: {frame.height} rows read, {sum(rows)} in the files {paths[0]} to {paths[-1]}"
            )
        yield Batch(frame, [path.name for path in paths], [stamp for _, stamp, _ in contents], rows)


def _contents(table: Table, files: Iterable[Path]) -> list[tuple[Path, Stamp, bytes]]:
    """Each file's bytes, and the stamp of the very file that they are from, whatever is put in its place meanwhile."""
    found = []
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                stamp = _stamp(os.fstat(file.fileno()))
                found.append((path, stamp, file.read()))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise TableError(_unreadable(table, path, error)) from error
    return found


def _decode(table: Table, paths: list[Path], contents: list[bytes]) -> pl.DataFrame:
    if not contents:
        return table.empty()
    try:
        frame = pl.scan_parquet(contents, schema=table.schema, missing_columns="insert", glob=False).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(_fault(table, paths, contents, error)) from error
    for column in table.columns:
        if not column.nullable and frame[column.name].null_count():
            raise TableError(_fault(table, paths, contents, f"column {column.name} has nulls but may not"))
    return frame


def _rows_in_footer(table: Table, path: Path, content: bytes) -> int:
    import pyarrow as pa  # takes longer to load than a small study to read
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(pa.BufferReader(content)).num_rows
    except (pa.ArrowException, OSError) as error:
        raise TableError(_unreadable(table, path, error)) from error


def _fault(table: Table, paths: list[Path], contents: list[bytes], error: object) -> str:
    """One line that names the first file that is not a file of this table."""
    remedy = "delete it and run again"
    for file, content in zip(paths, contents, strict=True):
        try:
            found = pl.read_parquet(content)
        except (pl.exceptions.PolarsError, OSError) as reason:
            return _unreadable(table, file, reason)
        for name, dtype in found.schema.items():
            if table.schema.get(name) != dtype:
                due = table.schema.get(name, "no such column")
                return f"table {table.name}, column {name}: {dtype} in {file}, declared {due}; {remedy}"
        for column in table.columns:
            if not column.nullable and (column.name not in found.columns or found[column.name].null_count()):
                return f"table {table.name}, column {column.name}: missing or null in {file}; {remedy}"
    return f"table {table.name}: {str(error).splitlines()[0]}"


def _unreadable(table: Table, file: Path, reason: Exception) -> str:
    return f"table {table.name}: {file} cannot be read ({str(reason).splitlines()[0]}); delete it and run again"


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino
