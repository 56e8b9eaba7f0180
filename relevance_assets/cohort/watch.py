"""What lies in a BIDS folder and when it last changed, without opening a file.

Belongs here: one cheap look at a folder of 10,000 scans. Does not belong here: which file is which contrast
(`bids.py`), what to do about a change (`assets/automation.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from relevance_assets.files import fingerprint
from relevance_assets.home import SCAN_PATTERN, split_scan

__all__ = ["YOUNG_NS", "Folder", "Seen", "look", "look_at"]


@dataclass(frozen=True)
class Seen:
    """A scan's files at one moment.

    Attributes
    ----------
    signature : str
        Hash of path, size and modification time of every file of the scan, and of the files above it that could
        concern it (sidecars that it inherits).
    changed : float
        The latest change of any of its files or folders, in seconds since 1970. It is the time at which the file
        system noted a change (`ctime`), which a copy that keeps modification times cannot set back.
    """

    signature: str
    changed: float


@dataclass(frozen=True)
class Folder:
    """A BIDS folder at one moment.

    Attributes
    ----------
    scans : dict
        Scan name to what was seen of it, sorted. Names that are no scan's are left out: indexing the folder names
        them as errors.
    others : str
        Signature of the files that belong to no scan: the tables of people above all.
    others_changed : float
        The latest change of one of those.
    """

    scans: dict[str, Seen]
    others: str
    others_changed: float = 0.0

    @property
    def signature(self) -> str:
        """Of all of it."""
        return fingerprint(self.others, [(scan, seen.signature) for scan, seen in self.scans.items()])

    def changed_after(self, moment: float) -> set[str]:
        """Scans of which something has changed since then (seconds since 1970): somebody may still be copying."""
        return {scan for scan, seen in self.scans.items() if seen.changed > moment}

    def without(self, scans: set[str]) -> Folder:
        """The folder as if these scans were not there."""
        kept = {scan: seen for scan, seen in self.scans.items() if scan not in scans}
        return Folder(kept, self.others, self.others_changed)


def look(bids: Path) -> Folder:
    """List `bids`: every `sub-*[/ses-*]` that holds a file, with its files' sizes and times.

    Raises
    ------
    ValueError
        There is no such folder.
    OSError
        It cannot be read.
    """
    if not bids.is_dir():
        raise ValueError(f"{bids}: no such folder; name a BIDS dataset, or mount its disk")
    above = _list(str(bids), len(str(bids)) + 1)
    others, latest = list(above.files), above.written
    scans: dict[str, Seen] = {}
    for person in sorted(name for name in above.folders if name.startswith("sub-")):
        own, found = _person(bids, person, above.files)
        others += own.files
        latest = max(latest, own.written)
        scans |= found
    return Folder(dict(sorted(scans.items())), fingerprint(others), latest)


def look_at(bids: Path, scan: str) -> str:
    """Signature of one scan's files, as `look` finds it; '' where it has none."""
    try:
        _, found = _person(bids, split_scan(scan)[0], _files_above(str(bids)))
    except FileNotFoundError:
        return ""
    return found[scan].signature if scan in found else ""


_NAMES: dict[str, tuple[int, list[str]]] = {}  # the dataset's own files, by the time its folder changed


def _files_above(folder: str) -> list[File]:
    """The dataset's own files, without going through its ten thousand people for each of them."""
    changed = os.stat(folder).st_mtime_ns  # noqa: PTH116
    if folder not in _NAMES or _NAMES[folder][0] != changed:
        names = [file[0] for file in _list(folder, len(folder) + 1).files]
        if time.time_ns() - changed < YOUNG_NS:  # it may change again without a sign
            changed = -1
        _NAMES[folder] = (changed, names)
    files = []
    for name in _NAMES[folder][1]:
        with suppress(FileNotFoundError):
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116
            files.append((name, status.st_size, status.st_mtime_ns))
    return files


def _person(bids: Path, person: str, above: list[File]) -> tuple[_Listing, dict[str, Seen]]:
    """The person's folder itself, and the scans in it."""
    root = len(str(bids)) + 1  # a folder that is moved as a whole has not changed
    own = _list(f"{bids}/{person}", root)
    parts = {
        f"{person}_{name}": _below(f"{bids}/{person}/{name}", root) for name in own.folders if name.startswith("ses-")
    }
    parts[person] = _together(
        _below(f"{bids}/{person}/{name}", root) for name in own.folders if not name.startswith("ses-")
    )
    sidecars = [file for file in (*above, *own.files) if _may_be_inherited(file)]
    return own, {
        scan: Seen(fingerprint(sidecars, sorted(files)), changed)
        for scan, (files, changed) in parts.items()
        if files and SCAN_PATTERN.fullmatch(scan)
    }


YOUNG_NS = 2_000_000_000  # times are as coarse as the file system's clock; FAT's is 2 s
File = tuple[str, int, int]  # path, bytes, modification time in ns
ABOUT_PEOPLE = ("dataset_description.json", "participants.json", "sessions.json")


def _may_be_inherited(file: File) -> bool:
    return file[0].endswith(".json") and not file[0].endswith(ABOUT_PEOPLE)


class _Listing(NamedTuple):
    """A folder's own files, sorted, and the names of its folders.

    `written` is the latest change of one of the files, `changed` also that of the folder.
    """

    files: list[File]
    folders: list[str]
    written: float
    changed: float


def _list(folder: str, root: int) -> _Listing:
    """One folder, its files' paths from place `root` on.

    Hidden files are not there, but a change of one is a change: rsync writes under such a name.
    """
    files, folders, written = list[File](), list[str](), 0.0
    itself = os.stat(folder).st_ctime  # noqa: PTH116  many, and strings
    with os.scandir(folder) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".")
            with suppress(FileNotFoundError):  # taken away while we look
                if not entry.is_dir():
                    status = entry.stat()
                    written = max(written, status.st_ctime)
                    if not hidden:
                        files.append((entry.path[root:], status.st_size, status.st_mtime_ns))
                elif not hidden:
                    folders.append(entry.name)
    return _Listing(sorted(files), folders, written, max(itself, written))


def _below(folder: str, root: int) -> tuple[list[File], float]:
    """Files of a folder and of the folders in it, and the latest change of any of them."""
    own = _list(folder, root)
    if not own.folders:
        return own.files, own.changed
    return _together([(own.files, own.changed), *(_below(f"{folder}/{name}", root) for name in own.folders)])


def _together(parts: Iterable[tuple[list[File], float]]) -> tuple[list[File], float]:
    found, changed = list[File](), 0.0
    for files, latest in parts:
        found += files
        changed = max(changed, latest)
    return found, changed
