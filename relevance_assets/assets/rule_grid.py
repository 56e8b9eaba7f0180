"""The stage of the grid of rules: maps of every cell, scored against the slice's mask.

Belongs here: which slices are explained, by what, and what is kept. Does not belong here: rules and passes
(`relevance/`), scores (`evidence/mask_scores.py`), the choice of a cell (`rule_selection.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.class_models import FOLD
from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.models import model_hash, role_of
from relevance_assets.assets.rule_maps import Cell, CellMaps, OneMap, measure_name
from relevance_assets.assets.rule_selection import rule_selection
from relevance_assets.assets.stages import Done, Stage, Work
from relevance_assets.assets.workspace import Workspace, camel
from relevance_assets.files import fingerprint, sidecar, write_json
from relevance_assets.study.slices import MAIN_REGION

if TYPE_CHECKING:
    from relevance_assets.study import RuleGrid

__all__ = ["rule_grid_stages"]

SETS = ("validation", "test")


def rule_grid_stages(workspace: Workspace) -> list[Stage]:
    settings = workspace.study.rule_grid
    return [_rule_grid(workspace, settings), rule_selection(workspace, settings)] if settings else []


def _rule_grid(workspace: Workspace, settings: RuleGrid) -> Stage:
    study = workspace.study
    decisive = settings.model_dump(
        mode="json", exclude={"images", "score", "published", "random_weights", "maps", "seed"}
    )

    def items() -> list[str]:
        """Validation and test slices, evenly spread over them where not all are wanted."""
        found = []
        for name in SETS:
            scans = sorted(scan for scan in workspace.sides if role_of(workspace, scan, FOLD) == name)
            count = min(len(scans), settings.images or len(scans))
            found += [scans[place * len(scans) // count] for place in range(count)]
        return sorted(found)

    def inputs(scan: str) -> Any:
        needed = [upstream(workspace, name, scan) for name in ("prepared_volumes", "predictions")]
        return [*needed, model_hash(workspace, FOLD), decisive, settings.maps]

    @contextmanager
    def work() -> Iterator[Work]:
        from relevance_assets.precision import one_thread

        maps = CellMaps(workspace)
        with one_thread():
            yield lambda scan: make(scan, maps)

    def make(scan: str, maps: CellMaps) -> Done:
        image, truth = maps.image(scan), maps.truth(scan)
        predictions = workspace.read("class_predictions", scan)
        places = {name: number for number, name in enumerate(study.target.classes)}
        targets = {
            explained: places[predictions.filter(f"is_{explained}")["class"][0]] for explained in settings.explained
        }
        tables: dict[str, list[pl.DataFrame]] = {"rule_grid": [], "rule_maps": []}
        for target in sorted(set(targets.values())):
            found, measured = maps.scored(image, target, truth)
            measured = measured.with_columns(measure=measure_name())
            costs = maps.costs(image, target)
            accounts = pl.DataFrame(
                [one.key() | one.numbers() | {"forwards": costs[one.method]} for one in found],
                infer_schema_length=None,
            )
            for explained in (name for name, one in targets.items() if one == target):
                named = {
                    "explained": pl.lit(explained),
                    "scan": pl.lit(scan),
                    "class": pl.lit(study.target.classes[target]),
                }
                tables["rule_grid"].append(measured.with_columns(**named).drop("class"))
                tables["rule_maps"].append(
                    accounts.with_columns(**named, path=_kept(workspace, settings, scan, explained, found))
                )
        frames = {name: pl.concat(parts, how="vertical_relaxed") for name, parts in tables.items()}
        account = frames["rule_maps"]
        return Done(
            tables=frames,
            result=fingerprint(*(frame.rows() for frame in frames.values())),
            metadata={
                "maps": account.height,
                "forwards": round(account["forwards"].sum(), 1),
                "maps_that_do_not_add_up": account.filter(~pl.col("sound")).height,
                "tumour_pixels": int(truth.sum()),
            },
        )

    return Stage(
        name="rule_grid",
        version="2",
        description="Every cell of the grid of gamma and epsilon on one forward pass: each map's account, and its "
        "scores against the tumour's mask beside chance and ceiling; the same of other methods.",
        tables=("rule_grid", "rule_maps"),
        items=items,
        inputs=inputs,
        work=work,
        outputs=lambda scan: list(_kept_paths(workspace, settings, scan).values()),
        partition="scan",
        parallel=True,
        selects=True,
        needs=("prepared_volumes", "splits", "trained_models", "predictions"),
        kinds=frozenset({"pytorch"}),
        group="model",
        pool="gpu",
    )


def _kept_paths(workspace: Workspace, settings: RuleGrid, scan: str) -> dict[tuple[str, Cell], Path]:
    """Files of the maps that are to be kept, by class explained and cell."""
    return {
        (explained, Cell(MAIN_REGION, *cell)): workspace.map_path(
            scan, camel(explained, "gamma", _label(cell[0]), "epsilon", _label(cell[1])), ""
        )
        for explained in settings.explained
        for cell in settings.maps
    }


def _kept(workspace: Workspace, settings: RuleGrid, scan: str, explained: str, found: list[OneMap]) -> pl.Series:
    """Write the maps that are to be kept; their paths, null for the others."""
    from relevance_assets.imaging.volumes import load_volume, save_volume

    wanted = _kept_paths(workspace, settings, scan)
    if not wanted:
        return pl.Series("path", [None] * len(found), pl.String)
    affine = load_volume(workspace.tumour_path(scan))[1]
    paths: list[str | None] = []
    for one in found:
        path = wanted.get((explained, one.cell)) if one.cell else None
        if path:
            save_volume(path, one.relevance[..., None], affine)
            write_json(sidecar(path), one.key() | one.numbers() | {"Explained": explained})
        paths.append(workspace.relative(path) if path else None)
    return pl.Series("path", paths, pl.String)


def _label(value: float) -> str:
    return f"{value:g}".replace("-", "minus").replace(".", "point").replace("+", "")
