"""Where a run's work is done: in the run's own process, or on a Dask cluster that `execution.yaml` describes.

The cluster is Dask's, and dagster-dask hands it the steps: nothing here schedules, queues or restarts. A run is one
chunk of one asset and has one step of work, so that by default a run is one job of the batch system.

Belongs here: reading `execution.yaml`, the executor that follows from it, launching one asset. Does not belong here:
what is launched and when (`assets/runner.py`, the service).
"""

from __future__ import annotations

import inspect
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field, ValidationError, field_validator

from relevance_assets.assets.alive import hold
from relevance_assets.configuration import SettingsError, load_studies, read_settings
from relevance_assets.home import Home
from relevance_assets.study import Settings

__all__ = ["Execution", "asset_job", "executor_of", "launch", "read_execution"]

NEEDED = ("dagster_dask", "dask_jobqueue", "cryptography")
JOBQUEUE = {"slurm": "SLURM", "pbs": "PBS", "sge": "SGE", "lsf": "LSF", "oar": "OAR", "moab": "Moab"}
Cluster = Literal["local", "existing", "slurm", "pbs", "sge", "lsf", "oar", "moab"]

# The scheduler lives in the run's process, and a run has one piece of work: when its worker is lost (killed, out of
# time or memory) the run fails and says so, it does not wait for a worker that nobody starts.
DASK = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.daemon": False,  # a step may start processes of its own
    "distributed.nanny.pre-spawn-environ": {},  # Dask would set one thread for torch, whatever the machine has
}
# One thread: Dagster's steps must not share a process. No limit: Dask would pause a worker that holds a large model,
# for ever; how much memory a job may use is the batch system's to say.
WORKER = ["--nthreads", "1", "--memory-limit", "0"]
# Fields of a run that Dask cannot take (`OnDask.execute`).
RECORDS = ("partitions_subset", "run_op_concurrency", "remote_job_origin", "job_code_origin")


