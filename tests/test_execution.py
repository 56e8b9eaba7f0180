"""`execution.yaml`: what it may say, what it comes to, and a step on a real Dask cluster of this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from relevance_assets.assets import execution
from relevance_assets.assets.chunks import register_scans
from relevance_assets.assets.execution import cluster_arguments, executor_of, launch, read_execution
from relevance_assets.assets.runner import dagster_instance
from relevance_assets.assets.warehouse import database_asset
from relevance_assets.assets.workspace import Workspace
from relevance_assets.component import study_definitions
from relevance_assets.configuration import SettingsError, load_studies, remember
from relevance_assets.home import Home

ROOT = Path(__file__).resolve().parents[1]
with_dask = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, execution.NEEDED)), reason="needs pip install 'relevance-assets[dask]'"
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def write(home: Home, text: str) -> None:
    (home.root / "execution.yaml").write_text(text)


def test_without_a_file_all_is_as_before(home: Home) -> None:
    assert read_execution(home).executor == "in_process"
    assert executor_of(home) is dg.in_process_executor


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("executor: slurm", "execution.yaml: executor: Input should be 'in_process' or 'dask'"),
        ("executer: dask", "execution.yaml: executer: Extra inputs are not permitted"),
        ("executor: dask\ncluster: {slurms: {}}", "execution.yaml: cluster.slurms: Input should be 'local'"),
        ("executor: dask\ncluster: {slurm: {}, pbs: {}}", "execution.yaml: cluster: name one kind of cluster"),
        ("executor: dask\ncluster: slurm", "execution.yaml: cluster: Input should be a valid dictionary"),
        ("executor: dask\ncluster: {slurm: 3}", "execution.yaml: cluster.slurm: Input should be a valid dictionary"),
        ("executor: dask\nwait_hours: 0", "execution.yaml: wait_hours: Input should be greater than 0"),
        ("executor: [dask", "execution.yaml: not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_key(home: Home, text: str, complaint: str) -> None:
    write(home, text)
    with pytest.raises(SettingsError) as caught:
        executor_of(home)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_packages_are_named_with_the_remedy(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, "executor: dask")
    monkeypatch.setattr(execution, "NEEDED", ("a_package_that_nobody_has",))
    with pytest.raises(SettingsError, match=r"pip install 'relevance-assets\[dask\]'"):
        executor_of(home)


def test_dask_is_not_imported_to_load_definitions(home: Home) -> None:
    """Neither where there is no file, nor (every process of the service loads them) where there is one."""
    code = (
        "import sys, dagster_project.definitions as d; d.defs().resolve_asset_graph(); "
        "print(sorted({'dask', 'distributed', 'dagster_dask'} & set(sys.modules)))"
    )
    texts = ["executor: in_process"]
    if all(map(importlib.util.find_spec, execution.NEEDED)):
        texts.append("executor: dask\ncluster: {slurm: {cores: 1, memory: 1GB}}")
    for text in texts:
        write(home, text)
        environment = os.environ | {"RELEVANCE_HOME": str(home.root)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------- with the extra [dask]
def arguments(home: Home, text: str) -> dict[str, Any]:
    write(home, f"executor: dask\ncluster: {{{text}}}")
    return cluster_arguments(home, read_execution(home))


@with_dask
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("slurm: {qeue: long, cores: 2, memory: 4GB}", "cluster.slurm.qeue: there is no such argument"),
        ("slurm: {queue: long, memory: 4GB}", "cluster.slurm.cores: is missing"),
        ("pbs: {cores: 2}", "cluster.pbs.memory: is missing"),
        ("existing: {}", "cluster.existing.address: is missing"),
        ("local: {workers: 2}", "cluster.local.workers: there is no such argument"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_submitted(home: Home, text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        arguments(home, text)
    assert f"execution.yaml: {complaint}" in str(caught.value)


@with_dask
@pytest.mark.parametrize(("kind", "name"), list(execution.JOBQUEUE.items()))
def test_a_job_knows_its_home_and_runs_one_step_at_a_time(home: Home, kind: str, name: str) -> None:
    text = f"{kind}: {{cores: 8, memory: 16GB, security: null, job_script_prologue: [module load cuda]}}"
    import dask_jobqueue

    with getattr(dask_jobqueue, f"{name}Cluster")(**arguments(home, text) | {"n_workers": 0}) as cluster:
        lines = cluster.job_script().splitlines()
    assert lines.index(f"export RELEVANCE_HOME={home.root}") < lines.index("module load cuda")
    assert f"export DAGSTER_HOME={home.dagster}" in lines
    assert "export RELEVANCE_WORKERS=8" in lines
    worker = lines[-1]
    assert worker.startswith(sys.executable)
    assert worker.endswith("--nthreads 1 --memory-limit 0")
    assert "--no-nanny" in worker


@with_dask
def test_what_the_site_says_is_kept(home: Home) -> None:
    import dask

    site = {"jobqueue.slurm": {"cores": 4, "memory": "8GB", "job-script-prologue": ["module load python"]}}
    with dask.config.set(site):
        found = arguments(home, "slurm: {}")
    assert found["job_script_prologue"][-1] == "module load python"
    assert "cores" not in found


@with_dask
def test_ctrl_c_stays_ours(home: Home) -> None:
    """dask-jobqueue sets a handler when it is imported; Dagster ends runs by this signal."""
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT); from relevance_assets.assets import execution; "
        "execution._jobqueue(); assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few scans, the third of which cannot be read."""
    from relevance_assets.cohort.synthetic import synthesise

    folder = tmp_path_factory.mktemp("cohort") / "bids"
    synthesise(folder, scans=6, voxel_size_mm=9.0, seed=3)
    path = sorted(folder.glob("sub-*/**/*_T1map.nii.gz"))[2]
    path.write_bytes(path.read_bytes()[:200])
    return folder


