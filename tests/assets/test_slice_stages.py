"""The study of slices from pictures to a chosen cell, on a few synthetic ones, and on folders that are not whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from made import MadeStudy
from PIL import Image
from rich.console import Console

from relevance_assets.assets import checks
from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.cohort import SETTLED_BY
from relevance_assets.assets.rule_maps import Cell, CellMaps
from relevance_assets.assets.runner import dagster_instance, run_study
from relevance_assets.assets.stages import run_items
from relevance_assets.assets.workspace import Workspace
from relevance_assets.cohort.synthetic.slices import synthesise_slices
from relevance_assets.configuration import DEFINITIONS, SQL, SettingsError, load_studies, read_settings, remember
from relevance_assets.home import Home
from relevance_assets.imaging.volumes import load_volume
from relevance_assets.report.terminal import study_summary
from relevance_assets.tables.database import publish
from relevance_assets.tables.query import run_query

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
    "rule_grid.sensible": {"gammas": [0, 0.5], "epsilons": [0.1], "signed": True, "relative": True},
    "rule_grid.references": ["lrp_0", "gradient_x_input", "grad_cam"],
    "rule_grid.random_weights": 2,
    "rule_grid.maps": [[-20, 0]],
    "statistics.bootstrap": 100,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    home = Home(tmp_path_factory.mktemp("slices"))
    remember(home, "tumour", SMALL)
    made = MadeStudy(home, "tumour")
    assert made.run()["all"].outcome == "ok"
    return made


def test_slices_of_a_patient_stay_together_and_none_is_lost(finished: MadeStudy) -> None:
    splits = finished.table("splits")
    assert splits.height == 60
    assert splits.group_by("participant_id").agg(pl.struct("set", "fold").n_unique())["set"].max() == 1
    assert checks.no_leakage(finished.workspace)[0]
    roles = finished.table("class_predictions").select("scan", "set").unique().group_by("set").len()
    assert set(roles["set"]) == {"train", "validation", "test"}
    assert roles["len"].sum() == 60


def test_prepared_slices_are_those_that_another_library_resizes(finished: MadeStudy) -> None:
    """PIL's bilinear resize has the same antialiasing; pictures there run downwards, here upwards."""
    workspace = finished.workspace
    for row in finished.table("slices").head(8).iter_rows(named=True):
        values, affine = load_volume(workspace.prepared_paths(row["scan"])[0])
        truth, same = load_volume(workspace.tumour_path(row["scan"]))
        np.testing.assert_array_equal(affine, same)
        assert values.shape == truth.shape == (32, 40, 1)
        given = [np.asarray(Image.open(workspace.bids / row[name]), dtype=np.float32) for name in ("image", "mask")]
        picture, mask = (np.asarray(Image.fromarray(one).resize((32, 40), Image.Resampling.BILINEAR)) for one in given)
        scaled = (picture - picture.min()) / np.ptp(picture)
        np.testing.assert_allclose(np.rot90(values[..., 0]), scaled, atol=1e-5)
        np.testing.assert_array_equal(np.rot90(truth[..., 0]) > 0, mask > given[1].max() / 2)
    first = finished.table("volumes").row(0, named=True)
    assert (first["voxel_x_mm"], first["voxel_y_mm"]) == (48 / 32, 48 / 40)


def test_every_cell_is_scored_for_both_classes_and_adds_up(finished: MadeStudy) -> None:
    maps, scores = finished.table("rule_maps"), finished.table("rule_grid")
    assert maps["scan"].n_unique() == 12
    assert maps.height == 12 * 2 * (4 + 2 + 3)
    assert maps["sound"].all()
    own = maps.filter(pl.col("method").is_in(["lrp_grid", "lrp_0"]))
    assert dict(own["region"].value_counts(sort=True).iter_rows()) == {"grid": 96, "sensible": 48, None: 24}
    lost = own["bias"] + own["stabiliser"] + own["dead"] + own["clamped"] + own["unexplained"]
    np.testing.assert_allclose(own["start"] - own["total"], lost, atol=1e-6)
    assert set(scores["quantile"].drop_nulls()) == {0.95}
    assert scores.filter(score="iou").height == maps.height
    assert own["worst_share"].max() < 1e-3
    kept = maps.drop_nulls("path")
    assert set(kept["map"]) == {"gamma -20, epsilon 0"}
    assert kept.height == 24
    cost = {name: set(part["forwards"]) for (name,), part in maps.group_by("method")}
    assert cost["gradient_x_input"] == {2.0}  # products forward, and as many back to the image
    assert len(cost["lrp_grid"]) == len(cost["grad_cam"]) == 1
    assert 1 < cost["grad_cam"].pop() < 2  # not back through the convolutions
    assert 0 < cost["lrp_grid"].pop() < 4  # one cell alone: forward, and two passes back for each sign of gamma


