"""What reading whole tables and publishing `results.duckdb` cost with one Parquet file per table, study and scan.

    python benchmarks/publishing.py [--scans 1381 10000] [--changed 64] [--folder FOLDER] [--json FILE]

Tables have as many rows per scan as a study of three images and ten masks gives, and 240 operations of a network in
the ledger; what is one file per cohort (participants, splits, predictions) is one file here. Seconds are wall time of
one run, warm reads the median of three; the files lie in the system's page cache, so *cold* means without the cache
that the store keeps, not without the system's. MB is the most resident memory of a process that only publishes.

Belongs here: made-up rows, and what is measured. Does not belong here: targets, and what the tables mean.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table as Printed

from relevance_assets.tables.database import publish
from relevance_assets.tables.schema import TABLES, Table
from relevance_assets.tables.store import Store

STUDY = "study"
SQL = Path(__file__).parents[1] / "sql"
IMAGES = ["qT1", "MWF", "NDI"]
CONTRASTS = [*IMAGES, "combined"]
TOPS = list(range(10, 101, 10))
FOLDS = 3
LAYERS = [f"encoders.{i % 3}.block{i // 60}.layer{i % 12}.conv{i % 2}.{i}" for i in range(240)]
STAGES = ["raw_scans", "prepared_volumes", "relevance_maps", "masks", "localisation", "lesions", "vessels"]

# Keys of each scan's rows, beside study, scan and the fold that the scan is validated in.
MASKS = {"method": ["lrp"], "contrast": CONTRASTS, "sign": ["positive"], "top_percent": TOPS}
PER_SCAN: dict[str, dict[str, list]] = {
    "raw_scans": {"image": IMAGES},
    "volumes": {"image": IMAGES},
    "attention_weights": {"model": ["net"], "contrast": IMAGES},
    "relevance_maps": {"method": ["lrp"], "contrast": [*CONTRASTS, "whole"]},
    "relevance_ledger": {"method": ["lrp"], "layer": LAYERS},
    "quantile_masks": MASKS,
    "mask_measures": MASKS | {"image": IMAGES},
    "localisation": {"method": ["lrp"], "contrast": CONTRASTS, "region": ["planted", "decoy"], "metric": ["share"]},
}
PER_COHORT: dict[str, dict[str, list]] = {
    "participants": {},
    "scans": {},
    "splits": {},
    "predictions": {"model": ["net"]},
}
WORDS = {"set": "train", "status": "ok", "outcome": "ok", "kind": "convolution", "rule": "gamma 0.25"}


# ------------------------------------------------------------------------------------------------------ made-up rows
def rows(table: Table, scans: int, keys: dict[str, list]) -> pl.DataFrame:
    """Rows of a table for all scans, scan after scan; random where no check looks."""
    random = np.random.default_rng(0)
    frame = pl.DataFrame({"number": np.arange(scans)}).with_columns(
        pl.format("sub-{}_ses-01", pl.col("number").cast(pl.String).str.zfill(5)).alias("scan"),
        pl.format("sub-{}", pl.col("number").cast(pl.String).str.zfill(5)).alias("participant_id"),
        (pl.col("number") % FOLDS).alias("fold"),
    )
    for name, values in keys.items():
        frame = frame.join(pl.DataFrame({name: values}), how="cross", maintain_order="left_right")
    for column in table.columns:
        if column.name in frame.columns:
            frame = frame.with_columns(pl.col(column.name).cast(column.dtype))
        else:
            frame = frame.with_columns(_values(column.name, column.dtype, frame, random))
    if table.name == "predictions":
        frame = frame.with_columns(set=pl.lit("validation"))
    return frame.select(list(table.schema))


def _values(name: str, dtype: pl.DataType, frame: pl.DataFrame, random: np.random.Generator) -> pl.Series | pl.Expr:
    if name in ("study", *WORDS):
        return pl.lit(WORDS.get(name, STUDY)).alias(name)
    if name == "weight":
        return pl.lit(1 / len(IMAGES)).alias(name)
    if name in ("path", "native_path"):
        folder = "derivatives/study/sub/anat/{}_res-prepared_desc-{}_relmap.nii.gz"
        return pl.format(folder, "scan", pl.int_range(pl.len()) % 7).alias(name)
    if name in ("sha256", "fingerprint", "result"):
        return pl.Series(name, [random.bytes(16).hex() for _ in range(frame.height)])
    if name == "started":
        return pl.lit(datetime(2026, 1, 1), dtype=dtype).alias(name)
    if dtype == pl.Boolean:
        return pl.lit(True).alias(name)
    if dtype.is_integer():
        return pl.Series(name, random.integers(0, 1000, frame.height))
    if dtype.is_float():
        return pl.Series(name, random.normal(size=frame.height))
    return pl.lit("text", dtype=pl.String).alias(name)


def fill(root: Path, scans: int) -> None:
    """Write all tables, as the store would, but without looking at every scan's rows."""
    for name, keys in PER_COHORT.items():
        _write(root, name, rows(TABLES[name], scans, keys), ["all"])
    for name, keys in PER_SCAN.items():
        frame = rows(TABLES[name], scans, keys)
        _write(root, name, frame, frame["scan"].unique(maintain_order=True).to_list())
    for stage in STAGES:
        frame = rows(TABLES["runs"], scans, {"asset": [stage]})
        frame = frame.with_columns(item=pl.format("sub-{}_ses-01", pl.int_range(pl.len()).cast(pl.String).str.zfill(5)))
        _write(root, "runs", frame, [f"{stage}__{item}" for item in frame["item"]])


