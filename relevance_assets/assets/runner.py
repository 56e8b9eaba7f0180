"""Runs a study through Dagster from the command line: only what is stale, in chunks, one asset per run.

Belongs here: planning, launching, tidying after a killed run. Does not belong here: what is printed (`cli.py`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.checks import checks_of
from relevance_assets.assets.chunks import asset_key, contiguous, others, partitions_of, range_tags, register_scans
from relevance_assets.assets.execution import launch
from relevance_assets.assets.owners import ASSET_OF
from relevance_assets.assets.stages import ALL, Stage, forget, remove_orphans, state_of
from relevance_assets.assets.warehouse import database_asset, database_is_current, synthetic_asset
from relevance_assets.assets.workspace import Snapshot, Workspace
from relevance_assets.component import database_inputs, study_definitions, synthetic_settings
from relevance_assets.configuration import load_studies
from relevance_assets.home import Home

__all__ = ["Failed", "Report", "dagster_instance", "run_study", "run_synthetic"]

OURS = {"relevance/launched_by": "command line"}
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
INSTANCE = """\
telemetry: {enabled: false}
nux: {enabled: false}
concurrency:
  runs: {max_concurrent_runs: 2}
  pools: {default_limit: 1, granularity: op}
run_monitoring: {enabled: true, poll_interval_seconds: 30, free_slots_after_run_end_seconds: 60}
"""


class Failed(RuntimeError):
    """Work on which the rest of the study depends could not be done."""


@dataclass
class Report:
    """What a call of `run_study` did."""

    made: dict[str, int] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    runs: int = 0

    @property
    def idle(self) -> bool:
        return self.runs == 0


@contextmanager
def dagster_instance(home: Home, *, alone: bool = False) -> Iterator[dg.DagsterInstance]:
    """This home's Dagster instance (sqlite, no telemetry), made when missing.

    With `alone`, no other process may run this home from the command line at the same time (Failed says so), and
    runs that were killed are closed.
    """
    settings = home.dagster / "dagster.yaml"
    if not settings.exists():
        home.dagster.mkdir(parents=True, exist_ok=True)
        settings.write_text(INSTANCE)
    os.environ["DAGSTER_HOME"] = str(home.dagster)
    os.environ["RELEVANCE_HOME"] = str(home.root)
    with (
        _lock(home.dagster / "command-line.lock", alone),
        dg.DagsterInstance.from_config(str(home.dagster)) as instance,
    ):
        if alone:
            _close_killed_runs(instance)
        yield instance


@contextmanager
def _lock(path: Path, wanted: bool) -> Iterator[None]:
    """Hold the file's lock; the system gives it back when the process ends, however it ends."""
    if not wanted:
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Failed(f"{path.parent.parent} is being run by another process; wait for it, or stop it") from error
        yield


def _close_killed_runs(instance: dg.DagsterInstance) -> None:
    """Report runs of ours that never ended as failed, and give their places in the pools back.

    Who holds the lock knows that their process is gone.
    """
    left = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=left, tags=OURS)):
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        instance.report_run_failed(run, "its process was killed; `relevance-assets run` goes on where it stopped")


# ------------------------------------------------------------------------------------------------------ launching
Result = dg.ExecuteInProcessResult | dg.JobExecutionResult


def _launch(
    definitions: dg.Definitions, instance: dg.DagsterInstance, key: dg.AssetKey, tags: dict[str, str]
) -> Result:
    home = Home.from_environment()
    return launch(home, definitions, instance, key, tags=OURS | tags, run_config=QUIET)


def run_synthetic(home: Home, instance: dg.DagsterInstance) -> bool:
    """Make the synthetic cohort, or the rest of it. True where there was something to do."""
    from relevance_assets.cohort.synthetic import is_complete

    settings = synthetic_settings(home)
    if is_complete(home.bids, **settings.model_dump()):
        return False
    definitions = dg.Definitions(assets=[synthetic_asset(settings, home)])
    _raise_unless(_launch(definitions, instance, dg.AssetKey(["synthetic_cohort"]), {}), "synthetic_cohort")
    return True


def run_study(workspace: Workspace, instance: dg.DagsterInstance, *, retrain: bool = False) -> Report:
    """Bring a study up to date, then the database.

    Parameters
    ----------
    retrain
        Divide everybody anew, those who came after the split too, and train every model again.

    Raises
    ------
    Failed
        Where a stage of the whole cohort fails, a blocking check does, or no scan is left.
    """
    definitions = study_definitions(workspace.study, workspace.home)
    report = Report()
    stages = study_stages(workspace)
    by_name = {stage.name: stage for stage in stages}
    for asset, items in workspace.recorded_by_asset().items():
        if asset not in by_name:  # a stage that today's settings leave out
            forget(workspace, asset, items, [table for table, owner in ASSET_OF.items() if owner == asset])
    if retrain:
        forget(workspace, "splits", {ALL}, ["splits"])
    checks = checks_of(workspace, stages)
    for stage in stages:
        remove_orphans(workspace, stage)
        if stage.partition is None:
            _run_whole(workspace, stage, definitions, instance, report)
        else:
            _run_partitions(workspace, stage, definitions, instance, report)
        if stage.name == "participants":
            register_scans(workspace, instance)
        # Dagster runs these checks only where the whole chunk went well, and not at all when nothing was to do.
        for owner, name, _, check in checks:
            if owner == stage.name:
                _hold(stage.name, name, *check())
    left_out = workspace.read("scans").filter(pl.col("status") == "failed")
    if left_out.height:
        report.failed["participants"] = left_out["reason"].to_list()
    _publish(workspace.home, instance, report)
    return report


