"""One scan as BIDS files: images, sidecars, and the truth as a derivative.

Belongs here: names, units, number formats and sidecars of one scan. Does not belong here: the tables of
the whole dataset and when a scan is complete (`cohort.py`).

Images are stored as 16-bit integers with a scale, as scanners do, on an LAS grid (voxel x runs to the left).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from relevance_assets.cohort.synthetic import lesions as focal
from relevance_assets.cohort.synthetic import signal
from relevance_assets.cohort.synthetic.scan import Scan
from relevance_assets.cohort.synthetic.template import Grid
from relevance_assets.home import TEMPLATE_SPACE

__all__ = ["fullest_voxels", "las_affine", "save_nifti", "write_images", "write_truth"]


# suffix: folder, entities before the suffix, step of the stored integers, sidecar.
_IMAGES: dict[str, tuple[str, str, float, dict[str, Any]]] = {
    "T1w": (
        "anat",
        "",
        1.0,
        {
            "MagneticFieldStrength": 3,
            "InversionTime": signal.MPRAGE_TI / 1000,
            "RepetitionTimePreparation": signal.MPRAGE_TR / 1000,
            "Units": "arbitrary",
            "SkullStripped": True,
        },
    ),
    "FLAIR": (
        "anat",
        "",
        1.0,
        {
            "MagneticFieldStrength": 3,
            "InversionTime": signal.FLAIR_TI / 1000,
            "RepetitionTimePreparation": signal.FLAIR_TR / 1000,
            "EchoTime": signal.FLAIR_TE / 1000,
            "Units": "arbitrary",
            "SkullStripped": True,
        },
    ),
    "T1map": ("anat", "", 1.0, {"MagneticFieldStrength": 3, "Units": "ms", "SkullStripped": True}),
    "MWFmap": (
        "anat",
        "",
        1e-4,
        {
            "MagneticFieldStrength": 3,
            "Units": "1",
            "Description": "Myelin water fraction, 0 to 1.",
            "SkullStripped": True,
        },
    ),
    "dwimap": (
        "dwi",
        "_model-noddi_param-ICVF",
        1e-4,
        {
            "MagneticFieldStrength": 3,
            "Units": "1",
            "Description": "Neurite density index of NODDI, 0 to 1.",
            "SkullStripped": True,
        },
    ),
}


def las_affine(grid: Grid) -> np.ndarray:
    """(4, 4) affine of the stored image: `grid` with its first axis reversed."""
    affine = np.diag([-grid.spacing_mm, grid.spacing_mm, grid.spacing_mm, 1.0])
    affine[:3, 3] = grid.origin_mm
    affine[0, 3] += grid.spacing_mm * (grid.shape[0] - 1)
    return affine


def save_nifti(path: Path, values: np.ndarray, grid: Grid, step: float | None = None) -> None:
    """Write an image on `grid` as LAS NIfTI; equal values give equal bytes.

    Parameters
    ----------
    path : Path
        Ends in .nii.gz.
    values : (x, y, z, ...) array
        On the RAS grid.
    step : float, optional
        Size of the stored integers' unit (int16). Without it, values are labels (uint8).
    """
    flipped = values[::-1]
    if step is None:
        stored = flipped.astype(np.uint8)
    else:
        stored = np.clip(np.rint(flipped / step), -32768, 32767).astype(np.int16)
    image = nib.Nifti1Image(stored, None)
    image.set_sform(las_affine(grid), code="scanner")
    image.set_qform(las_affine(grid), code="scanner")
    image.header.set_xyzt_units("mm")
    if step is not None:
        image.header.set_slope_inter(step, 0.0)
    if values.ndim == 5:
        image.header.set_intent("vector")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, gzip.GzipFile("", "wb", 4, file, mtime=0) as packed:
        packed.write(image.to_bytes())


def write_images(folder: Path, scan: Scan, provenance: Mapping[str, Any]) -> None:
    """Write the five images and their sidecars below a session's folder."""
    for suffix, (kind, entities, step, sidecar) in _IMAGES.items():
        stem = folder / kind / f"{scan.visit.scan}{entities}_{suffix}"
        save_nifti(stem.with_name(f"{stem.name}.nii.gz"), scan.images[suffix], scan.grid, step)
        _write_sidecar(stem, {**sidecar, "SyntheticCohort": dict(provenance)})


