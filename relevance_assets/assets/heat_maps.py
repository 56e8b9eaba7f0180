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
from relevance_assets.assets.spaces import stamp, transform_file, way_to_scan
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each, tick
from relevance_assets.assets.workspace import COMBINED, Workspace
from relevance_assets.files import fingerprint, sha256, sidecar, write_json
from relevance_assets.home import TEMPLATE_SPACE

if TYPE_CHECKING:
    import numpy as np

    from relevance_assets.evidence.heatmap import MaskedScan
    from relevance_assets.imaging.atlas import Atlas
    from relevance_assets.imaging.grid import Grid
    from relevance_assets.report.figures_brain import OverlayScan
    from relevance_assets.study import HeatMap

__all__ = ["heat_map_stages"]

MILD, SEVERE = "mild", "severe"
DIFFERENCE = f"{SEVERE} - {MILD}"
P = "p"
LABELS = {DIFFERENCE: "difference"}  # in names of files
DESCRIPTIONS = {
    MILD: "Share of a group's people whose mask of the most relevant voxels (first scan) holds the voxel",
    DIFFERENCE: "Share of severe people whose mask of the most relevant voxels (first scan) holds the voxel, minus "
    "that of mild people",
    P: "Two-sided p of the difference between the groups, by permutation, corrected over all voxels of the brain",
}
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
        return folder / f"tpl-{TEMPLATE_SPACE}_desc-{name}_heatmap.nii.gz"

    def inputs(_: str) -> Any:
        masks = workspace.results("quantile_masks")
        if not masks:
            raise NotReady("no masks yet: quantile_masks")
        said = workspace.results("predictions")
        atlas = [sha256(path) for path in (settings.atlas, settings.atlas_names) if path]
        groups = _groups(workspace)
        warps = [stamp(transform_file(workspace, scan)) for scan in groups["scan"]]
        return [masks, said, groups.rows(), warps, settings.model_dump(mode="json"), atlas]

    def make(_: str) -> Done:
        from relevance_assets.assets.metadata import picture
        from relevance_assets.cohort.visits import first_scans
        from relevance_assets.evidence.heatmap import difference, group_frequencies
        from relevance_assets.imaging.atlas import region_table
        from relevance_assets.imaging.grid import Grid
        from relevance_assets.report.figures import save, thumbnail
        from relevance_assets.report.figures_brain import heatmap_figure, scan_overlays_figure

        groups = _groups(workspace)
        first = first_scans(groups, "target")
        missing = sorted({MILD, SEVERE} - set(first["group"]))
        if missing:
            raise ValueError(f"heat_maps: no first scan with masks is {missing[0]}; two groups are needed")
        template, affine = _template(settings.voxel_size_mm)
        grid = Grid((template.shape[0], template.shape[1], template.shape[2]), affine)
        tick(0.1, "masks to the template")
        tested, shown = _brain(settings.test_voxel_size_mm), _brain(settings.voxel_size_mm)
        rows: list[np.ndarray] = []
        frequencies = group_frequencies(
            _collected(_masked(workspace, first, grid), tested, rows), grid.shape, affine, shown[0]
        )
        maps = {name: found.values for name, found in frequencies.items()}
        maps[DIFFERENCE] = difference(frequencies)
        people_of = {name: (found.scans, found.warped) for name, found in frequencies.items()}
        people_of[DIFFERENCE] = (first.height, sum(found.warped for found in frequencies.values()))
        tick(0.4, "groups compared voxel by voxel")
        p = _compare(settings, rows, (first["group"] == SEVERE).to_numpy(), tested, grid)
        atlas = _atlas(workspace, grid.shape, affine)
        regions = _with_people(region_table(maps, atlas, OFTEN), people_of)
        regions = regions.with_columns(p_corrected=_least(regions, atlas, p))
        hashes = []
        for name, values in {**maps, **({} if p is None else {P: p})}.items():
            path = template_path(LABELS.get(name, name))
            _write_map(path, values, affine, settings, name, people_of.get(name, people_of[DIFFERENCE]))
            hashes.append(sha256(path))
        if p is None:  # of an earlier day, when there were people enough
            for path in (template_path(P), sidecar(template_path(P))):
                path.unlink(missing_ok=True)
        tick(0.8, "figures")
        labels = [f"{name}, {frequencies[name].scans} people" for name in (MILD, SEVERE)]
        figure = heatmap_figure(
            maps[MILD],
            maps[SEVERE],
            maps[DIFFERENCE],
            template,
            affine,
            labels=(labels[0], labels[1], "severe − mild"),
            significant=p < 0.05 if p is not None and (p < 0.05).any() else None,
            note=f"First scans. {_registration(*people_of[DIFFERENCE])}",
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
                "people_mild": frequencies[MILD].scans,
                "people_severe": frequencies[SEVERE].scans,
                "registration": _registration(*people_of[DIFFERENCE]),
                "smallest_p": "not tested: fewer than two people in a group" if p is None else float(p.min()),
                "most_often": ", ".join(f"{row['region']} ({row['group']})" for row in often.iter_rows(named=True)),
                "heat_map": picture(thumbnail(figures["heatMap"]), "How often voxels are most relevant, first scans"),
                "two_scans": picture(thumbnail(figures["scanOverlays"]), "One mild and one severe scan"),
            },
        )

    def outputs(_: str) -> list[Path]:
        from relevance_assets.cohort.visits import first_scans

        tested = _enough((first_scans(_groups(workspace), "target")["group"] == SEVERE).to_numpy())
        names = [MILD, SEVERE, LABELS[DIFFERENCE], *([P] if tested else [])]
        return [*figures.values(), *map(template_path, names)]

    return Stage(
        name="heat_maps",
        version="3",
        description="How often each voxel of the MNI152 template is among the most relevant, in first scans of mild "
        "and severe people, and the difference: by region, and voxel by voxel with permutations.",
        tables=("region_frequencies",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        outputs=outputs,
        needs=("quantile_masks", "predictions"),
        kinds=frozenset({"nifti", "matplotlib"}),
        group="statistics",
    )


def _groups(workspace: Workspace) -> pl.DataFrame:
    """Scans with masks: scan, participant_id, session, age, target, group; in order of the scan."""
    threshold = workspace.study.target.threshold
    frame = people(workspace, sorted(workspace.results("quantile_masks")))
    severe = pl.when(pl.col("target") >= threshold).then(pl.lit(SEVERE)).otherwise(pl.lit(MILD))
    return frame.select("scan", "participant_id", "session", "age", "target", severe.alias("group"))


def _template(voxel_size_mm: int) -> tuple[np.ndarray, np.ndarray]:
    """The template's T1w image and its affine, on a grid of this voxel size."""
    import numpy as np
    from nilearn.datasets import load_mni152_template
    from nilearn.image import get_data

    image = load_mni152_template(resolution=voxel_size_mm)
    return np.asarray(get_data(image), dtype=np.float32), np.asarray(image.affine)


def _brain(voxel_size_mm: int) -> tuple[np.ndarray, np.ndarray]:
    """Which voxels of the template are brain, and its affine, on a grid of this voxel size."""
    import numpy as np
    from nilearn.datasets import load_mni152_brain_mask
    from nilearn.image import get_data

    image = load_mni152_brain_mask(resolution=voxel_size_mm)
    return get_data(image) > 0, np.asarray(image.affine)


# ------------------------------------------------------------------------------------------ scans to the template
def _masked(workspace: Workspace, groups: pl.DataFrame, grid: Grid) -> Iterator[MaskedScan]:
    """Every scan's mask and how it comes onto the template's grid, one at a time."""
    from relevance_assets.evidence.heatmap import MaskedScan
    from relevance_assets.imaging.volumes import load_volume

    settings = workspace.study.heat_map
    assert settings is not None
    for scan, group in groups.select("scan", "group").iter_rows():
        levels, affine = load_volume(workspace.quantiles_path(scan, settings.method, settings.map))
        mask = (levels > 0) & (levels <= settings.top_percent)
        yield MaskedScan(group, mask, affine, way_to_scan(workspace, scan, grid))


def _collected(
    scans: Iterator[MaskedScan], tested: tuple[np.ndarray, np.ndarray], rows: list[np.ndarray]
) -> Iterator[MaskedScan]:
    """The same scans; in passing, each one's mask in the brain of the test's grid is added to `rows`."""
    from relevance_assets.evidence.heatmap import to_template

    brain, affine = tested
    for one in scans:
        rows.append(to_template(one.mask, one.affine, brain.shape, affine, one.warp, brain)[brain])
        yield one


def _registration(scans: int, warped: int) -> str:
    """How scans came into template space, in a sentence."""
    along = f"{warped} of {scans} scans moved to {TEMPLATE_SPACE} along their warp"
    return f"{along}, {scans - warped} taken to lie there already"


# --------------------------------------------------------------------------------------------- groups and regions
def _enough(severe: np.ndarray) -> bool:
    """Whether there is anything to permute."""
    return bool(min(severe.sum(), (~severe).sum()) >= 2)


def _compare(
    settings: HeatMap, rows: list[np.ndarray], severe: np.ndarray, tested: tuple[np.ndarray, np.ndarray], grid: Grid
) -> np.ndarray | None:
    """Corrected p of the difference between groups at every voxel of the template's grid; 1 outside the brain.

    None where a group has fewer than two people. Tested on a coarser grid: masks are as coarse, and memory goes with
    the number of voxels.
    """
    import numpy as np

    from relevance_assets.imaging.grid import Grid, resample
    from relevance_assets.statistics.voxelwise import voxelwise_groups

    if not _enough(severe):
        return None
    brain, affine = tested
    found = voxelwise_groups(
        np.stack(rows),
        severe,
        permutations=settings.permutations,
        seed=settings.seed,
        tfce=settings.tfce,
        brain=brain,
    )
    p = np.ones(brain.shape)
    p[brain] = 10.0 ** -(found.logp if found.logp_tfce is None else found.logp_tfce)
    return 1 - resample(1 - p, Grid(brain.shape, affine), grid, 0)  # outside it is 0, which is p = 1


def _with_people(regions: pl.DataFrame, people_of: dict[str, tuple[int, int]]) -> pl.DataFrame:
    """With the number of people of each group, and of the scans among theirs that were warped."""
    counts = [{"group": name, "n": scans, "n_warped": warped} for name, (scans, warped) in people_of.items()]
    return regions.join(pl.DataFrame(counts), on="group", how="left", maintain_order="left")


def _least(regions: pl.DataFrame, atlas: Atlas, p: np.ndarray | None) -> pl.Series:
    """Of each row on the difference the smallest p in its region; null where nothing was tested."""
    least = (
        {}
        if p is None
        else {name: float(p[atlas.labels == label].min()) for label, name in atlas.names.items() if _has(atlas, label)}
    )
    rows = regions.select("group", "region").iter_rows()
    found = [least.get(region) if group == DIFFERENCE else None for group, region in rows]
    return pl.Series(found, dtype=pl.Float64)


def _has(atlas: Atlas, label: int) -> bool:
    return bool((atlas.labels == label).any())


def _write_map(
    path: Path, values: np.ndarray, affine: np.ndarray, settings: HeatMap, name: str, people_of: tuple[int, int]
) -> None:
    from relevance_assets.imaging.volumes import save_volume

    scans, warped = people_of
    save_volume(path, values, affine)
    content = {
        "Description": DESCRIPTIONS.get(name, DESCRIPTIONS[MILD]),
        "Group": name,
        "Method": settings.method,
        "Map": settings.map,
        "TopPercent": settings.top_percent,
        "Seed": settings.seed,
        "CodeVersion": version("relevance-assets"),
        "Scans": scans,
        "ScansWarped": warped,
        "ScansTakenToLieInTemplateSpace": scans - warped,
    }
    write_json(sidecar(path), content)


def _atlas(workspace: Workspace, shape: tuple[int, int, int], affine: np.ndarray) -> Atlas:
    from relevance_assets.imaging.atlas import approximate_atlas, load_atlas

    settings = workspace.study.heat_map
    assert settings is not None
    if settings.atlas is None or settings.atlas_names is None:  # the study's settings have both or none
        return approximate_atlas(shape, affine)
    return load_atlas(settings.atlas, settings.atlas_names).on_grid(shape, affine)


def _two_scans(workspace: Workspace, groups: pl.DataFrame) -> list[OverlayScan]:
    """Of each group the scan that the models, which never saw it, classify most surely right."""
    import numpy as np

    from relevance_assets.imaging.volumes import load_volume
    from relevance_assets.report.figures_brain import OverlayScan

    study = workspace.study
    settings = study.heat_map
    assert settings is not None
    said = workspace.read("predictions").filter((pl.col("set") != "train") & (pl.col("model") == study.network.name))
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
        title = f"{group.capitalize()}: {scan}, {study.target.column} {row['target']:g}, "
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
