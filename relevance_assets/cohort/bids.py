"""The scans of a BIDS folder: which file is which contrast, and its sidecar.

A fault of one person's files (an unsafe label, a file in another's folder, a folder that may not be read) leaves the
others alone: it becomes an entry of its own, whose name is the path and so can be no scan's. Links are followed, out of
the dataset too: git-annex and hospitals keep content elsewhere, nothing is ever written there, and a file that is no
image is refused by its content. Only the levels at which BIDS has images are looked at, so no link leads astray.

Belongs here: which images there are, matching of a study's contrasts, sidecar inheritance. bids2table reads the names;
its index of a whole dataset would take 500 MB for 10,000 people, where only paths are needed. Does not belong here: who
the people are (`participants.py`), whether an image is sound (`check.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from errno import ENOENT
from os import scandir
from os.path import realpath
from pathlib import Path
from typing import Any

from bids2table import parse_bids_entities

from relevance_assets.cohort.text import one_line, read_text
from relevance_assets.cohort.watch import LINK_FAULTS, is_folder
from relevance_assets.home import SCAN_PATTERN, split_scan
from relevance_assets.study import Contrast

__all__ = ["DatasetError", "ScanFiles", "find_scan", "index_scans", "is_scan"]

EXTENSIONS = (".nii", ".nii.gz")
LONGEST = 140  # characters of a scan's name; files are named by it, with up to 110 more, and 255 is what disks take
NOT_ENTITIES = ("datatype", "suffix", "ext")


class DatasetError(ValueError):
    """What is wrong with a dataset as a whole, in one line that names the file and says what to do."""


@dataclass(frozen=True)
class ScanFiles:
    """One scan's files.

    Attributes
    ----------
    scan : str
        `sub-<label>[_ses-<label>]`; of files that can be no scan's, a path with a '/' (see `is_scan`).
    participant_id, session : str
        `sub-<label>`; `ses-<label>` or None.
    images : dict
        Contrast name to file, for the contrasts that were found without doubt.
    sidecars : dict
        Contrast name to the JSON sidecar's content, inherited keys included; empty where there is none.
    problems : list of str
        One line each: a contrast that is missing or doubled, a sidecar that cannot be read, a name that is unsafe.
    """

    scan: str
    participant_id: str
    session: str | None
    images: dict[str, Path] = field(default_factory=dict)
    sidecars: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def is_scan(name: str) -> bool:
    """Whether a name may be a scan's: safe in paths, and not too long for the files that are named by it."""
    return bool(SCAN_PATTERN.fullmatch(name)) and len(name) <= LONGEST


def index_scans(bids: Path, contrasts: Sequence[Contrast]) -> dict[str, ScanFiles]:
    """All scans of the raw dataset `bids`, sorted by name; `derivatives/` and `sourcedata/` are not looked
    at.

    Images lie in `sub-<label>[/ses-<label>][/<datatype>]`. A contrast is the file that has its suffix and all of
    its entities (upper and lower case alike, `run-01` like `run-1`). Of several, the one without further entities
    is it; otherwise the contrast is doubled.

    Raises
    ------
    DatasetError
        No such folder, or nothing to index.
    """
    if not bids.is_dir():
        raise DatasetError(f"{bids}: no such folder; name a BIDS dataset")
    people, loose = _people(bids)
    if not people:
        raise DatasetError(f"{bids}: no sub-* folders; name the root of a BIDS dataset")
    found = {entry.scan: entry for entry in loose}
    listings: dict[Path, list[Path]] = {}
    for person in people:
        found |= {entry.scan: entry for entry in _person(bids, person, contrasts, listings)}
    if not found:
        raise DatasetError(f"{bids}: no image is named by BIDS (sub-<label>/…/sub-<label>_<suffix>.nii.gz)")
    _tell_cases_apart(found)
    return dict(sorted(found.items()))


def find_scan(bids: Path, scan: str, contrasts: Sequence[Contrast]) -> ScanFiles:
    """One scan, as `index_scans` would find it, without reading the other people's folders."""
    participant, _ = split_scan(scan)
    if not (bids / participant).is_dir():
        raise DatasetError(f"{bids / participant}: no such folder, so there is no scan {scan}")
    scans = {entry.scan: entry for entry in _person(bids, participant, contrasts, {}) if is_scan(entry.scan)}
    if scan not in scans:
        raise DatasetError(f"{bids}: no image of scan {scan}; known for {participant}: {', '.join(scans) or 'none'}")
    return scans[scan]


