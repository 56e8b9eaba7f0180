"""Memory of a study's stages against the number of scans: the whole chain on a small grid, in a process of its own.

Belongs here: the small cohort, and the process that is measured. Does not belong here: tables (`disability.py`).

Every stage up to the heat maps is the real one and makes its scans one after the other, all in one process; only the
networks are not trained but drawn at random, for training keeps images in memory up to a bound that a user sets
(`training.cache_gb`). Run as a program it is the process that is measured; only `peak_memory` does so.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from stand_in import write_people

from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.chunks import CHUNK
from relevance_assets.assets.stages import Done, Stage, each, run_items
from relevance_assets.assets.workspace import TRUTH, Workspace
from relevance_assets.configuration import load_studies, remember
from relevance_assets.files import sha256
from relevance_assets.home import Home

__all__ = ["Memory", "peak_memory"]

SIDE, VOXEL_MM = 16, 12
IMAGES = {"T1map": 2500.0, "MWFmap": 0.3, "model-noddi_param-ICVF_dwimap": 1.0}  # and the top of their scale
STAGES = (
    "participants", "raw_scans", "prepared_volumes", "splits", "trained_models", "predictions", "relevance_maps",
    "quantile_masks", "inversions", "heat_maps",
)  # fmt: skip


class Memory(NamedTuple):
    """MB resident after a stage (`resident`), the most so far (`peak`), and the stage's seconds, by stage."""

    resident: dict[str, float]
    peak: dict[str, float]
    seconds: dict[str, float]


def peak_memory(folder: Path, scans: int) -> Memory:
    """Make so many scans below `folder` and run the study on them in a new process."""
    make_cohort(folder / "bids", scans)
    home = Home(folder / "home")
    settings = {
        "cohort.bids": str(folder / "bids"),
        "preparation.resample.voxel_size_mm": [VOXEL_MM] * 3,
        "preparation.crop_or_pad.shape": [SIDE] * 3,
        # how long it takes goes with these, memory with the number of scans does not
        "split.test_share": 0.05,  # a test scan is explained by every fold's model
        "model.options.blocks": [1],
        **{f"methods.{name}.composite.steps": 2 for name in ("ig_attention", "ig_output")},
        "masks.top_percents": [40],
        "inversion.top_percents": [40],
        "inversion.random_draws": 2,
        "heat_map.permutations": 100,
    }
    remember(home, "disability", settings)
    environment = os.environ | {"RELEVANCE_WORKERS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), str(home.root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"memory of {scans} scans: not measured: {done.stderr.strip()[-2000:]}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def make_cohort(bids: Path, scans: int) -> None:
    """Noise in a ball for a brain, one scan per person, and a truth: small balls."""
    from relevance_assets.imaging.volumes import save_volume

    affine = np.diag([VOXEL_MM] * 3 + [1.0])
    affine[:3, 3] = np.array([0, -18, 18]) - VOXEL_MM * (SIDE - 1) / 2  # the middle of MNI152
    place = np.indices([SIDE] * 3) - (SIDE - 1) / 2
    brain = (place**2).sum(axis=0) <= (SIDE / 2 - 1) ** 2
    truths = {"disability": 3, "decoy": -3, "lesion": 0}
    for number in range(1, scans + 1):
        random = np.random.default_rng(number)
        name = f"sub-{number:05d}"
        for image, top in IMAGES.items():
            values = (0.1 + 0.8 * random.random(brain.shape)) * top * brain
            save_volume(bids / name / "anat" / f"{name}_{image}.nii.gz", values.astype(np.float32), affine)
        for region, middle in truths.items():
            mask = ((place - middle) ** 2).sum(axis=0) <= 4
            path = bids / "derivatives" / TRUTH / name / "anat" / f"{name}_label-{region}_mask.nii.gz"
            save_volume(path, mask.astype(np.uint8), affine)
    write_people(bids)


# ----------------------------------------------------------------------------------------- the process that is measured
def main(root: Path) -> None:
    import torch

    torch.set_num_threads(1)
    home = Home(root)
    workspace = Workspace(load_studies(home)["disability"], home)
    memory = Memory({}, {}, {})
    for stage in study_stages(workspace):
        if stage.name not in STAGES:
            continue
        began = time.process_time()
        one = _untrained(workspace, stage) if stage.name == "trained_models" else stage
        items = one.items()
        for start in range(0, len(items), CHUNK):  # as runs of Dagster have them, which take what is shown of each
            failed = [o for o in run_items(workspace, one, items[start : start + CHUNK]) if o.outcome != "ok"]
            if failed:
                raise RuntimeError(f"{stage.name} {failed[0].item}: {failed[0].reason}")
        gc.collect()
        memory.seconds[stage.name] = time.process_time() - began
        memory.resident[stage.name], memory.peak[stage.name] = _resident()
    print(json.dumps(memory._asdict()))


def _untrained(workspace: Workspace, stage: Stage) -> Stage:
    """The stage of the networks, with fresh weights."""
    from relevance_assets.training.checkpoint import Description, save

    study = workspace.study
    shape = study.shape
    assert shape is not None

    def make(fold: str) -> Done:
        import torch

        torch.manual_seed(int(fold))
        numbers = (shape, len(study.contrasts), len(study.cohort.covariates))
        description = Description(study.model.name, study.model.options, *numbers, "binary", 0.0, int(fold))
        path = workspace.home.model(study.name, int(fold)) / "model.pt"
        save(path, description, description.build().state_dict())
        row: dict[str, Any] = {"model": study.model.name, "fold": fold, "path": workspace.relative(path)}
        row |= {"sha256": sha256(path), "parameters": 1, "device": "cpu", "seconds": 0.0, "seed": 0, "best_epoch": 1}
        return Done({"models": pl.DataFrame([row])}, row["sha256"])

    return replace(stage, work=each(make))


def _resident() -> tuple[float, float]:
    """MB resident now, and at most until now; `getrusage` would count the parent's libraries (see `measure.py`)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(lines[key].split()[0]) / 2**10 for key in ("VmRSS", "VmHWM"))
    return now, most


if __name__ == "__main__":
    main(Path(sys.argv[1]))
