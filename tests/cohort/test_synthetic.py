"""The synthetic dataset as files: valid BIDS, the same bytes for a seed, continued after a kill, clear errors."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from relevance_assets.cohort.synthetic import synthesise
from relevance_assets.files import sha256

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
SETTINGS: dict[str, Any] = {"voxel_size_mm": 8.0, "seed": 5}


def contents(root: Path) -> dict[str, str]:
    """Every file's hash, by its path."""
    return {str(path.relative_to(root)): sha256(path) for path in sorted(root.rglob("*")) if path.is_file()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "bids"
    synthesise(out, scans=8, **SETTINGS)
    return out


@pytest.mark.skipif(not VALIDATOR.exists(), reason="bids-validator-deno is not installed")
@pytest.mark.parametrize("folder", [".", "derivatives/truth"])
def test_valid_bids(dataset: Path, folder: str) -> None:
    command = [str(VALIDATOR), str(dataset / folder), "--max-rows", "-1", "--format", "json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    issues = json.loads(answer.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_scans_and_tables(dataset: Path) -> None:
    people = table(dataset / "participants.tsv")
    sessions = sorted(dataset.glob("sub-*/ses-*"))
    assert len(sessions) == 8
    assert [person["participant_id"] for person in people] == [f"sub-{n:04d}" for n in range(1, len(people) + 1)]
    assert set(people[0]) == {"participant_id", "age", "sex", "group", "ms_type", "edss"}
    for person in people:
        assert 18 <= int(person["age"]) <= 80
        assert (person["edss"] == "n/a") == (person["ms_type"] == "n/a") == (person["group"] == "HC")
    twice = [person for person in people if (dataset / person["participant_id"] / "ses-2").exists()]
    assert twice
    for person in twice:
        name = person["participant_id"]
        first, second = table(dataset / name / f"{name}_sessions.tsv")
        assert (first["age"], first["edss"]) == (person["age"], person["edss"])
        assert int(second["age"]) == int(first["age"]) + 2
        assert float(second["edss"]) in (float(first["edss"]), *(float(first["edss"]) + step for step in (0.5, 1.0)))
    described = json.loads((dataset / "participants.json").read_text())
    assert described["age"]["Units"] == "year"
    assert set(described["group"]["Levels"]) == {"MS", "HC"}


def test_images_of_a_scan(dataset: Path) -> None:
    scan = "sub-0001_ses-1"
    folder, truth = dataset / "sub-0001/ses-1", dataset / "derivatives/truth/sub-0001/ses-1/anat"
    names = {
        "anat/T1w": None,
        "anat/FLAIR": None,
        "anat/T1map": "ms",
        "anat/MWFmap": "1",
        "dwi/model-noddi_param-ICVF_dwimap": "1",
    }
    brain = nib.load(truth / f"{scan}_desc-brain_mask.nii.gz").get_fdata() > 0
    for name, unit in names.items():
        kind, end = name.split("/")
        image = nib.load(folder / kind / f"{scan}_{end}.nii.gz")
        assert image.shape == (24, 28, 24)
        assert "".join(nib.aff2axcodes(image.affine)) == "LAS"
        assert image.header["sform_code"] > 0
        assert image.header["qform_code"] > 0
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
        values = image.get_fdata()
        assert not values[~brain].any(), "brain-extracted"
        if unit is None:
            assert (values[brain] > 0).mean() > 0.9  # Rician: never below 0
        else:
            sidecar = json.loads((folder / kind / f"{scan}_{end}.json").read_text())
            assert sidecar["Units"] == unit
            assert values.max() <= (6000 if unit == "ms" else 1)
    t1 = nib.load(folder / f"anat/{scan}_T1map.nii.gz").get_fdata()
    np.testing.assert_array_equal(t1 > 0, brain)
    for region in ("disability", "decoy", "ventricles", "lesion", "pvs"):
        mask = nib.load(truth / f"{scan}_label-{region}_mask.nii.gz")
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert set(np.unique(mask.get_fdata())) <= {0, 1}
    count = json.loads((truth / f"{scan}_label-pvs_mask.json").read_text())["Count"]
    assert count > 0


def test_lesion_zones_add_up_to_the_mask(dataset: Path) -> None:
    for path in dataset.glob("derivatives/truth/sub-*/ses-*/anat/*_label-lesion_mask.nii.gz"):
        lesion = nib.load(path).get_fdata() > 0
        zones = nib.load(str(path).replace("label-lesion_mask", "desc-lesionzones_dseg")).get_fdata()
        np.testing.assert_array_equal(zones > 0, lesion)
        assert zones.max() <= 3
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        # The mask is rounded to whole voxels of 512 mm3.
        assert abs(lesion.sum() * 512 - sum(sidecar["LesionVolumeMm3"].values())) <= 260


def test_warp_is_invertible(dataset: Path) -> None:
    """Determinants by central differences on the scan's grid, inside the brain."""
    for path in dataset.glob("derivatives/truth/sub-*/ses-*/anat/*_xfm.nii.gz"):
        image = nib.load(path)
        field = image.get_fdata()[:, :, :, 0][::-1]  # to RAS
        rows = np.gradient(field, 8.0, axis=(0, 1, 2))
        jacobian = np.stack(rows, axis=-1) + np.eye(3)
        scan = path.name.split("_from-")[0]
        brain = nib.load(path.with_name(f"{scan}_desc-brain_mask.nii.gz")).get_fdata()[::-1] > 0
        assert np.linalg.det(jacobian)[brain].min() > 0.2


def test_same_seed_same_bytes_and_more_scans_may_follow(dataset: Path, tmp_path: Path) -> None:
    synthesise(tmp_path / "bids", scans=3, **SETTINGS)
    few = contents(tmp_path / "bids")
    assert "participants.tsv" in few
    all_of_them = contents(dataset)
    for name, digest in few.items():
        if "/ses-" in name:
            assert all_of_them[name] == digest
    synthesise(tmp_path / "bids", scans=8, **SETTINGS)
    assert contents(tmp_path / "bids") == all_of_them


def test_other_seed_other_bytes(dataset: Path, tmp_path: Path) -> None:
    synthesise(tmp_path, scans=1, voxel_size_mm=8.0, seed=6)
    name = "sub-0001/ses-1/anat/sub-0001_ses-1_T1map.nii.gz"
    assert sha256(tmp_path / name) != sha256(dataset / name)


def test_continues_where_it_stopped(dataset: Path, tmp_path: Path) -> None:
    """As a kill leaves it: a scan whose truth is there but whose images are not, and an unfinished folder."""
    out = tmp_path / "bids"
    shutil.copytree(dataset, out)
    (out / "participants.tsv").unlink()
    shutil.rmtree(out / "sub-0002/ses-1")
    (out / "derivatives/truth/sub-0002/ses-1/anat/sub-0002_ses-1_label-decoy_mask.nii.gz").write_bytes(b"half")
    (out / ".unfinished/sub-0003_ses-1/images").mkdir(parents=True)
    kept = out / "sub-0001/ses-1/anat/sub-0001_ses-1_T1w.nii.gz"
    before = kept.stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    synthesise(out, scans=8, **SETTINGS, progress=lambda done, total: seen.append((done, total)))
    assert contents(out) == contents(dataset)
    assert kept.stat().st_mtime_ns == before
    assert seen == [(n, 8) for n in range(1, 9)]


@pytest.mark.slow
def test_survives_sigkill(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "bids"
    code = (
        "import sys; from pathlib import Path; from relevance_assets.cohort.synthetic import synthesise; "
        "synthesise(Path(sys.argv[1]), scans=8, voxel_size_mm=8.0, seed=5)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(out)])
    deadline = time.monotonic() + 120
    while len(list(out.glob("sub-*/ses-*"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "participants.tsv").exists()
    synthesise(out, scans=8, **SETTINGS)
    assert contents(out) == contents(dataset)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("scans", 0),
        ("seed", -1),
        ("voxel_size_mm", 0.0),
        ("voxel_size_mm", -2.0),
        ("voxel_size_mm", float("nan")),
        ("effect", -0.5),
        ("effect", float("nan")),
    ],
)
def test_settings_out_of_range(tmp_path: Path, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{setting} is "):
        synthesise(tmp_path / "bids", **{setting: value})
    assert not (tmp_path / "bids").exists()


@pytest.mark.parametrize("setting", [{"seed": 6}, {"effect": 0.0}, {"voxel_size_mm": 4.0}])
def test_other_settings_in_the_same_folder(dataset: Path, setting: dict[str, Any]) -> None:
    before = contents(dataset)
    with pytest.raises(ValueError, match="other settings"):
        synthesise(dataset, scans=8, **{**SETTINGS, **setting})
    with pytest.raises(ValueError, match="more than the 2 asked for"):
        synthesise(dataset, scans=2, **SETTINGS)
    assert contents(dataset) == before


def test_a_folder_with_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(ValueError, match="not empty"):
        synthesise(tmp_path, scans=1, **SETTINGS)
    (tmp_path / "dataset_description.json").write_text('{"Name": "mine"}')
    with pytest.raises(ValueError, match="not of a synthetic cohort"):
        synthesise(tmp_path, scans=1, **SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.txt", "dataset_description.json"}


def test_import_is_light() -> None:
    code = (
        "import sys, relevance_assets.cohort.synthetic; "
        "print([name for name in ('numpy', 'nilearn', 'scipy', 'nibabel') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
