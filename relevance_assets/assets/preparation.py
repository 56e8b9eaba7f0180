"""The stages `prepared_volumes`, a scan's images by the study's recipe, and `preparation_overview`, all together.

Belongs here: which files go in and come out, their sidecars, limits that stop a scan. Does not belong here: the steps
(`imaging/`), figures (`report/`).
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.spaces import stamp
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each
from relevance_assets.assets.workspace import HALFWAY, Workspace
from relevance_assets.files import fingerprint, sha256, sidecar, write_json
from relevance_assets.home import TEMPLATE_SPACE, split_scan
from relevance_assets.study import Coregister, Halfway, Register, Remove
from relevance_assets.tables.schema import TABLES

if TYPE_CHECKING:
    from relevance_assets.imaging.layers import Visits
    from relevance_assets.imaging.recipe import Prepared

__all__ = ["preparation_stages"]

FIGURE = "preparation"
MEASURES = tuple(
    column.name
    for column in TABLES["volumes"].columns
    if column.dtype == pl.Float64() and not column.name.startswith("voxel_")
)
QUARTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}
TRANSFORM = (
    "As ITK, ANTs and greedy have it: takes an image from the first space of the name to the second, so it leads from "
    "points of the second to points of the first; axes and vectors to left, posterior, superior."
)
TOOLS = ("relevance-assets", "nibabel", "scipy", "SimpleITK", "picsl_greedy", "nilearn")  # that values depend on


def preparation_stages(workspace: Workspace) -> list[Stage]:
    return [_prepared_volumes(workspace), _preparation_overview(workspace)]


# ------------------------------------------------------------------------------------------------ prepared_volumes
def _prepared_volumes(workspace: Workspace) -> Stage:
    study = workspace.study
    halfway = next((step for step in study.preparation if isinstance(step, Halfway)), None)
    remove = next((step for step in study.preparation if isinstance(step, Remove)), None)
    recipe = [step.model_dump(mode="json", exclude_defaults=True) | {"step": step.step} for step in study.preparation]

    def visits(scan: str) -> list[str]:
        """All prepared visits of the person, where they have a part in each other's preparation."""
        if halfway is None:
            return [scan]
        person, _ = split_scan(scan)
        return sorted(other for other in workspace.results("raw_scans") if split_scan(other)[0] == person)

    def inputs(scan: str) -> Any:
        atlas = [stamp(path) for path in (remove.atlas, remove.atlas_names) if path] if remove else []
        return [
            *([atlas] if atlas else []),
            [upstream(workspace, "raw_scans", one) for one in dict.fromkeys([scan, *visits(scan)])],
            [step.model_dump(mode="json") for step in study.preparation],
            [contrast.model_dump(mode="json") for contrast in study.contrasts],
            study.quality.fail.model_dump(mode="json"),
        ]

    def make(scan: str) -> Done:
        from relevance_assets.assets.metadata import thumbnail
        from relevance_assets.imaging.greedy import SEED
        from relevance_assets.imaging.limits import check
        from relevance_assets.imaging.recipe import prepare
        from relevance_assets.report.figures_preparation import preparation_figure

        figure = workspace.scan_figure_path(scan, FIGURE)  # no output: it stays where a limit stops the scan
        figure.unlink(missing_ok=True)
        _clear(workspace, scan)
        raw = workspace.read("raw_scans", scan)
        sources, hashes = (dict(raw.select("image", column).iter_rows()) for column in ("path", "sha256"))
        paths = [workspace.bids / sources[contrast.name] for contrast in study.contrasts]
        prepared = prepare(paths, study.contrasts, study.preparation, _visits(workspace, scan, visits(scan), halfway))
        preparation_figure(prepared, scan, figure)
        check(prepared.quality, study.quality.fail, paths[0])
        about = {
            "SkullStripped": True,
            **_reference(workspace, scan, sources),
            "Resolution": f"grid of the preparation recipe: {' x '.join(map(str, prepared.mask.shape))} voxels",
            "Recipe": recipe,
            "Steps": [{key: row[key] for key in ("step", "done", "note")} for row in prepared.steps],
            "Seed": SEED,
            "Software": {name: version(name) for name in TOOLS},
        }
        rows = _write_images(workspace, scan, prepared, sources, hashes, about)
        mask_hash = _write_mask(workspace, scan, prepared, sources, about)
        frame = pl.DataFrame(rows, infer_schema_length=None)
        steps = pl.DataFrame(prepared.steps).with_row_index("place", offset=1).with_columns(scan=pl.lit(scan))
        return Done(
            tables={"volumes": frame, "preparation_steps": steps.with_columns(pl.col("place").cast(pl.Int64))},
            result=fingerprint(frame.select("image", "sha256").rows(), mask_hash),
            metadata={
                "brain_ml": round(rows[0]["brain_volume_mm3"] / 1000),
                "share_clipped": max(row["share_clipped"] for row in rows),
                "share_cropped": rows[0]["share_cropped"],
                "needless": ", ".join(row["step"] for row in prepared.steps if not row["done"]) or "no step",
                "preview": thumbnail(figure),
            },
        )

    return Stage(
        name="prepared_volumes",
        version="2",
        description="Images by the study's recipe: co-registered, masked to the brain, bias field out, on one grid, "
        "scaled to [0, 1] with background exactly 0; the way to the template; quality measures in table volumes.",
        tables=("volumes", "preparation_steps"),
        items=lambda: list(workspace.results("raw_scans")),
        inputs=inputs,
        work=each(make),
        outputs=lambda scan: [
            *workspace.prepared_paths(scan),
            workspace.mask_path(scan),
            *_to_template(workspace, scan),
        ],
        partition="scan",
        parallel=True,
        needs=("raw_scans",),
        kinds=frozenset({"nifti", "numpy"}),
        group="imaging",
    )


