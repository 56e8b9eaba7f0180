"""Stages of the explanation: relevance maps, and masks of the most relevant voxels.

Belongs here: the stages `relevance_maps`, `quantile_masks`. Does not belong here: rules and engine (`relevance/`),
masks and measures (`evidence/`), where relevance lies (`localisation.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.models import model_hash, models_for, person, samples
from relevance_assets.assets.spaces import density_in_template, geometry_of, stamp, transform_file
from relevance_assets.assets.stages import Done, Stage, Work, each
from relevance_assets.assets.workspace import COMBINED, Workspace
from relevance_assets.files import fingerprint, sha256, sidecar, write_json

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "CONSERVED",
    "accounts_of",
    "read_maps",
    "relevance_stages",
    "unexplained",
    "worst_layers",
]

ENSEMBLE = "ensemble"
CONSERVED = 1e-8  # of the start; float64 arithmetic leaves about 1e-12
WHOLE = "all"  # the row that accounts for a whole explanation: every contrast and the covariates


def relevance_stages(workspace: Workspace) -> list[Stage]:
    return [_relevance_maps(workspace), _quantile_masks(workspace)]


def _named(workspace: Workspace, method: str, maps: np.ndarray, images: np.ndarray) -> dict[str, np.ndarray]:
    """Maps by name: one per contrast, and their weighted sum where the method has it."""
    from relevance_assets.relevance.maps import combined_map

    named = {contrast.name: maps[index] for index, contrast in enumerate(workspace.study.contrasts)}
    return named | {COMBINED: combined_map(maps, images)} if workspace.study.has_combined(method) else named


def read_maps(workspace: Workspace, scan: str, method: str) -> dict[str, np.ndarray]:
    """A scan's maps on the prepared grid, by name."""
    from relevance_assets.imaging.volumes import load_volume

    names = workspace.map_contrasts(method)
    return {name: load_volume(workspace.map_path(scan, method, name))[0] for name in names}


