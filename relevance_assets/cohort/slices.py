"""The slices of a folder of 2D pictures, as scans of people: `sub-<patient>_ses-<slice>`.

Two kinds of folder are read: one with `index.csv`, and the brain tumour set as downloaded (figshare 1512427), one
MATLAB file per slice. Where no patient is known, a person is a block of neighbouring slice numbers. The published
numbers stand in runs of one class and one plane, with the patients in much the same order in each: neighbours are
often one patient, but that patient's slices in another plane lie in another block (83 to 87, axial, and 307 to 311,
coronal, show the same two tumours). So blocks keep neighbours together, not all slices of a patient: results from them
are still too good, if less than those of the published split.

Belongs here: which slices there are, whose, and what is wrong with each. Does not belong here: their pixels
(`slice_files.py`), who is in which set (`slice_splits.py`).
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl

from relevance_assets.cohort.bids import DatasetError, is_scan
from relevance_assets.cohort.slice_files import CLASSES, MATLAB, read_header, read_mask, read_slice
from relevance_assets.cohort.text import one_line, read_text
from relevance_assets.cohort.watch import Folder, Seen
from relevance_assets.files import fingerprint
from relevance_assets.imaging.volumes import ScanError

__all__ = ["BLOCK", "SCHEMA", "index_slices", "look_slices", "read_mask", "read_slice", "slice_order"]

#: About ten patients' slices of one plane (3,064 slices of 233 patients in up to three planes are some 5 each), so
#: borders between sets, at which slices are left out, are few; and some 40 blocks, enough to divide 2,109 slices.
BLOCK = 50
INDEX = "index.csv"
FOLDS = "cvind.mat"
COLUMNS = ("slice_id", "class", "image", "mask")
SCHEMA = {
    "scan": pl.String,
    "participant_id": pl.String,
    "session": pl.String,
    "slice_id": pl.String,
    "patient": pl.String,
    "class": pl.String,
    "image": pl.String,
    "mask": pl.String,
    "fold": pl.Int64,
    "problem": pl.String,
}


@dataclass
class _Slice:
    """One slice while the index is made; `source` names its file or line, `kind` is its class."""

    source: str
    slice_id: str
    image: str
    mask: str
    kind: str | None = None
    patient: str | None = None
    fold: int | None = None
    problem: str | None = None


def index_slices(folder: Path, *, block: int = BLOCK) -> pl.DataFrame:
    """All slices of a folder, sorted by number. Pixels are not read.

    With an `index.csv` (slice_id, class, image, mask; optional patient; others are ignored) its lines are the slices;
    paths are relative to the folder and stay within it. Without one, `<number>.mat` in the folder and in the folders
    of it are the slices, and `cvind.mat` (optional) gives the published patient-wise fold (1 to 5) of each number.

    Parameters
    ----------
    folder : Path
    block : int
        Slice numbers per block where no slice has a patient: block 0 has the numbers 0 … block - 1. Some with and
        some without is a fault of those without.

    Returns
    -------
    DataFrame
        scan, participant_id, session: as elsewhere. slice_id: as written, decimal numbers without leading zeros.
        patient: as written, null where none is known. class: meningioma, glioma or pituitary. image, mask: paths, the
        same one for a `.mat`. fold: of `cvind.mat`, else null. problem: one line that names the file and the remedy,
        null where all is well. A slice with a problem may have a name with a '/', which is no scan's.

    Raises
    ------
    DatasetError
        No such folder, no slices in it, an index that cannot be read or lacks a column, unusable folds.
    ValueError
        `block` is not positive.
    """
    if block < 1:
        raise ValueError(f"a block of {block} slices is none; take {BLOCK}")
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; name a folder of slices")
    index = folder / INDEX
    slices = _listed(index) if index.exists() else _downloaded(folder)
    by_block = not any(entry.patient for entry in slices)
    _check_names(slices, by_block)
    _check_patients(slices, by_block)
    rows = [_row(entry, block) for entry in slices]
    return pl.DataFrame(sorted(rows, key=lambda row: (slice_order(str(row["slice_id"])), row["scan"])), schema=SCHEMA)


def slice_order(slice_id: str) -> tuple[bool, int, str]:
    """Sort key: numbers by value, then all other names."""
    number = slice_id.isdecimal()
    return (not number, int(slice_id) if number else 0, slice_id)


def _listed(index: Path) -> list[_Slice]:
    """The lines of an index, each with its files looked at."""
    try:
        lines = csv.DictReader(io.StringIO(read_text(index), newline=""), strict=True)
        names = [name.strip() for name in lines.fieldnames or []]
        lines.fieldnames = names
        rows = [(lines.line_num, row) for row in lines]
    except (ValueError, csv.Error, OSError) as error:
        raise DatasetError(f"{index}: cannot be read as CSV ({one_line(str(error))}); correct it") from None
    missing = [column for column in COLUMNS if column not in names]
    if missing or len(set(names)) < len(names):
        what = f"has no column {', '.join(missing)}" if missing else "has a column twice"
        raise DatasetError(f"{index}: {what}; it needs {', '.join(COLUMNS)} and may have patient")
    if not rows:
        raise DatasetError(f"{index}: lists no slices; add a line for each")
    return [_line(index, number, row) for number, row in rows]


def _line(index: Path, number: int, row: dict[str | None, str | None]) -> _Slice:
    where = f"{index} line {number}"
    ragged = None in row or None in row.values()
    cells = {name: value.strip() for name, value in row.items() if name is not None and isinstance(value, str)}
    slice_id, kind, image, mask = (cells.get(column, "") for column in COLUMNS)
    entry = _Slice(where, _plain_number(slice_id), image, mask, kind, cells.get("patient") or None)
    if ragged:
        entry.problem = f"{where}: has not as many cells as the header; correct it"
    elif kind not in CLASSES.values():
        entry.problem = f"{where}: class {kind!r} is not one of {', '.join(CLASSES.values())}; correct it"
    else:
        for column, name in (("image", image), ("mask", mask)):
            path = PurePosixPath(name)
            if not name or path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
                entry.problem = f"{where}: {column} {name!r} is no path within the folder; correct it"
                return entry
        entry.image, entry.mask = str(index.parent / image), str(index.parent / mask)
        _look_at(entry)
    return entry


def _downloaded(folder: Path) -> list[_Slice]:
    """The MATLAB files of the folder and of its folders."""
    files = [path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.suffix.lower() in (MATLAB, ".zip")]
    matlab = [path for path in files if path.suffix.lower() == MATLAB and not path.name.startswith(".")]
    found = sorted(path for path in matlab if path.name != FOLDS)
    if not found:
        packed = "only archives, unpack them" if any(path not in matlab for path in files) else "nothing to index"
        raise DatasetError(f"{folder}: {packed}; a folder of slices has {INDEX} or one .mat per slice")
    folds = _folds(next((path for path in matlab if path.name == FOLDS), None))
    slices = []
    for path in found:
        entry = _Slice(str(path), _plain_number(path.stem), str(path), str(path))
        if not entry.slice_id.isdecimal():
            entry.problem = f"{path}: is not named by a slice's number; rename it or take it out"
        else:
            _look_at(entry)
            number = int(entry.slice_id)
            if folds is not None and not 1 <= number <= len(folds):
                entry.problem = entry.problem or f"{path}: {FOLDS} has no fold for it, only {len(folds)}; take one out"
            elif folds is not None:
                entry.fold = int(folds[number - 1])
        slices.append(entry)
    return slices


def _look_at(entry: _Slice) -> None:
    """Read what the files say beside pixels, and set problem, class and patient."""
    try:
        header = read_header(Path(entry.image))
        mask = (header if entry.mask == entry.image else read_header(Path(entry.mask))).mask
    except (ScanError, PermissionError) as error:
        entry.problem = str(error)
        return
    if header.image != mask:
        shapes = " and ".join(" x ".join(map(str, shape)) for shape in (header.image, mask))
        entry.problem = f"{entry.mask}: image and mask differ in size ({shapes}); export both again"
    if header.label is not None:
        kind = CLASSES[header.label]
        if entry.kind not in (None, kind):
            entry.problem = f"{entry.source}: class is {entry.kind}, but {entry.image} says {kind}; correct one"
        entry.kind = kind
        entry.patient = entry.patient or header.patient


def _folds(path: Path | None) -> np.ndarray | None:
    """The published folds by slice number, (n,) integers; None where there is no file."""
    if path is None:
        return None
    import h5py
    from scipy.io import loadmat

    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                values = np.asarray(file["cvind"][()], dtype=np.float64).ravel()
        else:
            values = np.asarray(loadmat(path)["cvind"], dtype=np.float64).ravel()
    except Exception as error:  # both libraries raise many kinds for a damaged file
        said = one_line(str(error).split("\n", 1)[0])
        raise DatasetError(f"{path}: cannot be read as folds ({said}); download it again or remove it") from None
    if values.size == 0 or not (np.isfinite(values) & (values == np.rint(values)) & (values >= 1)).all():
        raise DatasetError(f"{path}: folds are not whole numbers from 1; download it again or remove it")
    return values.astype(np.int64)


def _check_names(slices: list[_Slice], by_block: bool) -> None:
    """Slices need names that are safe, single, and numbers where blocks are made of them."""
    times = Counter(entry.slice_id.casefold() for entry in slices)
    for entry in slices:
        if entry.problem:
            continue
        shown = f"{entry.source}: slice_id {entry.slice_id!r}"
        if not re.fullmatch("[A-Za-z0-9]+", entry.slice_id):
            entry.problem = f"{shown} is not of letters and digits; rename it"
        elif times[entry.slice_id.casefold()] > 1:
            entry.problem = f"{shown} is there {times[entry.slice_id.casefold()]} times; remove or rename the others"
        elif by_block and not entry.slice_id.isdecimal():
            entry.problem = f"{shown} is no number, and no patient is known to tell people apart; add column patient"


def _check_patients(slices: list[_Slice], by_block: bool) -> None:
    """Where patients are known each slice needs one, and no two of them may become one name."""
    if by_block:
        return
    written: dict[str, set[str]] = {}
    for entry in slices:
        if entry.patient:
            written.setdefault(_alphanumeric(entry.patient).casefold(), set()).add(entry.patient)
    for entry in slices:
        if entry.problem:
            continue
        label = _alphanumeric(entry.patient or "")
        alike = sorted(written.get(label.casefold(), ()))
        if not entry.patient:
            entry.problem = f"{entry.source}: has no patient, others have one; add it or take the slice out"
        elif not label:
            entry.problem = f"{entry.source}: patient {entry.patient!r} has no letter or digit; rename it"
        elif len(alike) > 1:
            names = ", ".join(map(repr, alike))
            entry.problem = f"{entry.source}: patients {names} become one name; spell them alike or rename one"


def _row(entry: _Slice, block: int) -> dict[str, str | int | None]:
    """A row of the index; what cannot be named as a scan is named by its source, with a '/'."""
    person = None
    if entry.patient:
        person = _alphanumeric(entry.patient)
    elif entry.slice_id.isdecimal():
        person = f"block{int(entry.slice_id) // block:03d}"
    scan = f"sub-{person}_ses-{entry.slice_id}"
    problem = entry.problem
    if person and not problem and not is_scan(scan):
        problem = f"{entry.source}: patient and slice_id make too long a name; shorten them"
    named = problem is None
    return {
        "scan": scan if named else one_line(f"{entry.source}/"),
        "participant_id": f"sub-{person}" if named else one_line(f"{entry.source}/"),
        "session": f"ses-{entry.slice_id}" if named else None,
        "problem": None if problem is None else one_line(problem),
        "class": entry.kind,
        **{name: value for name, value in asdict(entry).items() if name in SCHEMA and name != "problem"},
    }


def _plain_number(text: str) -> str:
    return str(int(text)) if text.isascii() and text.isdecimal() and len(text) < 20 else text


def _alphanumeric(text: str) -> str:
    return re.sub("[^A-Za-z0-9]", "", text)


def look_slices(index: pl.DataFrame, folder: Path) -> Folder:
    """The slices of an index as files of this moment, for whoever asks what is new.

    Parameters
    ----------
    index : frame
        Of `index_slices`; slices with a problem are left out.
    folder : Path
    """
    scans = {}
    for scan, image, mask in index.filter(pl.col("problem").is_null()).select("scan", "image", "mask").iter_rows():
        found = [Path(path).stat() for path in dict.fromkeys((image, mask))]
        signature = fingerprint([(one.st_size, one.st_mtime_ns) for one in found])
        scans[scan] = Seen(signature, max(one.st_ctime for one in found))
    above = [path.stat() for name in (INDEX, FOLDS) if (path := folder / name).exists()]
    problems = index.filter(pl.col("problem").is_not_null())["problem"].to_list()
    others = fingerprint([(one.st_size, one.st_mtime_ns) for one in above], problems)
    return Folder(dict(sorted(scans.items())), others, max((one.st_ctime for one in above), default=0.0))