def test_a_score_is_that_of_the_map_on_disk(finished: MadeStudy) -> None:
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


@pytest.mark.parametrize("region", ["grid", "sensible"])
def test_the_choice_rests_on_validation_slices_alone(finished: MadeStudy, region: str) -> None:
    scores = finished.table("rule_grid").filter(explained="true", measure="iou at 0.95", region=region)
    sets = finished.table("class_predictions").filter("is_true").select("scan", "set", "class")
    means = scores.join(sets, on="scan").group_by("set", "gamma", "epsilon").agg(pl.col("value").mean())
    best = means.filter(set="validation").sort("value").row(-1, named=True)
    chosen = finished.table("rule_comparison").filter(
        region=region, explained="true", measure="iou at 0.95", role="chosen", stratum_kind="all"
    )
    assert chosen.height == 1
    row = chosen.row(0, named=True)
    assert row["validation"] == pytest.approx(best["value"])
    test = means.filter(set="test", gamma=row["gamma"], epsilon=row["epsilon"])
    assert row["value"] == pytest.approx(test["value"][0])
    others = finished.table("rule_comparison").filter(
        region=region, measure="iou at 0.95", explained="true", role="reference", stratum_kind="all"
    )
    more = {"published_cell"} if region == "sensible" else set()
    assert {"lrp_0", "gradient_x_input", "grad_cam", "random_weights"} | more == set(others["method"])
    if more:  # the published cell of the main region, on the same slices
        every = finished.table("rule_grid").filter(explained="true", measure="iou at 0.95", map="gamma -20, epsilon 0")
        mean = every.join(sets.filter(set="test"), on="scan")["value"].mean()
        assert others.filter(method="published_cell")["value"].to_list() == pytest.approx([mean])
    answer = finished.table("rule_answers").filter(region=region, explained="true", measure="iou at 0.95")["answer"][0]
    assert f"{row['value']:.2f}" in answer or f"{row['value']:.3f}" in answer
    for name in ("ruleGrid", "ruleScores", *(("ruleOverlays", "rulesByClass") if region == "grid" else ())):
        path = finished.workspace.figure_path(name + ("" if region == "grid" else "Sensible"))
        assert path.stat().st_size > 5_000


def test_lrp_0_is_gradient_times_input(finished: MadeStudy) -> None:
    """By algebra, of a network of ReLUs, but for the stabiliser; two ways that share no code."""
    maps = CellMaps(finished.workspace, cells=[], references=["lrp_0", "gradient_x_input"])
    for scan in finished.table("rule_grid")["scan"].unique().sort().to_list()[:3]:
        ours, gradient = (one.relevance for one in maps(maps.image(scan), 1))
        assert np.corrcoef(ours.ravel(), gradient.ravel())[0, 1] > 0.999


