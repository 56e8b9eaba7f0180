"""Asset checks: what must hold before anything is built on an asset.

Blocking where a wrong input would spoil what follows. A check looks at all rows of the study, not at the chunk that
was just made: a mixture of old and new rows must hold together too. It looks at them part by part and keeps what it
found, so that a long-lived process looks again only at the parts that changed, and never holds a large table.

Belongs here: stating and reporting. Does not belong here: errors of single scans, which stop that scan alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import dagster as dg
import numpy as np
import polars as pl

from relevance_assets.assets.chunks import asset_key
from relevance_assets.assets.relevance import CONSERVED, accounts_of, unexplained, worst_layers
from relevance_assets.assets.stages import ALL, Stage
from relevance_assets.assets.workspace import Workspace
from relevance_assets.cohort.watch import YOUNG_NS
from relevance_assets.tables.partitions import Batch
from relevance_assets.tables.schema import TABLES

__all__ = ["checks_of", "study_checks"]

NAMED = 20  # scans in a check's metadata

Check = Callable[[], tuple[bool, dict[str, Any]]]


def checks_of(workspace: Workspace, stages: list[Stage]) -> list[tuple[str, str, str, Check]]:
    """Every check of a study: stage, name, what it says, and the check itself."""
    keys: list[tuple[str, str, str, Check]] = [
        (
            stage.name,
            "primary_keys",
            "Every row of the tables has its own key, and no key is null.",
            partial(primary_keys, workspace, stage.tables, stage.partition),
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
            "Every prepared volume has the shape and voxel size of the others; of slices only the shape matters.",
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
            partial(never_seen, workspace, "relevance_maps", ["train"]),
        ),
        (
            "segmentations",
            "never_seen",
            "No mask was made by a network that was trained or chosen on its person.",
            partial(never_seen, workspace, "segmentations", ["train", "validation"]),
        ),
        (
            "relevance_maps",
            "finite_maps",
            "Sums of every map are finite.",
            partial(finite, workspace, "relevance_maps", ["total"]),
        ),
    ]
    made = {stage.name for stage in stages}
    # Only a network needs all scans on one grid.
    apart = set() if workspace.study.model else {"one_grid"}
    return keys + [check for check in science if check[0] in made and check[1] not in apart]


def study_checks(workspace: Workspace, stages: list[Stage]) -> list[dg.AssetChecksDefinition]:
    """The checks as Dagster sees them."""
    by_name = {stage.name: stage for stage in stages}
    stopping = [_check(workspace, by_name[asset], *rest) for asset, *rest in checks_of(workspace, stages)]  # type: ignore[arg-type]
    said = "No scan is beyond the limits of `quality.warn`; it stops nothing."
    warning = partial(within_limits, workspace)
    prepared = [by_name[name] for name in ("prepared_volumes",) if name in by_name]
    return [*stopping, *(_check(workspace, one, "quality", said, warning, blocking=False) for one in prepared)]


def _check(
    workspace: Workspace, stage: Stage, name: str, description: str, check: Check, *, blocking: bool = True
) -> dg.AssetChecksDefinition:
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN

    @dg.asset_check(asset=asset_key(workspace, stage.name), name=name, description=description, blocking=blocking)
    def asset_check() -> dg.AssetCheckResult:
        passed, metadata = check()
        return dg.AssetCheckResult(passed=passed, metadata=metadata, severity=severity)

    return asset_check


# ------------------------------------------------------------------------------------------------- part by part
Found = TypeVar("Found")
_FOUND: dict[tuple[str, str, str, str], tuple[int, dict[str, Any]]] = {}


def over(workspace: Workspace, table: str, name: str, look: Callable[[Batch], Found]) -> list[Found]:
    """What `look` finds in each part of a table; parts that this process has looked at are not read again."""
    place = (str(workspace.home.root), workspace.study.name, table, name)
    changed = workspace.store.changed(table, workspace.study.name)  # before the rows are read
    known, found = _FOUND.get(place, (-1, {}))
    if known != changed:
        with workspace.gathered(table) as gathered:
            found = {part: found[part] if part in found else look(load()) for part, load in gathered.parts()}
            settled = gathered.looked_ns - changed > YOUNG_NS  # a snapshot may have looked long ago
        _FOUND[place] = (changed if settled else -1, found)
    return list(found.values())


def stacked(workspace: Workspace, table: str, name: str, look: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """The small frames that `look` makes of each part, as one."""
    found = over(workspace, table, name, lambda batch: look(batch.frame))
    return pl.concat(found) if found else look(TABLES[table].empty())


# ----------------------------------------------------------------------------------------------------- what holds
def primary_keys(workspace: Workspace, tables: tuple[str, ...], partition: str | None) -> tuple[bool, dict[str, Any]]:
    """A partition's name is in the keys of its rows, or is 'all': so no key can be in two partitions."""
    counts: dict[str, Any] = {}
    for table in tables:
        key = list(TABLES[table].key)

        def look(batch: Batch, key: list[str] = key) -> tuple[int, int, int, int]:
            frame = batch.frame
            names = [file.removesuffix(".parquet") for file in batch.files]
            of_file = pl.Series(np.repeat(np.array(names, dtype=object), batch.rows), dtype=pl.String)
            said = pl.lit(ALL) if partition is None else pl.col(partition).cast(pl.String)
            misplaced = frame.filter(said.ne_missing(of_file)).height
            empty = frame.select(pl.any_horizontal(pl.col(key).is_null()).sum()).item() if frame.height else 0
            return frame.height, frame.height - frame.select(key).unique().height, empty, misplaced

        found = over(workspace, table, "primary_keys", look)
        names = ("rows", "repeated_keys", "null_keys", "in_the_wrong_partition")
        counts |= {f"{table}_{name}": sum(one[i] for one in found) for i, name in enumerate(names)}
    return not any(count for name, count in counts.items() if not name.endswith("_rows")), counts


