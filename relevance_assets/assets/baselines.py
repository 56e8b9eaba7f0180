"""What the network has to beat, on the same split: predict the training mean; ridge regression on coarse voxels.

Belongs here: which scans each baseline learns from. Does not belong here: the baselines (`statistics/baselines.py`).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from relevance_assets.assets.models import samples
from relevance_assets.assets.workspace import Workspace

__all__ = ["baseline_predictions"]


def baseline_predictions(workspace: Workspace) -> pl.DataFrame:
    """Rows like table `predictions` for models `mean` and `ridge`, each fold fitted on its own training scans."""
    from relevance_assets.imaging.volumes import load_volume
    from relevance_assets.statistics.baselines import coarsen, fit_mean, fit_ridge

    study = workspace.study
    own = workspace.read("predictions").filter(pl.col("model") == study.network.name).sort("fold", "scan")
    scans = own["scan"].unique().sort().to_list()
    data = samples(workspace, scans)
    person = dict(workspace.read("scans").select("scan", "participant_id").iter_rows())
    place = {scan: index for index, scan in enumerate(scans)}
    volumes = workspace.read("volumes")
    coarse_mm = study.statistics.ridge_voxel_size_mm
    assert coarse_mm is not None
    factors = [max(1, round(coarse_mm / volumes[f"voxel_{axis}_mm"][0])) for axis in "xyz"]
    images = np.stack(
        [np.stack([coarsen(load_volume(path)[0], factors) for path in paths]) for paths in data.images]
    ).astype(np.float32)
    kind = study.target.of_one_output
    frames = []
    for _, rows in own.group_by("fold", maintain_order=True):
        at = [place[scan] for scan in rows["scan"]]
        learn = [place[scan] for scan in rows.filter(pl.col("set") == "train")["scan"]]
        targets = data.targets[learn].astype(np.float64)
        ridge = fit_ridge(
            images[learn],
            targets,
            kind=kind,
            participants=[person[scans[index]] for index in learn],
            seed=study.split.seed,
        )
        outputs = {"mean": np.full(len(at), fit_mean(targets, kind)), "ridge": ridge.predict(images[at])}
        frames += [
            rows.drop("study").with_columns(
                model=pl.lit(name), output=pl.Series(values), probability=pl.lit(None, pl.Float64)
            )
            for name, values in outputs.items()
        ]
    return pl.concat(frames)