# -------------------------------------------------------------------------------------------------- relevance maps
def _relevance_maps(workspace: Workspace) -> Stage:
    study = workspace.study
    methods = {name: method.decisive() for name, method in study.methods.items()}
    to_template = any(method.template for method in study.methods.values())

    def inputs(scan: str) -> Any:
        columns = sorted({covariate.column for covariate in study.cohort.covariates})
        return [
            upstream(workspace, "prepared_volumes", scan),
            {fold: model_hash(workspace, fold) for fold in models_for(workspace, scan)},
            person(workspace, scan, columns) if columns else None,
            methods,
            *([_others_transform(workspace, scan)] if to_template else []),
        ]

    @contextmanager
    def work() -> Iterator[Work]:
        import torch

        from relevance_assets.precision import has_gpu, one_thread
        from relevance_assets.relevance.maps import Scenarios
        from relevance_assets.training.checkpoint import load

        opened: dict[str, Scenarios] = {}

        def explainer(fold: str) -> Scenarios:
            if fold not in opened:
                model = load(workspace.home.model(study.name, int(fold)) / "model.pt")
                device = "cuda" if has_gpu() else "cpu"
                # gradients prove nothing, and their published uses are float32 too
                opened[fold] = Scenarios(model, study.methods, gradients=torch.float32, device=device)
            return opened[fold]

        with one_thread():
            yield lambda scan: make(scan, explainer)

    def make(scan: str, explainer: Any) -> Done:
        import numpy as np

        from relevance_assets.assets.metadata import overlay_mosaic
        from relevance_assets.evidence.agreement import pair_agreement
        from relevance_assets.imaging.geometry import to_native
        from relevance_assets.imaging.volumes import load_volume, save_volume
        from relevance_assets.relevance.maps import account, mean_maps, summary

        sample = samples(workspace, [scan])
        images = np.stack([load_volume(path)[0] for path in sample.images[0]])
        brain, affine = load_volume(workspace.mask_path(scan))
        geometry = geometry_of(workspace, scan)
        inside = brain > 0
        folds = models_for(workspace, scan)
        rows: list[dict[str, Any]] = []
        ledgers: list[pl.DataFrame] = []
        agreements: list[pl.DataFrame] = []
        hashes: list[str] = []
        shown: dict[str, np.ndarray] = {}
        amplification = 0.0
        by_fold = {fold: explainer(fold)(images, sample.covariates[0], inside) for fold in folds}
        for method in study.methods:
            explained = {fold: found[method] for fold, found in by_fold.items()}
            if len(folds) > 1:
                explained[ENSEMBLE] = mean_maps(list(explained.values()))
            amplification = max(amplification, *(float(e.amplification.max()) for e in explained.values()))
            of_folds: dict[str, dict[str, np.ndarray]] = {}  # contrast, fold
            for fold, explanation in explained.items():
                key = {"method": method, "fold": fold, "scan": scan}
                rows.append(key | {"contrast": WHOLE} | account(explanation))
                ledger = explanation.ledger.with_row_index("place").with_columns(pl.col("place").cast(pl.Int64))
                ledgers.append(ledger.with_columns(pl.lit(value).alias(name) for name, value in key.items()))
                named = _named(workspace, method, explanation.maps, images)
                for index, (name, values) in enumerate(named.items()):
                    of_folds.setdefault(name, {})[fold] = values
                    row = key | {"contrast": name} | summary(values, inside)
                    if len(explanation.start) == len(explanation.maps) and name != COMBINED:
                        row |= account(explanation, index)
                    rows.append(row)
            kept = ENSEMBLE if len(folds) > 1 else folds[0]
            final = {name: values.pop(kept) for name, values in of_folds.items()}
            for name, values in final.items():
                path = workspace.map_path(scan, method, name)
                save_volume(path, values, affine)
                place: dict[str, Any] = {"path": workspace.relative(path)}
                if study.methods[method].native:
                    native = workspace.map_path(scan, method, name, "native")
                    save_volume(native, to_native(values, geometry), np.asarray(geometry.native.affine))
                    place["native_path"] = workspace.relative(native)
                if study.methods[method].template:
                    there = workspace.map_path(scan, method, name, "template")
                    moved, grid = density_in_template(workspace, scan, values, geometry)
                    save_volume(there, moved, grid.affine)
                    place |= {
                        "template_path": workspace.relative(there),
                        "template_total": float(moved.sum(dtype=float)),
                    }
                _write_sidecars(workspace, scan, method, name, folds)
                hashes.append(sha256(path))
                next(r for r in rows if (r["method"], r["fold"], r["contrast"]) == (method, kept, name)).update(place)
                # of a method with a combined map, that one stands for all: shifted overlaps cost more than maps
                if len(folds) > 1 and (name == COMBINED or not study.has_combined(method)):
                    pairs = pair_agreement(of_folds[name], inside)
                    key = {"method": method, "scan": scan, "contrast": name}
                    agreements.append(pairs.with_columns(pl.lit(value).alias(name) for name, value in key.items()))
            shown = shown or final
        frame, ledger = pl.DataFrame(rows, infer_schema_length=None), pl.concat(ledgers)
        _check_sums(frame, ledger)
        tables = {"relevance_maps": frame, "relevance_ledger": ledger}
        return Done(
            tables=tables | ({"fold_agreement": pl.concat(agreements)} if agreements else {}),
            result=fingerprint(sorted(hashes), [pairs.rows() for pairs in agreements]),
            metadata={
                "models": ", ".join(f"fold {fold}" for fold in folds),
                "largest_unexplained": _largest(frame["unexplained"]),
                "largest_share_outside_brain": _largest(frame["share_outside_brain"]),
                "largest_amplification": amplification,  # far above 1: signs cancel, the map is fragile
                "preview": overlay_mosaic(images[0], np.stack(list(shown.values())), list(shown)),
            },
        )

    def outputs(scan: str) -> list[Any]:
        return [
            workspace.map_path(scan, method, name, grid)
            for method, settings in study.methods.items()
            for name in workspace.map_contrasts(method)
            for grid in settings.grids()
        ]

    return Stage(
        name="relevance_maps",
        version="6",
        description="Why the model decided so, voxel by voxel: LRP maps per contrast and combined, on the prepared and "
        "the native grid, by models that never saw the scan; table relevance_maps accounts for every map's sum, "
        "relevance_ledger for every operation of the network.",
        tables=("relevance_maps", "relevance_ledger", "fold_agreement"),
        items=lambda: sorted(workspace.sides),
        inputs=inputs,
        work=work,
        outputs=outputs,
        partition="scan",
        parallel=True,
        needs=("prepared_volumes", "splits", "trained_models"),
        kinds=frozenset({"pytorch", "nifti"}),
        group="relevance",
        pool="gpu",
    )


