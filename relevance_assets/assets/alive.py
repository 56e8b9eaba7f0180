"""Which runs are still somebody's work: a run's process holds a lock as long as it lives, however it ends.

Dagster's launcher of local runs cannot tell that a process was killed together with its parent; without this such a
run would count as started for good, and its study would wait for it.

Belongs here: taking the lock, and closing runs whose lock is free. Does not belong here: asking for the work again
(`automation.py`).
"""

from __future__ import annotations

import fcntl
import time
from typing import IO

import dagster as dg

from relevance_assets.home import Home

__all__ = ["close_lost_runs", "hold"]

GRACE_S = 120.0  # between a run's steps, and before its first
LOST = "its process was killed; what it left undone is asked for again"
OPEN = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_HELD: dict[str, IO[bytes]] = {}


def hold(home: Home, run_id: str) -> None:
    """Say that this process works on a run; the system takes it back when the process ends."""
    if run_id in _HELD:
        return
    for done in list(_HELD):  # a process works on one run at a time
        _HELD.pop(done).close()
    path = home.run_lock(run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("wb")
    for _ in range(20):  # whoever looks whether the lock is free has it for a moment
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.05)
        else:
            _HELD[run_id] = file
            return
    file.close()  # another process works on the same run, and says so


def close_lost_runs(home: Home, instance: dg.DagsterInstance, now: float | None = None) -> list[str]:
    """Report runs as failed whose process is gone, give back their places in the pools, and name them.

    A run whose lock is free and that is in the middle of a step is lost. Between steps, and before the first, its
    process may be about to end, or to begin, elsewhere: it gets a while. So does a run that was created and never
    handed over, as a kill between the two leaves it.
    """
    now = time.time() if now is None else now
    lost = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=OPEN)):
        run = record.dagster_run
        if not _is_free(home, run.run_id):
            continue
        steps = instance.get_run_step_stats(run.run_id)
        begun = [step for step in steps if step.start_time]
        working = any(step.end_time is None for step in begun)
        latest = max(
            [
                record.start_time or record.update_timestamp.timestamp(),
                *(step.end_time or step.start_time or 0.0 for step in begun),
            ]
        )
        known = home.run_lock(run.run_id).exists()
        if (known and working) or now - latest > GRACE_S:
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, LOST)
            home.run_lock(run.run_id).unlink(missing_ok=True)
            lost.append(run.run_id)
    _sweep(home, instance)
    return lost


def _is_free(home: Home, run_id: str) -> bool:
    """Whether nobody holds a run's lock."""
    try:
        with home.run_lock(run_id).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _sweep(home: Home, instance: dg.DagsterInstance) -> None:
    """Remove the locks of runs that have ended."""
    for path in home.run_lock("x").parent.glob("*.lock"):
        run = instance.get_run_by_id(path.stem)
        if run is None or run.is_finished:
            path.unlink(missing_ok=True)
