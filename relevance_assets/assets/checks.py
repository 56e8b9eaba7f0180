"""Asset checks: what must hold before anything is built on an asset.

Blocking where a wrong input would spoil what follows. A check looks at all rows of the study, not at the chunk that
was just made: a mixture of old and new rows must hold together too.

Belongs here: stating and reporting. Does not belong here: errors of single scans, which stop that scan alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from relevance_assets.assets.chunks import asset_key
from relevance_assets.assets.relevance import CONSERVED, unexplained
from relevance_assets.assets.stages import Stage
from relevance_assets.assets.workspace import Workspace
from relevance_assets.tables.schema import TABLES

__all__ = ["checks_of", "study_checks"]

Check = Callable[[], tuple[bool, dict[str, Any]]]


def checks_of(workspace: Workspace, stages: list[Stage]) -> list[tuple[str, str, str, Check]]:
    """Every check of a study: stage, name, what it says, and the check itself."""
    keys: list[tuple[str, str, str, Check]] = [
        (
            stage.name,
            "primary_keys",
            "Every row of the tables has its own key, and no key is null.",
            partial(primary_keys, workspace, stage.tables),
        )
        for stage in stages
    ]
    science: list[tuple[str, str, str, Check]] = [
        (
            "splits",
            "no_person_on_two_sides",
            "All scans of a person are in one set and one fold.",
            partial(no_leakage, workspace),
        ),
        (
            "prepared_volumes",
            "one_grid",
            "Every prepared volume has the shape and voxel size of the others.",
            partial(one_grid, workspace),
        ),
        (
            "prepared_volumes",
            "finite_and_not_empty",
            "Values are finite, and there is a brain.",
            partial(finite_volumes, workspace),
        ),
        (
            "predictions",
            "finite_outputs",
            "Every model says a finite number of every scan.",
            partial(finite, workspace, "predictions", ["output", "target"]),
        ),
        (
            "relevance_maps",
            "conservation",
            "Relevance in equals relevance out plus what biases and stabilisers are known to have taken: for every "
            "map, and at every operation of the network.",
            partial(conservation, workspace),
        ),
        (
            "relevance_maps",
            "never_seen",
            "No map was made by a model that was trained on its person.",
            partial(never_seen, workspace),
        ),
        (
            "relevance_maps",
            "finite_maps",
            "Sums of every map are finite.",
            partial(finite, workspace, "relevance_maps", ["total"]),
        ),
    ]
    return keys + science


def study_checks(workspace: Workspace, stages: list[Stage]) -> list[dg.AssetChecksDefinition]:
    """The checks as Dagster sees them."""
    by_name = {stage.name: stage for stage in stages}
    return [_check(workspace, by_name[asset], *rest) for asset, *rest in checks_of(workspace, stages)]  # type: ignore[arg-type]


def _check(workspace: Workspace, stage: Stage, name: str, description: str, check: Check) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset_key(workspace, stage.name), name=name, description=description, blocking=True)
    def asset_check() -> dg.AssetCheckResult:
        passed, metadata = check()
        return dg.AssetCheckResult(passed=passed, metadata=metadata)

    return asset_check


# ----------------------------------------------------------------------------------------------------- what holds
def primary_keys(workspace: Workspace, tables: tuple[str, ...]) -> tuple[bool, dict[str, Any]]:
    counts: dict[str, Any] = {}
    passed = True
    for table in tables:
        frame = workspace.read(table)
        key = list(TABLES[table].key)
        repeated = frame.height - frame.select(key).unique().height
        empty = frame.select(pl.any_horizontal(pl.col(key).is_null()).sum()).item() if frame.height else 0
        counts |= {
            f"{table}_rows": frame.height,
            f"{table}_repeated_keys": repeated,
            f"{table}_null_keys": empty,
        }
        passed = passed and repeated == 0 and empty == 0
    return passed, counts


def no_leakage(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    from relevance_assets.cohort.splits import check_no_leakage

    offenders = check_no_leakage(workspace.read("splits"))
    return not offenders, {"people_on_two_sides": len(offenders), "scans": workspace.read("splits").height}


def one_grid(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    frame = workspace.read("volumes")
    columns = [f"shape_{axis}" for axis in "xyz"] + [f"voxel_{axis}_mm" for axis in "xyz"] + ["orientation"]
    grids = frame.with_columns(pl.col(pl.Float64).round(3)).select(columns).unique()
    first = "" if frame.is_empty() else str(grids.row(0))
    shape = workspace.study.shape
    wanted = shape is None or frame.is_empty() or tuple(grids.row(0)[:3]) == shape
    return grids.height <= 1 and wanted, {"grids": grids.height, "volumes": frame.height, "grid": first}


def finite_volumes(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    passed, counts = finite(workspace, "volumes", ["minimum", "maximum", "mean", "standard_deviation"])
    empty = workspace.read("volumes").filter(pl.col("brain_voxels") <= 0).height
    return passed and empty == 0, counts | {"without_brain": empty}


def finite(workspace: Workspace, table: str, columns: list[str]) -> tuple[bool, dict[str, Any]]:
    frame = workspace.read(table)
    wrong = frame.filter(pl.any_horizontal(pl.col(columns).is_null() | ~pl.col(columns).is_finite())).height
    return wrong == 0, {"rows": frame.height, "not_finite": wrong}


def conservation(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    """Relevance in = relevance out + what rules are known to have lost, for every explanation of the study."""
    frame = workspace.read("relevance_maps").filter(pl.col("start").is_not_null())
    ledger = workspace.read("relevance_ledger")
    share, at_operation, layer = unexplained(frame, ledger)
    lost = frame.select((pl.col("lost").abs() / pl.col("start").abs()).median()).item() if frame.height else 0.0
    return max(share, at_operation) <= CONSERVED, {
        "accounts": frame.height,
        "largest_share_unexplained": share,
        "operations": ledger.height,
        "largest_share_unexplained_at_an_operation": at_operation,
        "that_operation": layer,
        "median_share_lost_to_biases_and_stabilisers": float(lost or 0),
    }


def never_seen(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    maps = workspace.read("relevance_maps").filter(pl.col("fold") != "ensemble").select("scan", "fold").unique()
    learnt = workspace.read("training_scans").filter(pl.col("set") == "train").select("fold", "participant_id")
    people = maps.with_columns(participant_id=pl.col("scan").str.split("_").list.first())
    seen = people.join(learnt.unique(), on=["participant_id", "fold"])
    return seen.is_empty(), {"maps": maps.height, "by_a_model_that_saw_the_person": seen.height}