def _others_transform(workspace: Workspace, scan: str) -> tuple[str, int, int] | None:
    """What the transform to the template is known by where it is not of this study's preparation."""
    path = transform_file(workspace, scan)
    return None if path is None or path.parent == workspace.mask_path(scan).parent else stamp(path)


EXPLANATION = ["method", "fold", "scan"]


def accounts_of(maps: pl.DataFrame) -> pl.DataFrame:
    """What table `relevance_maps` says of the sums of the maps that have an account."""
    return maps.filter(pl.col("unexplained").is_not_null()).select(*EXPLANATION, "start", "lost", "unexplained")


def worst_layers(ledger: pl.DataFrame) -> pl.DataFrame:
    """Of each explanation the operation at which most is unexplained, and how many operations there are."""
    size = pl.col("unexplained").abs()
    worst = pl.col("layer").sort_by(size, descending=True, nulls_last=True).first()
    return ledger.group_by(EXPLANATION).agg(worst, size.max(), operations=pl.len())


def unexplained(accounts: pl.DataFrame, layers: pl.DataFrame) -> tuple[float, float, str]:
    """Largest share of an explanation's start that is unexplained: of a map, at an operation, and at which.

    Relative to the start, or to what was lost where that is larger: a start may be small beside what cancels in it.
    """
    scale = pl.max_horizontal(pl.col("start").abs(), pl.col("lost").abs(), pl.lit(1e-300))
    share = accounts.select((pl.col("unexplained").abs() / scale).max()).item() if accounts.height else None
    layers = layers.join(accounts.group_by(EXPLANATION).agg(scale=scale.max()), on=EXPLANATION)
    layers = layers.with_columns(share=pl.col("unexplained") / pl.col("scale"))
    worst = layers.sort("share", descending=True, nulls_last=True).head(1)
    at_most = float(worst["share"][0] or 0.0) if worst.height else 0.0
    return float(share or 0.0), at_most, worst["layer"][0] if worst.height else ""


def _check_sums(maps: pl.DataFrame, ledger: pl.DataFrame) -> None:
    """A map that does not add up is an error of that scan, not of its neighbours."""
    share, at_operation, layer = unexplained(accounts_of(maps), worst_layers(ledger))
    if not max(share, at_operation) <= CONSERVED:
        raise ValueError(
            f"relevance does not add up: {share:.2g} of the start is unexplained, {at_operation:.2g} at {layer}; "
            f"bound {CONSERVED:g}; another rule or a larger epsilon may bear this network"
        )


def _write_sidecars(workspace: Workspace, scan: str, method: str, contrast: str, folds: list[str]) -> None:
    study = workspace.study
    sources = [workspace.within(path) for path in workspace.prepared_paths(scan)]
    content = {
        "Description": f"Relevance of {contrast} for the output of {study.network.name}",
        "Sources": [f"bids::{source}" for source in sources],
        "Method": study.methods[method].model_dump(mode="json"),
        "ModelsSha256": [model_hash(workspace, fold) for fold in folds],
        "Seed": study.training.seed,
        "CodeVersion": version("relevance-assets"),
        "SkullStripped": True,
    }
    for grid in study.methods[method].grids():
        about = {"Resolution": "grid of the preparation recipe"} if grid == "prepared" else {}
        write_json(sidecar(workspace.map_path(scan, method, contrast, grid)), content | about)


def _largest(values: pl.Series) -> float | None:
    top = values.cast(pl.Float64).abs().max()  # all null: no map has the measure
    return None if top is None else float(top)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- quantile masks
POSITIVE, NEGATIVE = "positive", "negative"


def _masked_maps(workspace: Workspace) -> list[tuple[str, str, str]]:
    """Method, contrast and sign of all masks of a scan."""
    signs = [POSITIVE, NEGATIVE] if workspace.study.masks.negative else [POSITIVE]
    return [(m, name, sign) for m in workspace.study.methods for name in workspace.map_contrasts(m) for sign in signs]


