"""Runs whose process was killed are closed, and only those; what they left is asked for again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from service import Service

from relevance_assets.assets.alive import GRACE_S, LOST, close_lost_runs, hold
from relevance_assets.assets.automation import REQUEST_TAG, STUDY_TAG, look_for_lost_work
from relevance_assets.assets.planning import BACKOFF_S
from relevance_assets.assets.runner import OURS, dagster_instance
from relevance_assets.assets.warehouse import database_asset
from relevance_assets.home import Home

HOLDER = """
import sys, time
from pathlib import Path
from relevance_assets.assets.alive import hold
from relevance_assets.home import Home
hold(Home(Path(sys.argv[1])), sys.argv[2])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Home, dg.DagsterInstance, dg.DagsterRun]]:
    """A run that counts as started, in the middle of its only step."""

    @dg.op
    def work() -> None: ...

    @dg.job
    def one() -> None:
        work()

    home = Home(tmp_path / "home")
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(one, tags={STUDY_TAG: "disability"})
        instance.handle_new_event(event(run, "PIPELINE_START"))
        instance.handle_new_event(event(run, "STEP_START", "work"))
        yield home, instance, run


def event(run: dg.DagsterRun, kind: str, step: str | None = None) -> dg.EventLogEntry:
    made = dg.DagsterEvent(event_type_value=kind, job_name=run.job_name, step_key=step)
    return dg.EventLogEntry(
        error_info=None,
        level=20,
        user_message="",
        run_id=run.run_id,
        timestamp=time.time(),
        step_key=step,
        job_name=run.job_name,
        dagster_event=made,
    )


def status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status.value


def test_a_run_whose_process_lives_is_left_alone_and_closed_when_it_is_killed(
    started: tuple[Home, dg.DagsterInstance, dg.DagsterRun],
) -> None:
    home, instance, run = started
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.root), run.run_id], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert close_lost_runs(home, instance, time.time() + 10 * GRACE_S) == []
        assert status(instance, run) == "STARTED"
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert close_lost_runs(home, instance) == [run.run_id]
    assert status(instance, run) == "FAILURE"
    assert not home.run_lock(run.run_id).exists()
    messages = [entry.message for entry in instance.all_logs(run.run_id)]
    assert any(LOST in message for message in messages)


def test_a_run_that_has_not_begun_its_work_gets_a_while(
    started: tuple[Home, dg.DagsterInstance, dg.DagsterRun],
) -> None:
    home, instance, run = started
    assert close_lost_runs(home, instance) == []
    assert close_lost_runs(home, instance, time.time() + GRACE_S + 5) == [run.run_id]


@pytest.mark.parametrize("tags", [{}, OURS])
def test_a_run_that_was_created_and_never_handed_over_holds_nothing_up(
    tmp_path: Path, tags: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill between the two leaves it: the service closes it after a while, the command line closes its own."""

    @dg.job
    def one() -> None: ...

    home = Home(tmp_path)
    for name in ("DAGSTER_HOME", "RELEVANCE_HOME"):
        monkeypatch.setenv(name, "")  # what it was comes back
    with dagster_instance(home) as instance:
        run = instance.create_run_for_job(one, tags={STUDY_TAG: "disability"} | tags)
        assert close_lost_runs(home, instance) == []
    with dagster_instance(home, alone=True) as instance:
        assert status(instance, run) == ("FAILURE" if tags else "NOT_STARTED")
        assert close_lost_runs(home, instance, time.time() + GRACE_S + 5) == ([] if tags else [run.run_id])
        assert status(instance, run) == "FAILURE"


def test_this_process_holds_one_run_at_a_time(tmp_path: Path) -> None:
    """The command line makes hundreds of runs in one process."""
    home = Home(tmp_path)
    for number in range(2000):
        hold(home, f"run-{number}")
    assert len(list(Path("/proc/self/fd").iterdir())) < 500


def test_a_publishing_that_was_cut_off_is_asked_for_again(service: Service) -> None:
    assert isinstance(look_for_lost_work(service.home, service.instance), dg.SkipReason)

    def broken(tags: dict[str, str]) -> None:
        @dg.asset
        def results_database() -> None: ...

        job = dg.Definitions(assets=[results_database]).resolve_implicit_global_asset_job_def()
        keys = frozenset({dg.AssetKey("results_database")})
        service.instance.report_run_failed(service.instance.create_run_for_job(job, tags=tags, asset_selection=keys))

    broken({})
    request = look_for_lost_work(service.home, service.instance)
    assert isinstance(request, dg.RunRequest)
    assert request.asset_selection == [dg.AssetKey("results_database")]
    broken({REQUEST_TAG: request.tags[REQUEST_TAG]})
    assert isinstance(look_for_lost_work(service.home, service.instance), dg.SkipReason), "with patience"
    later = look_for_lost_work(service.home, service.instance, time.time() + BACKOFF_S[0] + 5)
    assert isinstance(later, dg.RunRequest)


def test_tables_that_changed_while_they_were_published_are_published_again(service: Service) -> None:
    """Dagster's condition takes the database for newer than they are: it was put in place after they changed."""
    home, store = service.home, service.workspace.store
    job = dg.Definitions(assets=[database_asset(home, [])]).resolve_implicit_global_asset_job_def()

    def publish() -> None:
        chosen = [dg.AssetKey("results_database")]
        assert job.execute_in_process(instance=service.instance, asset_selection=chosen).success

    store.write("runs", "disability", "participants__all", record())
    publish()
    assert isinstance(look_for_lost_work(home, service.instance, time.time() + 3600), dg.SkipReason)
    began = time.time() - 5
    os.utime(home.root / ".results.duckdb.inputs", (began, began))  # as if it had taken five seconds
    store.write("runs", "disability", "splits__all", record("splits"))
    assert isinstance(look_for_lost_work(home, service.instance), dg.SkipReason), "the condition may still see it"
    request = look_for_lost_work(home, service.instance, time.time() + 90)
    assert isinstance(request, dg.RunRequest)
    publish()
    assert isinstance(look_for_lost_work(home, service.instance, time.time() + 3600), dg.SkipReason)


def record(asset: str = "participants") -> pl.DataFrame:
    said = {"asset": asset, "item": "all", "run_id": "", "outcome": "ok", "seconds": 0.0, "peak_mb": 1.0}
    return pl.DataFrame([said | {"started": datetime(2026, 11, 28)}])
