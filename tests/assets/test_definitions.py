"""What Dagster sees: the graph, its labels, and checks that fail when they should."""

from __future__ import annotations

import os
import time

import dagster as dg
import polars as pl
import pytest

from relevance_assets.assets import checks
from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.lineage import SOURCES, column_lineage, column_schema
from relevance_assets.assets.owners import ASSET_OF
from relevance_assets.assets.stages import ALL
from relevance_assets.assets.workspace import Snapshot, Workspace
from relevance_assets.component import study_definitions
from relevance_assets.tables.partitions import Batch
from relevance_assets.tables.schema import TABLES


@pytest.fixture
def definitions(workspace: Workspace) -> dg.Definitions:
    return study_definitions(workspace.study, workspace.home)


def test_graph_of_disability(definitions: dg.Definitions) -> None:
    specs = {spec.key.path[-1]: spec for spec in definitions.resolve_all_asset_specs()}
    needs = {name: sorted(dep.asset_key.path[-1] for dep in spec.deps) for name, spec in specs.items()}
    assert {name: deps for name, deps in needs.items() if name != "synthetic_cohort"} == {
        "participants": ["synthetic_cohort"],
        "raw_scans": ["participants"],
        "prepared_volumes": ["raw_scans"],
        "preparation_overview": ["prepared_volumes"],
        "splits": ["participants", "prepared_volumes"],
        "trained_models": ["prepared_volumes", "splits"],
        "predictions": ["prepared_volumes", "splits", "trained_models"],
        "scores": ["predictions"],
        "relevance_maps": ["prepared_volumes", "splits", "trained_models"],
        "quantile_masks": ["relevance_maps"],
        "localisation": ["relevance_maps"],
        "localisation_summary": ["localisation"],
        "inversions": ["relevance_maps", "trained_models"],
        "inversion_curves": ["inversions"],
        "heat_maps": ["predictions", "quantile_masks"],
        "sanity": ["relevance_maps", "trained_models"],
        "correlations": ["localisation", "quantile_masks"],
        "published_comparison": ["correlations", "scores"],
    }


def test_every_asset_can_be_found_and_understood(definitions: dg.Definitions) -> None:
    for asset in definitions.assets or []:
        assert isinstance(asset, dg.AssetsDefinition)
        for spec in asset.specs:
            night = spec.tags["stage"] == "statistics"
            assert spec.group_name == ("disability_statistics" if night else "disability")
            assert spec.description
            assert spec.owners
            assert spec.kinds
            assert spec.code_version
            assert spec.metadata["dagster/column_schema"].columns
        assert asset.backfill_policy is None or asset.backfill_policy.max_partitions_per_run == 128
    assert dg.Definitions.validate_loadable(definitions) is None


def test_few_assets_have_one_partition_per_scan(workspace: Workspace) -> None:
    """Each costs events and a place in the sensor's look for every scan; an eighth wants a reason.

    Inversions are the seventh: they cost more than maps, and other quantiles or draws must not make maps anew.
    """
    assert sum(stage.partition == "scan" for stage in study_stages(workspace)) == 7


def test_lineage_names_columns_that_exist() -> None:
    for (table, column), sources in SOURCES.items():
        for name, field in [(table, column), *sources]:
            assert field in [c.name for c in TABLES[name].columns], f"{name}.{field}"
            assert name in ASSET_OF
    lineage = column_lineage("disability", "scores")
    assert lineage is not None
    sources = {(dep.asset_key.path[-1], dep.column_name) for dep in lineage.deps_by_column["value"]}
    assert sources == {("predictions", "output"), ("predictions", "target"), ("splits", "set")}
    assert [column.name for column in column_schema("scores").columns][:2] == ["study", "model"]


def write(workspace: Workspace, table: str, partition: str, **columns: object) -> None:
    """One row of a table; columns not given get a value of their type."""
    default = {pl.String: "x", pl.Float64: 1.0, pl.Int64: 1, pl.Boolean: True}
    row = {
        c.name: None if c.nullable else default[type(c.dtype)] for c in TABLES[table].columns if c.name != "study"
    } | columns
    schema = {c.name: c.dtype for c in TABLES[table].columns if c.name != "study"}
    workspace.write(table, partition, pl.DataFrame([row], schema=schema))


