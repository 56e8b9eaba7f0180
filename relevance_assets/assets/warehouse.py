"""Assets that are shared by all studies: the synthetic cohort at the start, `results.duckdb` at the end.

Belongs here: both assets, and whether they are up to date. Does not belong here: making the cohort
(`cohort/synthetic/`), building the database (`tables/database.py`).
"""

import os
import time
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from relevance_assets.assets.alive import hold
from relevance_assets.assets.stages import begin, tick
from relevance_assets.configuration import SQL
from relevance_assets.files import fingerprint
from relevance_assets.home import Home
from relevance_assets.study import Settings

__all__ = [
    "SyntheticCohort",
    "database_asset",
    "database_is_current",
    "database_stamp",
    "synthetic_asset",
    "tables_changed_after_publishing",
]


class SyntheticCohort(Settings):
    """What `synthesise` is asked for."""

    scans: int = Field(default=120, ge=1)
    voxel_size_mm: float = Field(default=6.0, gt=0)
    seed: int = Field(default=0, ge=0)
    effect: float = Field(default=1.0, ge=0)


def synthetic_asset(settings: SyntheticCohort, home: Home) -> dg.AssetsDefinition:
    @dg.asset(
        name="synthetic_cohort",
        group_name="synthetic",
        kinds={"bids", "nifti"},
        owners=["team:relevance"],
        code_version="1",
        description="The synthetic MS cohort: a BIDS dataset made offline from nilearn's MNI152 template, with planted "
        "truth. Studies without a BIDS folder of their own read it.",
        metadata={"dagster/uri": str(home.bids)},
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from relevance_assets.cohort.synthetic import synthesise

        hold(home, context.run_id)
        begin("synthetic_cohort", 0, settings.scans)
        synthesise(home.bids, **settings.model_dump(), progress=lambda done, total: tick(float(done), ""))
        return dg.MaterializeResult(metadata={**settings.model_dump(), "folder": dg.MetadataValue.path(str(home.bids))})

    return asset


def database_stamp(home: Home) -> str:
    """Changes with every file that the database is made of."""
    if not (SQL / "views").is_dir():
        raise ValueError(f"{SQL}: views and checks are missing; install from a checkout with pip install -e")
    tables = (path for path in home.tables.glob("*/*/*.parquet") if not path.name.startswith("."))
    files = [*tables, *SQL.glob("*/*.sql")]
    stats = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return fingerprint(stats)


def _stamp(home: Home) -> Path:
    """Remembers which Parquet files the published database was built from."""
    return home.root / ".results.duckdb.inputs"


def database_is_current(home: Home) -> bool:
    stamp = _stamp(home)
    return home.database.exists() and stamp.exists() and stamp.read_text() == database_stamp(home)


def tables_changed_after_publishing(home: Home) -> float | None:
    """When a table last changed (seconds since 1970), if that was after the publishing began; cheap to ask."""
    stamp = _stamp(home)
    if not stamp.exists():
        return None
    changed = max((folder.stat().st_mtime for folder in home.tables.glob("[!.]*/*")), default=0.0)
    return changed if changed > stamp.stat().st_mtime else None


# What has changed is published though scans are missing or failed: with eager() alone, one that never comes would hold
# up the database for good. Work under way ends first.
PUBLISH = dg.AutomationCondition.eager().without(~dg.AutomationCondition.any_deps_missing())


def database_asset(home: Home, deps: list[dg.AssetKey]) -> dg.AssetsDefinition:
    @dg.asset(
        name="results_database",
        group_name="results",
        kinds={"duckdb", "sql"},
        owners=["team:relevance"],
        deps=deps,
        automation_condition=PUBLISH,
        pool="warehouse",
        code_version="1",
        description="Every table of every study, with views, in one DuckDB file: built aside from the Parquet files, "
        "checked (row counts, keys, sql/checks), then put in place in one step. Open sessions keep what they see.",
        metadata={"dagster/uri": str(home.database)},
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from relevance_assets.tables.database import publish

        hold(home, context.run_id)
        began, inputs = time.time(), database_stamp(home)
        counts = publish(home.tables, home.database, SQL)
        _stamp(home).write_text(inputs)
        os.utime(_stamp(home), (began, began))
        metadata: dict[str, Any] = {
            "tables": dg.MetadataValue.table(
                records=[dg.TableRecord({"table": name, "rows": rows}) for name, rows in sorted(counts.items())]
            ),
            "dagster/row_count": sum(counts.values()),
            "file": dg.MetadataValue.path(str(home.database)),
        }
        return dg.MaterializeResult(metadata=metadata)

    return asset
