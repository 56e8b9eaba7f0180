"""Two runs at once, of the same scans, in processes of their own: every table ends as one run leaves it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from service import Service

from relevance_assets.home import Home
from relevance_assets.tables.store import differences

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from stand_in import stand_in
from relevance_assets.assets.stages import run_items
from relevance_assets.assets.workspace import Workspace
from relevance_assets.home import Home
from relevance_assets.study import Study
(go := Path(sys.argv[5])).with_name(sys.argv[4]).touch()
while not go.exists():
    time.sleep(0.01)
workspace = Workspace(Study.model_validate_json(sys.argv[2]), Home(Path(sys.argv[3])))
for stage in stand_in(workspace, 0.05, fault=lambda asset, scan: print(asset, scan)):
    if stage.name in ("raw_scans", "prepared_volumes"):
        run_items(workspace, stage, stage.items(), run_id=sys.argv[4])
"""


def together(service: Service, home: Home, *names: str) -> list[set[str]]:
    """Run workers that begin at the same moment, wait for them, and say what each made."""
    study, go = service.study.model_dump_json(), home.root / "go"
    words = [sys.executable, "-c", WORKER, str(ROOT / "benchmarks"), study, str(home.root)]
    workers = [subprocess.Popen([*words, name, str(go)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for name in names]
    while not all((home.root / name).exists() for name in names):
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.01)
    go.touch()
    made = [set(worker.communicate()[0].splitlines()) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(names)
    return made


def test_two_runs_at_once_corrupt_nothing(service: Service, tmp_path: Path) -> None:
    alone = Home(tmp_path / "alone")
    for home in (alone, service.home):
        shared = Service(service.study, home, service.instance)
        (request,) = shared.look()
        assert shared.run(request).success
    together(service, alone, "one")
    first, second = together(service, service.home, "first", "second")
    assert first & second, "both were at work on the same scans"
    assert service.workspace.read("volumes")["scan"].n_unique() == 12
    assert not differences(alone.tables, service.home.tables)
    assert not list(service.home.tables.rglob(".*-*.parquet")), "nothing half written is left"