def _write(root: Path, table: str, frame: pl.DataFrame, partitions: list[str]) -> None:
    folder = root / table / STUDY
    folder.mkdir(parents=True, exist_ok=True)
    each = frame.height // len(partitions)
    for number, partition in enumerate(partitions):
        frame.slice(number * each, each).write_parquet(folder / f"{partition}.parquet")


# --------------------------------------------------------------------------------------------------------- measuring
def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def change(store: Store, table: str, partitions: int) -> None:
    """Write some partitions again, spread over the table."""
    names = store.partitions(table, STUDY)
    for name in names[:: max(1, len(names) // partitions)][:partitions]:
        store.write(table, STUDY, name, store.read(table, STUDY, name))


def reading(root: Path, table: str) -> dict[str, float]:
    """Seconds of reading one whole table."""
    store = Store(root)
    shutil.rmtree(root / ".cache" / table, ignore_errors=True)
    found = {"files": float(len(store.files(table, STUDY))), "cold": seconds(lambda: store.read(table, STUDY))}
    found["rows"] = float(store.read(table, STUDY).height)
    found["warm"] = statistics.median(seconds(lambda: store.read(table, STUDY)) for _ in range(3))
    change(store, table, 1)
    return found | {"one changed": seconds(lambda: store.read(table, STUDY))}


def publishing(root: Path) -> dict[str, float]:
    """Seconds and MB of publishing once."""
    before = time.process_time()
    took = seconds(lambda: publish(root, root.parent / "results.duckdb", SQL))
    processor = time.process_time() - before
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"seconds": took, "processor": processor, "MB": int(status["VmHWM"].split()[0]) / 2**10}


def alone(*arguments: str) -> dict[str, float]:
    """What this program measures in a process of its own: a peak of memory cannot be reset."""
    command = [sys.executable, __file__, "--measure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure(folder: Path, scans: int, changed: int) -> dict[str, Any]:
    root = folder / "tables"
    began = time.perf_counter()
    fill(root, scans)
    say(f"{scans} scans: written in {time.perf_counter() - began:.0f} s")
    time.sleep(3)  # the store does not remember files that are younger than two seconds
    found: dict[str, Any] = {"scans": scans, "tables": {}}
    for table in [*PER_SCAN, "runs"]:
        found["tables"][table] = alone("reading", str(root), table)
        say(f"{table}: {found['tables'][table]}")
    shutil.rmtree(root / ".cache")
    found["cold"] = alone("publishing", str(root))
    found["nothing changed"] = alone("publishing", str(root))
    for table in [*PER_SCAN, "runs"]:
        change(Store(root), table, changed)
    found[f"{changed} of each table changed"] = alone("publishing", str(root))
    found["database_mb"] = (folder / "results.duckdb").stat().st_size / 2**20
    found["cache_mb"] = sum(path.stat().st_size for path in (root / ".cache").rglob("*") if path.is_file()) / 2**20
    return found


# ---------------------------------------------------------------------------------------------------------- printing
def show(found: dict[str, Any]) -> None:
    console = Console(width=110)
    printed = Printed(title=f"Reading a whole table, {found['scans']} scans, seconds")
    columns = ["files", "rows", "cold", "warm", "one changed"]
    for heading in ["table", *columns]:
        printed.add_column(heading, justify="left" if heading == "table" else "right")
    for name, values in found["tables"].items():
        cells = [f"{values[c]:,.0f}" if c in ("files", "rows") else f"{values[c]:.3f}" for c in columns]
        printed.add_row(name, *cells)
    console.print(printed)
    printed = Printed(title=f"Publishing, {found['scans']} scans ({found['database_mb']:.0f} MB database, "
                      f"{found['cache_mb']:.0f} MB cache)")  # fmt: skip
    for heading in ("since the last reading", "seconds", "of a processor", "MB at most"):
        printed.add_column(heading, justify="left" if heading.startswith("since") else "right")
    for name, values in found.items():
        if isinstance(values, dict) and "MB" in values:
            label = "no cache" if name == "cold" else name
            printed.add_row(label, f"{values['seconds']:.1f}", f"{values['processor']:.1f}", f"{values['MB']:.0f}")
    console.print(printed)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, nargs="+", default=[1381, 10000])
    parser.add_argument("--changed", type=int, default=64, help="partitions of each table changed before publishing")
    parser.add_argument("--folder", type=Path, help="where the files are made and removed; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, root, *table = options.measure
        result = reading(Path(root), *table) if what == "reading" else publishing(Path(root))
        print(json.dumps(result))
        return
    found = []
    for scans in options.scans:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found.append(measure(Path(folder), scans, options.changed))
        show(found[-1])
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