def write_truth(folder: Path, scan: Scan, provenance: Mapping[str, Any]) -> None:
    """Write masks, zones and warp of a scan below a session's folder of the truth derivative."""
    name, voxel_mm3 = scan.visit.scan, scan.grid.spacing_mm**3
    source = f"bids:raw:{name.replace('_', '/')}/anat/{name}_T1w.nii.gz"
    common = {"Sources": [source], "SyntheticCohort": dict(provenance)}
    inside = scan.fractions["brain"] >= 0.5
    zones = np.stack([scan.fractions[zone] * inside for zone in focal.ZONES])
    lesion = fullest_voxels(zones.sum(axis=0))
    volumes = {zone: float(part.sum() * voxel_mm3) for zone, part in zip(focal.ZONES, zones, strict=True)}
    counts = {zone: sum(one.zone == zone for one in scan.lesions) for zone in focal.ZONES}
    planted = [
        {"Zone": one.zone, "CentreMm": one.centre_mm.round(2).tolist(), "VolumeMm3": round(one.volume_mm3, 1)}
        for one in scan.lesions
    ]
    about_lesions = {
        "Type": "Lesion",
        "LesionCount": counts,
        "LesionVolumeMm3": {zone: round(volume, 2) for zone, volume in volumes.items()},
    }
    masks: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "desc-brain_mask": (inside, {"Type": "Brain", "Description": "At least half of the voxel is brain."}),
        "label-lesion_mask": (
            lesion,
            {
                **about_lesions,
                "Description": "The voxels fullest of lesion, as many as the lesions' volume fills. Planted holds "
                "each lesion as drawn, in template space, before tissue borders and the warp cut it.",
                "Planted": planted,
            },
        ),
        "desc-lesionzones_dseg": (
            np.where(lesion, zones.argmax(axis=0) + 1, 0),
            {**about_lesions, "Description": "Lesion voxels by the zone that their lesion was planted in."},
        ),
        "label-ventricles_mask": (
            scan.fractions["ventricle"] >= 0.5,
            {
                "Type": "ROI",
                "VolumeMm3": round(float(scan.fractions["ventricle"].sum() * voxel_mm3), 2),
                "Description": "Lateral ventricles: at least half of the voxel.",
            },
        ),
        "label-cortex_mask": (
            scan.fractions["cortex"] >= 0.5,
            {
                "Type": "ROI",
                "VolumeMm3": round(float(scan.fractions["cortex"].sum() * voxel_mm3), 2),
                "Description": "Cortex, the cerebellum's too: at least half of the voxel.",
            },
        ),
        "label-pvs_mask": (
            fullest_voxels(scan.fractions["vessel"] * inside),
            {
                "Type": "ROI",
                "Count": len(scan.vessels),
                "VolumeMm3": round(float(scan.fractions["vessel"].sum() * voxel_mm3), 2),
                "Description": "Perivascular spaces: the voxels fullest of them, as many as their volume fills.",
            },
        ),
        "label-disability_mask": (
            scan.fractions["disability"] >= 0.5,
            {
                "Type": "ROI",
                "Severity": scan.visit.severity,
                "Effect": provenance["effect"],
                "RelativeChangeAtSeverity1": signal.PLANTED,
                "Description": "Planted region: corticospinal tract, posterior limb of the internal capsule, "
                "thalamus (approximate). Its tissue changes with EDSS by Severity x Effect.",
            },
        ),
        "label-decoy_mask": (
            scan.fractions["decoy"] >= 0.5,
            {
                "Type": "ROI",
                "Severity": scan.visit.person.decoy_severity,
                "RelativeChangeAtSeverity1": signal.PLANTED,
                "Description": "Decoy: frontal and parieto-occipital white matter. Its tissue changes as much as "
                "the planted region's, in people drawn at random, without regard to EDSS.",
            },
        ),
    }
    for label, (mask, sidecar) in masks.items():
        stem = folder / "anat" / f"{name}_{label}"
        save_nifti(stem.with_name(f"{stem.name}.nii.gz"), mask, scan.grid)
        _write_sidecar(stem, {**sidecar, "SkullStripped": True, **common})
    stem = folder / "anat" / f"{name}_from-{TEMPLATE_SPACE}_to-T1w_mode-image_xfm"
    save_nifti(
        stem.with_name(f"{stem.name}.nii.gz"), (scan.displacement_mm * (-1, -1, 1))[:, :, :, None, :], scan.grid, 0.002
    )
    about_warp = {
        "Description": "Displacement (mm to left, posterior, superior, as ITK has it): a voxel's position in the scan "
        f"plus its displacement is its position in {TEMPLATE_SPACE}.",
        "Units": "mm",
        "JacobianMinimum": scan.warp.jacobian_minimum,
        "JacobianMaximum": scan.warp.jacobian_maximum,
        **common,
    }
    _write_sidecar(stem, about_warp)


def fullest_voxels(fraction: np.ndarray) -> np.ndarray:
    """The voxels with the largest fractions, as many as the total fills (rounded); ties by position.

    Parameters
    ----------
    fraction : (x, y, z) array
        Share of each voxel, 0 to 1.

    Returns
    -------
    (x, y, z) bool
    """
    count = min(round(float(fraction.sum())), int((fraction > 0).sum()))
    mask = np.zeros(fraction.size, dtype=bool)
    mask[np.argsort(-fraction, axis=None, kind="stable")[:count]] = True
    return mask.reshape(fraction.shape)


def _write_sidecar(stem: Path, content: Mapping[str, Any]) -> None:
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(content, indent=2) + "\n")
