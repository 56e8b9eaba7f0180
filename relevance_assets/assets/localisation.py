"""The stage `localisation`: whether relevance lies in regions whose truth is known.

Belongs here: which regions of which scan are compared with which maps. Does not belong here: the measures
(`evidence/localisation.py`), their summary over scans (`statistics.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.relevance import read_maps
from relevance_assets.assets.spaces import geometry_of
from relevance_assets.assets.stages import Done, NotReady, Stage, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint, sha256

__all__ = ["localisation_stages"]

SHIFTS = 20  # places to which a region is moved to see what chance gives


def localisation_stages(workspace: Workspace) -> list[Stage]:
    return [_localisation(workspace)] if workspace.study.cohort.truth_regions else []


def _localisation(workspace: Workspace) -> Stage:
    study = workspace.study

    def truth(scan: str) -> dict[str, Any]:
        found = {region: workspace.truth_path(scan, region) for region in study.cohort.truth_regions}
        missing = [path for path in found.values() if not path.exists()]
        if missing:
            raise NotReady(f"{scan}: no planted truth at {missing[0]}; leave cohort.truth_regions out for real scans")
        return found

    def inputs(scan: str) -> Any:
        hashes = {region: sha256(path) for region, path in truth(scan).items()}
        return [upstream(workspace, "relevance_maps", scan), hashes, study.statistics.seed, SHIFTS]

    def make(scan: str) -> Done:
        import numpy as np

        from relevance_assets.evidence.localisation import localise
        from relevance_assets.imaging.geometry import to_prepared_labels
        from relevance_assets.imaging.volumes import load_volume

        brain, _ = load_volume(workspace.mask_path(scan))
        geometry = geometry_of(workspace, scan)
        regions = {name: to_prepared_labels(path, geometry) > 0 for name, path in truth(scan).items()}
        maps = {(m, name): values for m in study.methods for name, values in read_maps(workspace, scan, m).items()}
        random = np.random.default_rng([study.statistics.seed, *fingerprint(scan).encode()])
        found = localise(maps, regions, brain > 0, shifts=SHIFTS, random=random)
        frame = pl.DataFrame(found, infer_schema_length=None).with_columns(
            pl.col("value", "chance", "chance_even").cast(pl.Float64),
            method=pl.Series([row["map"][0] for row in found]),
            contrast=pl.Series([row["map"][1] for row in found]),
            scan=pl.lit(scan),
        )
        volumes = [{"scan": scan, "region": name, "volume_mm3": _volume(path)} for name, path in truth(scan).items()]
        first = next(iter(study.methods))
        shown = frame.filter(
            (pl.col("method") == first)
            & (pl.col("contrast") == workspace.map_contrasts(first)[-1])
            & (pl.col("metric") == "share_of_positive")
            & pl.col("value").is_not_null()
        )
        return Done(
            tables={"localisation": frame.drop("map"), "region_volumes": pl.DataFrame(volumes)},
            result=fingerprint(frame.drop("map").rows(), volumes),
            metadata={
                f"{first}_{row['region']}": f"{row['value']:.3f} (even spread {row['chance_even']:.3f})"
                for row in shown.iter_rows(named=True)
            },
        )

    return Stage(
        name="localisation",
        version="2",
        description="Whether relevance lies in regions whose truth is known: its share, the rank of its voxels, "
        "overlap, pointing game and ROC area, each beside the same region shifted elsewhere. Synthetic scans only.",
        tables=("localisation", "region_volumes"),
        items=lambda: sorted(workspace.results("relevance_maps")),
        inputs=inputs,
        work=each(make),
        partition="scan",
        parallel=True,
        needs=("relevance_maps",),
        kinds=frozenset({"nifti", "numpy"}),
        group="relevance",
    )


def _volume(label: Path) -> float:
    """Of a label's voxels, mm³."""
    import numpy as np

    from relevance_assets.imaging.volumes import load_volume

    values, affine = load_volume(label)
    return float((values > 0).sum() * abs(np.linalg.det(affine[:3, :3])))
