"""The stages of preparation on heads that were moved: what is stored leads where it says, by ITK's reading of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import polars as pl
import pytest
import SimpleITK as sitk

from relevance_assets.assets.cohort import cohort_stages
from relevance_assets.assets.preparation import preparation_stages
from relevance_assets.assets.spaces import density_in_template, geometry_of
from relevance_assets.assets.stages import ALL, Outcome, run_items, state_of
from relevance_assets.assets.workspace import Workspace
from relevance_assets.configuration import load_studies, remember
from relevance_assets.files import sidecar
from relevance_assets.home import TEMPLATE_SPACE, Home
from relevance_assets.imaging.template import template
from relevance_assets.imaging.volumes import save_volume
from relevance_assets.study import Limits

SMALL = "sub-3"  # its brain is refused
MOVES = {"sub-1": (5.0, (9.0, -6.0, 4.0)), "sub-2_ses-M1": (-4.0, (-3.0, 8.0, 12.0)), SMALL: (0.0, (0.0, 0.0, 0.0))}
SCANS = [name for name in MOVES if name != SMALL]
KINDS = ("deformable", "affine")
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


@dataclass
class Made:
    """A cohort as it was prepared, by how it was registered."""

    workspace: Workspace
    outcomes: dict[str, Outcome]

    def run(self, name: str, items: list[str] | None = None) -> list[Outcome]:
        stage = next(stage for stage in cohort_stages(self.workspace) if stage.name == name)
        return run_items(self.workspace, stage, items or stage.items())


def moved(degrees: float, shift: tuple[float, float, float]) -> np.ndarray:
    """A turn about z and a shift, (4, 4): from the template to the scan, mm."""
    angle, matrix = np.radians(degrees), np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = shift
    return matrix


ASKEW = moved(6.0, (4.0, -5.0, 3.0))  # from the first contrast to the second


def write_cohort(bids: Path) -> None:
    """The template's brain at 4 mm, moved; the second contrast lies askew to the first."""
    space = template(4)
    for scan, move in MOVES.items():
        folder = bids.joinpath(*scan.split("_")) / "anat"
        size = np.diag([*(0.8 if scan == SMALL else 1.0,) * 3, 1.0])
        affine = moved(*move) @ size @ space.grid.affine
        save_volume(folder / f"{scan}_T1w.nii.gz", space.t1w, affine)
        save_volume(folder / f"{scan}_FLAIR.nii.gz", space.t1w, ASKEW @ affine)
    people = sorted({scan.split("_")[0] for scan in MOVES})
    lines = [f"{name}\t{40 + row}" for row, name in enumerate(people)]
    (bids / "participants.tsv").write_text("\n".join(["participant_id\tage", *lines]) + "\n")
    (bids / "dataset_description.json").write_text('{"Name": "moved heads", "BIDSVersion": "1.10.0"}\n')


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    write_cohort(folder / "bids")
    home = Home(folder / "home")
    scale = {"rule": "percentile", "percentile": 99.5}
    settings: dict[str, Any] = {
        "cohort.bids": str(folder / "bids"),
        "contrasts": [{"name": name, "suffix": name, "scale": scale} for name in ("T1w", "FLAIR")],
        "preparation": [
            {"step": "reorient"},
            {"step": "coregister", "reference": "T1w"},
            {"step": "brain_mask", "source": "nonzero"},
            {"step": "register", "kind": request.param, "voxel_size_mm": 4},
            {"step": "scale"},
        ],
        "quality.fail": {"brain_ml": [1200, 2200], "template_overlap": 0.7, "jacobian": [0, 1000]},
    }
    remember(home, "brain_age", settings)
    one = Made(Workspace(load_studies(home)["brain_age"], home), {})
    one.workspace.describe_dataset()
    for name in ("participants", "raw_scans"):
        one.run(name)
    one.outcomes = {outcome.item: outcome for outcome in one.run("prepared_volumes")}
    return one


