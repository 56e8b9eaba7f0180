"""The dataset as a whole: settings, which scans are there, the tables, and doing what is left to do.

Belongs here: everything that concerns more than one scan. Does not belong here: how a scan comes about
(`scan.py`) or is stored (`bids.py`).

Order of writing, so that a kill at any moment leaves a folder that can be continued:
dataset_description.json (which holds the settings) first; then scan by scan, each in a hidden folder that
is moved into place when complete, its truth before its images; participants.tsv last.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from relevance_assets.cohort.synthetic import bids, lesions, scan
from relevance_assets.cohort.synthetic.people import Visit, draw_visits
from relevance_assets.files import atomic_path, write_json

__all__ = ["SyntheticCohortError", "check_folder", "is_complete", "synthesise"]

GENERATOR_VERSION = "4"  # raise it when the same seed gives other bytes
BIDS_VERSION = "1.11.1"
LARGEST_VOXEL_MM = 12.0
SMALLEST_VOXEL_MM = 0.5
UNFINISHED = ".unfinished"

README = """\
A synthetic MS cohort. Nobody in it exists.

Made from the MNI152NLin2009aSym template (bundled with nilearn) by the synthetic cohort of
relevance-assets. EDSS changes tissue in a planted region only; a decoy region changes as much, at random.
The truth (masks, zones, warps) is in derivatives/truth. Seed and settings are in dataset_description.json.
Every image is brain-extracted: exactly 0 outside the brain. T1map is in ms, MWFmap and NDI
(dwi/*_model-noddi_param-ICVF_dwimap) are fractions from 0 to 1. The suffix dwimap is not yet in BIDS
(BEP016), hence .bidsignore.
"""

PARTICIPANTS_JSON = {
    "age": {"Description": "Age at the first session", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "group": {"Description": "Diagnosis", "Levels": {"MS": "multiple sclerosis", "HC": "healthy control"}},
    "ms_type": {
        "Description": "Course of MS; n/a in healthy controls",
        "Levels": {"RRMS": "relapsing-remitting", "PMS": "progressive"},
    },
    "edss": {
        "Description": "Expanded Disability Status Scale at the first session, 0 to 10; n/a in healthy controls",
        "Units": "arbitrary",
    },
}
SESSIONS_JSON = {
    "age": {"Description": "Age at the session", "Units": "year"},
    "edss": {"Description": "Expanded Disability Status Scale at the session, 0 to 10", "Units": "arbitrary"},
}


class SyntheticCohortError(ValueError):
    """A setting is out of range, or the folder holds something else."""


def synthesise(
    out: Path,
    *,
    scans: int,
    voxel_size_mm: float,
    seed: int,
    effect: float,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """See `relevance_assets.cohort.synthetic.synthesise`."""
    check_folder(out, scans=scans, voxel_size_mm=voxel_size_mm, seed=seed, effect=effect)
    provenance = _provenance(voxel_size_mm, seed, effect)
    settings = {name: value for name, value in provenance.items() if name != "version"}
    _begin(out, provenance, scans)
    truth = out / "derivatives" / "truth"
    visits = list(draw_visits(seed, scans))
    for done, visit in enumerate(visits, start=1):
        if not _place(out, visit).is_dir():
            _write_scan(out, truth, visit, settings, provenance)
        if progress is not None:
            progress(done, scans)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    _write_tables(out, visits)


def is_complete(out: Path, *, scans: int, voxel_size_mm: float, seed: int, effect: float) -> bool:
    """See `relevance_assets.cohort.synthetic.is_complete`."""
    description = out / "dataset_description.json"
    if not description.exists() or not (out / "participants.tsv").exists():
        return False
    return _settings_of(description) == (_provenance(voxel_size_mm, seed, effect), scans)


def _check_settings(scans: int, voxel_size_mm: float, seed: int, effect: float) -> None:
    if scans < 1:
        raise SyntheticCohortError(f"scans is {scans}: ask for at least 1")
    if not SMALLEST_VOXEL_MM <= voxel_size_mm <= LARGEST_VOXEL_MM:
        limits = f"from {SMALLEST_VOXEL_MM} to {LARGEST_VOXEL_MM} mm"
        raise SyntheticCohortError(f"voxel_size_mm is {voxel_size_mm}: choose a size {limits}")
    if seed < 0:
        raise SyntheticCohortError(f"seed is {seed}: choose 0 or larger")
    if not (math.isfinite(effect) and effect >= 0):
        raise SyntheticCohortError(f"effect is {effect}: choose 0 (none) or larger")


def check_folder(out: Path, *, scans: int, voxel_size_mm: float, seed: int, effect: float) -> None:
    """See `relevance_assets.cohort.synthetic.check_folder`."""
    _check_settings(scans, voxel_size_mm, seed, effect)
    description = out / "dataset_description.json"
    if not description.exists():
        if out.exists() and any(out.iterdir()):
            raise SyntheticCohortError(f"{out} is not empty and holds no synthetic cohort: choose another folder")
        return
    asked = _provenance(voxel_size_mm, seed, effect)
    before, before_scans = _settings_of(description)
    if before != asked:
        raise SyntheticCohortError(
            f"{out} holds a synthetic cohort with other settings ({_words(before)}; asked: {_words(asked)}): "
            "choose another folder, or delete this one"
        )
    if before_scans > scans:
        raise SyntheticCohortError(
            f"{out} holds a synthetic cohort of {before_scans} scans, more than the {scans} asked for: "
            "choose another folder, or delete this one"
        )


def _provenance(voxel_size_mm: float, seed: int, effect: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "effect": float(effect),
        "voxel_size_mm": float(voxel_size_mm),
        "version": GENERATOR_VERSION,
    }


def _begin(out: Path, provenance: dict[str, Any], scans: int) -> None:
    """Write what comes first; participants.tsv goes while scans are missing."""
    description = out / "dataset_description.json"
    if description.exists() and _settings_of(description)[1] < scans:
        (out / "participants.tsv").unlink(missing_ok=True)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    truth = out / "derivatives" / "truth"
    _write_text(out / "README", README)
    _write_text(out / ".bidsignore", "*_dwimap.*\n")
    _write_text(truth / ".bidsignore", "*_xfm.*\n")
    _write_text(truth / "README", "What was planted in the synthetic cohort: see the sidecars.\n")
    rows = [f"{number}\t{zone}" for number, zone in enumerate(lesions.ZONES, start=1)]
    _write_text(truth / "desc-lesionzones_dseg.tsv", "\n".join(["index\tname", *rows]) + "\n")
    write_json(truth / "dataset_description.json", _description("derivative", provenance, scans))
    write_json(description, _description("raw", provenance, scans))


def _description(kind: str, provenance: dict[str, Any], scans: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "Name": "Synthetic MS cohort" + (": planted truth" if kind == "derivative" else ""),
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": kind,
        "License": "CC0",
        "Authors": ["relevance-assets"],
        "GeneratedBy": [
            {
                "Name": "relevance-assets synthetic cohort",
                "Version": provenance["version"],
                "Description": f"MNI152NLin2009aSym as bundled with nilearn {version('nilearn')}",
                "Parameters": {**provenance, "scans": scans},
            }
        ],
    }
    if kind == "derivative":
        content["SourceDatasets"] = [{"URL": "../.."}]
        content["DatasetLinks"] = {"raw": "../.."}
    return content


def _settings_of(description: Path) -> tuple[dict[str, Any], int]:
    """The settings and the number of scans that a dataset_description.json names."""
    try:
        parameters = dict(json.loads(description.read_text())["GeneratedBy"][0]["Parameters"])
        return parameters, int(parameters.pop("scans"))
    except (ValueError, LookupError, TypeError) as error:
        raise SyntheticCohortError(f"{description} is not of a synthetic cohort: choose another folder") from error


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))


def _place(root: Path, visit: Visit) -> Path:
    return root / visit.person.label / f"ses-{visit.session}"


def _write_scan(out: Path, truth: Path, visit: Visit, settings: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Make a scan in a hidden folder, then move its truth and last its images into place."""
    made = scan.make_scan(visit, **settings)
    unfinished = out / UNFINISHED / visit.scan
    bids.write_truth(unfinished / "truth", made, provenance)
    bids.write_images(unfinished / "images", made, provenance)
    for folder, root in (("truth", truth), ("images", out)):
        place = _place(root, visit)
        shutil.rmtree(place, ignore_errors=True)  # a truth whose images never came
        place.parent.mkdir(parents=True, exist_ok=True)
        (unfinished / folder).rename(place)
    unfinished.rmdir()


def _write_tables(out: Path, visits: Iterable[Visit]) -> None:
    """sessions.tsv of those with two sessions, then participants.tsv and its descriptions."""
    of: dict[str, list[Visit]] = {}
    for visit in visits:
        of.setdefault(visit.person.label, []).append(visit)
    people = []
    for label, seen in of.items():
        person = seen[0].person
        people.append((label, person.age, person.sex, person.group, person.ms_type, person.edss))
        if len(seen) > 1:
            rows = [(f"ses-{visit.session}", visit.age, visit.edss) for visit in seen]
            _write_tsv(out / label / f"{label}_sessions.tsv", ("session_id", *SESSIONS_JSON), rows)
            write_json(out / label / f"{label}_sessions.json", SESSIONS_JSON)
    write_json(out / "participants.json", PARTICIPANTS_JSON)
    _write_tsv(out / "participants.tsv", ("participant_id", *PARTICIPANTS_JSON), people)


def _write_tsv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    lines = ["\t".join("n/a" if cell is None else str(cell) for cell in row) for row in (header, *rows)]
    _write_text(path, "\n".join(lines) + "\n")


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)
