"""The stage `heat_maps`: scans along their warps, first scans only, and a test only where there is one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import polars as pl
import pytest

from relevance_assets.assets.heat_maps import DIFFERENCE, _brain, _masked, heat_map_stages
from relevance_assets.assets.spaces import transform_file
from relevance_assets.assets.stages import ALL, Stage, run_items, state_of
from relevance_assets.assets.workspace import COMBINED, PLANTED, Workspace
from relevance_assets.cohort.synthetic import synthesise
from relevance_assets.cohort.synthetic.template import load_template
from relevance_assets.evidence.heatmap import to_template
from relevance_assets.files import sidecar, write_json
from relevance_assets.home import TEMPLATE_SPACE
from relevance_assets.imaging.displacement import read_displacement
from relevance_assets.imaging.geometry import Geometry
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.volumes import load_volume, save_volume

SCANS = 5


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "bids"
    synthesise(out, scans=SCANS, voxel_size_mm=6.0, seed=3)
    return out


@pytest.fixture
def planted(workspace: Workspace, cohort: Path) -> Workspace:
    """Scans whose mask is the planted region itself."""
    shutil.copytree(cohort, workspace.bids, dirs_exist_ok=True)
    settings = workspace.study.heat_map
    assert settings is not None
    for scan in scans_of(workspace):
        values, affine = load_volume(workspace.truth_path(scan, PLANTED))
        grid = Grid(values.shape, affine)
        write_json(sidecar(workspace.mask_path(scan)), {"Geometry": Geometry(grid, grid, False).to_dict()})
        save_volume(workspace.quantiles_path(scan, settings.method, settings.map), values * 40, affine, np.uint8)
    return workspace


def scans_of(workspace: Workspace) -> list[str]:
    found = (workspace.bids / "derivatives" / "truth").glob(f"sub-*/ses-*/anat/*_label-{PLANTED}_mask.nii.gz")
    return sorted(path.name.split("_label-")[0] for path in found)


def template_region(spacing_mm: int = 2) -> tuple[np.ndarray, Grid]:
    """Where the planted region lies in the template."""
    template = load_template(spacing_mm)
    affine = np.diag([spacing_mm] * 3 + [1.0]).astype(np.float64)
    affine[:3, 3] = template.grid.origin_mm
    region = template.channel(PLANTED).reshape(template.grid.shape) >= 0.5
    return region, Grid(template.grid.shape, affine)


def inside(region: np.ndarray, grid: Grid, points: np.ndarray) -> np.ndarray:
    place = np.rint((points - grid.affine[:3, 3]) / np.diag(grid.affine)[:3]).astype(int)
    return region[tuple(place.T)]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_planted_voxel_lands_in_the_planted_region(planted: Workspace) -> None:
    """The direction: a voxel of the region, moved along the file's field, is in the template's region."""
    region, grid = template_region()
    shares = []
    for scan in scans_of(planted):
        values, affine = load_volume(planted.truth_path(scan, PLANTED))
        points = np.argwhere(values > 0) @ affine[:3, :3].T + affine[:3, 3]
        path = transform_file(planted, scan)
        assert path is not None
        assert path.parent == planted.truth_path(scan, PLANTED).parent
        there = read_displacement(path)(points)
        shares.append([inside(region, grid, place).mean() for place in (there, points, 2 * points - there)])
    warped, as_they_are, backwards = np.mean(shares, axis=0)
    print(f"voxels that land in the region: {warped:.3f}, unmoved {as_they_are:.3f}, backwards {backwards:.3f}")
    assert warped > 0.9
    assert warped > as_they_are + 0.2
    assert as_they_are > backwards


def test_the_heat_maps_warp_brings_masks_onto_the_region(planted: Workspace) -> None:
    region, grid = template_region()
    scans = scans_of(planted)
    groups = pl.DataFrame({"scan": scans, "group": ["mild"] * len(scans)})
    shape = (grid.shape[0], grid.shape[1], grid.shape[2])
    overlaps = []
    for one in _masked(planted, groups, grid):
        assert one.warp is not None
        moved, unmoved = (to_template(one.mask, one.affine, shape, grid.affine, warp) for warp in (one.warp, None))
        overlaps.append((dice(moved, region), dice(unmoved, region)))
    warped, plain = np.mean(overlaps, axis=0)
    print(f"Dice with the template's region: {warped:.3f}, unmoved {plain:.3f}")
    assert warped > plain + 0.1
    assert all(a > b for a, b in overlaps), overlaps


def test_where_a_warp_is_looked_for(planted: Workspace) -> None:
    scan = scans_of(planted)[0]
    truth = planted.truth_path(scan, "any").parent
    name = f"{scan}_from-{TEMPLATE_SPACE}_to-T1w_mode-image_xfm.nii.gz"
    assert transform_file(planted, scan) == truth / name
    raw = planted.bids / truth.relative_to(planted.bids / "derivatives" / "truth") / name
    shutil.copy(truth / name, raw)
    assert transform_file(planted, scan) == raw, "beside the raw images"
    derived = planted.mask_path(scan).parent / name
    shutil.copy(truth / name, derived)
    shutil.copy(truth / name.replace(".nii.gz", ".json"), derived.parent)
    assert transform_file(planted, scan) == derived, "a registration of this study"
    other = derived.with_name(f"{scan}_from-T1w_to-{TEMPLATE_SPACE}_mode-image_xfm.nii.gz")
    shutil.copy(derived, other)
    assert transform_file(planted, scan) == other, "needs no inversion"
    other.unlink()
    shutil.copy(derived, derived.with_name(name.replace("T1w", "T1map")))
    with pytest.raises(ValueError, match="one of 2"):
        transform_file(planted, scan)
    for folder in (derived.parent, raw.parent, truth):
        for path in folder.glob("*_xfm.*"):
            path.unlink()
    assert transform_file(planted, scan) is None
    assert next(_masked(planted, pl.DataFrame({"scan": [scan], "group": ["mild"]}), template_region()[1])).warp is None


# ------------------------------------------------------------------------------------------------ the whole stage
def fill(workspace: Workspace, edss: dict[str, float], warped: Collection[str] = ()) -> Stage:
    """Scans on the template's 6 mm grid; the mask of a severe one is the right half of the brain, else the left."""
    study = workspace.study
    settings = study.heat_map
    assert settings is not None
    brain, affine = _brain(6)
    grid = Grid(brain.shape, affine)
    left = brain & (np.indices(brain.shape)[0] < brain.shape[0] / 2)
    for scan, value in edss.items():
        mask = brain & ~left if value >= 4 else left
        write_json(sidecar(workspace.mask_path(scan)), {"Geometry": Geometry(grid, grid, False).to_dict()})
        for path in workspace.prepared_paths(scan):
            save_volume(path, brain.astype(float), affine)
        for name in [*(contrast.name for contrast in study.contrasts), COMBINED]:
            save_volume(workspace.map_path(scan, settings.method, name), mask.astype(float), affine)
        save_volume(workspace.quantiles_path(scan, settings.method, settings.map), mask * 40, affine, np.uint8)
        if scan in warped:
            field = nib.Nifti1Image(np.zeros((*brain.shape, 1, 3), np.float32), affine)
            nib.save(
                field, workspace.mask_path(scan).with_name(f"{scan}_from-{TEMPLATE_SPACE}_to-T1w_mode-image_xfm.nii.gz")
            )
        for asset in ("quantile_masks", "predictions"):
            row = {"asset": [asset], "item": [scan], "outcome": ["ok"], "fingerprint": ["f"], "result": ["r"]}
            workspace.write("runs", f"{asset}__{scan}", pl.DataFrame(row))
        said = {"model": study.model.name, "fold": "0", "scan": scan, "set": "test", "target": value, "output": 0.1}
        workspace.write("predictions", scan, pl.DataFrame([said | {"probability": 0.5}]))
    known = [
        {"scan": scan, "participant_id": scan.split("_")[0], "session": scan.split("_")[1], "status": "ok"}
        | {"age": None, "target": value, "edss": value}
        for scan, value in edss.items()
    ]
    workspace.write("scans", ALL, pl.DataFrame(known, schema_overrides={"age": pl.Float64}))
    quick = settings.model_copy(update={"permutations": 19, "voxel_size_mm": 6})
    return heat_map_stages(replace(workspace, study=study.model_copy(update={"heat_map": quick})))[0]


