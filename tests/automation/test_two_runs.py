"""Two runs at once, of the same scans, in processes of their own: every table ends as one run leaves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
from service import Service

from relevance_assets.home import Home
from relevance_assets.tables.store import differences

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from stand_in import stand_in
from relevance_assets.assets.stages import run_items
from relevance_assets.assets.workspace import Workspace
from relevance_assets.home import Home
from relevance_assets.study import Study
workspace = Workspace(Study.model_validate_json(sys.argv[2]), Home(Path(sys.argv[3])))
for stage in stand_in(workspace, 0.05):
    if stage.name in ("raw_scans", "prepared_volumes"):
        run_items(workspace, stage, stage.items(), run_id=sys.argv[4])
"""


def start(service: Service, home: Home, name: str) -> subprocess.Popen[bytes]:
    study = service.study.model_dump_json()
    words = [sys.executable, "-c", WORKER, str(ROOT / "benchmarks"), study, str(home.root), name]
    return subprocess.Popen(words, cwd=ROOT)


def test_two_runs_at_once_corrupt_nothing(service: Service, tmp_path: Path) -> None:
    alone = Home(tmp_path / "alone")
    for home in (alone, service.home):
        shared = Service(service.study, home, service.instance)
        (request,) = shared.look()
        assert shared.run(request).success
    assert start(service, alone, "one").wait() == 0
    both = [start(service, service.home, name) for name in ("first", "second")]
    assert [process.wait() for process in both] == [0, 0]
    assert service.workspace.read("volumes")["scan"].n_unique() == 12
    assert not differences(alone.tables, service.home.tables)
    makers = service.workspace.read("runs").filter(pl.col("asset") != "participants")["run_id"].unique()
    assert set(makers) == {"first", "second"}, "both were at work"
    assert not list(service.home.tables.rglob(".*-*.parquet")), "nothing half written is left"