def no_leakage(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    from relevance_assets.cohort.splits import check_no_leakage

    splits = workspace.read("splits")
    asked = pl.col("leaking").fill_null(value=False)  # single slices divided as published, which says so
    offenders = check_no_leakage(splits.filter((pl.col("set") != "buffer") & ~asked))  # those are in no set
    people = splits.filter(asked)["participant_id"].n_unique()
    return not offenders, {"people_on_two_sides": len(offenders), "scans": splits.height, "leaking_by_wish": people}


def one_grid(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    columns = [f"shape_{axis}" for axis in "xyz"] + [f"voxel_{axis}_mm" for axis in "xyz"] + ["orientation"]

    def look(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col(pl.Float64).round(3)).group_by(columns).len()

    found = stacked(workspace, "volumes", "one_grid", look)
    # Slices are resized to one shape; their voxel sizes say only what they were resized from.
    needed = columns[:3] if workspace.study.slices else columns
    grids = found.select(needed).unique()
    first = "" if grids.is_empty() else str(grids.row(0))
    shape = workspace.study.shape
    wanted = shape is None or grids.is_empty() or tuple(grids.row(0)[:3]) == shape
    return grids.height <= 1 and wanted, {"grids": grids.height, "volumes": int(found["len"].sum()), "grid": first}


def finite_volumes(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    passed, counts = finite(workspace, "volumes", ["minimum", "maximum", "mean", "standard_deviation"])
    found = over(workspace, "volumes", "brain", lambda batch: batch.frame.filter(pl.col("brain_voxels") <= 0).height)
    return passed and not sum(found), counts | {"without_brain": sum(found)}


def within_limits(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    """Which scans a person should look at."""
    from relevance_assets.imaging.limits import beyond

    limits = workspace.study.quality.warn

    def look(batch: Batch) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for row in batch.frame.iter_rows(named=True):
            if words := beyond(row, limits):
                found.setdefault(row["scan"], []).extend(words)
        return found

    parts = over(workspace, "volumes", f"quality {limits}", look)
    doubtful = {scan: "; ".join(dict.fromkeys(words)) for part in parts for scan, words in sorted(part.items())}
    named = "\n".join(f"- {scan}: {words}" for scan, words in list(doubtful.items())[:NAMED])
    more = f"\n- and {len(doubtful) - NAMED} more: table volumes" if len(doubtful) > NAMED else ""
    return not doubtful, {"scans": len(doubtful), "beyond": dg.MetadataValue.md(named + more)}


def finite(workspace: Workspace, table: str, columns: list[str]) -> tuple[bool, dict[str, Any]]:
    wrong = pl.any_horizontal(pl.col(columns).is_null() | ~pl.col(columns).is_finite())
    found = over(
        workspace, table, f"finite {columns}", lambda batch: (batch.frame.height, batch.frame.filter(wrong).height)
    )
    rows, bad = (sum(one[i] for one in found) for i in (0, 1))
    return bad == 0, {"rows": rows, "not_finite": bad}


def conservation(workspace: Workspace) -> tuple[bool, dict[str, Any]]:
    """Relevance in = relevance out + what rules are known to have lost, for every explanation of the study."""
    accounts = stacked(workspace, "relevance_maps", "accounts", accounts_of)
    layers = stacked(workspace, "relevance_ledger", "layers", worst_layers)
    share, at_operation, layer = unexplained(accounts, layers)
    lost = accounts.select((pl.col("lost").abs() / pl.col("start").abs()).median()).item() if accounts.height else 0.0
    return max(share, at_operation) <= CONSERVED, {
        "accounts": accounts.height,
        "largest_share_unexplained": share,
        "operations": int(layers["operations"].sum()),
        "largest_share_unexplained_at_an_operation": at_operation,
        "that_operation": layer,
        "median_share_lost_to_biases_and_stabilisers": float(lost or 0),
    }


def never_seen(workspace: Workspace, table: str, roles: list[str]) -> tuple[bool, dict[str, Any]]:
    made = stacked(workspace, table, "models", lambda frame: frame.select("scan", "fold").unique())
    known = workspace.read("training_scans").filter(pl.col("set").is_in(roles)).select("fold", "participant_id")
    anybody = known.select(pl.lit("ensemble").alias("fold"), "participant_id")  # every fold's model has a part in it
    people = made.with_columns(participant_id=pl.col("scan").str.split("_").list.first())
    seen = people.join(pl.concat([known, anybody]).unique(), on=["participant_id", "fold"])
    return seen.is_empty(), {table: made.height, "by_a_model_that_saw_the_person": seen.height}
