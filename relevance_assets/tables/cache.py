"""Rows of many partition files, kept together in two files beside the truth, so that a whole table reads quickly.

Opening a file costs more than the few rows in it: ten thousand cost seconds. A study with many partitions of a
table therefore has up to two segments below `.cache`: `base`, and `recent` with what has changed since. A segment
says of every partition file whose rows it has which file that was. Rows are taken from it only where the file that
lies there now is the same one; all others are read. So a segment may be old, missing or broken, and any process may
replace it at any time: the rows are right, they only come slower.

Belongs here: which rows are taken from where, and when segments are written. Does not belong here: reading
partition files (`partitions.py`), what a segment looks like (`segments.py`), where tables lie (`store.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from relevance_assets.files import fingerprint
from relevance_assets.tables.partitions import Batch, Stamp, look, read_batches, read_files
from relevance_assets.tables.segments import Segment, write_segment
from relevance_assets.tables.table import Table, TableError

__all__ = ["Gathered", "Unsettled", "gather", "gather_now", "read_whole"]

_FEW = 200  # fewer files are read as quickly without a cache
_WORTH_WRITING = 64  # changed files, before a segment is written
_SHARE = 10  # `recent` grows to 1/10 of the files, then `base` is written: each row is written about 20 times at most
# Times are as coarse as the system's clock tick, and a freed inode is used again. A file as young as this might be
# replaced within the same tick by one that looks the same, so it is read, not remembered. (FAT's tick is 2 s.)
_YOUNG_NS = 2_000_000_000
_PATIENCE_S = 20.0  # for writers to leave a table alone for as long as it takes to read what changed


class Unsettled(Exception):
    """Somebody keeps writing the files that are to be read as they were at one moment."""


@dataclass
class Gathered:
    """A study's rows of one table. Close it: it holds segments open, which others may replace meanwhile.

    `stamps` says which files they are from, `rows` how many there are by the footers of these files, `looked_ns` when
    the files were listed (0: not told).
    """

    table: Table
    stamps: dict[str, Stamp] = field(default_factory=dict)
    rows: int = 0
    looked_ns: int = 0
    segments: list[tuple[Segment, set[str]]] = field(default_factory=list)
    fresh: list[Batch] = field(default_factory=list)
    opened: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Gathered:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def batches(self) -> Iterator[Batch]:
        """All rows, at most some hundred thousand at once, in no particular order."""
        for _, load in self.parts():
            yield load()

    def parts(self) -> Iterator[tuple[str, Callable[[], Batch]]]:
        """The same, unread: each part by a name that another part never has, and how to read it."""
        for segment, names in self.segments:
            for files, load in segment.parts(names):
                yield fingerprint(files), load
        for batch in self.fresh:
            yield fingerprint(sorted(zip(batch.files, batch.stamps, strict=True))), partial(_itself, batch)

    def frame(self) -> pl.DataFrame:
        """All rows, sorted by key; rows of one key in the order of their files."""
        place = {name: i for i, name in enumerate(sorted(self.stamps))}
        frames = [
            batch.frame.with_columns(
                pl.Series("__place", np.repeat([place[name] for name in batch.files], batch.rows), dtype=pl.UInt32)
            )
            for batch in self.batches()
            if batch.frame.height
        ]
        if not frames:
            return self.table.empty()
        return pl.concat(frames).sort([*self.table.key, "__place"], maintain_order=True).drop("__place")


def _itself(batch: Batch) -> Batch:
    return batch


def gather(table: Table, folder: Path, cache: Path) -> Gathered:
    """The rows of all partition files in `folder` as they are at one moment: none is written or removed meanwhile.

    Rows whose partition is gone leave the segments too: whoever asks to be forgotten is.

    Raises
    ------
    TableError
        A file that cannot be read as this table: it names the file.
    Unsettled
        Somebody keeps writing.
    """
    deadline = time.monotonic() + _PATIENCE_S
    after = look(folder)
    while time.monotonic() < deadline:
        before = after
        with ExitStack() as opened:
            try:
                gathered = _gather(table, folder, cache, before, True, opened)
            except TableError:
                after = look(folder)
                if after == before:
                    raise
                continue
            after = look(folder)
            if gathered.stamps == before == after:
                gathered.opened = opened.pop_all()
                return gathered
    raise Unsettled


def _gather(
    table: Table, folder: Path, cache: Path, listing: dict[str, Stamp], tidy: bool, opened: ExitStack
) -> Gathered:
    """One attempt. Files that are replaced after `listing` are read as they are then, or are left out if gone."""
    segments: list[tuple[Segment, set[str]]] = []
    if len(listing) >= _FEW:
        segments = _segments(table, cache, listing, opened)
        if _renew(table, folder, cache, listing, segments, tidy):
            segments = _segments(table, cache, listing, opened)
    elif tidy:
        _forget(cache)
    gathered = Gathered(table, segments=segments)
    for segment, names in segments:
        gathered.stamps |= {name: listing[name] for name in names}
        gathered.rows += segment.count(names)
    for batch in read_batches(table, folder, sorted(listing.keys() - gathered.stamps.keys())):
        gathered.fresh.append(batch)
        gathered.stamps |= zip(batch.files, batch.stamps, strict=True)
        gathered.rows += sum(batch.rows)
    return gathered


def gather_now(table: Table, folder: Path, cache: Path) -> Gathered:
    """The rows of all partition files in `folder`, each file's of one moment, while others may write."""
    with ExitStack() as opened:
        looked_ns = time.time_ns()
        gathered = _gather(table, folder, cache, look(folder), False, opened)
        gathered.looked_ns, gathered.opened = looked_ns, opened.pop_all()
        return gathered