def made(workspace: Workspace, stage: Stage) -> pl.DataFrame:
    outcome = run_items(workspace, stage, [ALL])[0]
    assert outcome.outcome == "ok", outcome.reason
    assert state_of(workspace, stage, ALL) == "current"
    return workspace.read("region_frequencies")


EDSS = {"sub-1_ses-M6": 2.0, "sub-1_ses-M12": 6.0, "sub-2_ses-M6": 2.0, "sub-3_ses-M6": 6.0, "sub-4_ses-M6": 6.0}


def about(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sidecar(path).read_text())
    return found


def test_everybody_counts_once_and_warps_are_counted(workspace: Workspace) -> None:
    stage = fill(workspace, EDSS, warped={"sub-1_ses-M6", "sub-3_ses-M6", "sub-4_ses-M6"})
    regions = made(workspace, stage)
    counts = regions.select("group", "n", "n_warped").unique().sort("group").rows()
    assert counts == [("mild", 2, 1), ("severe", 2, 2), (DIFFERENCE, 4, 3)], "the second scan of sub-1 does not count"
    nifti = [path for path in stage.outputs(ALL) if path.name.endswith(".nii.gz")]
    assert [path.name.split("desc-")[1].split("_")[0] for path in nifti] == ["mild", "severe", "difference", "p"]
    assert [(about(path)["Scans"], about(path)["ScansWarped"]) for path in nifti] == [(2, 1), (2, 2), (4, 3), (4, 3)]
    assert len({about(path)["Description"] for path in nifti}) == 3, "a p is no share"
    brain = _brain(6)[0]
    left = brain & (np.indices(brain.shape)[0] < brain.shape[0] / 2)
    np.testing.assert_array_equal(load_volume(nifti[0])[0], left)
    np.testing.assert_array_equal(load_volume(nifti[1])[0], brain & ~left)
    assert regions.filter(pl.col("group") == DIFFERENCE)["p_corrected"].null_count() == 0

    nifti[2].unlink()
    assert state_of(workspace, stage, ALL) == "stale", "a lost map is made again"


