"""The whole road on a small synthetic cohort, through the command line and Dagster."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import dagster as dg
import nibabel as nib
import numpy as np
import polars as pl
import pytest
from small_study import ROOT, command, run, settle

from relevance_assets.assets.runner import dagster_instance
from relevance_assets.assets.workspace import Workspace
from relevance_assets.configuration import load_studies, remember
from relevance_assets.home import Home
from relevance_assets.tables.database import publish
from relevance_assets.tables.query import run_query
from relevance_assets.tables.store import Store, differences

pytestmark = pytest.mark.slow


def table(home: Home, name: str) -> pl.DataFrame:
    return Store(home.tables).read(name, "disability")


def materialised(home: Home, asset: str) -> set[str]:
    with dagster_instance(home) as instance:
        return set(instance.get_materialized_partitions(dg.AssetKey(["disability", asset])))


def test_every_stage_leaves_its_rows_and_files(finished: Home) -> None:
    scans = table(finished, "scans").filter(pl.col("status") == "ok")
    assert scans.height > 15
    for name in (
        *("raw_scans", "volumes", "splits", "relevance_maps", "quantile_masks", "mask_measures"),
        *("localisation", "region_volumes", "inversions"),
    ):
        assert set(table(finished, name)["scan"]) == set(scans["scan"]), name
    assert table(finished, "models").height == 3
    assert table(finished, "predictions").height == 3 * scans.height
    assert set(table(finished, "scores")["metric"]) >= {"auc", "accuracy", "sensitivity", "specificity"}
    families = (2 * 2 + 1) * 2 * 2 * 3  # scenarios, masks, signs, images
    assert table(finished, "correlations").height == families * 2 * 2  # all or first scans, adjusted or not
    for row in table(finished, "relevance_maps").filter(pl.col("path").is_not_null()).iter_rows(named=True):
        assert (finished.root / row["path"]).exists()
        assert (row["native_path"] is not None) == (row["method"] == "lrp_attention")
        assert row["native_path"] is None or (finished.root / row["native_path"]).exists()


def test_the_evidence_is_there(finished: Home) -> None:
    """Every table of the evidence has rows, and they say what they must whatever the network has learnt."""
    test = table(finished, "splits").filter(pl.col("set") == "test")["scan"]
    agreement = table(finished, "fold_agreement")
    assert set(agreement["scan"]) == set(test), "only test scans are explained by several models"
    assert agreement.group_by("method", "scan", "contrast").len()["len"].unique().to_list() == [3]

    inversions = table(finished, "inversions")
    none = inversions.filter(pl.col("top_percent") == 0)
    assert none.group_by("fold", "scan").agg(pl.col("output").n_unique())["output"].max() == 1
    said = table(finished, "predictions").select("fold", "scan", said="output")
    joined = none.join(said, on=["fold", "scan"])
    # alone in its batch and by the same network, in both tables: no bit has a reason to differ
    assert joined["output"].equals(joined["said"]), "nothing inverted: what the model says anyway"
    matched = inversions.filter((pl.col("control") == "matched") & (pl.col("map") == "combined"))
    assert matched.group_by("fold", "scan", "top_percent").agg(pl.col("pairs").n_unique())["pairs"].max() == 1

    curves = table(finished, "inversion_curves")
    assert set(curves["control"]) == {"own", "matched", "random", "planted", "random_planted", "matched_planted"}
    assert set(curves["fold"]) == {"0", "1", "2", "mean"}
    areas = table(finished, "inversion_areas")
    assert areas.filter((pl.col("control") == "own") & (pl.col("against") == "nothing")).height == 5
    scenarios = [f"{method} {use}" for method, use in table(finished, "scenarios").select("method", "map").iter_rows()]
    planted = areas.filter((pl.col("control") == "planted") & (pl.col("against") != "nothing"))
    assert set(planted["against"]) == {"random_planted", *scenarios}
    assert areas.filter((pl.col("control") == "matched_planted") & (pl.col("against") == "random_planted")).height == 5
    assert set(areas["percents"]) == {"0, 20, 100", None}
    assert table(finished, "scenarios")["passes"].min() >= 1
    assert table(finished, "scenarios")["passes_together"].n_unique() == 1

    sanity = table(finished, "sanity")
    assert set(sanity["method"]) == {"lrp_attention"}
    assert sanity.height == 9
    regions = table(finished, "region_frequencies")
    assert set(regions["group"]) == {"mild", "severe", "severe - mild"}
    found = regions.pivot("group", index="region", values="mean")
    assert np.allclose(found["severe - mild"], found["severe"] - found["mild"], atol=1e-6)
    assert set(table(finished, "localisation_summary")["region"]) == {"disability", "decoy", "lesion"}
    published = table(finished, "published_comparison")
    assert published.height == 32
    assert not published["comparable"].any(), "synthetic people are not the publication's"
    weights = table(finished, "attention_summary")
    assert np.allclose(weights.drop_nulls("value").group_by("set", "fold").agg(pl.col("value").sum())["value"], 1)
    figures = finished.derivatives("disability") / "figures"
    assert {path.name for path in figures.glob("*.png")} == {"heatMap.png", "inversionCurves.png", "scanOverlays.png"}


def test_maps_come_from_models_that_never_saw_the_scan(finished: Home) -> None:
    splits = {row["scan"]: row for row in table(finished, "splits").iter_rows(named=True)}
    for scan, rows in table(finished, "relevance_maps").group_by("scan"):
        folds = set(rows["fold"])
        split = splits[scan[0]]
        assert folds == ({"0", "1", "2", "ensemble"} if split["set"] == "test" else {str(split["fold"])})


def test_attention_start_is_conserved_and_sums_to_one(finished: Home) -> None:
    maps = table(finished, "relevance_maps").filter(
        (pl.col("method") == "lrp_attention")
        & ~pl.col("contrast").is_in(["combined", "all"])
        & (pl.col("fold") != "ensemble")
    )
    assert maps["unexplained"].abs().max() < 1e-8
    sums = maps.group_by("scan", "fold").agg(pl.col("start").sum())
    assert np.allclose(sums["start"], 1)


def test_maps_on_both_grids_lie_on_the_scan(finished: Home, cohort: Path) -> None:
    row = table(finished, "relevance_maps").filter(pl.col("path").is_not_null()).row(0, named=True)
    raw = table(finished, "raw_scans").filter(pl.col("scan") == row["scan"]).row(0, named=True)
    native, source = nib.load(finished.root / row["native_path"]), nib.load(cohort / raw["path"])
    assert native.shape == source.shape
    assert np.allclose(native.affine, source.affine)


def test_everything_is_in_dagster(finished: Home) -> None:
    scans = set(table(finished, "scans").filter(pl.col("status") == "ok")["scan"])
    for asset in ("raw_scans", "prepared_volumes", "relevance_maps", "quantile_masks", "localisation"):
        assert materialised(finished, asset) == scans
    with dagster_instance(finished) as instance:
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
        event = instance.get_latest_materialization_event(dg.AssetKey(["disability", "scores"]))
        assert event is not None
        metadata = event.asset_materialization.metadata
        assert "dagster/column_lineage" in metadata
        assert metadata["dagster/row_count"].value == table(finished, "scores").height
        for record in instance.fetch_materializations(dg.AssetKey(["disability", "relevance_maps"]), limit=5).records:
            preview = record.asset_materialization.metadata["preview"].value
            assert "data:image/png;base64," in preview
            assert len(preview) < 31_000


def test_running_again_does_nothing(finished: Home) -> None:
    with dagster_instance(finished) as instance:
        before = instance.get_runs_count()
    done = run("run", "disability", home=finished.root)
    assert "nothing to do" in done.stdout
    with dagster_instance(finished) as instance:
        assert instance.get_runs_count() == before


def test_published_database_answers(finished: Home) -> None:
    done = run("query", "SELECT count(*) AS n FROM models", "--format", "csv", home=finished.root)
    assert done.stdout.split() == ["n", "3"]
    for path in sorted((ROOT / "sql" / "queries").glob("*.sql")):
        run_query(finished.database, path)
    assert "disability" in run("status", home=finished.root).stdout


def test_same_seed_gives_the_same_tables(finished: Home, cohort: Path, tmp_path: Path) -> None:
    home = settle(tmp_path / "again", cohort)
    run("run", "disability", home=home.root)
    assert differences(finished.tables, home.tables) == []


def test_killed_three_times_gives_the_same_tables(finished: Home, cohort: Path, tmp_path: Path) -> None:
    home = settle(tmp_path / "killed", cohort)
    moments = random.Random(20261121)
    for _ in range(3):
        process = subprocess.Popen(
            command("run", "disability", home=home.root), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(4, 20))
        process.send_signal(signal.SIGKILL)
        process.wait()
    run("run", "disability", home=home.root)
    assert differences(finished.tables, home.tables) == []
    scans = set(table(home, "scans").filter(pl.col("status") == "ok")["scan"])
    assert materialised(home, "relevance_maps") == scans
    with dagster_instance(home) as instance:
        unfinished = {dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING}
        assert not [run for run in instance.get_runs() if run.status in unfinished]


def test_a_bad_scan_is_left_out_and_its_neighbours_go_on(copy_of_finished: Home) -> None:
    home = copy_of_finished
    bids = load_studies(home)["disability"].cohort.bids
    assert bids is not None
    scans = sorted(table(home, "raw_scans")["scan"].unique())
    path = bids / table(home, "raw_scans").filter(pl.col("scan") == scans[3])["path"][0]
    path.write_bytes(path.read_bytes()[:200])
    shutil.rmtree(bids / scans[5].split("_")[0])  # a person who withdrew
    done = run("run", "disability", home=home.root)
    assert f"{scans[3]}:" in done.stdout
    for name in ("raw_scans", "volumes", "relevance_maps", "localisation", "splits"):
        left = set(table(home, name)["scan"])
        assert scans[3] not in left
        assert scans[5] not in left
        assert scans[4] in left
    status = run("status", home=home.root).stdout
    assert scans[3] in status
    assert path.name in status
    counts = run_query(home.database, "SELECT count(DISTINCT scan) AS n FROM volumes")
    assert counts["n"][0] == table(home, "volumes")["scan"].n_unique()


def test_a_touched_file_changes_nothing_below(copy_of_finished: Home) -> None:
    home = copy_of_finished
    before = table(home, "models")["seconds"].to_list()
    study = load_studies(home)["disability"]
    workspace = Workspace(study, home)
    raw = table(home, "raw_scans").row(0, named=True)
    (workspace.bids / raw["path"]).touch()
    done = run("run", "disability", home=home.root)
    assert "prepared_volumes" not in done.stdout
    assert table(home, "models")["seconds"].to_list() == before


def test_a_blocking_check_stops_what_follows(copy_of_finished: Home) -> None:
    """One scan on another grid: the volumes' check fails, and no model is trained on the mixture."""
    home = copy_of_finished
    store = Store(home.tables)
    scan = table(home, "volumes")["scan"][0]
    store.write("volumes", "disability", scan, store.read("volumes", "disability", scan).drop("study").with_columns(
        shape_x=pl.lit(17, pl.Int64)
    ))  # fmt: skip
    other = table(home, "volumes")["scan"][-1]
    Path(home.image("disability", other, "res-prepared_desc-brain_mask")).unlink()  # makes the stage run again
    for _ in range(2):  # a second call must not pass by what the first one found
        done = run("run", "disability", home=home.root, check=False)
        assert done.returncode == 1
        assert "one_grid" in done.stderr


