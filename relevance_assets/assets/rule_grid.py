"""Stages of the grid of rules: maps of every cell scored against the slice's mask, then one cell chosen.

Belongs here: which slices are explained, by what, and what is kept. Does not belong here: rules and passes
(`relevance/`), scores (`evidence/mask_scores.py`), the choice (`statistics/rule_selection.py`).
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
from relevance_assets.assets.rule_maps import CellMaps, OneMap, map_name
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, Work, each, tick
from relevance_assets.assets.workspace import Workspace, camel
from relevance_assets.files import fingerprint, sidecar, write_json

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from relevance_assets.statistics.rule_selection import Selection
    from relevance_assets.study import RuleGrid

__all__ = ["rule_grid_stages"]

SETS = ("validation", "test")
FIGURES = ("ruleGrid", "ruleOverlays", "rulesByClass")
EXAMPLES = 4  # slices whose maps are drawn


def rule_grid_stages(workspace: Workspace) -> list[Stage]:
    return [_rule_grid(workspace), _rule_selection(workspace)] if workspace.study.rule_grid else []


def _settings(workspace: Workspace) -> RuleGrid:
    settings = workspace.study.rule_grid
    assert settings is not None
    return settings


# ------------------------------------------------------------------------------------------------------- rule_grid
def _rule_grid(workspace: Workspace) -> Stage:
    study, settings = workspace.study, _settings(workspace)
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
            measured = measured.with_columns(measure=_measure())
            accounts = pl.DataFrame([one.key() | one.numbers() for one in found], infer_schema_length=None)
            for explained in (name for name, one in targets.items() if one == target):
                named = {
                    "explained": pl.lit(explained),
                    "scan": pl.lit(scan),
                    "class": pl.lit(study.target.classes[target]),
                }
                tables["rule_grid"].append(measured.with_columns(**named).drop("class"))
                tables["rule_maps"].append(
                    accounts.with_columns(**named, path=_kept(workspace, scan, explained, found))
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
        outputs=lambda scan: list(_kept_paths(workspace, scan).values()),
        partition="scan",
        parallel=True,
        selects=True,
        needs=("prepared_volumes", "splits", "trained_models", "predictions"),
        kinds=frozenset({"pytorch"}),
        group="model",
        pool="gpu",
    )


def _measure() -> pl.Expr:
    """A score's name with its quantile: the key of a row."""
    at = pl.concat_str("score", pl.lit(" at "), pl.col("quantile").round(4).cast(pl.String))
    return pl.when(pl.col("quantile").is_null()).then("score").otherwise(at)


def _kept_paths(workspace: Workspace, scan: str) -> dict[tuple[str, float | None, float | None], Path]:
    """Files of the maps that are to be kept, by class explained, gamma and epsilon."""
    settings = _settings(workspace)
    return {
        (explained, *cell): workspace.map_path(
            scan, camel(explained, "gamma", _label(cell[0]), "epsilon", _label(cell[1])), ""
        )
        for explained in settings.explained
        for cell in settings.maps
    }


def _kept(workspace: Workspace, scan: str, explained: str, found: list[OneMap]) -> pl.Series:
    """Write the maps that are to be kept; their paths, null for the others."""
    from relevance_assets.imaging.volumes import load_volume, save_volume

    wanted = _kept_paths(workspace, scan)
    affine = load_volume(workspace.tumour_path(scan))[1]
    paths: list[str | None] = []
    for one in found:
        path = wanted.get((explained, one.gamma, one.epsilon))
        if path:
            save_volume(path, one.relevance[..., None], affine)
            write_json(sidecar(path), one.key() | one.numbers() | {"Explained": explained})
        paths.append(workspace.relative(path) if path else None)
    return pl.Series("path", paths, pl.String)


def _label(value: float) -> str:
    return f"{value:g}".replace("-", "minus").replace(".", "point").replace("+", "")


