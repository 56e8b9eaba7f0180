"""A study whose Dagster instance lies in a real PostgreSQL. Opt-in: `make test-postgres`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from server import postgres, programs

from relevance_assets.assets import execution
from relevance_assets.assets.runner import INSTANCE, dagster_instance
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
    pytest.mark.skipif(not os.environ.get("RELEVANCE_TEST_POSTGRES"), reason="opt-in: make test-postgres"),
    pytest.mark.skipif(programs() is None, reason="not installed: initdb, pg_ctl (Debian: postgresql)"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("dagster_postgres", "psycopg2"))),
        reason="needs pip install 'relevance-assets[postgres]'",
    ),
]

STORAGE = "storage:\n  postgres:\n    postgres_url: postgresql+psycopg2://dagster@127.0.0.1:{port}/dagster\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with postgres() as port:
        yield port


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from relevance_assets.cohort.synthetic import synthesise

    out = tmp_path_factory.mktemp("cohort") / "bids"
    synthesise(out, scans=30, voxel_size_mm=9.0, seed=3)
    return out


def timed(home: Home, name: str) -> None:
    started = time.monotonic()
    run("run", "disability", home=home.root)
    print(f"\nthe small study with {name}: {time.monotonic() - started:.1f} s")


@pytest.fixture(scope="module")
def with_sqlite(tmp_path_factory: pytest.TempPathFactory, cohort: Path) -> Home:
    home = settle(tmp_path_factory.mktemp("sqlite") / "home", cohort)
    timed(home, "sqlite")
    return home


@pytest.fixture(scope="module")
def with_postgres(tmp_path_factory: pytest.TempPathFactory, cohort: Path, port: int) -> Home:
    home = settle(tmp_path_factory.mktemp("postgres") / "home", cohort)
    home.dagster.mkdir()
    (home.dagster / "dagster.yaml").write_text(INSTANCE + STORAGE.format(port=port))
    timed(home, "Postgres")
    return home


def count(port: int, table: str) -> int:
    import psycopg2

    connection = psycopg2.connect(host="127.0.0.1", port=port, user="dagster", dbname="dagster")
    try:
        cursor = connection.cursor()
        cursor.execute(f"SELECT count(*) FROM {table}")
        return int(cursor.fetchone()[0])
    finally:
        connection.close()


def test_tables_are_those_of_an_sqlite_run(with_sqlite: Home, with_postgres: Home, port: int) -> None:
    assert differences(with_sqlite.tables, with_postgres.tables) == []
    with dagster_instance(with_sqlite) as one, dagster_instance(with_postgres) as other:
        assert one.get_runs_count() == other.get_runs_count() == count(port, "runs") > 5
        for asset in ("raw_scans", "relevance_maps", "localisation"):
            key = dg.AssetKey(["disability", asset])
            assert one.get_materialized_partitions(key) == other.get_materialized_partitions(key) != set()
        events = [sum(len(each.all_logs(run.run_id)) for run in each.get_runs()) for each in (one, other)]
    assert count(port, "event_logs") == events[1] == events[0], "what sqlite has of the runs, Postgres has"
    assert not list(with_postgres.dagster.rglob("*.db")), "something was written to sqlite"
    assert "nothing to do" in run("run", "disability", home=with_postgres.root).stdout


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, execution.NEEDED)), reason="needs pip install 'relevance-assets[dask]'"
)
def test_a_dask_worker_reports_to_postgres(with_sqlite: Home, with_postgres: Home, tmp_path: Path, port: int) -> None:
    home = Home(tmp_path / "home")
    shutil.copytree(with_postgres.root, home.root)
    (home.root / "execution.yaml").write_text("executor: dask\ncluster: {local: {}}\n")
    workspace = Workspace(load_studies(home)["disability"], home)
    forget(workspace, "relevance_maps", workspace.recorded("relevance_maps"), ("relevance_maps", "relevance_ledger"))
    before = count(port, "event_logs")
    with dagster_instance(home) as instance:
        scans = instance.get_dynamic_partitions("disability_scans")
        tags = {"dagster/asset_partition_range_start": scans[0], "dagster/asset_partition_range_end": scans[-1]}
        result = execution.launch(
            home,
            study_definitions(workspace.study, home),
            instance,
            dg.AssetKey(["disability", "relevance_maps"]),
            tags=tags,
            run_config={},
        )
        assert result.success
    assert count(port, "event_logs") > before + len(scans)
    assert differences(with_sqlite.tables, home.tables) == []