def points_of_the_brain() -> np.ndarray:
    """In the template, (n, 3), mm."""
    grid = template(4).grid
    return (np.argwhere(template(4).brain) @ grid.affine[:3, :3].T + grid.affine[:3, 3])[::53]


def by_itk(path: Path, points: np.ndarray) -> np.ndarray:
    """Points in RAS+ through a file as ITK reads it."""
    if path.suffix == ".txt":
        transform = sitk.ReadTransform(str(path))
    else:
        transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    lps = np.array([-1.0, -1, 1])
    return np.array([transform.TransformPoint((lps * point).tolist()) for point in points]) * lps


def test_transforms_are_what_their_names_say(made: Made) -> None:
    """As ITK has it: the one to the template leads from its points to the file's, the other back."""
    places = points_of_the_brain()
    for scan in SCANS:
        matrix = moved(*MOVES[scan])
        in_scan = places @ matrix[:3, :3].T + matrix[:3, 3]
        to_template, to_scan, text = made.workspace.alignment_paths(scan)
        known = made.workspace.study.preparation[3]
        files = [text] if known.kind == "affine" else [to_template, to_scan]  # type: ignore[union-attr]
        assert [path for path in (to_template, to_scan, text) if path.exists()] == files
        assert f"from-T1w_to-{TEMPLATE_SPACE}_" in files[0].name
        assert np.linalg.norm(by_itk(files[0], places) - in_scan, axis=1).mean() < 1
        if len(files) == 2:
            assert np.linalg.norm(by_itk(files[1], in_scan) - places, axis=1).mean() < 1
        for path in files:
            assert json.loads(sidecar(path).read_text())["Sources"] == [f"bids:raw:{raw(made, scan, 'T1w')}"]


def test_itk_brings_the_second_contrast_onto_the_first_by_the_stored_transform(made: Made) -> None:
    for scan in SCANS:
        path = made.workspace.coregistration_path(scan, made.workspace.study.contrasts[1])
        assert "from-FLAIR_to-T1w_" in path.name
        first, second = (
            sitk.ReadImage(str(made.workspace.bids / raw(made, scan, name)), sitk.sitkFloat32)
            for name in ("T1w", "FLAIR")
        )
        onto = sitk.Resample(second, first, sitk.ReadTransform(str(path)), sitk.sitkLinear, 0.0)
        a, b = (sitk.GetArrayFromImage(image).ravel() for image in (first, onto))
        assert np.corrcoef(a, b)[0, 1] > 0.97
        in_first = points_of_the_brain() @ moved(*MOVES[scan])[:3, :3].T + moved(*MOVES[scan])[:3, 3]
        in_second = in_first @ ASKEW[:3, :3].T + ASKEW[:3, 3]
        assert np.median(np.linalg.norm(by_itk(path, in_first) - in_second, axis=1)) < 1
        names = [f"bids:raw:{raw(made, scan, name)}" for name in ("FLAIR", "T1w")]
        assert json.loads(sidecar(path).read_text())["Sources"] == names


def raw(made: Made, scan: str, name: str) -> str:
    return "/".join([*scan.split("_"), "anat", f"{scan}_{name}.nii.gz"])


def test_relevance_comes_to_its_place_in_the_template_and_its_sum_is_kept(made: Made) -> None:
    """A smooth source planted in the template at a known place, seen in the scan by the planted move."""
    place, width = np.array([-30.0, -20.0, 15.0]), 8.0  # mm, inside the brain
    for scan in SCANS:
        geometry = geometry_of(made.workspace, scan)
        back = np.linalg.inv(moved(*MOVES[scan])) @ geometry.prepared.affine
        at = np.indices(geometry.prepared.shape).reshape(3, -1).T @ back[:3, :3].T + back[:3, 3]
        values = np.exp(-((at - place) ** 2).sum(axis=1) / (2 * width**2)).reshape(geometry.prepared.shape)
        there, grid = density_in_template(made.workspace, scan, values, geometry)
        assert abs(there.sum(dtype=float) / values.sum() - 1) < 0.01
        points = np.indices(grid.shape).reshape(3, -1).T @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        middle = (points * there.reshape(-1, 1)).sum(axis=0, dtype=float) / there.sum(dtype=float)
        assert np.linalg.norm(middle - place) < 1


