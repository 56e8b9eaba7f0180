"""A segment: rows of many partition files in one file, with an account of which files these are.

The file is pieces of Parquet one after the other, an index of them in JSON, and at its end the index's length, a
checksum of everything and what kind of file it is. One that is not whole, or of another table, is no segment.

Belongs here: the file. Does not belong here: which of its rows are still true, and when it is written (`cache.py`).
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import polars as pl

from relevance_assets.files import atomic_path, fingerprint
from relevance_assets.tables.partitions import Batch, Stamp
from relevance_assets.tables.table import Table

__all__ = ["Segment", "write_segment"]

_PIECE_ROWS = 100_000
_KIND = b"rowseg-1"
_END = struct.Struct("<QI8s")  # length of the index, CRC-32 of everything before and of this length, _KIND


class Segment:
    """An open segment: pieces of Parquet one after the other, an index of them, a checksum of all that.

    The checksum is looked at once, on opening; what others put in the file's place later does not matter.
    """

    def __init__(self, path: Path, file: BinaryIO, index: dict) -> None:
        self.path = path
        self._file = file
        self._pieces: list[list[int]] = index["pieces"]  # number of files, place, length
        self._rows: list[int] = index["rows"]
        self._files: list[str] = index["files"]
        self._stamps: list[Stamp] = [tuple(stamp) for stamp in zip(*index["stamps"], strict=True)]
        self.stamps = dict(zip(self._files, self._stamps, strict=True))

    @classmethod
    def open(cls, path: Path, table: Table) -> Segment | None:
        """The segment; None if there is none that is whole and of this table as it is declared today."""
        try:
            file = path.open("rb")
        except OSError:
            return None
        try:
            index = cls._index(file)
        except OSError:
            index = None
        if index is None or index["table"] != _declaration(table):
            file.close()
            return None
        return cls(path, file, index)

    @staticmethod
    def _index(file: BinaryIO) -> dict | None:
        content = os.fstat(file.fileno()).st_size - _END.size
        if content < 0:
            return None
        file.seek(content)
        length, checksum, kind = _END.unpack(file.read(_END.size))
        if kind != _KIND or length > content or checksum != _checksum(file, content, length):
            return None
        file.seek(content - length)
        return json.loads(file.read(length))

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def count(self, names: Collection[str]) -> int:
        """How many rows the files of these names have."""
        return sum(rows for name, rows in zip(self._files, self._rows, strict=True) if name in names)

    def batches(self, wanted: Collection[str]) -> Iterator[Batch]:
        """The rows of the files `wanted`, piece by piece."""
        for _, load in self.parts(wanted):
            yield load()

    def parts(self, wanted: Collection[str]) -> Iterator[tuple[list[tuple[str, Stamp]], Callable[[], Batch]]]:
        """The same, unread: the files of each piece, and how to read it."""
        first = 0
        for files, place, length in self._pieces:
            part = slice(first, first + files)
            first += files
            named = zip(self._files[part], self._stamps[part], strict=True)
            if kept := [(name, stamp) for name, stamp in named if name in wanted]:
                yield kept, partial(self._read, part, place, length, wanted)

    def _read(self, part: slice, place: int, length: int, wanted: Collection[str]) -> Batch:
        self._file.seek(place)
        frame = pl.read_parquet(self._file.read(length))
        return Batch(frame, self._files[part], self._stamps[part], self._rows[part]).only(wanted)


def write_segment(path: Path, table: Table, batches: Iterable[Batch]) -> None:
    """Put a segment with these rows in the place of the one at `path`."""
    pieces: list[tuple[int, int, int]] = []
    files: list[str] = []
    stamps: list[Stamp] = []
    rows: list[int] = []
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        for batch in _pieces(batches):
            content = BytesIO()
            batch.frame.write_parquet(content, compression="lz4", statistics=False)
            pieces.append((len(batch.files), file.tell(), content.tell()))
            file.write(content.getbuffer())
            files += batch.files
            stamps += batch.stamps
            rows += batch.rows
        columns = [[stamp[i] for stamp in stamps] for i in range(3)]
        said = {"table": _declaration(table), "pieces": pieces, "files": files, "stamps": columns, "rows": rows}
        index = json.dumps(said).encode()
        file.write(index)
        file.flush()
        file.write(_END.pack(len(index), _checksum(file, file.tell(), len(index)), _KIND))


def _pieces(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same rows in batches of a size that is quick to write and small in memory."""
    some: list[Batch] = []
    for batch in batches:
        some.append(batch)
        if sum(one.frame.height for one in some) >= _PIECE_ROWS:
            yield Batch.joined(some)
            some = []
    if some:
        yield Batch.joined(some)


def _checksum(file: BinaryIO, content: int, length: int) -> int:
    """CRC-32 of the first `content` bytes, and of the index's length; the file is left at their end."""
    file.seek(0)
    checksum = 0
    while content and (block := file.read(min(content, 2**20))):
        checksum = zlib.crc32(block, checksum)
        content -= len(block)
    return zlib.crc32(str(length).encode(), checksum)


def _declaration(table: Table) -> str:
    """What a segment's rows depend on beside the files: the declared table, and who wrote the Parquet in it."""
    columns = [(column.name, str(column.dtype), column.nullable) for column in table.columns]
    return fingerprint(table.name, table.key, columns, pl.__version__)