# -------------------------------------------------------------------------------------------------- rule_selection
def _rule_selection(workspace: Workspace) -> Stage:
    study, settings = workspace.study, _settings(workspace)
    figures = {name: workspace.figure_path(name) for name in FIGURES}

    def inputs(_: str) -> Any:
        results = workspace.results("rule_grid")
        if not results:
            raise NotReady("no slice explained yet: rule_grid")
        said = {scan: result for scan, result in workspace.results("predictions").items() if scan in results}
        return [results, said, settings.model_dump(mode="json"), study.statistics.model_dump(mode="json")]

    def make(_: str) -> Done:
        from relevance_assets.assets.metadata import picture
        from relevance_assets.precision import one_thread
        from relevance_assets.report.figures import save, thumbnail
        from relevance_assets.report.rule_text import answer
        from relevance_assets.statistics.rule_images import image_means
        from relevance_assets.statistics.rule_selection import select_rule

        statistics = study.statistics
        drawn: dict[str, Any] = statistics.model_dump(include={"bootstrap", "confidence", "seed"})
        rows = _rows(workspace)
        leaking = bool(workspace.read("splits")["leaking"].any())
        tick(0.1, "choosing cells")
        selection = select_rule(rows, published=settings.published, leaking=leaking, **drawn)
        if settings.random_weights:
            tick(0.4, "a network that learnt nothing")
            with one_thread():
                rows = pl.concat([rows, _random_rows(workspace, rows, selection)], how="diagonal_relaxed")
            tick(0.7, "choosing cells")
            selection = select_rule(rows, published=settings.published, leaking=leaking, **drawn)
        means = image_means(rows.filter(pl.col("method") != "random_weights"), leaking=leaking, **drawn)
        texts = []
        for (explained, score, quantile), part in selection.cells.group_by(*KEYS, maintain_order=True):
            of = selection.comparison.filter(_choice(explained, score, quantile))
            text = answer(part, of, confidence=statistics.confidence, leaking=leaking)
            texts.append((explained, score, quantile, text))
        tick(0.9, "figures")
        for path in figures.values():
            path.unlink(missing_ok=True)
        shown = {}
        for name, figure in _figures(workspace, selection, rows):
            save(figure, figures[name])
            shown[name] = picture(thumbnail(figure), name)
        schema = {"explained": pl.String, "score": pl.String, "quantile": pl.Float64, "answer": pl.String}
        tables = {
            "rule_cells": selection.cells,
            "rule_comparison": selection.comparison,
            "rule_means": means,
            "rule_answers": pl.DataFrame(texts, schema=schema, orient="row"),
        }
        tables = {name: frame.with_columns(measure=_measure()) for name, frame in tables.items()}
        tables |= {name: _with_maps(tables[name]) for name in ("rule_comparison", "rule_means")}
        main = next((text for *key, text in texts if key == list(_main(settings))), texts[0][3])
        return Done(
            tables=tables,
            result=fingerprint(*(frame.rows() for frame in tables.values())),
            metadata={"answer": main, "slices": rows["scan"].n_unique()} | shown,
        )

    return Stage(
        name="rule_selection",
        version="1",
        description="The cell that is best on validation slices, reported on test slices with intervals over people, "
        "against the published cell, other methods and a network that learnt nothing; in words and pictures.",
        tables=("rule_cells", "rule_comparison", "rule_means", "rule_answers"),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        outputs=lambda _: [figures[FIGURES[0]]],
        needs=("rule_grid",),
        kinds=frozenset({"polars", "matplotlib"}),
        group="statistics",
    )


KEYS = ("explained", "score", "quantile")


def _main(settings: RuleGrid) -> tuple[str, str, float | None]:
    """Of the choice that figures and words are about."""
    from relevance_assets.evidence.mask_scores import MAP_SCORES

    return settings.explained[0], settings.score, None if settings.score in MAP_SCORES else settings.quantiles[0]


def _choice(explained: object, score: object, quantile: object) -> pl.Expr:
    same = (pl.col("explained") == explained) & (pl.col("score") == score)
    return same & pl.col("quantile").eq_missing(pl.lit(quantile, pl.Float64))


def _with_maps(frame: pl.DataFrame) -> pl.DataFrame:
    """With the key of each row's map."""
    names = [map_name(*row) for row in frame.select("method", "gamma", "epsilon").iter_rows()]
    return frame.with_columns(pl.Series("map", names, pl.String))


def _rows(workspace: Workspace) -> pl.DataFrame:
    """Scores of all maps as the choice takes them, but of slices without a pixel of tumour: nothing is to be found."""
    scores = workspace.read("rule_grid").filter(pl.col("truth_pixels") > 0)
    said = workspace.read("class_predictions").filter("is_true")
    slices = said.select("scan", "set", "class", correct="is_predicted")
    people = workspace.known_scans().select("scan", "participant_id")
    return scores.drop("study", "measure", "map").join(slices, on="scan").join(people, on="scan").sort("scan")


