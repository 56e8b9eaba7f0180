"""A few people with planted lesions, and a study of them in a home of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from made import MadeStudy

from relevance_assets.configuration import remember
from relevance_assets.home import Home
from relevance_assets.imaging.volumes import save_volume

VOXEL = 3.0  # mm
SHAPE = (46, 54, 44)
PLACES = {"periventricular": (13.5, 0, 0), "paraventricular": (31.5, 0, 0), "juxtacortical": (55.5, 0, 0)}  # mm
# Scan: group, and how many voxels (along z) each of its lesions has, none where there is no such lesion.
PEOPLE: dict[str, tuple[str, dict[str, int]]] = {
    "sub-1": ("HC", {}),
    "sub-2": ("HC", {"periventricular": 2}),
    "sub-3": ("MS", {"periventricular": 4, "paraventricular": 3, "juxtacortical": 2}),
    "sub-4_ses-M0": ("MS", {"paraventricular": 5}),
    "sub-4_ses-M6": ("MS", {"paraventricular": 9}),
}
ZONES = tuple(PLACES)


def centres() -> np.ndarray:
    """Voxel centres, mm from the middle, (3, x, y, z)."""
    half = (np.array(SHAPE)[:, None, None, None] - 1) / 2
    return (np.indices(SHAPE) - half) * VOXEL


def affine() -> np.ndarray:
    """To the left in the file, as scanners do."""
    found = np.diag([-VOXEL, VOXEL, VOXEL, 1.0])
    found[:3, 3] = -found[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return found


def planted(lesions: dict[str, int]) -> np.ndarray:
    """One voxel wide, as long as given."""
    mask = np.zeros(SHAPE, np.uint8)
    middle = (np.array(SHAPE) - 1) / 2
    for zone, voxels in lesions.items():
        x, y, z = (np.array(PLACES[zone]) / [-VOXEL, VOXEL, VOXEL] + middle).astype(int)
        mask[x, y, z : z + voxels] = 255  # masks of 0 and 255 are masks
    return mask


def write_cohort(bids: Path) -> None:
    mm = centres()
    brain = (mm[0] / 60) ** 2 + (mm[1] / 75) ** 2 + (mm[2] / 60) ** 2 <= 1
    ventricles = (np.abs(mm) <= 9).all(axis=0)
    for scan, (_, lesions) in PEOPLE.items():
        folder, truth = (place.joinpath(*scan.split("_")) / "anat" for place in (bids, bids / "derivatives" / "truth"))
        image = np.where(brain, 100.0, 0.0) - 60 * ventricles + 80 * (planted(lesions) > 0)
        save_volume(folder / f"{scan}_FLAIR.nii.gz", image, affine())
        save_volume(truth / f"{scan}_label-lesion_mask.nii.gz", planted(lesions), affine(), np.uint8)
        save_volume(truth / f"{scan}_label-ventricles_mask.nii.gz", ventricles, affine(), np.uint8)
        save_volume(truth / f"{scan}_label-cortex_mask.nii.gz", ~brain, affine(), np.uint8)  # the fluid around it
    rows = {scan.split("_")[0]: group for scan, (group, _) in PEOPLE.items()}
    lines = [f"{person}\t{30 + number}\tF\t{group}" for number, (person, group) in enumerate(rows.items())]
    (bids / "participants.tsv").write_text("\n".join(["participant_id\tage\tsex\tgroup", *lines]) + "\n")
    (bids / "dataset_description.json").write_text('{"Name": "planted", "BIDSVersion": "1.10.0"}\n')


@dataclass
class Made(MadeStudy):
    bids: Path


def prepared(folder: Path, **more: Any) -> Made:
    """The cohort, and its volumes prepared."""
    write_cohort(folder / "bids")
    home = Home(folder / "home")
    settings: dict[str, Any] = {"cohort.bids": str(folder / "bids"), "statistics.bootstrap": 100}
    settings["preparation"] = [{"step": "brain_mask", "source": "nonzero"}, {"step": "scale"}]
    settings["contrasts"] = [{"name": "FLAIR", "suffix": "FLAIR", "scale": {"rule": "range", "high": 200}}]
    remember(home, "lesion_profile", settings | more)
    one = Made(home, "lesion_profile", folder / "bids")
    one.run("participants", "raw_scans", "prepared_volumes")
    return one


def mask_of(made: Made, scan: str, label: str = "lesion") -> Path:
    folder = made.bids / "derivatives" / "truth"
    return folder.joinpath(*scan.split("_")) / "anat" / f"{scan}_label-{label}_mask.nii.gz"