def _to_template(workspace: Workspace, scan: str) -> list[Path]:
    """The files that the recipe's `register` leaves: fields there and back, or one matrix."""
    *fields, matrix = workspace.alignment_paths(scan)
    kinds = [step.kind for step in workspace.study.preparation if isinstance(step, Register)]
    return {"deformable": fields, "affine": [matrix]}[kinds[0]] if kinds else []


def _clear(workspace: Workspace, scan: str) -> None:
    """Remove what another recipe left: our transforms, and volumes whose names say another space."""
    for path in workspace.mask_path(scan).parent.glob(f"{scan}_*"):
        space = re.search(r"(?:_space-([a-zA-Z0-9]+))?_res-prepared_", path.name)
        if space and space[1] != workspace.space:
            path.unlink()
        elif (
            path.name.endswith("_mode-image_xfm.json") and json.loads(path.read_text()).get("Description") == TRANSFORM
        ):
            for suffix in (".nii.gz", ".txt", ".json"):
                path.with_name(path.stem + suffix).unlink(missing_ok=True)


def _visits(workspace: Workspace, scan: str, scans: list[str], step: Halfway | None) -> Visits:
    """The files by which a person's visits are compared."""
    from relevance_assets.imaging.layers import Visits

    name = step.contrast if step and step.contrast else workspace.study.contrasts[0].name
    paths = []
    for one in scans:
        files = dict(workspace.read("raw_scans", one).select("image", "path").iter_rows())
        paths.append(workspace.bids / files[name])
    return Visits(tuple(paths), scans.index(scan))


def _reference(workspace: Workspace, scan: str, sources: dict[str, str]) -> dict[str, str]:
    """Which image shows the space in which the prepared ones lie, where no standard does."""
    if workspace.space in (None, TEMPLATE_SPACE):
        return {}
    if workspace.space == HALFWAY:
        return {"SpatialReference": f"bids::{workspace.within(workspace.mask_path(scan))}"}
    (step,) = (step for step in workspace.study.preparation if isinstance(step, Coregister))
    return {"SpatialReference": f"bids:raw:{sources[step.reference or workspace.study.contrasts[0].name]}"}