def _people(bids: Path) -> tuple[list[str], list[ScanFiles]]:
    """Names of the people's folders, sorted; and what stands beside them and should not."""
    folders, loose = [], []
    with scandir(bids) as entries:
        for entry in entries:
            if not entry.name.startswith("sub-"):
                continue
            if is_folder(entry):
                folders.append(entry.name)
            elif entry.is_symlink():
                loose.append(
                    _fault(bids, entry.name, [entry.name], "a link that leads nowhere, or where none may look; mend it")
                )
            elif entry.name.endswith(EXTENSIONS):
                loose.append(_fault(bids, entry.name, [entry.name], "lies outside a person's folder; move it"))
    return sorted(folders), loose


def _person(
    bids: Path, person: str, contrasts: Sequence[Contrast], listings: dict[Path, list[Path]]
) -> list[ScanFiles]:
    """A person's scans, and one entry for each kind of fault in the folder."""
    try:
        names = _images(bids, person)
    except PermissionError as error:
        folder = Path(error.filename or bids / person).relative_to(bids)
        what = "may not be read; give the user of this program the right to"
        return [_fault(bids, person, [folder.as_posix()], what)]
    if names and (not is_scan(person) or "_" in person):
        what = f"a label is made of letters and digits only, {LONGEST - 4} at most; rename it, and its files"
        return [_fault(bids, person, [person], what)]
    scans: dict[str, list[Path]] = {}
    faults: dict[str, list[str]] = {}
    unnamed = []
    for name in names:
        path = bids / name
        if _named(path).get("ext") not in EXTENSIONS or not name.isprintable():
            unnamed.append(name)
            continue
        scan, fault = _scan_of(name)
        if fault:
            faults.setdefault(fault, []).append(name)
        else:
            scans.setdefault(scan, []).append(path)
    if unnamed and not scans and not faults:
        faults["not named by BIDS (sub-<label>[_ses-<label>]_<suffix>.nii.gz); rename it"] = unnamed
    return [
        *(_match(scan, sorted(files), contrasts, bids, listings) for scan, files in sorted(scans.items())),
        *(_fault(bids, person, sorted(files), fault) for fault, files in faults.items()),
    ]


def _images(bids: Path, person: str) -> list[str]:
    """What is named like an image in a person's folder, its sessions' and their data types'; paths from the root.

    No deeper: a link to the folder above, or to a whole disk, costs one listing.
    """
    found: list[str] = []
    levels = [(person, 2)]
    while levels:
        folder, below = levels.pop()
        with scandir(bids / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}"
                if entry.name.startswith("sub-") and ".nii" in entry.name.lower():
                    found.append(name)  # a folder of this name, too: reading it says so
                elif below and not entry.name.startswith(".") and is_folder(entry):
                    levels.append((name, below - 1 if entry.name.startswith("ses-") and below == 2 else 0))
    return found


def _scan_of(name: str) -> tuple[str, str]:
    """The scan that a file is named by, and why it cannot be that scan's ('' where it can)."""
    entities = parse_bids_entities(Path(name))
    scan = f"sub-{entities.get('sub')}" + (f"_ses-{entities['ses']}" if "ses" in entities else "")
    if not is_scan(scan):
        return scan, f"is named {scan!r}: letters and digits only, {LONGEST} at most; rename it, and its folder"
    folders = name.split("/")[:-1]
    for part in scan.split("_"):
        others = [folder for folder in folders if folder.startswith(part[:4]) and folder != part]
        if others and part not in folders:
            return scan, f"is named {part} but lies in {others[-1]}; rename or move it"
    return scan, ""


def _fault(bids: Path, person: str, names: list[str], what: str) -> ScanFiles:
    """The entry for files that can be no scan's: named by the first one's path, with a '/' so that no scan is."""
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    scan = names[0] if "/" in names[0] else f"{names[0]}/"
    problem = one_line(f"{bids / names[0]}{more}: {what}")
    return ScanFiles(one_line(scan), one_line(person), None, problems=[problem])


def _tell_cases_apart(found: dict[str, ScanFiles]) -> None:
    """Scans whose names differ by case only would overwrite each other on the disks of Windows and macOS."""
    alike: dict[str, list[str]] = {}
    for scan in found:
        if is_scan(scan):
            alike.setdefault(scan.casefold(), []).append(scan)
    for scans in alike.values():
        for scan in scans if len(scans) > 1 else []:
            others = ", ".join(sorted(set(scans) - {scan}))
            found[scan].problems.append(f"{scan} and {others} differ in case only; rename one, with its files")


