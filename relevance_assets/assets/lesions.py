"""The stage `lesions`: where a scan's lesions are, how large, and how near to what.

Belongs here: which masks of which scan are measured, and which files they are. Does not belong here: the measures
(`lesions/`), drawing (`report/`), people (`subjects.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.mask_sources import (
    cortex_file,
    has_masks,
    load_mask,
    mask_files,
    native_image,
    source_names,
    stamps,
)
from relevance_assets.assets.spaces import geometry_of, stamp
from relevance_assets.assets.stages import Done, NotReady, Stage, each
from relevance_assets.assets.workspace import HALFWAY, Workspace
from relevance_assets.files import fingerprint
from relevance_assets.home import split_scan

if TYPE_CHECKING:
    import numpy as np

    from relevance_assets.imaging.volumes import Image
    from relevance_assets.lesions.distances import Plane

__all__ = ["lesion_stages"]

FIGURE = "lesions"
TABLES = ("lesions", "lesion_burden", "lesion_totals", "zone_agreement", "zone_sensitivity")


def lesion_stages(workspace: Workspace) -> list[Stage]:
    return [_lesions(workspace), *([_lesion_changes(workspace)] if workspace.space == HALFWAY else [])]


def _lesions(workspace: Workspace) -> Stage:
    study = workspace.study
    settings = study.lesions
    assert settings is not None

    network = study.segmentation

    def sources(scan: str) -> list[str]:
        """Those that have masks of this scan."""
        found = [name for name in source_names(workspace) if has_masks(workspace, scan, name)]
        if not found:
            first = mask_files(workspace, scan, next(iter(settings.sources)))["lesions"]
            raise ValueError(f"{scan}: no lesion mask, such as {first}; add it, or correct lesions.sources")
        return found

    def inputs(scan: str) -> Any:
        needed = ["prepared_volumes", *(["segmentations"] if network else [])]
        results = [upstream(workspace, name, scan) for name in needed]
        known = {name: stamps(workspace, scan, name) for name in settings.sources}
        if not network and not any(known.values()):
            sources(scan)  # says what is missing
        cortices = {path for name in source_names(workspace) if (path := cortex_file(workspace, scan, name))}
        cortex = [(str(path.relative_to(workspace.bids)), path.exists() and stamp(path)) for path in sorted(cortices)]
        decisive = settings.model_dump(mode="json", exclude={"changes", "sources"})
        return [*results, known, cortex, decisive]

    def make(scan: str) -> Done:
        from relevance_assets.assets.metadata import MAX_BYTES, picture
        from relevance_assets.lesions.distances import mid_plane
        from relevance_assets.report.figures import save, thumbnail
        from relevance_assets.report.figures_lesions import zones_over_flair_figure

        figure = workspace.scan_figure_path(scan, FIGURE)
        figure.unlink(missing_ok=True)
        flair, brain = native_image(workspace, scan)
        plane = mid_plane(brain, flair.affine)
        parts: dict[str, list[pl.DataFrame]] = {name: [] for name in TABLES}
        zones: dict[str, list[np.ndarray]] = {}
        for source in sources(scan):
            paths = mask_files(workspace, scan, source)
            if cortex := cortex_file(workspace, scan, source):
                paths["cortex"] = cortex
            frames, *zones[source] = _measured(workspace, paths, flair, brain, plane)
            for name, frame in frames.items():
                parts[name].append(frame.with_columns(scan=pl.lit(scan), source=pl.lit(source)))
        # a source without lesions has columns of nothing but null
        tables = {name: pl.concat(frames, how="vertical_relaxed") for name, frames in parts.items()}
        shown = settings.source if settings.source in zones else next(iter(zones))
        drawn, ventricles = zones[shown]
        title = f"{scan}: lesions by zone ({shown}, {settings.rule})"
        save(zones_over_flair_figure(flair.data, drawn, ventricles, flair.affine, title, brain), figure)
        burden = tables["lesion_burden"].filter((pl.col("source") == shown) & (pl.col("rule") == settings.rule))
        return Done(
            tables=tables,
            result=fingerprint(*(frame.rows() for frame in tables.values())),
            metadata={
                f"{row['zone']}_ml": f"{row['volume_mm3'] / 1000:.3f} in {row['count']} lesions"
                for row in burden.drop_nulls("volume_mm3").iter_rows(named=True)
            }
            | {"preview": picture(thumbnail(figure, MAX_BYTES), f"lesions by zone; larger in {figure.name}")},
        )

    return Stage(
        name="lesions",
        version="1",
        description="Every lesion with its volume, shape and distances in mm, and its zone by three rules: the "
        "published one in slices, one in 3D, and one voxel by voxel; burden by zone, agreement of the rules, and how "
        "much their thresholds matter. On the native grid of the first contrast.",
        tables=TABLES,
        items=lambda: sorted(workspace.results("prepared_volumes")),
        inputs=inputs,
        work=each(make),
        outputs=lambda scan: [workspace.scan_figure_path(scan, FIGURE)],
        partition="scan",
        parallel=True,
        needs=("prepared_volumes", *(("segmentations",) if network else ())),
        kinds=frozenset({"nifti", "numpy", "opencv"}),
        group="imaging",
    )


# -------------------------------------------------------------------------------------------------- lesion_changes
def _lesion_changes(workspace: Workspace) -> Stage:
    study = workspace.study
    settings = study.lesions
    assert settings is not None

    def since(scan: str) -> str | None:
        """The visit before with lesions measured."""
        visits = workspace.derived("scans", "visits", _visits).get(split_scan(scan)[0], [])
        if scan not in visits:
            return None
        measured = [
            one
            for one in visits[: visits.index(scan)]
            if (found := workspace.known("lesions", one)) and found.outcome == "ok"
        ]
        return measured[-1] if measured else None

    def inputs(scan: str) -> Any:
        before = since(scan)
        if before is None:
            raise NotReady(f"{scan}: no visit before it with lesions measured: lesions")
        asked = [upstream(workspace, stage, one) for stage in ("lesions", "prepared_volumes") for one in (before, scan)]
        return [before, asked, settings.changes.model_dump(mode="json")]

    def make(scan: str) -> Done:
        from relevance_assets.imaging.geometry import to_prepared_labels
        from relevance_assets.lesions.change import CHANGES, changed_lesions

        before = since(scan)
        assert before is not None  # or there is no fingerprint
        frames = []
        for name in source_names(workspace):
            paths = [mask_files(workspace, one, name)["lesions"] for one in (before, scan)]
            if not all(path.exists() for path in paths):
                continue
            geometries = [geometry_of(workspace, one) for one in (before, scan)]
            first, second = (to_prepared_labels(path, way) > 0 for path, way in zip(paths, geometries, strict=True))
            found, _ = changed_lesions(
                first,
                second,
                geometries[1].prepared.affine,
                connectivity=settings.connectivity,
                minimum_mm3=settings.minimum_mm3,
                **settings.changes.model_dump(),
            )
            frames.append(found.with_columns(source=pl.lit(name)))
        frame = pl.concat(frames) if frames else pl.DataFrame(schema=CHANGES | {"source": pl.String})
        frame = frame.rename({"group": "lesion"}).with_columns(scan=pl.lit(scan), since=pl.lit(before))
        counts = dict(frame.group_by("state").len().sort("state").iter_rows())
        return Done({"lesion_changes": frame}, fingerprint(frame.rows()), {"since": before} | counts)

    return Stage(
        name="lesion_changes",
        version="1",
        description="New, enlarging, stable, shrinking and resolved lesions since the visit before, in the space "
        "half-way between the visits.",
        tables=("lesion_changes",),
        items=lambda: sorted(scan for scan in workspace.results("lesions") if since(scan)),
        inputs=inputs,
        work=each(make),
        partition="scan",
        parallel=True,
        needs=("prepared_volumes", "lesions"),
        kinds=frozenset({"nifti", "numpy"}),
        group="imaging",
    )


def _visits(scans: pl.DataFrame) -> dict[str, list[str]]:
    """Of people, in order."""
    from relevance_assets.cohort.visits import in_order

    return in_order(scans.filter(pl.col("status") == "ok"))


# ----------------------------------------------------------------------------------------------------------- a scan
def _measured(
    workspace: Workspace, paths: dict[str, Path], flair: Image, brain: np.ndarray, plane: Plane
) -> tuple[dict[str, pl.DataFrame], np.ndarray, np.ndarray]:
    """Rows of every table from one source's masks, the zones by the study's rule, and the ventricles."""
    import numpy as np

    from relevance_assets.lesions.burden import (
        PUBLISHED_RULE,
        burden,
        lesion_rows,
        measure,
        published_lesions,
        sensitivity,
        zone_maps,
    )
    from relevance_assets.lesions.components import label_lesions, voxel_mm3
    from relevance_assets.lesions.published_images import csf_candidates, prepare_flair
    from relevance_assets.lesions.zones_2d import published_zones
    from relevance_assets.lesions.zones_3d import ZoneThresholds

    settings = workspace.study.lesions
    assert settings is not None
    masks = {name: load_mask(path, flair) for name, path in paths.items()}
    affine, size = flair.affine, voxel_mm3(flair.affine)
    thresholds = ZoneThresholds(**settings.zones.model_dump())
    labels = label_lesions(
        masks["lesions"], affine, connectivity=settings.connectivity, minimum_mm3=settings.minimum_mm3
    )
    measured = measure(
        labels,
        affine,
        ventricles=masks["ventricles"],
        cortex=masks.get("cortex", ~brain),
        brain=brain,
        plane=plane,
    )
    inside = brain.sum() * size
    order = _axial(affine)
    lesions, ventricles, image = (np.transpose(one, order) for one in (labels > 0, masks["ventricles"], flair.data))
    published = published_zones(lesions, ventricles, csf_candidates(prepare_flair(image)))
    zones = {PUBLISHED_RULE: np.transpose(published.zones, np.argsort(order)), **zone_maps(measured, thresholds)}
    burdens = [burden(PUBLISHED_RULE, published.zones, published.labels, size, inside)]
    burdens += [burden(rule, zones[rule], labels, size, inside) for rule in zones if rule != PUBLISHED_RULE]
    totals = {
        "intracranial_mm3": float(inside),
        "ventricle_mm3": float(masks["ventricles"].sum() * size),
        "lesion_mm3": float((labels > 0).sum() * size),
        "lesions": measured.lesions.height,
    }
    tables = {
        "lesions": pl.concat(
            [published_lesions(published, affine[:, [*order, 3]], plane), lesion_rows(measured, thresholds)]
        ),
        "lesion_burden": pl.concat(burdens),
        "lesion_totals": pl.DataFrame([totals]),
        "zone_agreement": _agreement(zones),
        "zone_sensitivity": sensitivity(measured, thresholds),
    }
    return tables, zones[settings.rule], masks["ventricles"]


def _axial(affine: np.ndarray) -> list[int]:
    """Axes in such an order that slices, the last, are the ones nearest to axial."""
    import numpy as np

    upward = np.abs(affine[2, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    last = int(upward.argmax())
    return [*(axis for axis in range(3) if axis != last), last]


def _agreement(zones: dict[str, np.ndarray]) -> pl.DataFrame:
    from dataclasses import asdict
    from itertools import combinations

    from relevance_assets.lesions.zones_3d import agreement

    rows = [{"rule_a": a, "rule_b": b} | asdict(agreement(zones[a], zones[b])) for a, b in combinations(zones, 2)]
    return pl.DataFrame(rows, infer_schema_length=None)
