"""The service is killed again and again, in every part, and ends where an undisturbed run ends. Takes half an hour.

RELEVANCE_KILLS=10 python -m pytest tests/kills
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
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
pytestmark = pytest.mark.skipif(not KILLS, reason="RELEVANCE_KILLS says how often to kill; ten take half an hour")


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

    def parts(self) -> dict[int, str]:
        """Every process of the service with its command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(folder.name)) == self.process.pid:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
        return found

    def kill(self, what: str) -> bool:
        """SIGKILL to a part; False where there is none just now. Runs are spawned by the code server."""
        chosen = [pid for pid, command in self.parts().items() if what == "everything" or what in command]
        for pid in chosen:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return bool(chosen)

    def ensure(self) -> None:
        """Start it again when it has ended, as a service manager would: it ends when its daemon or server does."""
        if self.process.poll() is not None:
            self.kill("everything")
            self.start()


def test_killed_at_random_moments_it_ends_with_the_same_tables(tmp_path: Path) -> None:
    cohort = tmp_path / "bids"
    synthesise(cohort, scans=60, voxel_size_mm=9.0, seed=3)
    calm = settle(tmp_path / "calm", cohort)
    run("run", "disability", home=calm.root)
    home = settle(tmp_path / "killed", cohort)
    remember(home, "disability", {"automation.quiet_seconds": 0})
    chance = random.Random(int(os.environ.get("RELEVANCE_KILLS_SEED", "0")))
    service = ServiceProcess(home)
    done: Counter[str] = Counter()
    try:
        time.sleep(15)
        while done.total() < KILLS:
            time.sleep(chance.uniform(5, 40))
            what = chance.choice(("spawn_main", "spawn_main", "daemon", "everything"))
            if service.kill(what):
                done[what] += 1
            service.ensure()
        end = time.monotonic() + PATIENCE_S
        while not finished(home):
            assert time.monotonic() < end, "it did not come to an end"
            service.ensure()
            time.sleep(10)
    finally:
        service.kill("everything")
    print(f"killed: {dict(done)}")
    assert not differences(calm.root / "tables", home.root / "tables")
    counted(calm, home)


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