def test_leakage_is_seen(workspace: Workspace) -> None:
    write(workspace, "splits", "a", scan="sub-1_ses-1", participant_id="sub-1", set="train", fold=0)
    assert checks.no_leakage(workspace)[0]
    write(workspace, "splits", "b", scan="sub-1_ses-2", participant_id="sub-1", set="train", fold=1)
    assert not checks.no_leakage(workspace)[0]
    write(workspace, "splits", "b", scan="sub-1_ses-2", participant_id="sub-1", set="test", fold=None)
    assert not checks.no_leakage(workspace)[0]


def test_a_second_grid_is_seen(workspace: Workspace) -> None:
    x, y, z = workspace.study.shape or (0, 0, 0)
    write(workspace, "volumes", "a", scan="sub-1", image="qT1", shape_x=x, shape_y=y, shape_z=z)
    assert checks.one_grid(workspace)[0]
    write(workspace, "volumes", "b", scan="sub-2", image="qT1", shape_x=x, shape_y=y, shape_z=z, voxel_x_mm=1.1)
    assert not checks.one_grid(workspace)[0]
    write(workspace, "volumes", "b", scan="sub-2", image="qT1", shape_x=x, shape_y=y, shape_z=z)
    write(workspace, "volumes", "a", scan="sub-1", image="qT1", shape_x=x + 1, shape_y=y, shape_z=z)
    write(workspace, "volumes", "b", scan="sub-2", image="qT1", shape_x=x + 1, shape_y=y, shape_z=z)
    assert not checks.one_grid(workspace)[0], "all alike, but not the recipe's shape"


def test_an_empty_brain_is_seen(workspace: Workspace) -> None:
    numbers = {"minimum": 0.0, "maximum": 1.0, "mean": 0.5, "standard_deviation": 0.1}
    write(workspace, "volumes", "a", scan="sub-1", image="qT1", **numbers)
    assert checks.finite_volumes(workspace)[0]
    write(workspace, "volumes", "b", scan="sub-2", image="qT1", **(numbers | {"brain_voxels": 0}))
    assert not checks.finite_volumes(workspace)[0]
    write(workspace, "volumes", "b", scan="sub-2", image="qT1", **(numbers | {"mean": None}))
    assert not checks.finite_volumes(workspace)[0]


def test_unexplained_relevance_is_seen(workspace: Workspace) -> None:
    account = {"start": 0.5, "total": 0.4, "difference": 0.1, "lost": 0.1, "unexplained": 1e-12}
    write(workspace, "relevance_maps", "a", scan="sub-1", contrast="qT1", **account)
    assert checks.conservation(workspace)[0]
    write(workspace, "relevance_maps", "b", scan="sub-2", contrast="qT1", **(account | {"unexplained": 1e-6}))
    passed, metadata = checks.conservation(workspace)
    assert not passed
    assert metadata["largest_share_unexplained"] == pytest.approx(2e-6)


def test_relevance_lost_at_an_operation_is_seen(workspace: Workspace) -> None:
    account = {"start": 0.5, "total": 0.4, "difference": 0.1, "lost": 0.1, "unexplained": 0.0}
    write(workspace, "relevance_maps", "a", scan="sub-1", contrast="all", fold="0", **account)
    for layer, unexplained in (("conv1", 1e-13), ("conv2", -1e-6)):
        write(workspace, "relevance_ledger", layer, scan="sub-1", fold="0", layer=layer, unexplained=unexplained)
        passed, metadata = checks.conservation(workspace)
        assert passed == (layer == "conv1")
        assert metadata["that_operation"] == layer
    assert metadata["largest_share_unexplained_at_an_operation"] == pytest.approx(2e-6)


def test_a_map_by_a_model_that_saw_the_scan_is_seen(workspace: Workspace) -> None:
    learnt = {"model": "m", "scan": "sub-1_ses-1", "participant_id": "sub-1"}
    write(workspace, "training_scans", "0", fold="0", set="validation", **learnt)
    write(workspace, "training_scans", "1", fold="1", set="train", **learnt)
    write(workspace, "relevance_maps", "a", scan="sub-1_ses-1", fold="0")
    assert checks.never_seen(workspace, "relevance_maps", ["train"])[0]
    write(workspace, "relevance_maps", "a", scan="sub-1_ses-1", fold="1")
    assert not checks.never_seen(workspace, "relevance_maps", ["train"])[0]
    write(workspace, "relevance_maps", "a", scan="sub-1_ses-2", fold="1")
    assert not checks.never_seen(workspace, "relevance_maps", ["train"])[0], "another visit of the same person"


