"""The stage `heat_maps`: where the most relevant voxels lie in template space, by group, and two scans to look at.

Belongs here: who is in which group, and where files lie. Does not belong here: frequencies (`evidence/heatmap.py`),
regions (`imaging/atlas.py`), the comparison of groups (`statistics/voxelwise.py`), drawing (`report/`).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.models import people
from relevance_assets.assets.relevance import read_maps
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each, tick
from relevance_assets.assets.workspace import COMBINED, Workspace
from relevance_assets.files import fingerprint, sha256, sidecar, write_json

if TYPE_CHECKING:
    import numpy as np

    from relevance_assets.evidence.heatmap import MaskedScan
    from relevance_assets.imaging.atlas import Atlas
    from relevance_assets.report.figures_brain import OverlayScan

__all__ = ["heat_map_stages"]

MILD, SEVERE = "mild", "severe"
DIFFERENCE = f"{SEVERE} - {MILD}"
SPACE = "MNI152NLin2009aSym"
OFTEN = 0.25  # share of scans above which a voxel counts as often among the most relevant


def heat_map_stages(workspace: Workspace) -> list[Stage]:
    return [_heat_maps(workspace)] if workspace.study.heat_map else []


def _heat_maps(workspace: Workspace) -> Stage:
    study = workspace.study
    settings = study.heat_map
    assert settings is not None
    figures = {name: workspace.figure_path(name) for name in ("heatMap", "scanOverlays")}

    def template_path(name: str) -> Path:
        folder = workspace.home.derivatives(study.name) / "template"
        return folder / f"tpl-{SPACE}_desc-{name}_heatmap.nii.gz"

    def inputs(_: str) -> Any:
        masks = workspace.results("quantile_masks")
        if not masks:
            raise NotReady("no masks yet: quantile_masks")
        said = workspace.results("predictions")
        atlas = [sha256(path) for path in (settings.atlas, settings.atlas_names) if path]
        return [masks, said, _groups(workspace).rows(), settings.model_dump(mode="json"), atlas]

    def make(_: str) -> Done:
        import numpy as np

        from relevance_assets.assets.metadata import picture
        from relevance_assets.evidence.heatmap import difference, group_frequencies
        from relevance_assets.imaging.atlas import region_table
        from relevance_assets.imaging.volumes import save_volume
        from relevance_assets.report.figures import save, thumbnail
        from relevance_assets.report.figures_brain import heatmap_figure, scan_overlays_figure

        groups = _groups(workspace)
        missing = {MILD, SEVERE} - set(groups["group"])
        if missing:
            raise ValueError(f"heat_maps: no {missing.pop()} scan has masks; two groups are needed")
        template, affine = _template(settings.voxel_size_mm)
        shape = (template.shape[0], template.shape[1], template.shape[2])
        tick(0.1, "masks to the template")
        frequencies = group_frequencies(_masked(workspace, groups), shape, affine)
        maps = {name: found.values for name, found in frequencies.items()}
        maps[DIFFERENCE] = difference(frequencies)
        tick(0.4, "groups compared voxel by voxel")
        p = _compare(workspace, groups, shape, affine)
        atlas = _atlas(workspace, shape, affine)
        regions = region_table(maps, atlas, OFTEN).with_columns(p_corrected=pl.lit(None, pl.Float64))
        least = {
            name: float(p[atlas.labels == label].min()) for label, name in atlas.names.items() if _has(atlas, label)
        }
        regions = regions.with_columns(
            p_corrected=pl.when(pl.col("group") == DIFFERENCE).then(
                pl.col("region").replace_strict(least, default=None, return_dtype=pl.Float64)
            )
        )
        content = {
            "Description": "Share of a group's scans whose mask of the most relevant voxels holds the voxel",
            "Method": settings.method,
            "Map": settings.map,
            "TopPercent": settings.top_percent,
            "Seed": settings.seed,
            "CodeVersion": version("relevance-assets"),
        }
        hashes = []
        for name, values in {**maps, "p": p.astype(np.float32)}.items():
            path = template_path(name.replace(f"{SEVERE} - {MILD}", "difference"))
            save_volume(path, values, affine)
            write_json(sidecar(path), content | {"Group": name})
            hashes.append(sha256(path))
        tick(0.8, "figures")
        labels = [f"{name}, {frequencies[name].scans} scans" for name in (MILD, SEVERE)]
        figure = heatmap_figure(
            maps[MILD],
            maps[SEVERE],
            maps[DIFFERENCE],
            template,
            affine,
            labels=(labels[0], labels[1], "severe − mild"),
            significant=p < 0.05 if (p < 0.05).any() else None,
        )
        save(figure, figures["heatMap"])
        mask_label = f"top {settings.top_percent} % of the {settings.map} map"
        overlays = scan_overlays_figure(
            _two_scans(workspace, groups), [contrast.name for contrast in study.contrasts], mask_label
        )
        save(overlays, figures["scanOverlays"])
        often = regions.filter(pl.col("group") != DIFFERENCE).sort("mean", descending=True, nulls_last=True).head(3)
        return Done(
            tables={"region_frequencies": regions},
            result=fingerprint(regions.rows(), hashes, [sha256(path) for path in figures.values()]),
            metadata={
                "scans_mild": frequencies[MILD].scans,
                "scans_severe": frequencies[SEVERE].scans,
                "smallest_p": float(p.min()),
                "most_often": ", ".join(f"{row['region']} ({row['group']})" for row in often.iter_rows(named=True)),
                "heat_map": picture(thumbnail(figures["heatMap"]), "How often voxels are most relevant"),
                "two_scans": picture(thumbnail(figures["scanOverlays"]), "One mild and one severe scan"),
            },
        )

    return Stage(
        name="heat_maps",
        version="1",
        description="How often each voxel of the MNI152 template is among the most relevant, in mild and severe scans, "
        "and the difference: by region, and voxel by voxel with permutations.",
        tables=("region_frequencies",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        outputs=lambda _: [*figures.values(), template_path(MILD), template_path(SEVERE)],
        needs=("quantile_masks", "predictions"),
        kinds=frozenset({"nifti", "matplotlib"}),
        group="statistics",
    )


def _has(atlas: Atlas, label: int) -> bool:
    return bool((atlas.labels == label).any())


def _groups(workspace: Workspace) -> pl.DataFrame:
    """Scans with masks: scan, participant_id, target, group; in order of the scan."""
    threshold = workspace.study.cohort.target.threshold
    frame = people(workspace, sorted(workspace.results("quantile_masks")))
    severe = pl.when(pl.col("target") >= threshold).then(pl.lit(SEVERE)).otherwise(pl.lit(MILD))
    return frame.select("scan", "participant_id", "target", severe.alias("group"))


def _template(voxel_size_mm: int) -> tuple[np.ndarray, np.ndarray]:
    """The template's T1w image and its affine, on a grid of this voxel size."""
    import numpy as np
    from nilearn.datasets import load_mni152_template
    from nilearn.image import get_data

    image = load_mni152_template(resolution=voxel_size_mm)
    return np.asarray(get_data(image), dtype=np.float32), np.asarray(image.affine)


