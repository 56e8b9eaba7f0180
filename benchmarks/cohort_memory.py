"""Memory of a study's stages against the number of scans: the whole chain on a small grid, in a process of its own.

Belongs here: the small cohort, and the process that is measured. Does not belong here: tables (`disability.py`).

The stages and their tables are the real ones, with all percents, draws, permutations and resamples of the study, one
after the other in one process. Three things are not: networks are drawn at random, not trained, for training keeps
images in memory up to a bound that a user sets (`training.cache_gb`); what they say of inverted images is drawn at
random, though the images are made; and `sanity`, which trains two networks on as many scans as a user sets, is left
out. Dagster, its checks and publishing are not measured here. Run as a program it is the process that is measured;
only `peak_memory` does so.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
PERCENTS = list(range(10, 101, 10))
LEFT_OUT = ("sanity",)


class Memory(NamedTuple):
    """By stage: MB resident after it (`resident`), the most during it (`peak`), its seconds, rows of its main table."""

    resident: dict[str, float]
    peak: dict[str, float]
    seconds: dict[str, float]
    rows: dict[str, int]


def peak_memory(folder: Path, scans: int) -> Memory:
    """Make so many scans below `folder` and run the study on them in a new process."""
    make_cohort(folder / "bids", scans)
    home = Home(folder / "home")
    settings = {
        "cohort.bids": str(folder / "bids"),
        "preparation.resample.voxel_size_mm": [VOXEL_MM] * 3,
        "preparation.crop_or_pad.shape": [SIDE] * 3,
        "inversion.top_percents": PERCENTS,
        # how long a scan takes goes with these, the rows that it leaves do not
        "model.options.blocks": [1],
        **{f"methods.{name}.composite.steps": 2 for name in ("ig_attention", "ig_output")},
    }
    remember(home, "disability", settings)
    environment = os.environ | {"RELEVANCE_WORKERS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), str(home.root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"memory of {scans} scans: not measured: {done.stderr.strip()[-2000:]}")
    workspace = Workspace(load_studies(home)["disability"], home)
    rows = {stage.name: workspace.read(stage.tables[0]).height for stage in _stages(workspace)}
    return Memory(**json.loads(done.stdout.splitlines()[-1]), rows=rows)


def make_cohort(bids: Path, scans: int) -> None:
    """Noise in a ball for a brain, one scan per person, and a truth: balls, of which people have larger and smaller."""
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
            mask = ((place - middle) ** 2).sum(axis=0) <= 2 + number % 5
            path = bids / "derivatives" / TRUTH / name / "anat" / f"{name}_label-{region}_mask.nii.gz"
            save_volume(path, mask.astype(np.uint8), affine)
    write_people(bids)
    people = pl.read_csv(bids / "participants.tsv", separator="\t")
    sexes = pl.Series("sex", ["FM"[number % 2] for number in range(scans)])  # correlations are adjusted for it
    people.with_columns(sexes).write_csv(bids / "participants.tsv", separator="\t")


# ----------------------------------------------------------------------------------------- the process that is measured
def main(root: Path) -> None:
    import torch

    from relevance_assets.assets import inversion

    torch.set_num_threads(1)
    inversion.predictors = _guessing
    home = Home(root)
    workspace = Workspace(load_studies(home)["disability"], home)
    found: dict[str, dict[str, float]] = {"resident": {}, "peak": {}, "seconds": {}}
    for stage in _stages(workspace):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is cleared
        began = time.process_time()
        one = _untrained(workspace, stage) if stage.name == "trained_models" else stage
        items = one.items()
        for start in range(0, len(items), CHUNK):  # as runs of Dagster have them, which take what is shown of each
            failed = [o for o in run_items(workspace, one, items[start : start + CHUNK]) if o.outcome != "ok"]
            if failed:
                raise RuntimeError(f"{stage.name} {failed[0].item}: {failed[0].reason}")
        gc.collect()
        found["seconds"][stage.name] = time.process_time() - began
        found["resident"][stage.name], found["peak"][stage.name] = _resident()
    print(json.dumps(found))


def _stages(workspace: Workspace) -> list[Stage]:
    return [stage for stage in study_stages(workspace) if stage.name not in LEFT_OUT]


@contextmanager
def _guessing(workspace: Workspace, *, folded: bool = False) -> Iterator[Callable[[str], _Guess]]:
    """In the place of the models that see a scan's inversions: five hundred forwards of each would take minutes."""
    yield _Guess


class _Guess:
    """A model that takes every image, and says anything."""

    def __init__(self, fold: str) -> None:
        self.random = np.random.default_rng(int(fold))

    def outputs(self, batches: Iterable[np.ndarray], covariates: np.ndarray) -> np.ndarray:
        return self.random.normal(size=sum(len(batch) for batch in batches))


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
    """MB resident now, and at most since it was cleared; `getrusage` counts the parent's libraries (`measure.py`)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(lines[key].split()[0]) / 2**10 for key in ("VmRSS", "VmHWM"))
    return now, most


if __name__ == "__main__":
    main(Path(sys.argv[1]))