def test_without_a_transform_there_is_no_map_in_the_template(made: Made, tmp_path: Path) -> None:
    workspace = copy_of(made, tmp_path).workspace
    geometry = geometry_of(workspace, SCANS[0])
    for path in workspace.alignment_paths(SCANS[0]):
        path.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=rf"^{SCANS[0]}: no transform to .* add the step register"):
        density_in_template(workspace, SCANS[0], np.ones(geometry.prepared.shape), geometry)


def test_a_scan_beyond_a_limit_stops_alone_and_can_be_looked_at(made: Made) -> None:
    assert {item: one.outcome for item, one in made.outcomes.items()} == {
        **dict.fromkeys(SCANS, "ok"),
        SMALL: "failed",
    }, [one.reason for one in made.outcomes.values()]
    reason = made.outcomes[SMALL].reason or ""
    assert f"{SMALL}_T1w.nii.gz: brain of " in reason
    assert "\n" not in reason
    figure = made.workspace.scan_figure_path(SMALL, "preparation")
    assert figure.parts[-3:] == (SMALL, "figures", f"{SMALL}_preparation.png")
    assert figure.exists()
    assert not made.workspace.mask_path(SMALL).exists()


def test_the_overview_shows_everybody_and_the_table_how_they_are_spread(made: Made) -> None:
    (outcome,) = made.run("preparation_overview")
    assert outcome.outcome == "ok"
    page = made.workspace.figure_path("preparation").with_suffix(".html").read_text()
    assert [page.count(f'<article id="{scan}" class=good>') for scan in SCANS] == [1, 1]
    assert page.count(f'<article id="{SMALL}" class=bad>') == 1
    assert "not prepared: " in page
    volumes = made.workspace.read("volumes")
    rows = {(row["image"], row["measure"]): row for row in made.workspace.read("preparation_overview").to_dicts()}
    for image in ("T1w", "FLAIR"):
        known = volumes.filter(pl.col("image") == image)["brain_volume_mm3"].to_numpy()
        row = rows[image, "brain_volume_mm3"]
        assert (row["n"], row["minimum"], row["maximum"]) == (2, known.min(), known.max())
        shares = np.quantile(known, (0.25, 0.5, 0.75))
        np.testing.assert_allclose([row[name] for name in ("lower_quartile", "median", "upper_quartile")], shares)
    assert ("T1w", "signal_to_noise") not in rows, "there is no air with noise"
    stage = preparation_stages(made.workspace)[1]
    assert state_of(made.workspace, stage, ALL) == "current"
    limits = made.workspace.study.quality.model_copy(update={"warn": Limits(brain_ml=(1, 2))})
    strict = Workspace(made.workspace.study.model_copy(update={"quality": limits}), made.workspace.home)
    (outcome,) = run_items(strict, preparation_stages(strict)[1], [ALL])
    page = made.workspace.figure_path("preparation").with_suffix(".html").read_text()
    assert "class=good" not in page


def test_a_scan_that_leaves_takes_its_figures_along(made: Made, tmp_path: Path) -> None:
    workspace = copy_of(made, tmp_path).workspace
    home = workspace.home
    for scan in MOVES:
        workspace.set_aside(scan)
        kept = {path.name for path in (home.removed("brain_age") / scan / "figures").iterdir()}
        assert kept == {f"{scan}_preparation.png", f"{scan}_preparation_mosaic.png"}
        assert not list(home.derivatives("brain_age").glob(f"{scan.split('_')[0]}*"))
    assert (home.removed("brain_age") / "sub-1" / "sub-1_space-T1w_res-prepared_desc-brain_mask.nii.gz").exists()


