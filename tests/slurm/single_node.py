"""A Slurm of one node on this machine, for tests: Debian's slurmctld and slurmd on loopback, all files in one folder.

`auth/none` lets anybody be anybody: never outside a test. There is no accounting database; finished jobs are known to
`scontrol` for a few minutes (MinJobAge) and written to a file (`jobcomp/filetxt`).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmctldPort={ctld}
SlurmdPort={slurmd}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/finished.txt
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=600
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=60 State=UP
"""


def missing() -> list[str]:
    """Programs of Slurm that this machine does not have."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [name for name in PROGRAMS if not shutil.which(name, path=path)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def slurm(folder: Path, *, cpus: int = 2, memory_mb: int = 4000) -> Iterator[Path]:
    """Bring Slurm up, set SLURM_CONF to its configuration, and end it and its jobs."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=host,
            user=os.environ.get("USER", "root"),
            folder=folder,
            ctld=_free_port(),
            slurmd=_free_port(),
            cpus=cpus,
            memory=memory_mb,
        )
    )
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
    os.environ["SLURM_CONF"] = str(configuration)
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            daemons.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        _wait_until_idle(folder)
        yield configuration
    finally:
        with suppress(subprocess.SubprocessError):
            for state in ("PENDING", "RUNNING"):
                subprocess.run(["scancel", f"--state={state}"], check=False, capture_output=True, timeout=30)
            _wait_until_empty()
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
        _end_what_is_left(configuration)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def ask(*command: str) -> str:
    """What one of Slurm's programs answers."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def _wait_until_idle(folder: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], check=False, capture_output=True, text=True)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
    raise TimeoutError(f"Slurm did not come up:\n{logs}")


def _end_what_is_left(configuration: Path) -> None:
    """Kill what outlived its job: without control groups, Slurm loses sight of a process whose shell has ended."""
    mark = f"SLURM_CONF={configuration}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def _wait_until_empty() -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end and ask("squeue", "-h"):
        time.sleep(0.2)