class Execution(Settings):
    """What `execution.yaml` may say.

    Attributes
    ----------
    executor
        `in_process`: each run in its own process, on this machine. `dask`: each run on the cluster.
    cluster
        One kind of cluster and its arguments, which are Dask's own: those of `LocalCluster`, of dask-jobqueue's
        `SLURMCluster`, `PBSCluster` and the like, or the `address` of a scheduler that runs already.
    wait_hours
        A run fails when no worker has come for so long: nobody else notices a job that could not be submitted.
    """

    executor: Literal["in_process", "dask"] = "in_process"
    cluster: dict[Cluster, dict[str, Any]] = Field(default={"local": {}})
    wait_hours: float = Field(default=24, gt=0)

    @field_validator("cluster", mode="before")
    @classmethod
    def _nothing_is_no_arguments(cls, value: Any) -> Any:
        return {kind: {} if given is None else given for kind, given in value.items()} if type(value) is dict else value

    @field_validator("cluster")
    @classmethod
    def _one(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(value) != 1:
            raise ValueError(f"name one kind of cluster; there are {len(value)}")
        return value

    @property
    def kind(self) -> str:
        return next(iter(self.cluster))

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(next(iter(self.cluster.values())))


def _path(home: Home) -> Path:
    return home.root / "execution.yaml"


def read_execution(home: Home) -> Execution:
    """What this home's `execution.yaml` says; in-process where there is none.

    Raises
    ------
    SettingsError
        One line, with the file and the key.
    """
    try:
        return Execution.model_validate(read_settings(_path(home)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise SettingsError(f"{_path(home)}: {key}: {first['msg'].removeprefix('Value error, ')}") from error


def executor_of(home: Home) -> dg.ExecutorDefinition:
    """The executor for every job of this home. Dask itself is imported only where a run begins.

    Raises
    ------
    SettingsError
        `execution.yaml` is wrong, or asks for packages that are not installed.
    """
    if read_execution(home).executor == "in_process":
        return dg.in_process_executor
    if not all(map(find_spec, NEEDED)):
        raise SettingsError(
            f"{_path(home)}: executor: dask needs packages that are not installed: pip install 'relevance-assets[dask]'"
        )

    @dg.executor(name="dask", requirements=dg.multiple_process_executor_requirements())
    def on_dask(context: dg.InitExecutorContext) -> dg.Executor:
        import dask
        from dagster_dask.executor import DaskExecutor

        execution = read_execution(home)  # as it is now: Dagster keeps definitions while a process lives
        dask.config.set(DASK | {"distributed.scheduler.no-workers-timeout": f"{execution.wait_hours}h"})
        return OnDask(DaskExecutor(execution.kind, cluster_arguments(home, execution)))

    return on_dask


class OnDask(dg.Executor):
    """dagster-dask's executor, for runs of a range of partitions and for processes that go on after a run."""

    def __init__(self, dask: Any) -> None:
        self._dask = dask

    @property
    def retries(self) -> Any:
        return self._dask.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        from dagster._core.errors import raise_execution_interrupts
        from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
        from distributed.deploy.spec import close_clusters

        # Dask looks for tasks inside of what it is given, and some of Dagster's records refuse to be looked into. The
        # worker does without them: the range is in the run's tags too, pools and origins are the coordinator's.
        data = plan_context.plan_data
        hold(Home.from_environment(), data.dagster_run.run_id)  # while its job waits in a queue nobody else says so
        data = data._replace(dagster_run=data.dagster_run._replace(**dict.fromkeys(RECORDS)))
        context = type(plan_context)(data, plan_context.log, self._dask, plan_context.output_capture)
        pooled = [step for step in execution_plan.get_steps_to_execute_in_topo_order() if step.pool]
        with InstanceConcurrencyContext(data.instance, data.dagster_run) as pools:
            try:
                for step in pooled:  # before anything waits in the batch system's queue
                    while not pools.claim(step.pool, step.key):
                        with raise_execution_interrupts():
                            time.sleep(1)
                yield from self._dask.execute(context, execution_plan)
            finally:
                for step in pooled:
                    pools.free_step(step.key)
                # dagster-dask leaves clusters, and their jobs, to the end of the process. A job that could not be
                # submitted cannot be taken back: that must not hide why the run failed.
                with suppress(AssertionError):
                    close_clusters()


def cluster_arguments(home: Home, execution: Execution) -> dict[str, Any]:
    """What Dask's class is called with: the user's arguments, and what our work needs beside them.

    Raises
    ------
    SettingsError
        An argument that the class does not have, or a needed one that is missing.
    """
    kind, given = execution.kind, execution.arguments
    known, needed = _parameters_of(kind)
    for name in given:
        if name not in known:
            raise SettingsError(f"{_path(home)}: cluster.{kind}.{name}: there is no such argument")
    for name in needed:
        if name not in given and _site(kind, name) is None:
            raise SettingsError(f"{_path(home)}: cluster.{kind}.{name}: is missing")
    if kind == "existing":
        return given
    if kind == "local":
        ours = {"n_workers": 1, "memory_limit": 0, "security": True, "silence_logs": "ERROR"}
        return ours | {"dashboard_address": "127.0.0.1:0"} | given
    return _job_arguments(home, kind, given)


def _parameters_of(kind: str) -> tuple[set[str], list[str]]:
    """Arguments that a kind of cluster knows, and those that it cannot do without."""
    if kind == "existing":
        return {"address"}, ["address"]
    import distributed

    if kind == "local":
        return _parameters(distributed.LocalCluster, distributed.Nanny, distributed.Worker), []
    cluster = getattr(_jobqueue(), f"{JOBQUEUE[kind]}Cluster")
    return _parameters(*cluster.__mro__, *cluster.job_cls.__mro__), ["cores", "memory"]


def _parameters(*classes: type) -> set[str]:
    return {name for each in classes for name in inspect.signature(each).parameters}


def _jobqueue() -> Any:
    """dask-jobqueue, which takes Ctrl-C (and Dagster's way to end a run) for itself when it is imported."""
    handler = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    signal.signal(signal.SIGINT, handler)
    return dask_jobqueue


def _site(kind: str, name: str, default: Any = None) -> Any:
    """What the machine's own Dask configuration (`jobqueue.yaml`) says."""
    import dask

    return dask.config.get(f"jobqueue.{kind}.{name}", default) or default


def _job_arguments(home: Home, kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a dask-jobqueue cluster, with what our work needs beside what the user and the site say."""
    environment = {
        "RELEVANCE_HOME": home.root,
        "DAGSTER_HOME": home.dagster,
        "RELEVANCE_WORKERS": given.get("cores") or _site(kind, "cores"),  # the job's, not the node's
    }
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in environment.items()]
    prologue = given.get("job_script_prologue", _site(kind, "job-script-prologue", []))
    extra = given.get("worker_extra_args", _site(kind, "worker-extra-args", []))
    defaults = {
        "n_workers": 1,
        "processes": 1,
        "nanny": False,
        "job_name": "relevance",
        "log_directory": _site(kind, "log-directory", str(home.dagster / "jobs")),
        # Who can reach an open scheduler can run code as the user: certificates, made for this run, keep others out.
        "security": True,
        "shared_temp_directory": _site(kind, "shared-temp-directory", str(home.dagster)),
        "scheduler_options": _site(kind, "scheduler-options", {"dashboard": False, "dashboard_address": ":0"}),
    }
    ours = {"job_script_prologue": [*exports, *prologue], "worker_extra_args": [*WORKER, *extra]}
    return defaults | given | ours


# ------------------------------------------------------------------------------------------------------- launching
def asset_job(root: str, *path: str) -> dg.JobDefinition:
    """The job that makes one asset of the home at `root`, for who rebuilds it elsewhere from these words alone."""
    from relevance_assets.assets.warehouse import database_asset, synthetic_asset
    from relevance_assets.component import database_inputs, study_definitions, synthetic_settings

    home = Home(Path(root))
    if path == ("results_database",):
        definitions = dg.Definitions(assets=[database_asset(home, database_inputs(home, load_studies(home)))])
    elif path == ("synthetic_cohort",):
        definitions = dg.Definitions(assets=[synthetic_asset(synthetic_settings(home), home)])
    else:
        definitions = study_definitions(load_studies(home)[path[0]], home)
    job = dg.define_asset_job("_".join(path), [dg.AssetKey(path)], executor_def=executor_of(home))
    return dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])).resolve_job_def(job.name)


def launch(
    home: Home,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    *,
    tags: Mapping[str, str],
    run_config: Mapping[str, Any],
) -> dg.ExecuteInProcessResult | dg.JobExecutionResult:
    """Run one asset, where `execution.yaml` says, and wait for it.

    In process, the asset is that of `definitions`. On a cluster it is rebuilt on the other side from what the home
    says, so that both must be the same.
    """
    execution = read_execution(home)
    if execution.executor == "in_process":
        return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, asset_selection=[key], tags=dict(tags), run_config=run_config, raise_on_error=False
        )
    cluster_arguments(home, execution)  # what is wrong with them is said here, and not by a run that fails
    job = dg.build_reconstructable_job(
        "relevance_assets.assets.execution",
        "asset_job",
        (str(home.root), *key.path),  # type: ignore[arg-type]
    )
    return dg.execute_job(job, instance=instance, tags=tags, run_config=run_config, raise_on_error=False)
