"""What orchestration costs for 1,381 and 10,000 scans: the whole graph, with 10 ms of pause in the place of science.

Belongs here: one study run through Dagster as the command line runs it, then looked at as the service, an analyst and
the web page do. Does not belong here: the stand-ins (`stand_in.py`).

    python benchmarks/scale.py                  # 1,381 scans
    python benchmarks/scale.py --scans 10000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import dagster as dg
from stand_in import make_cohort, stand_in, write_people

PAUSE_S = 0.010
IMAGES = ("T1map", "MWFmap", "model-noddi_param-ICVF_dwimap")
TARGETS = {
    "overhead per scan and asset, s": 0.12,
    "sensor, nothing new, s": 3.0,
    "sensor, one new scan, s": 3.0,
    "publish all tables, one scan new, s": 10.0,
    "memory of the coordinator, MB": 800.0,
}

# A page's questions: the graph with its counts, and every scan's status of one asset.
GRAPH = """query { assetNodes { assetKey { path } assetMaterializations(limit: 1) { timestamp }
  partitionStats { numMaterialized numFailed numPartitions } } }"""
PARTITIONS = """query { assetNodeOrError(assetKey: {path: ["disability", "relevance_maps"]}) { ... on AssetNode {
  assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions } } } } }"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=1381)
    parser.add_argument(
        "--home",
        type=Path,
        help="keep the home in this folder (default: a temporary one); one that is there is looked at again",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.home or Path(folder)
        figures = measure(root, options.scans)
    width = max(map(len, figures))
    for name, value in figures.items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"   target {target:g} {'reached' if value <= target else 'MISSED'}"
        print(f"{name:<{width}}  {value:>10.3f}{verdict}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(root: Path, scans: int) -> dict[str, float]:
    """All figures for so many scans, in a home below `root`."""
    import relevance_assets.assets.automation as automation
    import relevance_assets.assets.runner as runner
    import relevance_assets.component as component
    from relevance_assets.assets.chunks import asset_key
    from relevance_assets.assets.runner import dagster_instance, run_study
    from relevance_assets.assets.warehouse import database_asset
    from relevance_assets.assets.workspace import Snapshot, Workspace
    from relevance_assets.configuration import SQL, load_studies, remember
    from relevance_assets.home import Home
    from relevance_assets.tables.database import publish

    home, bids = Home(root / "home"), root / "bids"
    os.environ["RELEVANCE_HOME"] = str(home.root)
    there = len(list(bids.glob("sub-*")))
    if not there:
        make_cohort(bids, scans, IMAGES)
        write_people(bids)
    said = {"cohort.bids": str(bids), "cohort.truth_regions": [], "statistics.adjust_for": ["age"]}
    remember(home, "disability", said | {"automation.quiet_seconds": 0})
    for module in (automation, component, runner):
        module.study_stages = lambda workspace: stand_in(workspace, PAUSE_S)  # type: ignore[attr-defined]
    workspace = Workspace(load_studies(home)["disability"], home)
    assets = sum(stage.partition == "scan" for stage in stand_in(workspace))
    figures: dict[str, float] = {"scans": there or scans, "assets per scan": assets}

    with dagster_instance(home, alone=True) as instance:
        clock = time.perf_counter()
        report = run_study(workspace, instance)
        whole = time.perf_counter() - clock
        if not there:
            figures["first run, s"] = whole
            figures["runs of Dagster"] = report.runs
            figures["overhead per scan and asset, s"] = whole / (scans * assets) - PAUSE_S
        clock = time.perf_counter()
        assert run_study(workspace, instance).idle
        figures["run again, nothing to do, s"] = time.perf_counter() - clock

        cursor: str | None = None
        for _ in range(3):  # the first look finds the command line's work done
            clock = time.perf_counter()
            result = automation.look_around(Snapshot(workspace.study, home), instance, cursor)
            took = time.perf_counter() - clock
            cursor = result.cursor if isinstance(result, dg.SensorResult) else cursor
        figures["sensor, nothing new, s"] = took
        make_cohort(bids, 1, IMAGES, first=(there or scans) + 1)
        write_people(bids)
        looks = []
        runs = 0
        clock = time.perf_counter()
        while True:
            start = time.perf_counter()
            result = automation.look_around(Snapshot(workspace.study, home), instance, cursor)
            looks.append(time.perf_counter() - start)
            requests = (result.run_requests or []) if isinstance(result, dg.SensorResult) else []
            if not requests:
                break
            cursor = result.cursor
            for request in requests:
                job = component.study_definitions(workspace.study, home).resolve_job_def(request.job_name)
                assert job.execute_in_process(
                    instance=instance,
                    asset_selection=request.asset_selection,
                    tags=dict(request.tags),
                    run_config=runner.QUIET,
                ).success
                runs += 1
        assert runs, result  # what stands in the sensor's way is not its time
        figures["sensor, one new scan, s"] = max(looks)
        figures["one new scan, all stages, s"] = time.perf_counter() - clock
        figures["one new scan, runs"] = runs
        definitions = dg.Definitions.merge(
            component.study_definitions(workspace.study, home),
            dg.Definitions(
                assets=[database_asset(home, [asset_key(workspace, stage.name) for stage in stand_in(workspace)])]
            ),
        )
        evaluated = None
        for turn in ("first", "again"):
            clock = time.perf_counter()
            evaluated = dg.evaluate_automation_conditions(
                defs=definitions,
                instance=instance,
                asset_selection=dg.AssetSelection.assets("results_database"),
                cursor=evaluated.cursor if evaluated else None,
            )
            figures[f"condition of the database, {turn}, s"] = time.perf_counter() - clock
    figures["memory of the coordinator, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    clock = time.perf_counter()
    publish(home.tables, home.database, SQL)
    figures["publish all tables, one scan new, s"] = time.perf_counter() - clock
    shutil.rmtree(home.tables / ".cache", ignore_errors=True)
    clock = time.perf_counter()
    publish(home.tables, home.database, SQL)
    figures["publish all tables, no cache, s"] = time.perf_counter() - clock
    figures["database, MB"] = home.database.stat().st_size / 1e6
    figures["tables, files"] = sum(1 for _ in home.tables.glob("*/*/*.parquet"))
    figures["event log, MB"] = sum(path.stat().st_size for path in home.dagster.rglob("*") if path.is_file()) / 1e6
    return figures | ask_the_page(home)


def ask_the_page(home: Any) -> dict[str, float]:
    """Time until the web server answers with its code location loaded, and its answers to a page's questions."""
    root = Path(__file__).resolve().parents[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-w", str(root / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]
    environment = os.environ | {"DAGSTER_HOME": str(home.dagster), "RELEVANCE_HOME": str(home.root)}
    clock = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "dagster_webserver", *words],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def ask(query: str) -> dict[str, Any]:
        body = json.dumps({"query": query}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        return found["data"]

    figures: dict[str, float] = {}
    try:
        while server.poll() is None:
            try:
                ask("{ version }")
                break
            except OSError:
                time.sleep(0.1)
        figures["code location and server, ready after, s"] = time.perf_counter() - clock
        for name, query in (("asset graph", GRAPH), ("partitions of an asset", PARTITIONS)):
            for turn in ("first", "again"):
                clock = time.perf_counter()
                found = ask(query)
                figures[f"page, {name}, {turn}, s"] = time.perf_counter() - clock
        statuses = found["assetNodeOrError"]["assetPartitionStatuses"]["materializedPartitions"]
        figures["page, scans with maps"] = len(statuses)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
    return figures


if __name__ == "__main__":
    main()