def read_whole(table: Table, folder: Path, cache: Path) -> pl.DataFrame:
    """Rows of all partition files in `folder`, sorted as `Gathered.frame` has them; see `gather_now`."""
    files = look(folder)
    if len(files) < _FEW:
        return read_files(table, [folder / name for name in sorted(files)]).sort(table.key, maintain_order=True)
    with ExitStack() as opened:
        return _gather(table, folder, cache, files, False, opened).frame()


# -------------------------------------------------------------------------------- which segments, and when new
def _base(cache: Path) -> Path:
    return cache / "base"


def _recent(cache: Path) -> Path:
    return cache / "recent"


def _segments(
    table: Table, cache: Path, listing: dict[str, Stamp], opened: ExitStack
) -> list[tuple[Segment, set[str]]]:
    """The segments that can be used, newest first, each with the files whose rows are taken from it.

    These are the files that are still the same; none is taken twice.
    """
    left = dict(listing)
    result = []
    for path in (_recent(cache), _base(cache)):
        segment = Segment.open(path, table)
        if segment:
            opened.enter_context(segment)
            same = {name for name, stamp in segment.stamps.items() if left.get(name) == stamp}
            for name in same:
                del left[name]
            result.append((segment, same))
    return result


def _renew(
    table: Table,
    folder: Path,
    cache: Path,
    listing: dict[str, Stamp],
    segments: list[tuple[Segment, set[str]]],
    tidy: bool,
) -> bool:
    """Write a segment if so much has changed that it is worth it; whether one was written or removed.

    A cache that cannot be written (a full disk, a folder for reading only) is done without.
    """
    known = set().union(*(names for _, names in segments))
    gone = {name for segment, _ in segments for name in segment.stamps if name not in listing}
    old_enough = time.time_ns() - _YOUNG_NS
    fresh = sorted(name for name in listing.keys() - known if listing[name][0] < old_enough)
    base = [pair for pair in segments if pair[0].path == _base(cache)]
    recent = [pair for pair in segments if pair[0].path == _recent(cache)]
    not_in_base = len(listing) - sum(len(names) for _, names in base)

    def rows_of(kept: list[tuple[Segment, set[str]]]) -> Iterator[Batch]:
        for segment, names in kept:
            yield from segment.batches(names)
        for batch in read_batches(table, folder, fresh):
            times = zip(batch.files, batch.stamps, strict=True)
            yield batch.only({name for name, stamp in times if stamp[0] < old_enough})

    far_behind = not_in_base + len(gone) > max(_WORTH_WRITING, len(listing) // _SHARE)
    try:
        if (tidy and gone) or (far_behind and max(len(fresh), len(gone)) >= _WORTH_WRITING):
            write_segment(_base(cache), table, rows_of(base + recent))
            _recent(cache).unlink(missing_ok=True)
        elif len(fresh) >= _WORTH_WRITING:
            write_segment(_recent(cache), table, rows_of(recent))
        else:
            return False
    except OSError:
        if tidy and gone:
            _forget(cache)
        return bool(tidy and gone)
    return True


def _forget(cache: Path) -> None:
    for path in (_recent(cache), _base(cache)):
        path.unlink(missing_ok=True)