def test_without_two_people_in_a_group_nothing_is_tested(workspace: Workspace) -> None:
    stage = fill(workspace, EDSS)
    made(workspace, stage)
    p = stage.outputs(ALL)[-1]
    assert p.exists()
    stage = fill(workspace, EDSS | {"sub-4_ses-M6": 2.0})
    regions = made(workspace, stage)
    assert regions["p_corrected"].null_count() == regions.height
    assert p not in stage.outputs(ALL)
    assert not p.exists(), "that of an earlier day is gone"
    assert not sidecar(p).exists()


def test_a_warp_that_comes_or_changes_makes_the_map_again(workspace: Workspace) -> None:
    before = fill(workspace, EDSS).fingerprint(ALL)
    with_warps = fill(workspace, EDSS, warped=set(EDSS))
    there = with_warps.fingerprint(ALL)
    assert there != before
    path = transform_file(workspace, "sub-2_ses-M6")
    assert path is not None
    path.write_bytes(path.read_bytes() + b"0")
    assert with_warps.fingerprint(ALL) != there


def test_a_bad_warp_is_named(workspace: Workspace) -> None:
    stage = fill(workspace, EDSS, warped={"sub-2_ses-M6"})
    path = transform_file(workspace, "sub-2_ses-M6")
    assert path is not None
    path.write_bytes(b"half")
    outcome = run_items(workspace, stage, [ALL])[0]
    assert outcome.outcome == "failed"
    assert str(path) in (outcome.reason or "")