def _masked(workspace: Workspace, groups: pl.DataFrame) -> Iterator[MaskedScan]:
    """Every scan's mask, one at a time. Prepared volumes are taken to lie in template space."""
    from relevance_assets.evidence.heatmap import MaskedScan
    from relevance_assets.imaging.volumes import load_volume

    settings = workspace.study.heat_map
    assert settings is not None
    for scan, group in groups.select("scan", "group").iter_rows():
        levels, affine = load_volume(workspace.quantiles_path(scan, settings.method, settings.map))
        yield MaskedScan(group, (levels > 0) & (levels <= settings.top_percent), affine)


def _compare(workspace: Workspace, groups: pl.DataFrame, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Corrected p of the difference between groups at every voxel of the template's grid; 1 outside the brain.

    Tested on a coarser grid: masks are as coarse, and memory goes with the number of voxels.
    """
    import numpy as np
    from nilearn.datasets import load_mni152_brain_mask
    from nilearn.image import get_data

    from relevance_assets.evidence.heatmap import to_template
    from relevance_assets.imaging.grid import Grid, resample
    from relevance_assets.statistics.voxelwise import voxelwise_groups

    settings = workspace.study.heat_map
    assert settings is not None
    image = load_mni152_brain_mask(resolution=settings.test_voxel_size_mm)
    brain, coarse = get_data(image) > 0, np.asarray(image.affine)
    first = groups.unique("participant_id", keep="first", maintain_order=True)
    severe = (first["group"] == SEVERE).to_numpy()
    p = np.ones(brain.shape)
    if min(severe.sum(), (~severe).sum()) >= 2:  # else there is nothing to permute
        rows = [to_template(one.mask, one.affine, brain.shape, coarse)[brain] for one in _masked(workspace, first)]
        found = voxelwise_groups(
            np.stack(rows),
            severe,
            permutations=settings.permutations,
            seed=settings.seed,
            tfce=settings.tfce,
            brain=brain,
        )
        p[brain] = 10.0 ** -(found.logp if found.logp_tfce is None else found.logp_tfce)
    target = Grid(shape, affine)
    return 1 - resample(1 - p, Grid(brain.shape, coarse), target, 0)  # outside it is 0, which is p = 1


def _atlas(workspace: Workspace, shape: tuple[int, int, int], affine: np.ndarray) -> Atlas:
    from relevance_assets.imaging.atlas import approximate_atlas, load_atlas

    settings = workspace.study.heat_map
    assert settings is not None
    if settings.atlas is None:
        return approximate_atlas(shape, affine)
    if settings.atlas_names is None:
        raise ValueError("heat_map.atlas_names: name the atlas's dseg.tsv with the columns index and name")
    return load_atlas(settings.atlas, settings.atlas_names).on_grid(shape, affine)


def _two_scans(workspace: Workspace, groups: pl.DataFrame) -> list[OverlayScan]:
    """Of each group the scan that the models, which never saw it, classify most surely right."""
    import numpy as np

    from relevance_assets.imaging.volumes import load_volume
    from relevance_assets.report.figures_brain import OverlayScan

    study = workspace.study
    settings = study.heat_map
    assert settings is not None
    said = workspace.read("predictions").filter((pl.col("set") != "train") & (pl.col("model") == study.model.name))
    outputs = said.group_by("scan").agg(pl.col("output").mean(), pl.col("probability").mean())
    found = []
    for group, sign in ((MILD, -1), (SEVERE, 1)):
        rows = groups.filter(pl.col("group") == group).join(outputs, on="scan")
        row = rows.sort(pl.col("output") * sign, "scan", descending=[True, False]).row(0, named=True)
        scan = row["scan"]
        images = np.stack([load_volume(path)[0] for path in workspace.prepared_paths(scan)])
        maps = read_maps(workspace, scan, settings.method)
        named = np.stack([maps[contrast.name] for contrast in study.contrasts])
        levels, affine = load_volume(workspace.quantiles_path(scan, settings.method, settings.map))
        title = f"{group.capitalize()}: {scan}, {study.cohort.target.column} {row['target']:g}, "
        found.append(
            OverlayScan(
                title=title + f"predicted probability of {SEVERE} {row['probability']:.2f}",
                images=images,
                maps=named,
                combined=maps.get(COMBINED, named.sum(axis=0)),
                mask=(levels > 0) & (levels <= settings.top_percent),
                affine=affine,
            )
        )
    return found