def one_range(home: Home, cohort: Path) -> dict[str, Any]:
    """Launch two assets of a study, the second for a range with a bad scan; what Dagster knows of them then."""
    remember(home, "disability", {"cohort.bids": str(cohort)})
    workspace = Workspace(load_studies(home)["disability"], home)
    definitions = study_definitions(workspace.study, home)
    with dagster_instance(home) as instance:
        participants, raw_scans = (dg.AssetKey(["disability", name]) for name in ("participants", "raw_scans"))
        first = launch(home, definitions, instance, participants, tags={}, run_config={})
        assert first.success
        register_scans(workspace, instance)
        scans = instance.get_dynamic_partitions("disability_scans")
        tags = {"dagster/asset_partition_range_start": scans[0], "dagster/asset_partition_range_end": scans[-1]}
        second = launch(home, definitions, instance, raw_scans, tags=tags, run_config={})
        assert not second.success
        failure = next(event for event in second.all_events if event.is_step_failure).step_failure_data
        records = instance.fetch_materializations(raw_scans, limit=50).records
        return {
            "checks": sorted(check.check_name for check in first.get_asset_check_evaluations() if check.passed),
            "scans": list(scans),
            "made": sorted(instance.get_materialized_partitions(raw_scans)),
            "metadata": {r.partition_key: sorted(r.asset_materialization.metadata) for r in records},
            "said": failure.user_failure_data.description.replace(str(home.root), ""),
            "run": instance.get_run_by_id(second.run_id).tags.items() >= tags.items(),
            "runs": [(run.status, run.tags.get("dagster/retry_number")) for run in instance.get_runs()],
        }


@with_dask
@pytest.mark.slow
def test_a_range_with_a_bad_scan_arrives_as_from_this_process(tmp_path: Path, cohort: Path) -> None:
    here, there = Home(tmp_path / "here"), Home(tmp_path / "there")
    there.root.mkdir()
    write(there, "executor: dask\ncluster: {local: {}}")
    expected = one_range(here, cohort)
    assert len(expected["made"]) == len(expected["scans"]) - 1 > 2
    assert "1 of" in expected["said"]
    assert one_range(there, cohort) == expected


@with_dask
@pytest.mark.slow
def test_a_pool_holds_on_a_cluster_too(tmp_path: Path) -> None:
    """dagster-dask's executor does not ask for a place in the pool; ours does, before a job is submitted."""
    home = Home(tmp_path)
    write(home, "executor: dask\ncluster: {local: {}}")
    key = dg.AssetKey(["results_database"])
    with dagster_instance(home) as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default("warehouse")
        storage.claim_concurrency_slot("warehouse", "another run", "another step")
        freed: list[float] = []

        def free() -> None:
            freed.append(time.time())
            storage.free_concurrency_slots_for_run("another run")

        timer = threading.Timer(6, free)
        timer.start()
        result = launch(home, dg.Definitions(assets=[database_asset(home, [])]), instance, key, tags={}, run_config={})
        timer.join()
        assert result.success
        (start,) = (entry for entry in instance.all_logs(result.run_id) if is_start(entry))
        assert start.timestamp > freed[0]
        assert not storage.get_concurrency_info("warehouse").active_slot_count


def is_start(entry: dg.EventLogEntry) -> bool:
    return entry.dagster_event is not None and entry.dagster_event.is_step_start