def test_a_mean_over_models_that_knew_the_person_is_seen(workspace: Workspace) -> None:
    write(workspace, "training_scans", "0", scan="sub-1", fold="0", set="train", participant_id="sub-1")
    write(workspace, "relevance_maps", "b", scan="sub-2", fold="ensemble")
    assert checks.never_seen(workspace, "relevance_maps", ["train"])[0]
    write(workspace, "relevance_maps", "a", scan="sub-1", fold="ensemble")
    assert not checks.never_seen(workspace, "relevance_maps", ["train"])[0]


def test_repeated_keys_are_seen(workspace: Workspace) -> None:
    write(workspace, "models", "0", model="m", fold="0")
    assert checks.primary_keys(workspace, ("models",), "fold")[0]
    write(workspace, "models", "copy", model="m", fold="0")
    passed, counts = checks.primary_keys(workspace, ("models",), "fold")
    assert not passed
    assert counts["models_in_the_wrong_partition"] == 1
    workspace.delete("models", "copy")
    assert checks.primary_keys(workspace, ("models",), "fold")[0]
    [path] = workspace.store.files("models", workspace.study.name)
    pl.concat([workspace.read("models")] * 2).write_parquet(path)  # the store would refuse it
    passed, counts = checks.primary_keys(workspace, ("models",), "fold")
    assert not passed
    assert counts["models_repeated_keys"] == 1


def test_what_is_for_the_whole_cohort_has_one_partition(workspace: Workspace) -> None:
    write(workspace, "splits", ALL, scan="sub-1", set="test", participant_id="sub-1")
    assert checks.primary_keys(workspace, ("splits",), None)[0]
    write(workspace, "splits", "other", scan="sub-1", set="test", participant_id="sub-1")
    assert not checks.primary_keys(workspace, ("splits",), None)[0]


def test_a_check_reads_again_only_what_changed(workspace: Workspace) -> None:
    """What was found in a part is kept as long as its files are the same ones."""
    read: list[str] = []

    def look(batch: Batch) -> int:
        read.extend(batch.files)
        return batch.frame.height

    scans = [f"sub-{number:03d}" for number in range(300)]
    for scan in scans:
        write(workspace, "splits", scan, scan=scan, set="test", participant_id=scan)
    old = time.time() - 60  # files as young as these are not put into a segment yet
    for path in workspace.store.files("splits", workspace.study.name):
        os.utime(path, (old, old))
    assert sum(checks.over(workspace, "splits", "rows", look)) == 300 == len(read)
    read.clear()
    assert sum(checks.over(workspace, "splits", "rows", look)) == 300
    assert not read
    write(workspace, "splits", "sub-300", scan="sub-300", set="test", participant_id="sub-300")
    assert sum(checks.over(workspace, "splits", "rows", look)) == 301
    assert read == ["sub-300.parquet"]


def test_what_a_snapshot_saw_before_a_change_is_not_taken_for_what_is_there_after(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look of the sensor asks a table several times; what it holds by the last may have changed since the first."""
    monkeypatch.setattr(checks, "YOUNG_NS", 0)  # a look over many scans outlasts it
    numbers = {"minimum": 0.0, "maximum": 1.0, "mean": 0.5, "standard_deviation": 0.1}
    write(workspace, "volumes", "a", scan="sub-1", image="qT1", **numbers)
    snapshot = Snapshot(workspace.study, workspace.home)
    assert checks.one_grid(snapshot)[1]["volumes"] == 1
    write(workspace, "volumes", "b", scan="sub-2", image="qT1", **(numbers | {"mean": None}))
    assert checks.finite_volumes(snapshot)[0], "the snapshot is of before"
    assert not checks.finite_volumes(Snapshot(workspace.study, workspace.home))[0]