def test_the_same_twice_to_the_last_bit(made: Made) -> None:
    files = {path: path.read_bytes() for path in made.workspace.mask_path("sub-1").parent.iterdir()}
    made.workspace.mask_path("sub-1").unlink()
    (outcome,) = made.run("prepared_volumes", ["sub-1"])
    assert outcome.outcome == "ok"
    assert {path: path.read_bytes() for path in files} == files


def copy_of(made: Made, folder: Path) -> Made:
    shutil.copytree(made.workspace.home.root, folder / "home")
    return Made(Workspace(made.workspace.study, Home(folder / "home")), {})


def test_a_lost_transform_makes_the_scan_undone(made: Made, tmp_path: Path) -> None:
    """Else it would be taken to lie in the template already."""
    copy = copy_of(made, tmp_path)
    stage = preparation_stages(copy.workspace)[0]
    assert state_of(copy.workspace, stage, "sub-1") == "current"
    next(path for path in copy.workspace.alignment_paths("sub-1") if path.exists()).unlink()
    assert state_of(copy.workspace, stage, "sub-1") == "stale"


def test_another_recipe_leaves_nothing_of_the_first_and_what_others_put_there(made: Made, tmp_path: Path) -> None:
    copy = copy_of(made, tmp_path)
    folder = copy.workspace.mask_path("sub-1").parent
    foreign = folder / f"sub-1_from-CT_to-{TEMPLATE_SPACE}_mode-image_xfm.txt"
    foreign.write_text("somebody's")
    steps = [step for step in made.workspace.study.preparation if step.step not in ("coregister", "register")]
    copy.workspace = Workspace(made.workspace.study.model_copy(update={"preparation": steps}), copy.workspace.home)
    (outcome,) = copy.run("prepared_volumes", ["sub-1"])
    assert outcome.outcome == "ok"
    names = {"res-prepared_desc-preproc_T1w", "res-prepared_desc-preproc_FLAIR", "res-prepared_desc-brain_mask"}
    expected = {f"sub-1_{name}{suffix}" for name in names for suffix in (".nii.gz", ".json")}
    assert {path.name for path in folder.iterdir()} == {*expected, foreign.name}


def test_a_scan_in_the_template_by_its_name_has_transforms_that_move_nothing(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.workspace.bids, tmp_path / "bids")
    for name in ("T1w", "FLAIR"):
        folder = tmp_path / "bids" / "sub-1" / "anat"
        (folder / f"sub-1_{name}.nii.gz").rename(folder / f"sub-1_space-{TEMPLATE_SPACE}_{name}.nii.gz")
    study = made.workspace.study
    entities = {"space": TEMPLATE_SPACE}
    contrasts = [contrast.model_copy(update={"entities": entities}) for contrast in study.contrasts]
    cohort = study.cohort.model_copy(update={"bids": tmp_path / "bids"})
    changed = study.model_copy(update={"contrasts": contrasts, "cohort": cohort})
    one = Made(Workspace(changed, Home(tmp_path / "home")), {})
    for name in ("participants", "raw_scans"):
        one.run(name)
    (outcome,) = one.run("prepared_volumes", ["sub-1"])
    assert outcome.outcome == "ok", outcome.reason
    places = points_of_the_brain()
    files = [path for path in one.workspace.alignment_paths("sub-1") if path.exists()]
    assert len(files) == {"affine": 1, "deformable": 2}[study.preparation[3].kind]  # type: ignore[union-attr]
    for path in files:
        np.testing.assert_allclose(by_itk(path, places), places, atol=1e-3)


@pytest.mark.skipif(not VALIDATOR.exists(), reason="bids-validator-deno is not installed")
def test_derivatives_are_valid_bids(made: Made) -> None:
    folder = made.workspace.home.derivatives("brain_age")
    assert nib.load(made.workspace.mask_path("sub-1")).get_data_dtype() == np.uint8
    done = subprocess.run(
        [VALIDATOR, "--json", "--max-rows", "-1", str(folder)], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