def _run_whole(
    workspace: Workspace,
    stage: Stage,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    report: Report,
) -> None:
    key = asset_key(workspace, stage.name)
    if state_of(workspace, stage, ALL) == "current" and instance.get_latest_materialization_event(key):
        return
    result = _launch(definitions, instance, key, {})
    report.runs += 1
    record = workspace.record(stage.name, ALL)
    if record and record["outcome"] == "failed":
        raise Failed(f"{stage.name}: {record['reason']}")
    _raise_unless(result, stage.name, workspace)
    report.made[stage.name] = 1


def _run_partitions(
    workspace: Workspace,
    stage: Stage,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    report: Report,
) -> None:
    key = asset_key(workspace, stage.name)
    partitions = partitions_of(workspace, stage)
    assert partitions is not None
    snapshot = Snapshot(workspace.study, workspace.home)
    seen = next(one for one in study_stages(snapshot) if one.name == stage.name)
    states = {item: state_of(snapshot, seen, item) for item in seen.items()}
    # A run that was killed left results of which Dagster knows nothing: name them again, they are skipped at no cost.
    known = instance.get_materialized_partitions(key)
    todo = {item for item, state in states.items() if state == "stale" or (state == "current" and item not in known)}
    allowed = {item for item, state in states.items() if state in ("stale", "current")}
    keys = partitions.get_partition_keys(dynamic_partitions_store=instance)
    for chunk in contiguous(keys, todo, allowed | others(seen, keys)):
        result = _launch(definitions, instance, key, range_tags(chunk))
        report.runs += 1
        _raise_unless(result, stage.name, workspace, items=chunk)
        report.made[stage.name] = report.made.get(stage.name, 0) + len(set(chunk) & todo)
    records = workspace.read("runs")
    failed = records.filter((records["asset"] == stage.name) & (records["outcome"] == "failed"))
    if failed.height:
        report.failed[stage.name] = [f"{item}: {why}" for item, why in failed.select("item", "reason").iter_rows()]
    if stage.partition == "fold" and failed.height:
        raise Failed(f"{stage.name}: {report.failed[stage.name][0]}")
    if states and failed.height == len(states):
        raise Failed(f"{stage.name}: every scan failed; {report.failed[stage.name][0]}")


def _publish(home: Home, instance: dg.DagsterInstance, report: Report) -> None:
    key = dg.AssetKey(["results_database"])
    if database_is_current(home) and instance.get_latest_materialization_event(key):
        return
    deps = database_inputs(home, load_studies(home))
    definitions = dg.Definitions(assets=[database_asset(home, deps)])
    _raise_unless(_launch(definitions, instance, key, {}), "results_database")
    report.runs += 1
    report.made["results_database"] = 1


def _hold(stage: str, check: str, passed: bool, found: Mapping[str, Any]) -> None:
    if not passed:
        values = ", ".join(f"{key} {value}" for key, value in found.items())
        raise Failed(f"{stage}: check {check} failed ({values}); nothing is built on it")


def _raise_unless(
    result: Result,
    name: str,
    workspace: Workspace | None = None,
    items: list[str] | None = None,
) -> None:
    """Raise Failed with one line where the run failed as a whole; scans that failed alone are no reason to stop."""
    if result.success:
        return
    for check in result.get_asset_check_evaluations():
        _hold(name, check.check_name, check.passed, {key: value.value for key, value in check.metadata.items()})
    if workspace and items is not None:
        records = [workspace.record(name, item) for item in items]
        if any(record and (record["outcome"], record["run_id"]) == ("failed", result.run_id) for record in records):
            return
    failures = [event for event in result.all_events if event.is_step_failure]
    for event in failures:
        error = event.step_failure_data.error
        user = event.step_failure_data.user_failure_data
        text = (user and user.description) or (error and (error.cause or error).message) or "unknown"
        raise Failed(f"{name}: {' '.join(str(text).split())}")
    for event in result.all_events:
        if event.is_job_failure and event.job_failure_data.error:  # the run itself broke: a job was killed, say
            raise Failed(f"{name}: {' '.join(event.job_failure_data.error.message.split())}")
    raise Failed(f"{name}: the run failed; see {Path(os.environ.get('DAGSTER_HOME', ''))}")
