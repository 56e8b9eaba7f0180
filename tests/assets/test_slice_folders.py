"""Folders of slices that a study takes: few, thinned, of several sizes, with and without patients."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made import MadeStudy
from PIL import Image

from relevance_assets.assets import checks
from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.stages import run_items
from relevance_assets.cohort.slice_splits import SETS, split_slices
from relevance_assets.cohort.slices import index_slices
from relevance_assets.cohort.splits import SplitError
from relevance_assets.cohort.synthetic.slices import PER_PATIENT, synthesise_slices
from relevance_assets.cohort.synthetic.tumours import KINDS
from relevance_assets.configuration import DEFINITIONS, load_studies, read_settings, remember
from relevance_assets.home import Home

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cohort"))
from matlab_slices import write_mat

LEAST = 1 + PER_PATIENT * (len(KINDS) * len(SETS) - 1)  # the first slice of the last patient that is needed
TINY: dict[str, Any] = {
    "slices.size": [32, 32],
    "model.options": {"width": 0.0625, "dropout": 0},
    "training.epochs": 1,
    "rule_grid": {"gammas": [0.25], "epsilons": [0], "images": 9, "references": [], "random_weights": False},
    "statistics.bootstrap": 100,
}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    synthesise_slices(folder, slices=LEAST, size=48, seed=0)
    return folder


def test_the_fewest_synthetic_slices_that_can_be_divided(synthetic: Path, tmp_path: Path) -> None:
    """One patient less of a class, and a set has none; any seed and any shares find one for each from then on."""
    index = index_slices(synthetic)
    for shares in [(0.7, 0.15, 0.15), (0.98, 0.01, 0.01), (0.01, 0.01, 0.98)]:
        for seed in range(5):
            split = split_slices(index, "auto", shares=shares, seed=seed)
            sets = split.join(index, on="scan").group_by("set").agg(pl.col("class").n_unique())
            assert dict(sets.iter_rows()) == dict.fromkeys(SETS, 3)
    with pytest.raises(SplitError, match="has 2 patients, and 3 sets need one each; add slices of other patients"):
        split_slices(index.head(LEAST - 1), "auto")
    remember(Home(tmp_path), "tumour", {"slices.synthetic": LEAST})
    assert load_studies(Home(tmp_path))["tumour"].slices is not None


def test_only_each_second_slice(synthetic: Path, tmp_path: Path) -> None:
    home = Home(tmp_path)
    remember(home, "tumour", {"slices.folder": str(synthetic), "slices.every": 2})
    made = MadeStudy(home, "tumour")
    assert made.run("participants")["all"].outcome == "ok"
    assert sorted(int(number) for number in made.table("slices")["slice_id"]) == list(range(1, LEAST + 1, 2))
    assert made.table("participants").height == 9


def matlab_folder(synthetic: Path, folder: Path, *, patients: bool = True) -> Path:
    """A synthetic slice of each of nine patients as the published set has them; every other one in twice the size."""
    labels = {"meningioma": 1, "glioma": 2, "pituitary": 3}
    for row in index_slices(synthetic).gather_every(PER_PATIENT).iter_rows(named=True):
        number, pid = int(row["slice_id"]), row["patient"] if patients else None
        picture, mask = (np.asarray(Image.open(row[name]), dtype=np.int16) for name in ("image", "mask"))
        larger = np.ones((2, 2) if number % 4 == 1 else (1, 1), dtype=np.int16)
        if number == 1:
            mask = np.zeros_like(mask)
            mask[20, 20] = 1
            larger = larger[:1, :1]
        write_mat(
            folder / f"{number}.mat", np.kron(picture, larger), np.kron(mask > 0, larger), labels[row["class"]], pid
        )
    return folder


def test_slices_of_several_sizes_go_all_the_way(synthetic: Path, tmp_path: Path) -> None:
    """Each check of a stage passes before the next stage begins, as Dagster wants it."""
    home = Home(tmp_path / "home")
    remember(home, "tumour", TINY | {"slices.folder": str(matlab_folder(synthetic, tmp_path / "given"))})
    made = MadeStudy(home, "tumour")
    stages = study_stages(made.workspace)
    all_checks = checks.checks_of(made.workspace, stages)
    metadata: dict[str, Any] = {}
    for stage in stages:
        outcomes = run_items(made.workspace, stage, stage.items())
        assert all(one.outcome == "ok" for one in outcomes), stage.name
        metadata |= {stage.name: {one.item: one.metadata for one in outcomes}}
        for name, check in ((name, check) for asset, name, _, check in all_checks if asset == stage.name):
            assert check()[0], (stage.name, name)
    volumes = made.table("volumes")
    assert set(volumes["voxel_x_mm"]) == {48 / 32, 96 / 32}
    assert checks.one_grid(made.workspace)[1]["volumes"] == 9
    assert made.table("rule_comparison").height > 0
    lost = {scan for scan, said in metadata["prepared_volumes"].items() if said["tumour_lost_in_resizing"]}
    assert lost == {"sub-P0001_ses-1"}
    made.workspace.write("volumes", volumes["scan"][0], volumes.head(1).with_columns(shape_x=33).drop("study"))
    assert not checks.one_grid(made.workspace)[0], "another shape is still seen"


@pytest.mark.parametrize("patients", [True, False])
def test_the_papers_split_takes_a_folder_with_and_without_patients(
    synthetic: Path, tmp_path: Path, *, patients: bool
) -> None:
    home = Home(tmp_path / "home")
    paper = read_settings(DEFINITIONS / "tumour" / "paper.yaml")
    folder = matlab_folder(synthetic, tmp_path / "given", patients=patients)
    # Of so few slices: small pictures, and blocks of one patient.
    small = {
        "slices.size": [32, 32],
        "slices.block": PER_PATIENT,
        "slices.split": paper["slices.split"] | {"buffer": 0},
    }
    remember(home, "tumour", paper | small | {"slices.folder": str(folder)})
    made = MadeStudy(home, "tumour")
    first = made.run("participants", "raw_scans", "prepared_volumes", "splits")["all"]
    assert first.outcome == "ok", first.reason
    assert first.metadata["split_by"] == ("patient" if patients else "block")
    draw = made.table("splits")
    same = paper["slices.split"] | {"buffer": 0, "how": first.metadata["split_by"]}
    remember(home, "tumour", paper | small | {"slices.folder": str(folder), "slices.split": same})
    made.run("splits")
    assert made.table("splits").equals(draw), "asked for by its name it stays the same split"
