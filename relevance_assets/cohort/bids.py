"""The scans of a BIDS folder: which file is which contrast, and its sidecar.

Belongs here: which images there are, matching of a study's contrasts, sidecar inheritance. bids2table reads the names;
its index of a whole dataset would take 500 MB for 10,000 people, where only paths are needed. Does not belong here: who
the people are (`participants.py`), whether an image is sound (`check.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

from bids2table import parse_bids_entities

from relevance_assets.home import SCAN_PATTERN, split_scan
from relevance_assets.study import Contrast

__all__ = ["DatasetError", "ScanFiles", "find_scan", "index_scans"]

EXTENSIONS = (".nii", ".nii.gz")
NOT_ENTITIES = ("datatype", "suffix", "ext")


class DatasetError(ValueError):
    """What is wrong with a dataset as a whole, in one line that names the file and says what to do."""


@dataclass(frozen=True)
class ScanFiles:
    """One scan's files.

    Attributes
    ----------
    scan : str
        `sub-<label>[_ses-<label>]`.
    participant_id, session : str
        `sub-<label>`; `ses-<label>` or None.
    images : dict
        Contrast name to file, for the contrasts that were found without doubt.
    sidecars : dict
        Contrast name to the JSON sidecar's content, inherited keys included; empty where there is none.
    problems : list of str
        One line each: a contrast that is missing or doubled, a sidecar that cannot be read.
    """

    scan: str
    participant_id: str
    session: str | None
    images: dict[str, Path] = field(default_factory=dict)
    sidecars: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def index_scans(bids: Path, contrasts: Sequence[Contrast]) -> dict[str, ScanFiles]:
    """All scans of the raw dataset `bids`, sorted by name; `derivatives/` and `sourcedata/` are not looked
    at.

    A contrast is the file that has its suffix and all of its entities (upper and lower case alike, `run-01`
    like `run-1`). Of several, the one without further entities is it; otherwise the contrast is doubled.

    Raises
    ------
    DatasetError
        No such folder, nothing to index, or a label that is not made of letters and digits.
    """
    return _index(bids, contrasts, None)


def find_scan(bids: Path, scan: str, contrasts: Sequence[Contrast]) -> ScanFiles:
    """One scan, as `index_scans` would find it, without reading the other people's folders."""
    participant, _ = split_scan(scan)
    if not (bids / participant).is_dir():
        raise DatasetError(f"{bids / participant}: no such folder, so there is no scan {scan}")
    scans = _index(bids, contrasts, participant)
    if scan not in scans:
        raise DatasetError(f"{bids}: no image of scan {scan}; known for {participant}: {', '.join(scans) or 'none'}")
    return scans[scan]


def _index(bids: Path, contrasts: Sequence[Contrast], participant: str | None) -> dict[str, ScanFiles]:
    candidates: dict[str, list[Path]] = {}
    for person in [participant] if participant else _people(bids):
        # rglob would not follow links to folders
        for name in glob("**/sub-*.nii*", root_dir=bids / person, recursive=True):  # noqa: PTH207
            path = bids / person / name
            if _named(path).get("ext") in EXTENSIONS:
                candidates.setdefault(_scan_of(path), []).append(path)
    if not candidates and participant is None:
        raise DatasetError(f"{bids}: no image is named by BIDS (sub-<label>/…/sub-<label>_<suffix>.nii.gz)")
    listings: dict[Path, list[Path]] = {}
    return {scan: _match(scan, sorted(files), contrasts, bids, listings) for scan, files in sorted(candidates.items())}


def _people(bids: Path) -> list[str]:
    """The people's folders, by name."""
    if not bids.is_dir():
        raise DatasetError(f"{bids}: no such folder; name a BIDS dataset")
    folders = sorted(path.name for path in bids.glob("sub-*") if path.is_dir())
    if not folders:
        raise DatasetError(f"{bids}: no sub-* folders; name the root of a BIDS dataset")
    unsafe = [name for name in folders if not SCAN_PATTERN.fullmatch(name) or "_" in name]
    if unsafe:
        raise DatasetError(f"{bids / unsafe[0]}: a label is made of letters and digits only; rename or remove it")
    return folders


def _scan_of(path: Path) -> str:
    entities = parse_bids_entities(path)
    scan = f"sub-{entities.get('sub')}" + (f"_ses-{entities['ses']}" if "ses" in entities else "")
    if not SCAN_PATTERN.fullmatch(scan):
        raise DatasetError(f"{path}: {scan!r} is not made of letters and digits; rename the file and its folder")
    folders = set(path.parts[:-1])
    for part in scan.split("_"):
        others = sorted(name for name in folders if name.startswith(part[:4]) and name != part)
        if others and part not in folders:
            raise DatasetError(f"{path}: is named {part} but lies in {others[-1]}; rename or move it")
    return scan


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
                f"{scan}: contrast {contrast.name} ({wanted}) is doubled: {names}; tell them apart by `entities`"
            )
        else:
            found.images[contrast.name] = hits[0]
            found.sidecars[contrast.name] = _sidecar(hits[0], bids, listings, found.problems)
    return found


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
                loaded = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                problems.append(f"{path}: sidecar cannot be read as JSON ({error}); correct or remove it")
                continue
            if not isinstance(loaded, dict):
                problems.append(f"{path}: a sidecar must be a JSON object; correct or remove it")
                continue
            content.update(loaded)
    return content


def _entities(path: Path) -> dict[str, str]:
    """Entities and suffix of a file's name; a file that has no suffix fits nothing."""
    named = {key: value for key, value in _named(path).items() if key not in ("datatype", "ext")}
    return named or {"suffix": ""}


def _named(path: Path) -> dict[str, str]:
    """What a file's name says by BIDS; nothing where it has no suffix."""
    parsed = parse_bids_entities(path)
    return parsed if "suffix" in parsed else {}
