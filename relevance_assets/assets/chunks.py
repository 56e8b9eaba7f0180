"""Stages as Dagster assets: one helper that every asset runs through.

A run takes a chunk of partitions, not one: overhead in Dagster is per run, not per scan. Scans that are current are
skipped, errors stay with their scan: the good ones are logged as materialised, then one `Failure` names the bad ones.

Belongs here: what Dagster must know of a stage. Does not belong here: work, settings, checks.
"""

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import dagster as dg

from relevance_assets.assets.alive import hold
from relevance_assets.assets.cohort import SETTLED_BY
from relevance_assets.assets.lineage import column_lineage, column_schema
from relevance_assets.assets.metadata import Picture
from relevance_assets.assets.stages import ALL, Outcome, Stage, below, forget, retire, run_items
from relevance_assets.assets.workspace import Workspace

# Chunked backfills are this project's way to scale; that they are marked beta is known.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)

__all__ = [
    "CHUNK",
    "QUIET_TAG",
    "asset_key",
    "contiguous",
    "group_of",
    "others",
    "partitions_of",
    "range_tags",
    "register_scans",
    "stage_asset",
]

CHUNK = 128
SPAN = 64  # current scans in a row: to pass over more of them costs more than another run does
QUIET_TAG = "relevance/quiet_seconds"
DRAW_AGAIN = "Divide everybody anew, those who came later too, and so train every model again."


def asset_key(workspace: Workspace, stage: str) -> dg.AssetKey:
    return dg.AssetKey([workspace.study.name, stage])


def group_of(workspace: Workspace, stage: Stage) -> str:
    """Asset group in the UI: a study's chain up to its maps, and its statistics; both fit on a page."""
    return workspace.study.name + ("_statistics" if stage.group == "statistics" else "")


def partitions_of(workspace: Workspace, stage: Stage) -> dg.PartitionsDefinition | None:
    """Scans are dynamic, one definition per study; folds are a small static dimension."""
    if stage.partition == "scan":
        return dg.DynamicPartitionsDefinition(name=f"{workspace.study.name}_scans")
    if stage.partition == "fold":
        return dg.StaticPartitionsDefinition([str(fold) for fold in range(workspace.study.split.folds)])
    return None


def range_tags(chunk: Sequence[str]) -> dict[str, str]:
    """Tags of a run over a stretch of partitions."""
    return {"dagster/asset_partition_range_start": chunk[0], "dagster/asset_partition_range_end": chunk[-1]}


def others(stage: Stage, keys: Iterable[str]) -> set[str]:
    """Of these partitions those that are not chosen by a stage that `selects`: in its runs nothing is done for them."""
    return set(keys) - set(stage.items()) if stage.selects else set()


def contiguous(keys: Sequence[str], todo: set[str], allowed: set[str]) -> list[list[str]]:
    """Chunks of at most CHUNK keys to do, each a stretch of `keys`.

    It may span current ones, at most SPAN in a row, and never bad ones.
    """
    chunks: list[list[str]] = []
    stretch: list[str] = []
    due = passed = 0  # keys to do in the stretch, and current ones since the last of them

    def close() -> None:
        nonlocal due, passed
        if due:
            chunks.append(stretch[: len(stretch) - passed])
        stretch.clear()
        due = passed = 0

    for key in keys:
        if key not in allowed or due == CHUNK or (passed == SPAN and key not in todo):
            close()
        if key in todo:
            stretch.append(key)
            due, passed = due + 1, 0
        elif stretch and key in allowed:
            stretch.append(key)
            passed += 1
    close()
    return chunks


def _dep(workspace: Workspace, stage: Stage, needed: Stage) -> dg.AssetDep:
    # Same partitions: one to one. A whole cohort: everything. Dagster's default fits all but scans from folds.
    across = stage.partition and needed.partition and stage.partition != needed.partition
    mapping = dg.AllPartitionMapping() if across else None
    return dg.AssetDep(asset_key(workspace, needed.name), partition_mapping=mapping)


