"""The study of slices from pictures to a chosen cell, on a few synthetic ones, and on folders that are not whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from relevance_assets.assets import checks
from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.rule_maps import CellMaps
from relevance_assets.assets.stages import Outcome, run_items
from relevance_assets.assets.workspace import Workspace
from relevance_assets.cohort.synthetic.slices import synthesise_slices
from relevance_assets.configuration import DEFINITIONS, SettingsError, load_studies, read_settings, remember
from relevance_assets.home import Home
from relevance_assets.imaging.volumes import load_volume

SMALL: dict[str, Any] = {
    "slices.synthetic": 60,
    "slices.synthetic_size": 48,
    "slices.size": [32, 40],
    "slices.split": {"shares": [0.4, 0.3, 0.3]},
    "model.options": {"width": 0.0625, "dropout": 0},
    "training.epochs": 2,
    "rule_grid.gammas": [-20, 0.25],
    "rule_grid.epsilons": [0, 20],
    "rule_grid.images": 6,
    "rule_grid.references": ["gradient_x_input", "grad_cam"],
    "rule_grid.maps": [[-20, 0]],
    "statistics.bootstrap": 100,
}


@dataclass
class Made:
    home: Home

    @property
    def workspace(self) -> Workspace:
        return Workspace(load_studies(self.home)["tumour"], self.home)

    def run(self, *names: str) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        for stage in study_stages(self.workspace):
            if not names or stage.name in names:
                found = {one.item: one for one in run_items(self.workspace, stage, stage.items())}
        return found

    def table(self, name: str) -> pl.DataFrame:
        return self.workspace.read(name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = Home(tmp_path_factory.mktemp("slices"))
    remember(home, "tumour", SMALL)
    made = Made(home)
    assert made.run()["all"].outcome == "ok"
    return made


def test_slices_of_a_patient_stay_together_and_none_is_lost(finished: Made) -> None:
    splits = finished.table("splits")
    assert splits.height == 60
    assert splits.group_by("participant_id").agg(pl.struct("set", "fold").n_unique())["set"].max() == 1
    assert checks.no_leakage(finished.workspace)[0]
    roles = finished.table("class_predictions").select("scan", "set").unique().group_by("set").len()
    assert set(roles["set"]) == {"train", "validation", "test"}
    assert roles["len"].sum() == 60


def test_prepared_slices_span_zero_to_one_and_masks_follow(finished: Made) -> None:
    workspace = finished.workspace
    scan = finished.table("slices")["scan"][0]
    values, affine = load_volume(workspace.prepared_paths(scan)[0])
    assert values.shape == (32, 40, 1)
    assert (values.min(), values.max()) == (0, 1)
    truth, same = load_volume(workspace.tumour_path(scan))
    np.testing.assert_array_equal(affine, same)
    row = finished.table("slices").filter(scan=scan).row(0, named=True)
    whole = np.asarray(Image.open(workspace.bids / row["mask"])) > 0
    share = whole.mean()
    assert truth.mean() == pytest.approx(share, abs=0.35 * share + 0.002)
    centre = np.argwhere(truth[..., 0] > 0).mean(axis=0) / [32, 40]
    y, x = np.argwhere(whole).mean(axis=0) / 48
    np.testing.assert_allclose(centre, [x, 1 - y], atol=0.05)  # x to the right, y upwards


def test_every_cell_is_scored_for_both_classes_and_adds_up(finished: Made) -> None:
    maps, scores = finished.table("rule_maps"), finished.table("rule_grid")
    assert maps["scan"].n_unique() == 12
    assert maps.height == 12 * 2 * (4 + 2)
    assert maps["sound"].all()
    own = maps.filter(method="lrp_grid")
    lost = own["bias"] + own["stabiliser"] + own["dead"] + own["clamped"] + own["unexplained"]
    np.testing.assert_allclose(own["start"] - own["total"], lost, atol=1e-6)
    assert set(scores["quantile"].drop_nulls()) == {0.95}
    assert scores.filter(score="iou").height == maps.height
    kept = maps.drop_nulls("path")
    assert set(kept["map"]) == {"gamma -20, epsilon 0"}
    assert kept.height == 24


def test_a_score_is_that_of_the_map_on_disk(finished: Made) -> None:
    """Published mask and IoU by plain numbers."""
    row = finished.table("rule_maps").drop_nulls("path").filter(explained="true").row(0, named=True)
    relevance = load_volume(finished.home.root / row["path"])[0][..., 0]
    truth = load_volume(finished.workspace.tumour_path(row["scan"]))[0][..., 0] > 0
    positive = np.maximum(relevance, 0)
    mask = positive > np.quantile(positive, 0.95)
    iou = (mask & truth).sum() / (mask | truth).sum()
    found = finished.table("rule_grid").filter(
        scan=row["scan"], explained="true", map=row["map"], measure="iou at 0.95"
    )
    assert found["value"].to_list() == pytest.approx([iou], abs=1e-12)
    logit = finished.table("class_predictions").filter(pl.col("scan") == row["scan"], pl.col("class") == row["class"])
    assert row["start"] == pytest.approx(logit["logit"][0], rel=1e-4)
    assert row["total"] == pytest.approx(relevance.sum(), rel=1e-3, abs=1e-6)


def test_the_choice_rests_on_validation_slices_alone(finished: Made) -> None:
    scores = finished.table("rule_grid").filter(explained="true", measure="iou at 0.95", method="lrp_grid")
    sets = finished.table("class_predictions").filter("is_true").select("scan", "set", "class")
    means = scores.join(sets, on="scan").group_by("set", "gamma", "epsilon").agg(pl.col("value").mean())
    best = means.filter(set="validation").sort("value").row(-1, named=True)
    chosen = finished.table("rule_comparison").filter(
        explained="true", measure="iou at 0.95", role="chosen", stratum_kind="all"
    )
    assert chosen.height == 1
    row = chosen.row(0, named=True)
    assert row["validation"] == pytest.approx(best["value"])
    test = means.filter(set="test", gamma=row["gamma"], epsilon=row["epsilon"])
    assert row["value"] == pytest.approx(test["value"][0])
    others = finished.table("rule_comparison").filter(measure="iou at 0.95", explained="true", role="reference")
    assert {"gradient_x_input", "grad_cam", "random_weights"} == set(others["method"])
    answer = finished.table("rule_answers").filter(explained="true", measure="iou at 0.95")["answer"][0]
    assert f"{row['value']:.2f}" in answer or f"{row['value']:.3f}" in answer
    for name in ("ruleGrid", "ruleOverlays", "rulesByClass"):
        assert finished.workspace.figure_path(name).stat().st_size > 5_000


def test_a_network_that_learnt_nothing_is_another_network(finished: Made) -> None:
    workspace = finished.workspace
    own, drawn = CellMaps(workspace, cells=[(0.25, 0)]), CellMaps(workspace, cells=[(0.25, 0)], trained=False)
    first = next(iter(own.network.parameters()))
    assert first.shape == next(iter(drawn.network.parameters())).shape
    assert not np.allclose(first.detach().numpy(), next(iter(drawn.network.parameters())).detach().numpy())


def test_nothing_is_made_twice(finished: Made) -> None:
    for stage in study_stages(finished.workspace):
        assert all(one.skipped for one in run_items(finished.workspace, stage, stage.items())), stage.name


def test_a_folder_with_faults(tmp_path: Path) -> None:
    """Each fault is its slice's; a slice that comes later of a person in the split is in no set."""
    folder = tmp_path / "given"
    synthesise_slices(folder, slices=60, size=48, seed=0)
    lines = (folder / "index.csv").read_text().splitlines()
    first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    (folder / first["image"]).write_bytes((folder / first["image"]).read_bytes()[:200])
    second = dict(zip(lines[0].split(","), lines[2].split(","), strict=True))
    (folder / second["mask"]).unlink()
    home = Home(tmp_path / "home")
    remember(home, "tumour", SMALL | {"slices.folder": str(folder), "slices.every": 1})
    made = Made(home)
    made.run("participants")
    failed = made.table("scans").filter(status="failed")
    assert len(failed) in (1, 2)
    assert any(second["mask"] in reason for reason in failed["reason"])
    outcomes = made.run("raw_scans")
    bad = [str(one.reason) for one in outcomes.values() if one.outcome == "failed"]
    assert len(failed) + len(bad) == 2
    assert all("\n" not in reason for reason in [*bad, *failed["reason"]])
    made.run("prepared_volumes", "splits")
    before = made.table("splits").select("scan", "set", "fold").sort("scan")
    lost = before["scan"][5]
    remaining = [line for line in lines if not line.startswith(f"{lost.split('ses-')[1]},")]
    (folder / "index.csv").write_text("\n".join(remaining) + "\n")
    made.run("participants", "raw_scans", "prepared_volumes", "splits")
    assert lost not in set(made.table("splits")["scan"])
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    made.run("participants", "raw_scans", "prepared_volumes", "splits")
    after = made.table("splits").select("scan", "set", "fold").sort("scan")
    assert after.filter(scan=lost)["set"].to_list() == ["buffer"]
    assert after.filter(pl.col("scan") != lost).equals(before.filter(pl.col("scan") != lost))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"methods": {"lrp": {"composite": "gamma"}}}, "methods: not for a study of slices"),
        ({"cohort.target": {"column": "class", "kind": "regression"}}, "needs model and cohort.target of kind classes"),
        ({"rule_grid.maps": [[1, 1]]}, "[1.0, 1.0] is no cell of the grid"),
        ({"rule_grid.gammas": [1, 1]}, "rule_grid.gammas: each value once"),
        ({"rule_grid.signed": True}, "signed epsilon must not be negative"),
        ({"slices.size": [32]}, "slices.size"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    remember(Home(tmp_path), "tumour", settings)
    with pytest.raises(SettingsError) as caught:
        load_studies(Home(tmp_path))
    assert said in str(caught.value)


def test_a_grid_needs_slices(tmp_path: Path) -> None:
    remember(Home(tmp_path), "disability", {"rule_grid": {}})
    with pytest.raises(SettingsError, match="rule_grid: only of a study with slices"):
        load_studies(Home(tmp_path))


def test_the_papers_settings_are_a_study(tmp_path: Path) -> None:
    remember(Home(tmp_path), "tumour", read_settings(DEFINITIONS / "tumour" / "paper.yaml"))
    study = load_studies(Home(tmp_path))["tumour"]
    assert study.rule_grid is not None
    assert (len(study.rule_grid.gammas), len(study.rule_grid.epsilons)) == (11, 11)
    assert study.training.total_epochs == 51
