"""The service is killed again and again, in every part, and ends where an undisturbed run ends: a quarter of an hour.

RELEVANCE_KILLS=10 python -m pytest tests/kills
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import duckdb
import pytest

from relevance_assets.assets.automation import look_around
from relevance_assets.assets.runner import dagster_instance
from relevance_assets.assets.warehouse import database_is_current
from relevance_assets.assets.workspace import Snapshot, Workspace
from relevance_assets.cohort.synthetic import synthesise
from relevance_assets.configuration import load_studies, remember
from relevance_assets.home import Home
from relevance_assets.tables.store import Store, differences

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from small_study import ROOT, run, settle

KILLS = int(os.environ.get("RELEVANCE_KILLS", "0"))
PATIENCE_S = 2400
# Whom a kill meets, in turns. Publishers come last: they work when all else rests.
PARTS = ("run", "worker", "daemon", "everything")
PUBLISHERS = 2
pytestmark = pytest.mark.skipif(not KILLS, reason="RELEVANCE_KILLS: how often; ten take a quarter of an hour")


class ServiceProcess:
    """`relevance-assets ui`: web server, daemon, code server and runs, in a process group of its own."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.start()

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [sys.executable, "-m", "relevance_assets", "ui", "--home", str(self.home.root), "--port", str(port)]
        self.process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def parts(self) -> dict[str, set[int]]:
        """The service's processes, by what they are: a run is spawned by the code server, a worker by a run."""
        commands, parents = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            try:
                if os.getsid(pid) == self.process.pid:
                    parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    commands[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
        spawned = {pid for pid, command in commands.items() if "spawn_main" in command}
        return {
            "run": {pid for pid in spawned if parents[pid] not in spawned},
            "worker": {pid for pid in spawned if parents[pid] in spawned},
            "daemon": {pid for pid, command in commands.items() if "daemon" in command},
            "publisher": {pid for pid in commands if any(self.home.root.glob(f"results.duckdb.tmp-*-{pid}-*"))},
            "everything": set(commands),
        }

    def kill(self, what: str, after_s: float = 0.0) -> bool:
        """SIGKILL to a part, some time after it is seen; False where it has ended by then."""
        end = time.monotonic() + PATIENCE_S
        while not self.parts()[what]:
            assert time.monotonic() < end, f"no {what} was seen"
            self.ensure()
            time.sleep(0.02)
        time.sleep(after_s)
        return self._kill(self.parts()[what])

    @staticmethod
    def _kill(pids: set[int]) -> bool:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def end(self) -> None:
        self._kill(self.parts()["everything"])

    def ensure(self) -> None:
        """Start it again when it has ended, as a service manager would: it ends when its daemon or server does."""
        if self.process.poll() is not None:
            self.end()
            self.start()


def test_killed_at_random_moments_it_ends_with_the_same_tables(tmp_path: Path) -> None:
    cohort = tmp_path / "bids"
    synthesise(cohort, scans=60, voxel_size_mm=9.0, seed=3)
    calm = settle(tmp_path / "calm", cohort)
    run("run", "disability", home=calm.root)
    home = settle(tmp_path / "killed", cohort)
    remember(home, "disability", {"automation.quiet_seconds": 0})
    chance = random.Random(int(os.environ.get("RELEVANCE_KILLS_SEED", "0")))
    publishers = min(PUBLISHERS, KILLS)
    turns = [*itertools.islice(itertools.cycle(PARTS), KILLS - publishers)]
    chance.shuffle(turns)
    service = ServiceProcess(home)
    done: Counter[str] = Counter()
    try:
        for what in turns:
            time.sleep(chance.uniform(5, 25))
            while not service.kill(what, chance.uniform(0, 3)):
                service.ensure()
            done[what] += 1
            service.ensure()
        while done["publisher"] < publishers:
            forget_one(home)  # its row is made again, and the database after it
            done["publisher"] += service.kill("publisher", chance.uniform(0, 0.5))
        end = time.monotonic() + PATIENCE_S
        while not finished(home):
            assert time.monotonic() < end, "it did not come to an end"
            service.ensure()
            time.sleep(10)
    finally:
        service.end()
    print(f"killed: {dict(done)}")
    assert not differences(calm.root / "tables", home.root / "tables")
    counted(calm, home)


def forget_one(home: Home) -> None:
    """Take a scan's last record away, if there is one yet."""
    workspace = Workspace(load_studies(home)["disability"], home)
    for item in sorted(workspace.recorded("localisation"))[:1]:
        workspace.delete("runs", f"localisation__{item}")


def finished(home: Home) -> bool:
    """Nothing left to do, and the database holds it."""
    workspace = Workspace(load_studies(home)["disability"], home)
    with dagster_instance(home) as instance:
        result = look_around(Snapshot(workspace.study, home), instance, None)
    return "up to date" in str(getattr(result, "skip_reason", "") or "") and database_is_current(home)


def counted(calm: Home, home: Home) -> None:
    """Rows of the published databases: as many, no scan twice, none lost."""
    for table in ("scans", "volumes", "predictions", "relevance_maps", "relevance_ledger", "mask_measures"):
        rows = []
        for one in (calm, home):
            with duckdb.connect(str(one.database), read_only=True) as connection:
                rows.append(connection.execute(f"SELECT count(*), count(DISTINCT scan) FROM {table}").fetchone())
        assert rows[0] == rows[1], table
    assert Store(home.tables).read("scans", "disability").height == 60
