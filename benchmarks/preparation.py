"""What preparing a scan costs: processor time per step, wall time of 100 scans with 1 and 2 workers, memory.

Belongs here: heads made of the template, the runs that are measured, the tables. Does not belong here: the steps.

The stages are the real ones, one after the other, without Dagster. Heads have a skull and scalp of simple shells, a
bias field, Rician noise, and lie askew in an oblique grid, so that no step is needless. `--bids` takes real scans.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from stand_in import write_people

from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.stages import Outcome, run_items
from relevance_assets.assets.workspace import Workspace
from relevance_assets.configuration import load_studies, remember
from relevance_assets.home import Home
from relevance_assets.imaging.template import template
from relevance_assets.imaging.volumes import save_volume

RECIPE: list[dict[str, Any]] = [
    {"step": "reorient"},
    {"step": "brain_mask", "source": "template"},
    {"step": "bias_field"},
    {"step": "register", "kind": "deformable", "voxel_size_mm": 2},
    {"step": "resample", "voxel_size_mm": [2, 2, 2]},
    {"step": "crop_or_pad", "shape": [96, 112, 96], "centre": "brain"},
    {"step": "scale"},
]
LIMIT_CPU_S, LIMIT_MB = 35.0, 1536.0  # per scan, per worker; at 2 mm


def make_heads(bids: Path, scans: int) -> None:
    """`scans` people with one T1w of 2 mm each; anatomy, place, bias and noise differ."""
    for number in range(1, scans + 1):
        name = f"sub-{number:05d}"
        values, affine = head(np.random.default_rng(number))
        save_volume(bids / name / "anat" / f"{name}_T1w.nii.gz", values, affine)
    write_people(bids)


def head(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A head of the template's brain and shells around it, float32, and its affine."""
    space = template(2)
    mask = np.pad(space.brain, 12)
    brain = np.pad(space.t1w, 12) / np.percentile(space.t1w[space.brain], 95)
    depth = ndimage.distance_transform_edt(~mask, sampling=2)
    tissue = np.select([depth == 0, depth < 3, depth < 8, depth < 14], [brain, 0.15, 0.08, 0.9], 0.0)
    smooth = [ndimage.gaussian_filter(random.normal(size=mask.shape), 7) for _ in range(4)]
    field = [f / np.abs(f).max() * 2.5 for f in smooth[:3]]  # voxels, of 2 mm
    places = [index + move for index, move in zip(np.indices(mask.shape), field, strict=True)]
    warped = ndimage.map_coordinates(tissue.astype(np.float32), places, order=1)
    biased = warped * np.exp(0.25 * smooth[3] / smooth[3].std())
    noisy = np.hypot(biased + random.normal(0, 0.03, mask.shape), random.normal(0, 0.03, mask.shape))
    affine = space.grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ (12, 12, 12)
    angle = np.radians(random.uniform(-12, 12))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = random.uniform(-12, 12, 3)
    return (1000 * noisy).astype(np.float32), turn @ affine


def prepared(bids: Path, root: Path, workers: int, **settings: Any) -> tuple[Workspace, list[Outcome], float, float]:
    """Prepare all scans in a new home, and again, when nothing is to be done; what came of it and seconds of both."""
    os.environ["RELEVANCE_WORKERS"] = str(workers)
    home = Home(root)
    remember(home, "brain_age", {"cohort.bids": str(bids), "preparation": RECIPE} | settings)
    workspace = Workspace(load_studies(home)["brain_age"], home)
    stages = {stage.name: stage for stage in study_stages(workspace)}
    for name in ("participants", "raw_scans"):
        run_items(workspace, stages[name], stages[name].items())
    stage = stages["prepared_volumes"]
    clock = time.perf_counter()
    outcomes = run_items(workspace, stage, stage.items())
    first = time.perf_counter() - clock
    run_items(workspace, stage, stage.items())
    return workspace, outcomes, first, time.perf_counter() - clock - first


def run(bids: Path, root: Path, workers: int) -> dict[str, Any]:
    """The figures of one run."""
    workspace, outcomes, first, again = prepared(bids, root, workers)
    return {
        "scans": len(outcomes),
        "failed": [f"{one.item}: {one.reason}" for one in outcomes if one.outcome != "ok"],
        "seconds": first,
        "again": again,
        "steps": workspace.read("preparation_steps"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=10, help="heads to make")
    parser.add_argument("--bids", type=Path, help="real scans with T1w instead")
    parser.add_argument("--json", type=Path, help="where the figures go as well")
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        bids = given.bids.resolve() if given.bids else Path(folder) / "bids"
        if not given.bids:
            make_heads(bids, given.scans)
        runs = {workers: run(bids, Path(folder) / f"home{workers}", workers) for workers in (1, 2)}
    alone = runs[1]
    by_step = (
        alone["steps"]
        .group_by("place", "step")
        .agg(pl.col("cpu_seconds").median().alias("median"), pl.col("cpu_seconds").max().alias("most"))
        .sort("place")
    )
    per_scan = alone["steps"].group_by("scan").agg(pl.col("cpu_seconds").sum())["cpu_seconds"]
    table = Table("step", "CPU s, median", "most", title=f"One scan, {alone['scans']} of them")
    for _, step, median, most in by_step.iter_rows():
        table.add_row(step, f"{median:.2f}", f"{most:.2f}")
    table.add_row("all steps", f"{per_scan.median():.1f}", f"{per_scan.max():.1f}")
    console.print(table)
    table = Table("workers", "100 scans, min", "again, s", "peak MB of a worker", title="All of the stage")
    for workers, figures in runs.items():
        minutes = figures["seconds"] / figures["scans"] * 100 / 60
        table.add_row(
            str(workers), f"{minutes:.1f}", f"{figures['again']:.2f}", f"{figures['steps']['peak_mb'].max():.0f}"
        )
    console.print(table)
    missed = False
    cpu, memory = float(per_scan.median()), max(float(f["steps"]["peak_mb"].max()) for f in runs.values())
    for name, value, limit in (("CPU s per scan", cpu, LIMIT_CPU_S), ("peak MB", memory, LIMIT_MB)):
        missed |= value > limit
        console.print(f"{name}: {value:.1f}, limit {limit:g}: {'kept' if value <= limit else 'MISSED'}")
    for line in alone["failed"]:
        console.print(line)
        missed = True
    if given.json:
        content = {
            "steps": {step: [median, most] for _, step, median, most in by_step.iter_rows()},
            "cpu_seconds": per_scan.to_list(),
            "minutes_per_100": {w: f["seconds"] / f["scans"] * 100 / 60 for w, f in runs.items()},
            "peak_mb": {w: f["steps"]["peak_mb"].max() for w, f in runs.items()},
        }
        given.json.write_text(json.dumps(content, indent=2) + "\n")
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
