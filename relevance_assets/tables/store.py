"""The truth on disk: one Parquet file per table, study and partition, below one folder.

Belongs here: writing, reading, deleting and comparing these files. Any number of processes may write at
once: a file is written beside its place and renamed, so a reader sees the old one or the new one.
Does not belong here: how thousands of files are read quickly (`cache.py`; the folder `.cache` below the tables
may be removed at any time), the published database (`database.py`), what the columns mean (`schema.py`).
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

import polars as pl

from relevance_assets.files import atomic_path
from relevance_assets.tables.cache import Gathered, gather, gather_now, read_whole
from relevance_assets.tables.partitions import look, read_files
from relevance_assets.tables.schema import TABLES, Table, TableError

__all__ = ["Store", "comparable", "differences", "stored_path"]

_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")


class Store:
    """Tables below `root`: `<table>/<study>/<partition>.parquet`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def write(self, table: str, study: str, partition: str, frame: pl.DataFrame) -> Path:
        """Replace a partition's rows by `frame` (see `Table.conform`), atomically; return the file.

        Raises
        ------
        TableError
            Unknown table, unsafe name, or a frame that does not conform; the old file stays.
        """
        path = self._path(table, study, partition)
        conformed = TABLES[table].conform(frame, study)
        with atomic_path(path) as temporary:
            conformed.write_parquet(temporary)
        return path

    def read(self, table: str, study: str | None = None, partition: str | None = None) -> pl.DataFrame:
        """All rows, sorted by key; an empty frame with the schema when there are none.

        A nullable column that an older file lacks is null.

        Raises
        ------
        TableError
            Unknown table, or a file that cannot be read as this table: it names the file.
        """
        declared = _known(table)
        if partition is not None:
            return read_files(declared, self.files(table, study, partition)).sort(declared.key, maintain_order=True)
        studies = self._studies(table) if study is None else [study]
        # sorted by key as they stand one after the other, for every key begins with the study
        frames = [read_whole(declared, *self._folders(table, name)) for name in studies]
        return pl.concat(frames) if frames else declared.empty()

    def gather(self, table: str, study: str) -> Gathered:
        """A study's rows of a table as they are at one moment, in pieces; see `cache.gather`.

        Raises
        ------
        TableError
            As `read`.
        Unsettled
            The files were written again and again meanwhile.
        """
        folder, cache = self._folders(table, study)
        return gather(_known(table), folder, cache)

    def gather_now(self, table: str, study: str) -> Gathered:
        """A study's rows of a table in pieces, each file's of one moment; see `cache.gather_now`."""
        folder, cache = self._folders(table, study)
        return gather_now(_known(table), folder, cache)

    def delete(self, table: str, study: str, partition: str) -> None:
        """Remove a partition; nothing happens if there is none."""
        self._path(table, study, partition).unlink(missing_ok=True)

    def stamp(self, table: str, study: str, partition: str) -> tuple[int, int, int] | None:
        """Tells whether a partition's file is still the same one; None where there is none."""
        try:
            status = self._path(table, study, partition).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def changed(self, table: str, study: str) -> int:
        """When a partition was last written or removed, in ns; 0 where there is none."""
        folder, _ = self._folders(table, study)
        return folder.stat().st_mtime_ns if folder.exists() else 0

    def partitions(self, table: str, study: str) -> list[str]:
        """Names of a study's partitions, sorted."""
        folder, _ = self._folders(table, study)
        with suppress(FileNotFoundError):
            names = os.listdir(folder)  # noqa: PTH208  names only: there may be very many
            return sorted(name[:-8] for name in names if name.endswith(".parquet") and not name.startswith("."))
        return []

    def studies(self) -> list[str]:
        """Names of the studies that have a folder below any table, sorted."""
        return sorted({folder.name for folder in self.root.glob("[!.]*/*") if folder.is_dir()})

    def files(self, table: str, study: str | None = None, partition: str | None = None) -> list[Path]:
        """Files of a table, sorted, without the temporary files of writers at work."""
        _known(table)
        if study is not None and partition is not None:
            path = self._path(table, study, partition)
            return [path] if path.exists() else []
        studies = self._studies(table) if study is None else [_safe("study", study)]
        if partition is not None:
            return [path for name in studies for path in self.files(table, name, partition)]
        folders = [self.root / table / name for name in studies]
        return [folder / name for folder in folders for name in sorted(look(folder))]

    def clean(self, older_than_s: float = 3600.0) -> int:
        """Remove temporary files that killed writers left behind, if older than this; return how many."""
        removed = 0
        for folder in (*self.root.glob("[!.]*/*/"), *self.root.glob(".cache/*/*/")):
            for name in os.listdir(folder):  # noqa: PTH208  names only: there may be very many
                path = folder / name
                with suppress(FileNotFoundError):  # its writer has renamed it
                    if name.startswith(".") and path.stat().st_mtime < time.time() - older_than_s:
                        path.unlink()
                        removed += 1
        return removed

    def _studies(self, table: str) -> list[str]:
        """Studies that have a folder below this table, sorted."""
        return sorted(folder.name for folder in (self.root / table).glob("*") if folder.is_dir())

    def _folders(self, table: str, study: str) -> tuple[Path, Path]:
        """Where a study's partitions of a table lie, and where the cache of them lies."""
        name = _safe("study", study)
        return self.root / _known(table).name / name, self.root / ".cache" / table / name

    def _path(self, table: str, study: str, partition: str) -> Path:
        folder = self.root / _known(table).name / _safe("study", study)
        return folder / f"{_safe('partition', partition)}.parquet"