def _match(
    scan: str, files: list[Path], contrasts: Sequence[Contrast], bids: Path, listings: dict[Path, list[Path]]
) -> ScanFiles:
    participant, _, session = scan.partition("_")
    found = ScanFiles(scan, participant, session or None)
    for contrast in contrasts:
        hits = _hits(files, contrast)
        wanted = "_".join([*(f"{key}-{value}" for key, value in contrast.entities.items()), contrast.suffix])
        if not hits:
            there = ", ".join(_short(path, scan) for path in files)
            found.problems.append(f"{scan}: contrast {contrast.name} ({wanted}) is missing; there are: {there}")
        elif len(hits) > 1:
            names = ", ".join(path.name for path in hits)
            found.problems.append(
                f"{scan}: contrast {contrast.name} ({wanted}) is doubled: {names}; tell them apart by `entities` "
                "or remove one"
            )
        elif _another_person(hits[0], bids, participant):
            found.problems.append(f"{hits[0]}: is a link to the image of another person; put the person's own there")
        else:
            found.images[contrast.name] = hits[0]
            found.sidecars[contrast.name] = _sidecar(hits[0], bids, listings, found.problems)
    return found


def _another_person(image: Path, bids: Path, participant: str) -> bool:
    """Whether a link leads to the folder of somebody else in this dataset: one brain would count as two."""
    if not image.is_symlink():
        return False
    target, root, own = (Path(realpath(path)) for path in (image, bids, bids / participant))  # circles do not raise
    owner = target.relative_to(root).parts[0] if target.is_relative_to(root) else ""
    return owner.startswith("sub-") and not target.is_relative_to(own)


def _short(path: Path, scan: str) -> str:
    name = path.name.partition(".")[0]
    return name.removeprefix(f"{scan}_")


def _hits(files: list[Path], contrast: Contrast) -> list[Path]:
    """Files of this contrast; where one of several has no entities beyond those asked for, that one alone."""
    hits, plain = [], []
    for path in files:
        parsed = parse_bids_entities(path)
        entities = {key: value for key, value in parsed.items() if key not in (*NOT_ENTITIES, "sub", "ses")}
        fits = all(_value(entities.get(key)) == _value(value) for key, value in contrast.entities.items())
        if parsed.get("suffix") == contrast.suffix and fits:
            hits.append(path)
            if len(entities) == len(contrast.entities):
                plain.append(path)
    return plain if plain else hits


def _value(value: str | None) -> str | int | None:
    if value is None:
        return None
    return int(value) if value.isdecimal() else value.casefold()


def _sidecar(image: Path, bids: Path, listings: dict[Path, list[Path]], problems: list[str]) -> dict[str, Any]:
    """The image's metadata: JSON files from the dataset's root down to the image's folder, the nearest
    winning.

    A JSON file applies if it has the image's suffix and no entity that the image lacks (BIDS inheritance
    principle).
    """
    entities = _entities(image)
    folders = [image.parent, *image.parent.parents]
    content: dict[str, Any] = {}
    for folder in reversed(folders[: folders.index(bids) + 1]):
        if folder not in listings:
            listings[folder] = sorted(folder.glob("*.json"))
        fitting = [path for path in listings[folder] if _entities(path).items() <= entities.items()]
        for path in sorted(fitting, key=lambda path: len(_entities(path))):
            try:
                loaded = json.loads(read_text(path), parse_constant=_no_number)
            except (OSError, ValueError, RecursionError) as error:
                if isinstance(error, OSError) and error.errno not in (*LINK_FAULTS, ENOENT):
                    raise  # the disk or network
                said = one_line(str(error)) or type(error).__name__
                problems.append(f"{one_line(str(path))}: sidecar cannot be read as JSON ({said}); correct or remove it")
                continue
            if not isinstance(loaded, dict):
                problems.append(f"{path}: a sidecar must be a JSON object; correct or remove it")
                continue
            if not isinstance(loaded.get("Units", ""), str):
                problems.append(f"{path}: Units is {loaded['Units']!r}, not a text; correct or remove it")
                continue
            content.update(loaded)
    return content


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _entities(path: Path) -> dict[str, str]:
    """Entities and suffix of a file's name; a file that has no suffix fits nothing."""
    named = {key: value for key, value in _named(path).items() if key not in ("datatype", "ext")}
    return named or {"suffix": ""}


def _named(path: Path) -> dict[str, str]:
    """What a file's name says by BIDS; nothing where it has no suffix."""
    parsed = parse_bids_entities(path)
    return parsed if "suffix" in parsed else {}