def test_networks_that_learnt_nothing_are_others_and_count_by_their_mean(finished: MadeStudy) -> None:
    workspace, cell = finished.workspace, Cell("grid", 0.25, 0)
    networks = [CellMaps(workspace, cells=[cell], references=(), seed=seed) for seed in (None, 0, 1)]
    first = [next(iter(one.network.parameters())).detach().numpy() for one in networks]
    assert len({one.shape for one in first}) == 1
    assert not any(np.allclose(first[a], first[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    key = {"region": "grid", "explained": "true", "measure": "iou at 0.95", "stratum_kind": "all"}
    rows = finished.table("rule_comparison").filter(**key)
    row = rows.filter(method="random_weights").row(0, named=True)
    cell = Cell("grid", row["gamma"], row["epsilon"])
    said = finished.table("class_predictions").filter(pl.col("is_true"), pl.col("set") == "test")
    classes = workspace.study.target.classes
    found = []
    for scan, kind in said.select("scan", "class").iter_rows():
        if scan not in set(finished.table("rule_grid")["scan"]):
            continue
        for seed in (0, 1):
            maps = CellMaps(workspace, cells=[cell], references=(), seed=seed)
            positive = np.maximum(next(maps(maps.image(scan), classes.index(kind))).relevance, 0)
            mask, truth = positive > np.quantile(positive, 0.95), maps.truth(scan)
            found.append((mask & truth).sum() / (mask | truth).sum())
    assert row["value"] == pytest.approx(np.mean(found), abs=1e-9)


def test_the_database_answers_what_the_queries_ask(finished: MadeStudy) -> None:
    publish(finished.workspace.store.root, finished.home.database, SQL)
    for name in ("best_rules", "rules_against_other_methods"):
        assert run_query(finished.home.database, SQL / "queries" / f"{name}.sql").height > 0, name
    own = {row["scan"]: row for row in finished.table("class_predictions").filter("is_true").iter_rows(named=True)}
    values: dict[tuple, list[float]] = {}
    for row in finished.table("rule_grid").filter(score="iou").drop_nulls("value").iter_rows(named=True):
        said = own[row["scan"]]
        if said["set"] == "test":
            key = row["explained"], row["measure"], said["class"], row["map"], said["is_predicted"]
            values.setdefault(key, []).append(row["value"])
    found = run_query(finished.home.database, SQL / "queries" / "rules_by_class.sql").filter(study="tumour")
    names = ("explained", "measure", "class", "map", "network_is_right")
    assert {tuple(row[name] for name in names): (row["value"], row["slices"]) for row in found.to_dicts()} == {
        key: (pytest.approx(np.mean(of)), len(of)) for key, of in values.items()
    }
    assert len(found) == len(values)


def test_nothing_is_made_twice(finished: MadeStudy) -> None:
    for stage in study_stages(finished.workspace):
        assert all(one.skipped for one in run_items(finished.workspace, stage, stage.items())), stage.name


def given_slices(folder: Path, *, patients: bool = True) -> list[str]:
    """A folder of the user's with 60 slices; the lines of its index."""
    synthesise_slices(folder, slices=60, size=48, seed=0)
    index = folder / "index.csv"
    if not patients:
        pl.read_csv(index).drop("patient").write_csv(index)
    return index.read_text().splitlines()


FEW = {"gammas": [-20], "epsilons": [0], "references": [], "random_weights": False, "images": 9}


@pytest.mark.parametrize(
    ("how", "more"),
    [
        ("block", {"slices.block": 5, "slices.split.buffer": 1}),
        ("published", {"training.epochs": 1} | {f"rule_grid.{name}": value for name, value in FEW.items()}),
    ],
    ids=["block", "published"],
)
def test_other_splits_are_published_with_what_they_leave_out_or_leak(tmp_path: Path, how: str, more: dict) -> None:
    """Blocks whose slices are partly left out, and persons in several sets because that was asked for."""
    given_slices(tmp_path / "given", patients=how == "published")
    home = Home(tmp_path / "home")
    settings = SMALL | {"slices.folder": str(tmp_path / "given"), "slices.split.how": how} | more
    remember(home, "tumour", settings)
    made = MadeStudy(home, "tumour")
    assert made.run("participants", "raw_scans", "prepared_volumes", "splits")["all"].outcome == "ok"
    splits = made.table("splits")
    torn = splits.filter(pl.col("set") != "buffer").group_by("participant_id").agg(pl.struct("set", "fold").n_unique())
    if how == "block":
        assert splits.filter(set="buffer").height > 0
        assert not splits["leaking"].any()
        assert torn["set"].max() == 1
        assert splits.group_by("participant_id").agg(pl.col("set").n_unique())["set"].max() == 2  # kept and left out
    else:
        people = set(splits.filter("leaking")["participant_id"])
        assert people == set(torn.filter(pl.col("set") > 1)["participant_id"])
        assert people
        check_that_the_answer_says_it_leaks(made)
    assert checks.no_leakage(made.workspace)[0]
    publish(made.workspace.store.root, home.database, SQL)
    wrong = splits.with_columns(
        leaking=None, set=pl.when(pl.col("fold").is_null()).then(pl.lit("test")).otherwise("set")
    )
    if how == "published":
        made.workspace.write("splits", "all", wrong.drop("study"))
        assert not checks.no_leakage(made.workspace)[0], "only what says so may leak"


def check_that_the_answer_says_it_leaks(made: MadeStudy) -> None:
    """Persons are in validation and test, as was asked for: text and terminal call the result too good."""
    assert made.run()["all"].outcome == "ok"
    explained = made.table("splits").join(made.table("rule_maps").select("scan").unique(), on="scan")
    assert explained.group_by("participant_id").agg(pl.col("set").n_unique())["set"].max() > 1
    assert made.table("rule_means").height > 0
    answers = made.table("rule_answers")["answer"].to_list()
    assert answers
    for said in answers:
        assert "Patients are in several sets, as single images were divided at random" in said
        assert "no part in the choice" not in said
    console = Console(width=200, record=True)
    for part in study_summary(made.home, "tumour"):
        console.print(part)
    assert console.export_text().count("; patients are in several sets, so all is too good") == 2


def test_by_itself_the_service_takes_no_half_copied_slice_and_loses_no_disk(tmp_path: Path) -> None:
    lines = given_slices(tmp_path / "given")
    home = Home(tmp_path / "home")
    remember(home, "tumour", SMALL | {"slices.folder": str(tmp_path / "given")})
    made = MadeStudy(home, "tumour")
    made.run("participants")
    known = set(made.table("scans")["scan"])
    new = (tmp_path / "given" / "images" / "new.png", tmp_path / "given" / "masks" / "new.png")
    first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    for path, name in zip(new, ("image", "mask"), strict=True):
        shutil.copy(tmp_path / "given" / first[name], path)
    row = first | {"slice_id": "999", "image": "images/new.png", "mask": "masks/new.png"}
    (tmp_path / "given" / "index.csv").write_text("\n".join([*lines, ",".join(row.values())]) + "\n")
    token = SETTLED_BY.set(min(path.stat().st_ctime for path in new) - 1)
    try:
        assert made.run("participants")["all"].outcome == "ok"
        assert set(made.table("scans")["scan"]) == known, "somebody may still be copying it"
        (tmp_path / "given" / "index.csv").write_text("\n".join(lines[:4]) + "\n")
        reason = str(made.run("participants")["all"].reason)
        assert "of 60 scans would leave the study" in reason
        assert set(made.table("scans")["scan"]) == known
    finally:
        SETTLED_BY.reset(token)
    made.run("participants")  # a person asks
    assert made.table("scans").height == 3


def test_a_folder_with_faults(tmp_path: Path) -> None:
    """Each fault is its slice's; a slice that comes later of a person in the split is in no set."""
    folder = tmp_path / "given"
    lines = given_slices(folder)
    first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    (folder / first["image"]).write_bytes((folder / first["image"]).read_bytes()[:200])
    second = dict(zip(lines[0].split(","), lines[2].split(","), strict=True))
    (folder / second["mask"]).unlink()
    home = Home(tmp_path / "home")
    remember(home, "tumour", SMALL | {"slices.folder": str(folder), "slices.every": 1})
    made = MadeStudy(home, "tumour")
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
        ({"slices.synthetic": 24}, "greater than or equal to 25"),
        ({"split.folds": 4}, "split (slices.split is): not for a study of slices"),
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


def test_the_slices_explained_take_one_run_however_they_lie(finished: MadeStudy, tmp_path: Path) -> None:
    """12 of 60, spread over the sets: one by one, a run each."""
    shutil.copytree(finished.home.root, tmp_path / "home")
    workspace = Workspace(load_studies(Home(tmp_path / "home"))["tumour"], Home(tmp_path / "home"))
    explained = set(finished.table("rule_grid")["scan"])
    with dagster_instance(workspace.home, alone=True) as instance:
        run_study(workspace, instance)
        key = dg.AssetKey(["tumour", "rule_grid"])
        runs = [run for run in instance.get_runs() if run.asset_selection == {key}]
        events = instance.fetch_materializations(key, limit=100).records
    assert len(runs) == 1
    chosen = {event.partition_key: event.asset_materialization.metadata for event in events}
    assert explained <= set(chosen)
    assert {scan for scan, said in chosen.items() if "chosen" not in said} == explained
    assert set(workspace.recorded("rule_grid")) == explained