def comparable(root: Path) -> dict[tuple[str, str], pl.DataFrame]:
    """Every table of every study below `root`, sorted by key, without volatile columns.

    Paths in the tables are relative to the home folder (`stored_path`), so two homes compare equal when
    they hold the same results. A table without files is left out.
    """
    store = Store(root)
    result = {}
    for name, table in TABLES.items():
        keep = [column.name for column in table.columns if not column.volatile]
        for study in store.studies():
            if store.files(name, study):
                result[name, study] = store.read(name, study).select(keep)
    return result


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two tables folders, one line each, volatile columns ignored; empty if nothing."""
    first, second = comparable(a), comparable(b)
    lines = []
    for name, study in sorted(set(first) | set(second)):
        where = f"{name} of {study}"
        if (name, study) not in first or (name, study) not in second:
            lines.append(f"{where}: only in {a if (name, study) in first else b}")
            continue
        left, right = first[name, study], second[name, study]
        key = list(TABLES[name].key)
        for ours, theirs, root in ((left, right, a), (right, left, b)):
            alone = ours.join(theirs, on=key, how="anti")
            if alone.height:
                lines.append(f"{where}: {alone.height} rows only in {root}, first {alone.row(0)[: len(key)]}")
        both = left.join(right, on=key, how="inner", suffix="__b", maintain_order="left")
        for column in left.columns[len(key) :]:
            unequal = both.filter(pl.col(column).ne_missing(pl.col(f"{column}__b")))
            if unequal.height:
                row = unequal.row(0, named=True)
                lines.append(
                    f"{where}, column {column}: {unequal.height} rows differ, first "
                    f"{tuple(row[k] for k in key)}: {row[column]!r} and {row[f'{column}__b']!r}"
                )
    return lines


def stored_path(path: Path, *roots: Path) -> str:
    """How a table names a file: relative to the first of `roots` (home folder, BIDS folder) that holds it.

    Raises ValueError for a file outside all of them.
    """
    for root in roots:
        if path.resolve().is_relative_to(root.resolve()):
            return path.resolve().relative_to(root.resolve()).as_posix()
    raise ValueError(f"{path} lies outside {' and '.join(str(root) for root in roots)}")


def _known(table: str) -> Table:
    if table not in TABLES:
        raise TableError(f"table {table}: unknown; known are {', '.join(TABLES)}")
    return TABLES[table]


def _safe(kind: str, name: str) -> str:
    """`name` if it can be a file's name on any system and cannot leave its folder, else TableError."""
    if not _SAFE.fullmatch(name):
        raise TableError(f"{kind} {name!r}: letters, digits, '_', '-' and '.' only, not beginning with '.'")
    return name