def _random_rows(workspace: Workspace, rows: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    """Scores of the chosen cells on test slices for a network with weights as drawn."""
    settings = _settings(workspace)
    chosen = selection.cells.filter("is_chosen").select(*KEYS, "gamma", "epsilon").unique()
    cells = sorted(set(chosen.select("gamma", "epsilon").iter_rows()))
    maps = CellMaps(workspace, cells=cells, references=(), trained=False)
    keys = ["scan", "participant_id", "set", "class", "correct"]
    slices = rows.filter(set="test").select(*keys).unique().sort("scan")
    places = {name: number for number, name in enumerate(workspace.study.target.classes)}
    parts = []
    for row in slices.iter_rows(named=True):
        said = workspace.read("class_predictions", row["scan"])
        for explained in settings.explained:
            target = places[said.filter(f"is_{explained}")["class"][0]]
            _, frame = maps.scored(maps.image(row["scan"]), target, maps.truth(row["scan"]))
            parts.append(frame.with_columns(explained=pl.lit(explained), **{name: pl.lit(row[name]) for name in keys}))
    frame = pl.concat(parts, how="vertical_relaxed").drop("map").with_columns(method=pl.lit("random_weights"))
    wanted = chosen.join(frame, on=["explained", "score", "gamma", "epsilon"], suffix="_of_row")
    same = pl.col("quantile").eq_missing(pl.col("quantile_of_row"))
    return wanted.filter(same).drop("quantile_of_row")


# --------------------------------------------------------------------------------------------------------- figures
def _figures(workspace: Workspace, selection: Selection, rows: pl.DataFrame) -> Iterator[tuple[str, Figure]]:
    from relevance_assets.report.figures_rules import methods_by_class_figure, rule_grid_figure

    main = _choice(*_main(_settings(workspace)))
    cells, comparison = selection.cells.filter(main), selection.comparison.filter(main)
    if cells["value"].drop_nulls().is_empty():
        return
    yield FIGURES[0], rule_grid_figure(cells, comparison)
    overlays = _overlays(workspace, comparison, rows.filter(set="test")["scan"].unique().sort().to_list())
    if overlays is not None:
        yield FIGURES[1], overlays
    yield FIGURES[2], methods_by_class_figure(comparison)


def _overlays(workspace: Workspace, comparison: pl.DataFrame, scans: list[str]) -> Figure | None:
    """Maps of the chosen, the published and the worst cell for some of these slices, spread evenly over them."""
    from relevance_assets.evidence.mask_scores import mask_overlap, published_mask
    from relevance_assets.report.figures_rules import ImageMaps, rule_overlays_figure

    settings = _settings(workspace)
    overall = comparison.filter((pl.col("stratum_kind") == "all") & pl.col("gamma").is_not_null())
    roles = {
        row["role"]: (row["gamma"], row["epsilon"])
        for row in overall.filter(pl.col("role").is_in(["chosen", "published", "worst"])).iter_rows(named=True)
    }
    maps = CellMaps(workspace, cells=sorted(set(roles.values())), references=())
    images = []
    for place in range(min(EXAMPLES, len(scans))):
        scan = scans[place * len(scans) // min(EXAMPLES, len(scans))]
        said = workspace.read("class_predictions", scan)
        kind = said.filter(f"is_{settings.explained[0]}")["class"][0]
        found = {
            (one.gamma, one.epsilon): one for one in maps(maps.image(scan), workspace.study.target.classes.index(kind))
        }
        truth = maps.truth(scan)
        drawn = {}
        for role, cell in roles.items():
            relevance = found[cell].relevance
            mask = published_mask(relevance, settings.quantiles[0])
            iou = float(mask_overlap((mask & truth).sum(), mask.sum(), int(truth.sum()), mask.size)["iou"])
            drawn[f"{role}: γ {cell[0]:g}, ε {cell[1]:g}"] = _upright(relevance), _upright(mask), iou
        images.append(ImageMaps(f"{scan}\n{kind}", _upright(maps.image(scan)[0]), _upright(truth), drawn))
    return rule_overlays_figure(images) if images else None


def _upright(values: np.ndarray) -> np.ndarray:
    """From (x to the right, y upwards) to rows downwards, as pictures are drawn."""
    import numpy as np

    return np.rot90(values)