def stage_asset(workspace: Workspace, stage: Stage, stages: dict[str, Stage]) -> dg.AssetsDefinition:
    """The asset of a stage."""
    study = workspace.study
    main = stage.tables[0]
    deps: list[Any] = [_dep(workspace, stage, stages[name]) for name in stage.needs]
    deps += [dg.AssetKey([name]) for name in stage.external]
    lower = below(list(stages.values()), stage.name) if stage.resets else []

    schema = {"draw_again": dg.Field(bool, default_value=False, description=DRAW_AGAIN)} if stage.resets else None

    @dg.asset(
        name=stage.name,
        key_prefix=[study.name],
        deps=deps,
        partitions_def=partitions_of(workspace, stage),
        backfill_policy=dg.BackfillPolicy.multi_run(CHUNK) if stage.partition == "scan" else None,
        group_name=group_of(workspace, stage),
        kinds=set(stage.kinds),
        owners=study.owners,
        description=f"{stage.description}\n\nStudy {study.name}: {study.title}",
        code_version=stage.version,
        pool=stage.pool,
        config_schema=schema,
        tags={"study": study.name, "stage": stage.group},
        metadata={
            "dagster/column_schema": column_schema(main),
            "tables": ", ".join(stage.tables),
            "dagster/uri": f"{workspace.home.tables / main / study.name}",
        },
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        hold(workspace.home, context.run_id)
        items = list(context.partition_keys) if stage.partition else [ALL]
        idle = others(stage, items)
        items = [item for item in items if item not in idle]
        if stage.resets and context.op_execution_context.op_config["draw_again"]:
            forget(workspace, stage.name, set(items), stage.tables)
        quiet = context.run.tags.get(QUIET_TAG)
        token = SETTLED_BY.set(time.time() - float(quiet) if quiet else math.inf)
        try:
            outcomes = run_items(workspace, stage, items, run_id=context.run_id, lower=lower)
        finally:
            SETTLED_BY.reset(token)
        if stage.name == "participants":
            register_scans(workspace, context.instance)
        return report(context, workspace, stage, outcomes, idle)

    return asset


def register_scans(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    """One partition per usable scan, added in sorted order (a range is contiguous in the order of adding).

    Scans that are usable no longer lose their partition and their rows; their files are set aside.
    """
    record = workspace.record("participants", ALL)
    if not record or record["outcome"] != "ok":
        return  # a folder that is not mounted says nothing about its scans
    name = f"{workspace.study.name}_scans"
    known = set(instance.get_dynamic_partitions(name))
    usable = workspace.known_scans()["scan"].to_list()
    for scan in sorted(known - set(usable)):
        retire(workspace, scan)
        instance.delete_dynamic_partition(name, scan)
    new = [scan for scan in usable if scan not in known]
    if new:
        instance.add_dynamic_partitions(name, new)


def report(
    context: dg.AssetExecutionContext, workspace: Workspace, stage: Stage, outcomes: list[Outcome], idle: set[str]
) -> dg.MaterializeResult:
    """Tell Dagster what became of each item; raise where some failed, after the good ones are logged.

    Of the partitions in `idle`, which the range spans and the stage did not choose, it is told just that.
    """
    key = asset_key(workspace, stage.name)
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    good = [outcome for outcome in outcomes if outcome.outcome == "ok"]
    if failed:
        for outcome in good:
            if stage.partition:
                context.log_event(
                    dg.AssetMaterialization(key, partition=outcome.item, metadata=_metadata(workspace, stage, outcome))
                )
        what = "fold " if stage.partition == "fold" else ""
        lines = [f"{what}{outcome.item}: {outcome.reason}" for outcome in failed]
        raise dg.Failure(
            description=f"{stage.name}: {len(failed)} of {len(outcomes)} failed. "
            + "; ".join(lines[:5])
            + (f"; and {len(lines) - 5} more" if len(lines) > 5 else ""),
            metadata={"failed": dg.MetadataValue.md("\n".join(f"- {line}" for line in lines))},
            allow_retries=False,
        )
    with _read_once(context.instance):
        for item in idle:
            context.add_asset_metadata({"chosen": False}, partition_key=item)
        for outcome in good:
            metadata = _metadata(workspace, stage, outcome)
            if stage.partition:
                context.add_asset_metadata(metadata, partition_key=outcome.item)
            else:
                context.add_asset_metadata(metadata)
    return dg.MaterializeResult()


@contextmanager
def _read_once(instance: dg.DagsterInstance) -> Iterator[None]:
    """Dagster asks for partition names again for each one that metadata is added to: 30 ms where 10,000 are."""
    names = cache(instance.get_dynamic_partitions)
    sets = cache(lambda kind: frozenset(names(kind)))

    def known(partitions_def_name: str, partition_key: str) -> bool:
        return partition_key in sets(partitions_def_name)

    instance.get_dynamic_partitions = names  # type: ignore[method-assign]
    instance.has_dynamic_partition = known  # type: ignore[method-assign]
    try:
        yield
    finally:
        del instance.get_dynamic_partitions, instance.has_dynamic_partition


def _metadata(workspace: Workspace, stage: Stage, outcome: Outcome) -> dict[str, Any]:
    metadata: dict[str, Any] = {"unchanged": True} if outcome.skipped else {}
    for name, value in outcome.metadata.items():
        if value is None:
            continue
        if isinstance(value, Picture):
            value = dg.MetadataValue.md(str(value))
        elif isinstance(value, float):
            value = float(f"{value:.4g}") if math.isfinite(value) else str(value)
        metadata[name] = value
    rows = workspace.read(stage.tables[0], outcome.item).height
    metadata["dagster/row_count"] = rows
    lineage = column_lineage(workspace.study.name, stage.tables[0])
    if lineage:
        metadata["dagster/column_lineage"] = lineage
    files = stage.outputs(outcome.item)
    if files:
        metadata["files"] = dg.MetadataValue.path(str(files[0].parent))
    return metadata