def _write_images(
    workspace: Workspace,
    scan: str,
    prepared: Prepared,
    sources: dict[str, str],
    hashes: dict[str, str],
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """Every contrast with its sidecar; rows of table `volumes`."""
    from relevance_assets.imaging.volumes import save_volume

    rows = []
    for index, contrast in enumerate(workspace.study.contrasts):
        path = workspace.prepared_path(scan, contrast)
        save_volume(path, prepared.images[index], prepared.affine)
        own = {
            "Sources": [f"bids:raw:{sources[contrast.name]}"],
            "SourceSha256": hashes[contrast.name],
            "Scale": contrast.scale.model_dump(mode="json"),
        }
        write_json(sidecar(path), about | own)
        place = {"scan": scan, "image": contrast.name, "path": workspace.relative(path), "sha256": sha256(path)}
        rows.append(prepared.quality[index] | place)
    return rows


def _write_mask(
    workspace: Workspace, scan: str, prepared: Prepared, sources: dict[str, str], about: dict[str, Any]
) -> str:
    """The brain mask and the way to the template; their hash."""
    from relevance_assets.imaging.volumes import save_volume

    mask = workspace.mask_path(scan)
    transforms = _write_transforms(workspace, scan, prepared, sources, about)
    to_template, to_scan, _ = workspace.alignment_paths(scan)
    save_volume(mask, prepared.mask, prepared.affine, "uint8")
    content = {
        "Type": "Brain",
        "Geometry": prepared.geometry.to_dict(to_scan.name, to_template.name),
        "Sources": [f"bids:raw:{source}" for source in sources.values()],
    }
    write_json(sidecar(mask), about | content)
    return fingerprint(sha256(mask), *map(sha256, transforms))


def _write_transforms(
    workspace: Workspace, scan: str, prepared: Prepared, sources: dict[str, str], about: dict[str, Any]
) -> list[Path]:
    """The first contrast's to the template and back, also where they move nothing; the others' to the first."""
    import numpy as np

    from relevance_assets.imaging.alignment import on_native_grid
    from relevance_assets.imaging.displacement import sampled, write_displacement
    from relevance_assets.imaging.recipe import FIELD_MM
    from relevance_assets.imaging.template import template
    from relevance_assets.imaging.transforms import write_affine

    first, *others = workspace.study.contrasts
    alignment, moves = prepared.alignment, prepared.moves
    paths = _to_template(workspace, scan)
    written = {path: [first.name] for path in paths}
    if alignment and len(paths) == 2:
        native = prepared.geometry.native
        forward = alignment.forward or on_native_grid(alignment, native, np.eye(4), FIELD_MM)
        write_displacement(paths[0], alignment.back or sampled(alignment.to_scan, template().grid))
        write_displacement(paths[1], forward)
    elif alignment:
        write_affine(paths[0], np.linalg.inv(alignment.matrix))
    for contrast, move in zip(others, moves[1:], strict=True):
        path = workspace.coregistration_path(scan, contrast)
        if not np.array_equal(move, moves[0]):
            write_affine(path, np.linalg.inv(move) @ moves[0])
            written[path] = [contrast.name, first.name]
    shared = {key: about[key] for key in ("Recipe", "Seed", "Software")} | {"Description": TRANSFORM, "Units": "mm"}
    for path, names in written.items():
        write_json(sidecar(path), shared | {"Sources": [f"bids:raw:{sources[name]}" for name in names]})
    return list(written)


# -------------------------------------------------------------------------------------------- preparation_overview
def _preparation_overview(workspace: Workspace) -> Stage:
    study = workspace.study
    page = workspace.figure_path(FIGURE).with_suffix(".html")

    def stopped() -> dict[str, str]:
        """Scans that were not prepared, and why."""
        failed = workspace.read("runs").filter(
            pl.col("asset").is_in(["raw_scans", "prepared_volumes"]) & (pl.col("outcome") == "failed")
        )
        return dict(failed.sort("item").select("item", pl.col("reason").fill_null("")).iter_rows())

    def inputs(_: str) -> Any:
        results = workspace.results("prepared_volumes")
        if not results:
            raise NotReady("no scan prepared yet: prepared_volumes")
        return [results, stopped(), study.quality.warn.model_dump(mode="json")]

    def make(_: str) -> Done:
        from relevance_assets.imaging.limits import beyond
        from relevance_assets.report.overview import overview_page

        volumes, limits, unprepared = workspace.read("volumes"), study.quality.warn, stopped()
        scans = volumes["scan"].unique().sort()
        figures = {scan: workspace.scan_figure_path(scan, FIGURE) for scan in {*scans, *unprepared}}
        overview_page(volumes, figures, limits, f"{study.name}: preparation", page, unprepared)
        far = {row["scan"] for row in volumes.iter_rows(named=True) if beyond(row, limits)}
        frame = _spread(volumes)
        return Done(
            tables={"preparation_overview": frame},
            result=fingerprint(frame.rows()),
            metadata={
                "scans": len(scans),
                "not_prepared": len(unprepared),
                "beyond_limits": len(far),
                "page": workspace.relative(page),
                "sql": "SELECT * FROM preparation_overview ORDER BY image, measure",
            },
        )

    return Stage(
        name="preparation_overview",
        version="1",
        description="One page with every scan as it was prepared, what is beyond the limits in red; how the quality "
        "measures are spread over the cohort.",
        tables=("preparation_overview",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        outputs=lambda _: [page],
        needs=("prepared_volumes",),
        kinds=frozenset({"polars"}),
        group="statistics",  # looks at every scan: with them, and by night
    )


def _spread(volumes: pl.DataFrame) -> pl.DataFrame:
    """Rows of table `preparation_overview`."""
    parts = [
        volumes.group_by("image")
        .agg(
            pl.col(measure).count().cast(pl.Int64).alias("n"),
            pl.col(measure).min().alias("minimum"),
            *(pl.col(measure).quantile(share, "linear").alias(name) for name, share in QUARTILES.items()),
            pl.col(measure).max().alias("maximum"),
        )
        .with_columns(measure=pl.lit(measure))
        for measure in MEASURES
    ]
    return pl.concat(parts).filter(pl.col("n") > 0).sort("image", "measure")
