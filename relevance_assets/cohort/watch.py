"""What lies in a BIDS folder and when it last changed, without opening a file.

Belongs here: one cheap look at a folder of 10,000 scans. Does not belong here: which file is which contrast
(`bids.py`), what to do about a change (`assets/automation.py`).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from relevance_assets.files import fingerprint
from relevance_assets.home import SCAN_PATTERN, split_scan

__all__ = ["LINK_FAULTS", "YOUNG_NS", "Folder", "Seen", "is_folder", "look", "look_at"]


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
        Signature of the files that belong to no scan: the tables of people above all, and what is named wrongly.
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
    os.scandir(bids).close()  # a dataset that may not be read is no empty one
    above = _list(str(bids), len(str(bids)) + 1)
    others, latest = list(above.files), above.written
    scans: dict[str, Seen] = {}
    for person in sorted(name for name in above.folders if name.startswith("sub-")):
        own, found, misnamed = _person(bids, person, above.files)
        others += [*own.files, *misnamed]
        latest = max(latest, own.written)
        scans |= found
    return Folder(dict(sorted(scans.items())), fingerprint(others), latest)


def look_at(bids: Path, scan: str) -> str:
    """Signature of one scan's files, as `look` finds it; '' where it has none."""
    try:
        _, found, _ = _person(bids, split_scan(scan)[0], _files_above(str(bids)))
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


def _person(bids: Path, person: str, above: list[File]) -> tuple[_Listing, dict[str, Seen], list[File]]:
    """The person's folder itself, the scans in it, and the files of what is named like no scan."""
    root = len(str(bids)) + 1  # a folder that is moved as a whole has not changed
    own = _list(f"{bids}/{person}", root)
    parts = {
        f"{person}_{name}": _session(f"{bids}/{person}/{name}", root) for name in own.folders if name.startswith("ses-")
    }
    parts[person] = _together(
        _own_files(f"{bids}/{person}/{name}", root) for name in own.folders if not name.startswith("ses-")
    )
    sidecars = [file for file in (*above, *own.files) if _may_be_inherited(file)]
    seen: dict[str, Seen] = {}
    misnamed: list[File] = []
    for scan, (files, changed) in parts.items():
        if not SCAN_PATTERN.fullmatch(scan):
            misnamed += sorted(files)
        elif files:
            seen[scan] = Seen(fingerprint(sidecars, sorted(files)), changed)
    return own, seen, misnamed


YOUNG_NS = 2_000_000_000  # times are as coarse as the file system's clock; FAT's is 2 s
File = tuple[str, int, int]  # path, bytes, modification time in ns
LINK_FAULTS = (errno.ELOOP, errno.EACCES)  # a link that leads back to itself, or to where none may look
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

    Hidden files are not there, but a change of one is a change: rsync writes under such a name. A folder that may not
    be read is empty, and its change is a change: indexing names it.
    """
    files, folders, written = list[File](), list[str](), 0.0
    itself = os.stat(folder).st_ctime  # noqa: PTH116  many, and strings
    with suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".")
            with suppress(FileNotFoundError):  # taken away while we look
                if not is_folder(entry):
                    status = _status(entry)
                    written = max(written, status.st_ctime)
                    if not hidden:
                        files.append((entry.path[root:], status.st_size, status.st_mtime_ns))
                elif not hidden:
                    folders.append(entry.name)
    return _Listing(sorted(files), folders, written, max(itself, written))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; not where the link leads back to itself or may not be followed."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in LINK_FAULTS:
            raise
        return False


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Of a file, or of a link itself where its target is not there: git-annex may bring it later."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno not in (*LINK_FAULTS, errno.ENOENT):
            raise
        return entry.stat(follow_symlinks=False)


def _session(folder: str, root: int) -> tuple[list[File], float]:
    """Files of a session's folder and of the folders in it, and the latest change of any of them.

    No deeper: BIDS has no image there, and a link to a folder above would be followed for ever.
    """
    own = _list(folder, root)
    return _together([(own.files, own.changed), *(_own_files(f"{folder}/{name}", root) for name in own.folders)])


def _own_files(folder: str, root: int) -> tuple[list[File], float]:
    own = _list(folder, root)
    return own.files, own.changed


def _together(parts: Iterable[tuple[list[File], float]]) -> tuple[list[File], float]:
    found, changed = list[File](), 0.0
    for files, latest in parts:
        found += files
        changed = max(changed, latest)
    return found, changed
