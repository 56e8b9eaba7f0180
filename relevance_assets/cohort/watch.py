"""What lies in a BIDS folder and when it last changed, without opening a file.

Belongs here: one cheap look at a folder of 10,000 scans. Does not belong here: which file is which contrast
(`bids.py`), what to do about a change (`assets/automation.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from relevance_assets.files import fingerprint
from relevance_assets.home import SCAN_PATTERN, split_scan

__all__ = ["Folder", "Seen", "look", "look_at"]


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
    """

    scans: dict[str, Seen]
    others: str

    @property
    def signature(self) -> str:
        """Of all of it."""
        return fingerprint(self.others, [(scan, seen.signature) for scan, seen in self.scans.items()])

    def changed_after(self, moment: float) -> set[str]:
        """Scans of which something has changed since then (seconds since 1970): somebody may still be copying."""
        return {scan for scan, seen in self.scans.items() if seen.changed > moment}

    def without(self, scans: set[str]) -> Folder:
        """The folder as if these scans were not there."""
        return Folder({scan: seen for scan, seen in self.scans.items() if scan not in scans}, self.others)


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
    root = len(str(bids)) + 1  # a folder that is moved as a whole has not changed
    above, _ = _files(bids, root)
    others = list(above)
    scans: dict[str, Seen] = {}
    for person in sorted(name for name in _folders(bids) if name.startswith("sub-")):
        shared, found = _person(bids, person, root, above)
        others += shared
        scans |= found
    return Folder(dict(sorted(scans.items())), fingerprint(others))


def look_at(bids: Path, scan: str) -> str:
    """Signature of one scan's files, as `look` finds it; '' where it has none."""
    root = len(str(bids)) + 1
    try:
        _, found = _person(bids, split_scan(scan)[0], root, _files(bids, root)[0])
    except FileNotFoundError:
        return ""
    return found[scan].signature if scan in found else ""


def _person(bids: Path, person: str, root: int, above: list[File]) -> tuple[list[File], dict[str, Seen]]:
    """Files of the person's folder itself, and the scans in it."""
    folder = bids / person
    names = _folders(folder)
    sessions = [name for name in names if name.startswith("ses-")]
    shared, _ = _files(folder, root)
    parts = {f"{person}_{name}": _below(folder / name, root) for name in sessions}
    parts[person] = _together(_below(folder / name, root) for name in names if name not in sessions)
    sidecars = [file for file in (*above, *shared) if _may_be_inherited(file)]
    return shared, {
        scan: Seen(fingerprint(sidecars, sorted(files)), changed)
        for scan, (files, changed) in parts.items()
        if files and SCAN_PATTERN.fullmatch(scan)
    }


File = tuple[str, int, int]  # path, bytes, modification time in ns
ABOUT_PEOPLE = ("dataset_description.json", "participants.json", "sessions.json")


def _may_be_inherited(file: File) -> bool:
    return file[0].endswith(".json") and not file[0].endswith(ABOUT_PEOPLE)


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def _files(folder: Path, root: int) -> tuple[list[File], float]:
    """Files of a folder itself, sorted, their paths from place `root` on, and the latest change there."""
    found, changed = [], folder.stat().st_ctime
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # taken away while we look
                if entry.name.startswith(".") or not entry.is_file():
                    continue
                status = entry.stat()
                found.append((entry.path[root:], status.st_size, status.st_mtime_ns))
                changed = max(changed, status.st_ctime)
    return sorted(found), changed


def _below(folder: Path, root: int) -> tuple[list[File], float]:
    """Files of a folder and of the folders in it."""
    return _together([_files(folder, root), *(_below(folder / name, root) for name in _folders(folder))])


def _together(parts: Iterable[tuple[list[File], float]]) -> tuple[list[File], float]:
    found, changed = list[File](), 0.0
    for files, latest in parts:
        found += files
        changed = max(changed, latest)
    return found, changed