def test_derivatives_are_valid_bids(finished: Home) -> None:
    validator = shutil.which("bids-validator-deno", path=str(Path(command("x", home=ROOT)[0]).parent))
    assert validator, "bids-validator-deno belongs to the test requirements"
    folder = finished.derivatives("disability")
    done = subprocess.run(
        [validator, "--json", "--max-rows", "-1", str(folder)], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    errors = sorted({(issue["code"], issue.get("location", "")) for issue in issues if issue["severity"] == "error"})
    assert errors == []


def test_equal_maps_are_equal_bytes(finished: Home) -> None:
    path = next(finished.derivatives("disability").rglob("*_relmap.nii.gz"))
    with gzip.open(path) as file:
        file.read()
        assert file.mtime == 0


def test_publishing_again_gives_the_same_counts(finished: Home, tmp_path: Path) -> None:
    counts = publish(finished.tables, tmp_path / "again.duckdb", ROOT / "sql")
    frame = run_query(finished.database, "SELECT count(*) AS n FROM relevance_maps")
    assert counts["relevance_maps"] == frame["n"][0]


def test_brain_age_beside_its_baselines(cohort: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    remember(
        home,
        "brain_age",
        {
            "cohort.bids": str(cohort),
            "preparation.resample.voxel_size_mm": [9, 9, 9],
            "preparation.crop_or_pad.shape": [18, 24, 18],
            "training.epochs": 2,
            "statistics.bootstrap": 100,
            "statistics.ridge_voxel_size_mm": 18,
        },
    )
    done = run("run", "brain_age", home=home.root)
    assert "ridge" in done.stdout
    store = Store(home.tables)
    scans = store.read("scans", "brain_age")
    assert scans["status"].unique().to_list() == ["ok"]
    brain_ml = store.read("volumes", "brain_age")["brain_volume_mm3"] / 1000
    assert 1000 < brain_ml.min() < brain_ml.max() < 2500  # type: ignore[operator]
    scores = store.read("scores", "brain_age")
    assert set(scores["model"]) == {"mrinet", "ridge", "mean"}
    assert set(scores["metric"]) == {"mae", "rmse", "r", "r2"}
    # Every model is scored on the same people.
    assert scores.filter((pl.col("set") == "test") & (pl.col("fold") == "ensemble"))["n"].n_unique() == 1
    gaps = store.read("brain_age_gap", "brain_age")
    assert set(gaps["scan"]) == set(scans["scan"])
    assert np.allclose(gaps["gap_years"], gaps["predicted_age"] - gaps["age"])
    maps = store.read("relevance_maps", "brain_age")
    assert maps.filter(pl.col("path").is_not_null()).height == scans.height
    assert maps["unexplained"].abs().max() < 1e-8 * maps["start"].abs().max()
