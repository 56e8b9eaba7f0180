"""The relevance stage as jobs of a real Slurm (one node, this machine). Opt-in: `make test-slurm`."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from single_node import ask, missing, slurm

from relevance_assets.assets import execution
from relevance_assets.assets.runner import dagster_instance
from relevance_assets.assets.stages import forget
from relevance_assets.assets.workspace import Workspace
from relevance_assets.component import study_definitions
from relevance_assets.configuration import load_studies
from relevance_assets.home import Home
from relevance_assets.tables.store import differences

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from small_study import run, settle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("RELEVANCE_TEST_SLURM"), reason="opt-in: make test-slurm"),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())} (Debian: slurmctld, slurmd)"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, execution.NEEDED)), reason="needs pip install 'relevance-assets[dask]'"
    ),
]

STAGE = "relevance_maps"
EXECUTION = """\
executor: dask
cluster:
  slurm:
    queue: test
    cores: 1
    memory: 2GB
    walltime: '00:10:00'
    interface: lo
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The small study, made in this machine's processes."""
    from relevance_assets.cohort.synthetic import synthesise

    folder = tmp_path_factory.mktemp("in-process")
    synthesise(folder / "bids", scans=30, voxel_size_mm=9.0, seed=3)
    home = settle(folder / "home", folder / "bids")
    run("run", "disability", home=home.root)
    return home


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Slurm's own files; it is up."""
    with slurm(tmp_path_factory.mktemp("node") / "slurm") as configuration:
        yield configuration.parent


@pytest.fixture
def home(tmp_path: Path, finished: Home, folder: Path) -> Home:
    """A copy of the study without its maps, to be made by Slurm."""
    shutil.copytree(finished.root, tmp_path / "home")
    home = Home(tmp_path / "home")
    (home.root / "execution.yaml").write_text(EXECUTION)
    workspace = workspace_of(home)
    forget(workspace, STAGE, workspace.recorded(STAGE), ("relevance_maps", "relevance_ledger"))
    for path in home.derivatives("disability").rglob("*_relmap.nii.gz"):
        path.unlink()
    assert workspace.read(STAGE).is_empty()
    return home


def workspace_of(home: Home) -> Workspace:
    return Workspace(load_studies(home)["disability"], home)


def relevance(home: Home, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult | dg.JobExecutionResult:
    """One run for all scans: one chunk."""
    workspace = workspace_of(home)
    scans = instance.get_dynamic_partitions("disability_scans")
    tags = {"dagster/asset_partition_range_start": scans[0], "dagster/asset_partition_range_end": scans[-1]}
    definitions = study_definitions(workspace.study, home)
    key = dg.AssetKey(["disability", STAGE])
    return execution.launch(home, definitions, instance, key, tags=tags, run_config={})


def jobs(folder: Path) -> list[dict[str, str]]:
    """Slurm's own record of the jobs that have ended."""
    path = folder / "finished.txt"
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in path.read_text().splitlines()] if path.exists() else []


def test_maps_made_by_slurm_are_those_of_this_machine(home: Home, finished: Home, folder: Path) -> None:
    before = len(jobs(folder))
    with dagster_instance(home) as instance:
        started = time.monotonic()
        result = relevance(home, instance)
        seconds = time.monotonic() - started
        assert result.success
        assert instance.get_materialized_partitions(dg.AssetKey(["disability", STAGE])) == set(
            instance.get_dynamic_partitions("disability_scans")
        )
    assert differences(finished.tables, home.tables) == []
    assert ask("squeue", "--noheader") == ""
    (job,) = jobs(folder)[before:]
    print(f"\none chunk of relevance through Slurm: {seconds:.1f} s; {job['StartTime']} to {job['EndTime']}")
    assert job["Name"] == "relevance"
    assert job["NodeList"] == ask("sinfo", "--noheader", "--format=%N")
    assert f"JobId={job['JobId']} JobName=relevance" in ask("scontrol", "show", "job", job["JobId"])
    (log,) = (home.dagster / "jobs").glob(f"relevance-{job['JobId']}.err")
    assert "tls://" in log.read_text()


def test_a_cancelled_job_is_a_failed_run_and_the_next_goes_on(home: Home, finished: Home, folder: Path) -> None:
    before = len(jobs(folder))

    def cancel() -> None:
        while len(workspace_of(home).recorded(STAGE)) < 2:
            time.sleep(0.2)
        ask("scancel", "--state=RUNNING", "--name", "relevance")
        cancelled.append(time.monotonic())

    cancelled: list[float] = []
    thread = threading.Thread(target=cancel)
    with dagster_instance(home) as instance:
        thread.start()
        result = relevance(home, instance)
        thread.join()
        print(f"\nfailed {time.monotonic() - cancelled[0]:.1f} s after its job was cancelled")
        failure = next(event for event in result.all_events if event.is_job_failure)
        assert "workers died" in failure.job_failure_data.error.message
        made = workspace_of(home).recorded(STAGE)
        assert 2 <= len(made) < len(instance.get_dynamic_partitions("disability_scans"))
        assert relevance(home, instance).success
    assert differences(finished.tables, home.tables) == []
    assert len(jobs(folder)[before:]) == 2


def test_a_queue_that_does_not_exist_ends_in_a_failed_run(home: Home) -> None:
    text = EXECUTION.replace("queue: test", "queue: nowhere") + "wait_hours: 0.002\n"
    (home.root / "execution.yaml").write_text(text)
    with dagster_instance(home) as instance:
        result = relevance(home, instance)
        failure = next(event for event in result.all_events if event.is_job_failure)
        assert "waiting without any running workers" in failure.job_failure_data.error.message
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
