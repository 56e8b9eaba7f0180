"""Items of a chunk in several processes: the same rows, and a worker that dies takes one scan with it."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from relevance_assets.assets import processes
from relevance_assets.assets.stages import Done, Stage, each, run_items, workers
from relevance_assets.assets.workspace import Workspace

SCANS = [f"sub-{number:02d}" for number in range(16)]


def make(scan: str) -> Done:
    if scan == "sub-03":
        raise ValueError("not a NIfTI file")
    if scan == "sub-11":
        os.kill(os.getpid(), signal.SIGKILL)  # as a system that runs out of memory does
    frame = pl.DataFrame({"scan": [scan], "set": ["train"], "fold": [os.getpid()], "participant_id": [scan]})
    return Done({"splits": frame}, f"result of {scan}")


STAGE = Stage(
    name="splits",
    version="1",
    description="",
    tables=("splits",),
    items=lambda: SCANS,
    inputs=lambda scan: scan,
    work=each(make),
    parallel=True,
)


def opened(root: str) -> None:
    from relevance_assets.configuration import load_studies
    from relevance_assets.home import Home

    home = Home(Path(root))
    processes._OPENED["workspace"] = Workspace(load_studies(home)["disability"], home)
    processes._OPENED["stages"] = {STAGE.name: STAGE}


def pool(workspace: Workspace, count: int) -> ProcessPoolExecutor:
    root = str(workspace.home.root)
    return ProcessPoolExecutor(count, mp_context=processes.CONTEXT, initializer=opened, initargs=(root,))


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage above in the place of the study's."""
    monkeypatch.setattr(processes, "_pool", pool)
    monkeypatch.setenv("RELEVANCE_WORKERS", "2")


def run(root: str) -> None:
    """What the process of a run does: it makes a chunk, and ends."""
    opened(root)
    processes._pool = pool
    run_items(processes._OPENED["workspace"], STAGE, [f"sub-2{number:02d}" for number in range(16)])
    time.sleep(1)  # checks and reporting follow, while the workers wait


def test_a_run_ends_with_its_workers(pools: None, workspace: Workspace) -> None:
    """Each run of the service has a process of its own; one that waited for its workers would stay for ever."""
    process = processes.CONTEXT.Process(target=run, args=(str(workspace.home.root),))
    process.start()
    process.join(60)
    ended = not process.is_alive()
    process.kill()
    assert ended
    makers = set(workspace.read("splits")["fold"])
    assert makers - {process.pid}
    assert not any(Path(f"/proc/{maker}").exists() for maker in makers)


def test_a_process_that_dies_takes_one_scan_with_it(pools: None, workspace: Workspace) -> None:
    outcomes = run_items(workspace, STAGE, SCANS)
    failed = {outcome.item: outcome.reason for outcome in outcomes if outcome.outcome == "failed"}
    assert failed.pop("sub-03") == "not a NIfTI file"
    assert "its process was killed" in (failed.pop("sub-11") or "")
    assert not failed
    assert [outcome.item for outcome in outcomes] == SCANS
    rows = workspace.read("splits")
    assert set(rows["scan"]) == set(SCANS) - {"sub-03", "sub-11"}
    assert os.getpid() not in rows["fold"], "made elsewhere"
    record = workspace.record("splits", "sub-11")
    assert record is not None
    assert (record["attempts"], record["fingerprint"]) == (1, None), "worth another try"


def test_few_items_are_not_worth_a_process(pools: None, workspace: Workspace) -> None:
    run_items(workspace, STAGE, SCANS[:3])
    assert set(workspace.read("splits")["fold"]) == {os.getpid()}


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEVANCE_WORKERS", "5")
    assert workers() == 5
    monkeypatch.setenv("RELEVANCE_WORKERS", "0")
    assert workers() == 1
    monkeypatch.delenv("RELEVANCE_WORKERS")
    assert 1 <= workers() <= (os.cpu_count() or 1)


def test_a_worker_that_died_while_idle_costs_nothing(pools: None, workspace: Workspace) -> None:
    """The workers are kept from one chunk to the next; the system may have ended one of them meanwhile."""
    sound = [f"sub-1{number:02d}" for number in range(16)]
    stage = replace(STAGE, items=lambda: sound)
    run_items(workspace, stage, sound)
    (pool,) = processes._KEPT.values()
    first = list(pool._processes)
    for process in first:
        os.kill(process, signal.SIGKILL)
    for scan in sound:
        workspace.delete("runs", f"splits__{scan}")
    time.sleep(0.5)  # until the pool knows
    assert {outcome.outcome for outcome in run_items(workspace, stage, sound)} == {"ok"}
    makers = set(workspace.read("splits")["fold"])
    assert len(makers) <= 2, "side by side, not one new process for each"
    assert not makers & set(first)