def _quantile_masks(workspace: Workspace) -> Stage:
    study = workspace.study

    masks_asked = study.masks.model_dump(mode="json")

    def inputs(scan: str) -> Any:
        return [upstream(workspace, "relevance_maps", scan), masks_asked]

    def make(scan: str) -> Done:
        import numpy as np

        from relevance_assets.evidence.masks import mask_measures, quantile_mask
        from relevance_assets.imaging.volumes import load_volume, save_volume

        names = [contrast.name for contrast in study.contrasts]
        images = np.stack([load_volume(path)[0] for path in workspace.prepared_paths(scan)])
        brain, affine = load_volume(workspace.mask_path(scan))
        voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
        masks: list[dict[str, Any]] = []
        measures: list[dict[str, Any]] = []
        hashes: list[str] = []
        for method, contrast, sign in _masked_maps(workspace):
            relevance, _ = load_volume(workspace.map_path(scan, method, contrast))
            if sign == NEGATIVE:
                relevance = -relevance
            levels = np.zeros(relevance.shape, dtype=np.uint8)
            path = workspace.quantiles_path(scan, method, contrast, negative=sign == NEGATIVE)
            key = {"method": method, "scan": scan, "contrast": contrast, "sign": sign}
            for percent in sorted(study.masks.top_percents, reverse=True):
                mask, threshold = quantile_mask(relevance, brain > 0, percent)
                if threshold is not None and sign == NEGATIVE:
                    threshold = -threshold
                levels[mask] = percent  # masks are nested: a smaller share overwrites a larger one
                voxels = int(mask.sum())
                row = key | {"top_percent": percent, "threshold": threshold, "voxels": voxels}
                masks.append(row | {"path": workspace.relative(path), "volume_mm3": voxels * voxel_mm3})
                measured = mask_measures(images, mask)
                for name, (mean, median) in zip(names, measured, strict=True):
                    measures.append(key | {"top_percent": percent, "image": name, "mean": mean, "median": median})
            save_volume(path, levels, affine)
            write_json(
                sidecar(path),
                {
                    "Description": f"Value N: voxel is among the top N % of the map's {sign} voxels in the brain",
                    "Sources": [f"bids::{workspace.within(workspace.map_path(scan, method, contrast))}"],
                    "CodeVersion": version("relevance-assets"),
                    "Resolution": "grid of the preparation recipe",
                    "SkullStripped": True,
                },
            )
            hashes.append(sha256(path))
        tables = {"quantile_masks": pl.DataFrame(masks), "mask_measures": pl.DataFrame(measures)}
        tables = {name: frame.with_columns(pl.col(pl.Null).cast(pl.Float64)) for name, frame in tables.items()}
        middle = tables["quantile_masks"].filter(
            (pl.col("top_percent") == min(study.masks.top_percents))
            & (pl.col("method") == next(iter(study.methods)))
            & (pl.col("sign") == POSITIVE)
        )
        return Done(
            tables=tables,
            result=fingerprint(hashes, tables["mask_measures"].rows()),
            metadata={"empty_masks": tables["quantile_masks"].filter(pl.col("voxels") == 0).height}
            | {f"ml_{row['contrast']}": round(row["volume_mm3"] / 1000, 1) for row in middle.iter_rows(named=True)},
        )

    return Stage(
        name="quantile_masks",
        version="2",
        description="The top N % of each map's positive voxels in the brain (where the study asks for it also of the "
        "negative ones), as one NIfTI of nested levels, and the image values inside each mask.",
        tables=("quantile_masks", "mask_measures"),
        items=lambda: sorted(workspace.results("relevance_maps")),
        inputs=inputs,
        work=each(make),
        outputs=lambda scan: [
            workspace.quantiles_path(scan, method, name, negative=sign == NEGATIVE)
            for method, name, sign in _masked_maps(workspace)
        ],
        partition="scan",
        parallel=True,
        needs=("relevance_maps",),
        kinds=frozenset({"nifti", "numpy"}),
        group="relevance",
    )
