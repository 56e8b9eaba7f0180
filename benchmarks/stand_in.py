"""A study whose science is a pause: the chain, its fingerprints, tables and Dagster are real, its work is not.

Belongs here: the stand-in cohort and stages, for `benchmarks/scale.py` and the tests of automation. Never part of the
package.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.models import models_for, role_of
from relevance_assets.assets.stages import Done, Stage, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint
from relevance_assets.tables.schema import TABLES

REAL = ("participants", "splits")
DEFAULTS: dict[Any, Any] = {pl.String: "x", pl.Float64: 0.5, pl.Int64: 1, pl.Boolean: True}
LEDGER_ROWS = 240  # of the demo's network, per scan


def make_cohort(bids: Path, scans: int, images: tuple[str, ...], first: int = 1) -> list[str]:
    """Folders and files named as BIDS wants them, a few bytes each; one scan per person."""
    names = [f"sub-{number:05d}" for number in range(first, first + scans)]
    for name in names:
        folder = bids / name / "anat"
        folder.mkdir(parents=True)
        for image in images:
            (folder / f"{name}_{image}.nii.gz").write_bytes(name.encode())
    write_people(bids)
    return names


def write_people(bids: Path) -> None:
    """participants.tsv for whoever has a folder: EDSS 0 to 8, ages 20 to 79."""
    people = sorted(path.name for path in bids.glob("sub-*"))
    rows = [f"{name}\t{20 + int(name[4:]) % 60}\tMS\t{int(name[4:]) % 9}" for name in people]
    (bids / "participants.tsv").write_text("\n".join(["participant_id\tage\tgroup\tedss", *rows]) + "\n")
    (bids / "dataset_description.json").write_text('{"Name": "stand-in", "BIDSVersion": "1.10.0"}\n')


def stand_in(
    workspace: Workspace, pause_s: float = 0.010, fault: Callable[[str, str], None] | None = None
) -> list[Stage]:
    """The study's chain with a pause in the place of every image and network.

    Parameters
    ----------
    fault
        Called with stage and item before the pause; may raise.
    """

    def make(stage: Stage) -> Callable[[str], Done]:
        def done(item: str) -> Done:
            if fault:
                fault(stage.name, item)
            time.sleep(pause_s)
            tables = {table: _rows(workspace, table, item) for table in stage.tables}
            return Done(tables, fingerprint(stage.name, stage.inputs(item)))

        return done

    return [
        stage
        if stage.name in REAL
        else replace(stage, work=each(make(stage)), outputs=lambda item: [], parallel=False, pool=None)
        for stage in study_stages(workspace)
    ]


def _rows(workspace: Workspace, table: str, item: str) -> pl.DataFrame:
    """Rows that keep every check content; what no check looks at is anything of its type."""
    if table == "training_scans":
        splits = workspace.read("splits").filter(pl.col("set") == "train")
        role = pl.when(pl.col("fold") == int(item)).then(pl.lit("validation")).otherwise(pl.lit("train"))
        return splits.select("scan", "participant_id", set=role, model=pl.lit("m"), fold=pl.lit(item))
    key = set(TABLES[table].key) - {"study"}
    counts = {"relevance_ledger": LEDGER_ROWS, "mask_measures": 60, "quantile_masks": 40, "relevance_maps": 4}
    count = counts.get(table, 3) if key - {"scan", "fold", "model", "method"} else 1
    fixed: dict[str, Any] = {"model": "m", "method": "lrp", "scan": item, "fold": item, "weight": 1 / count}
    if table == "volumes":
        fixed |= dict(zip(("shape_x", "shape_y", "shape_z"), workspace.study.shape or (1, 1, 1), strict=True))
        fixed |= dict.fromkeys(("minimum", "maximum", "mean", "standard_deviation"), 0.5)
    elif "fold" in key and item in workspace.sides:
        fixed["fold"] = models_for(workspace, item)[0]  # a model that never saw the scan
        if table == "predictions":
            fixed["set"] = role_of(workspace, item, fixed["fold"])
    numbered = any(column.name in key and column.dtype == pl.Int64 for column in TABLES[table].columns)
    names = 4 if numbered else count
    columns: dict[str, pl.Series] = {}
    for column in TABLES[table].columns:
        if column.name == "study":
            continue
        if column.name in fixed and (column.name in key or column.name not in ("scan", "fold")):
            values: list[Any] = [fixed[column.name]] * count
        elif column.name in key:
            values = [f"{column.name}{n % names}" if column.dtype == pl.String else n for n in range(count)]
        else:
            values = [None if column.nullable else DEFAULTS[type(column.dtype)]] * count
        columns[column.name] = pl.Series(column.name, values, dtype=column.dtype)
    return pl.DataFrame(columns)
