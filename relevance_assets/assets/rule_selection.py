"""The stage that chooses a cell of the grid of rules, on validation slices, and tells how good it is on test slices.

Belongs here: which rows go in, networks that learnt nothing, tables and figures. Does not belong here: scores of maps
(`rule_grid.py`), the choice itself (`statistics/rule_selection.py`), its words and drawing (`report/`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.rule_maps import GRID, Cell, CellMaps, map_name, measure_name
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each, tick
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint
from relevance_assets.study.slices import MAIN_REGION

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from relevance_assets.statistics.rule_selection import Selection
    from relevance_assets.study import RuleGrid

__all__ = ["rule_selection"]

KEYS = ("explained", "score", "quantile")
FIGURES = ("ruleGrid", "ruleScores", "ruleOverlays", "rulesByClass")  # of another region than the main one, the first 2
EXAMPLES = 4  # slices whose maps are drawn
RANDOM, PUBLISHED = "random_weights", "published_cell"  # methods that are no cell of the region


def rule_selection(workspace: Workspace, settings: RuleGrid) -> Stage:
    study = workspace.study
    figures = {name: workspace.figure_path(name) for name in _figure_names(settings)}

    def inputs(_: str) -> Any:
        results = workspace.results("rule_grid")
        if not results:
            raise NotReady("no slice explained yet: rule_grid")
        said = {scan: result for scan, result in workspace.results("predictions").items() if scan in results}
        asked = [settings.model_dump(mode="json"), study.statistics.model_dump(mode="json")]
        return [results, said, upstream(workspace, "splits", ALL), *asked]

    def make(_: str) -> Done:
        from relevance_assets.assets.metadata import picture
        from relevance_assets.report.figures import save, thumbnail

        every = _rows(workspace)
        for path in figures.values():
            path.unlink(missing_ok=True)
        tables: dict[str, list[pl.DataFrame]] = {}
        shown = {}
        for place, region in enumerate(settings.regions):
            begun = place / len(settings.regions)
            rows, selection, found = _selected(workspace, settings, every, region, begun)
            for name, frame in found.items():
                tables.setdefault(name, []).append(frame)
            tick(begun + 0.9 / len(settings.regions), "figures")
            for name, figure in _figures(workspace, settings, region, selection, rows):
                save(figure, figures[name])
                shown[name] = picture(thumbnail(figure), name)
        frames = {
            name: pl.concat(parts, how="vertical_relaxed").with_columns(measure=measure_name())
            for name, parts in tables.items()
        }
        answers = frames["rule_answers"].filter(pl.col("region") == MAIN_REGION)
        main = [*answers.filter(_choice(*_main(settings)))["answer"], answers["answer"][0]][0]
        return Done(
            tables=frames,
            result=fingerprint(*(frame.rows() for frame in frames.values())),
            metadata={
                "answer": main,
                "slices": every["scan"].n_unique(),
                "slices_without_tumour": len(workspace.results("rule_grid")) - every["scan"].n_unique(),
            }
            | shown,
        )

    return Stage(
        name="rule_selection",
        version="2",
        description="The cell that is best on validation slices, reported on test slices with intervals over people, "
        "against the published cell, other methods and networks that learnt nothing; in words and pictures.",
        tables=("rule_cells", "rule_comparison", "rule_means", "rule_answers"),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        outputs=lambda _: [figures[FIGURES[0]]],
        needs=("splits", "rule_grid"),
        kinds=frozenset({"polars", "matplotlib", "pytorch"}),
        group="statistics",
        pool="gpu",
    )


def _selected(
    workspace: Workspace, settings: RuleGrid, every: pl.DataFrame, region: str, begun: float
) -> tuple[pl.DataFrame, Selection, dict[str, pl.DataFrame]]:
    """Rows of a region with those of what it is compared with, what is chosen in it, and the tables of that."""
    from relevance_assets.precision import one_thread
    from relevance_assets.report.rule_text import answer
    from relevance_assets.statistics.rule_images import image_means
    from relevance_assets.statistics.rule_selection import select_rule

    statistics = workspace.study.statistics
    drawn: dict[str, Any] = statistics.model_dump(include={"bootstrap", "confidence", "seed"})
    share = 1 / len(settings.regions)
    rows = _of_region(every, region, settings)
    asked: dict[str, Any] = drawn | {"leaking": bool(workspace.read("splits")["leaking"].any())}
    published = settings.published if region == MAIN_REGION else None
    if settings.random_weights:
        tick(begun + 0.1 * share, "networks that learnt nothing")
        first = select_rule(rows, published=published, **asked | {"bootstrap": 1})  # the choice needs no resamples
        with one_thread():
            rows = pl.concat([rows, _random_rows(workspace, settings, rows, region, first)], how="diagonal_relaxed")
    tick(begun + 0.7 * share, "choosing cells")
    selection = select_rule(rows, published=published, **asked)
    own = rows.filter(pl.col("method") == GRID) if region != MAIN_REGION else rows
    means = image_means(own.filter(pl.col("method") != RANDOM), **asked)
    texts = []
    for (explained, score, quantile), part in selection.cells.group_by(*KEYS, maintain_order=True):
        of = selection.comparison.filter(_choice(explained, score, quantile))
        words = answer(
            part,
            of,
            confidence=statistics.confidence,
            leaking=asked["leaking"],
            unit=_unit(workspace),
        )
        texts.append((explained, score, quantile, words))
    schema = {"explained": pl.String, "score": pl.String, "quantile": pl.Float64, "answer": pl.String}
    tables = {
        "rule_cells": selection.cells,
        "rule_comparison": _with_maps(selection.comparison, region),
        "rule_means": _with_maps(means, region),
        "rule_answers": pl.DataFrame(texts, schema=schema, orient="row"),
    }
    return rows, selection, {name: frame.with_columns(region=pl.lit(region)) for name, frame in tables.items()}


def _main(settings: RuleGrid) -> tuple[str, str, float | None]:
    """Of the choice that figures and words are about."""
    from relevance_assets.evidence.mask_scores import MAP_SCORES

    return settings.explained[0], settings.score, None if settings.score in MAP_SCORES else settings.quantiles[0]


def _choice(explained: object, score: object, quantile: object) -> pl.Expr:
    same = (pl.col("explained") == explained) & (pl.col("score") == score)
    return same & pl.col("quantile").eq_missing(pl.lit(quantile, pl.Float64))


def _with_maps(frame: pl.DataFrame, region: str) -> pl.DataFrame:
    """With the key of each row's map."""
    names = [
        map_name(method, region, gamma, epsilon)
        for method, gamma, epsilon in frame.select("method", "gamma", "epsilon").iter_rows()
    ]
    return frame.with_columns(pl.Series("map", names, pl.String))


def _rows(workspace: Workspace) -> pl.DataFrame:
    """Scores of all maps as the choice takes them, but of slices without a pixel of tumour: nothing is to be found."""
    scores = workspace.read("rule_grid").filter(pl.col("truth_pixels") > 0)
    said = workspace.read("class_predictions").filter("is_true")
    slices = said.select("scan", "set", "class", correct="is_predicted")
    people = workspace.known_scans().select("scan", "participant_id")
    return scores.drop("study", "measure", "map").join(slices, on="scan").join(people, on="scan").sort("scan")


def _of_region(rows: pl.DataFrame, region: str, settings: RuleGrid) -> pl.DataFrame:
    """Those of a region's cells and of all methods; beside another region also the published cell, as a method."""
    own = rows.filter((pl.col("region") == region) | pl.col("region").is_null())
    if region == MAIN_REGION:
        return own.drop("region")
    cell = dict(zip(("gamma", "epsilon"), settings.published, strict=True))
    published = rows.filter((pl.col("region") == MAIN_REGION), **cell).with_columns(
        method=pl.lit(PUBLISHED), gamma=pl.lit(None, pl.Float64), epsilon=pl.lit(None, pl.Float64)
    )
    return pl.concat([own, published]).sort("scan", maintain_order=True).drop("region")


def _random_rows(
    workspace: Workspace, settings: RuleGrid, rows: pl.DataFrame, region: str, selection: Selection
) -> pl.DataFrame:
    """Mean scores of the chosen cells on test slices over networks with weights as drawn.

    One alone would say little: what it answers hardly depends on the slice, and where that is negative all its maps
    are turned round.
    """
    chosen = selection.cells.filter("is_chosen").select(*KEYS, "gamma", "epsilon").unique()
    cells = [Cell(region, *pair) for pair in sorted(set(chosen.select("gamma", "epsilon").iter_rows()))]
    keys = ["scan", "participant_id", "set", "class", "correct"]
    slices = rows.filter(set="test").select(*keys).unique().sort("scan")
    places = {name: number for number, name in enumerate(workspace.study.target.classes)}
    parts = []
    for seed in range(settings.seed, settings.seed + settings.random_weights):
        maps = CellMaps(workspace, cells=cells, references=(), seed=seed)
        for row in slices.iter_rows(named=True):
            image, truth = maps.image(row["scan"]), maps.truth(row["scan"])
            said = workspace.read("class_predictions", row["scan"])
            targets = {one: places[said.filter(f"is_{one}")["class"][0]] for one in settings.explained}
            for target in sorted(set(targets.values())):
                _, frame = maps.scored(image, target, truth)
                parts += [
                    frame.with_columns(explained=pl.lit(one), **{name: pl.lit(row[name]) for name in keys})
                    for one, its in targets.items()
                    if its == target
                ]
    of = [*keys, *KEYS, "gamma", "epsilon"]
    numbers = [pl.col(name).mean() for name in ("value", "chance", "ceiling", "normalised")]
    means = pl.concat(parts, how="vertical_relaxed").group_by(of, maintain_order=True).agg(numbers)
    wanted = chosen.join(means, on=["explained", "score", "gamma", "epsilon"], suffix="_of_row")
    same = pl.col("quantile").eq_missing(pl.col("quantile_of_row"))
    return wanted.filter(same).drop("quantile_of_row").with_columns(method=pl.lit(RANDOM))


# --------------------------------------------------------------------------------------------------------- figures
def _figure_names(settings: RuleGrid) -> list[str]:
    return [*FIGURES, *(f"{name}{region.title()}" for region in list(settings.regions)[1:] for name in FIGURES[:2])]


def _figures(
    workspace: Workspace, settings: RuleGrid, region: str, selection: Selection, rows: pl.DataFrame
) -> Iterator[tuple[str, Figure]]:
    from relevance_assets.report.figures_rules import methods_by_class_figure, rule_grid_figure, rule_scores_figure

    main = _choice(*_main(settings))
    cells, comparison = selection.cells.filter(main), selection.comparison.filter(main)
    if cells["value"].drop_nulls().is_empty():
        return
    suffix = "" if region == MAIN_REGION else region.title()
    unit = _unit(workspace)
    yield f"{FIGURES[0]}{suffix}", rule_grid_figure(cells, comparison, unit)
    yield f"{FIGURES[1]}{suffix}", rule_scores_figure(selection.cells.filter(explained=settings.explained[0]))
    if region != MAIN_REGION:
        return
    overlays = _overlays(workspace, settings, comparison, rows.filter(set="test"))
    if overlays is not None:
        yield FIGURES[2], overlays
    yield FIGURES[3], methods_by_class_figure(comparison, unit)


def _unit(workspace: Workspace) -> str:
    """What slices are grouped by where one must not count twice: `participant_id` is a patient, or a block."""
    from relevance_assets.report.rule_text import BLOCKS, PEOPLE

    return PEOPLE if workspace.read("slices")["patient"].drop_nulls().len() else BLOCKS


def _overlays(workspace: Workspace, settings: RuleGrid, comparison: pl.DataFrame, rows: pl.DataFrame) -> Figure | None:
    """Maps of the chosen, the published and the worst cell for some test slices, each class and person in turn."""
    from relevance_assets.evidence.mask_scores import mask_overlap, published_mask
    from relevance_assets.report.figures_rules import ImageMaps, rule_overlays_figure

    overall = comparison.filter((pl.col("stratum_kind") == "all") & pl.col("gamma").is_not_null())
    roles = {
        row["role"]: Cell(MAIN_REGION, row["gamma"], row["epsilon"])
        for row in overall.filter(pl.col("role").is_in(["chosen", "published", "worst"])).iter_rows(named=True)
    }
    maps = CellMaps(workspace, cells=sorted(set(roles.values())), references=())
    images = []
    for scan in _examples(rows):
        said = workspace.read("class_predictions", scan)
        kind, predicted = (said.filter(f"is_{one}")["class"][0] for one in (settings.explained[0], "predicted"))
        found = {one.cell: one for one in maps(maps.image(scan), workspace.study.target.classes.index(kind))}
        truth = maps.truth(scan)
        drawn = {}
        for role, cell in roles.items():
            relevance = found[cell].relevance
            mask = published_mask(relevance, settings.quantiles[0])
            iou = float(mask_overlap((mask & truth).sum(), mask.sum(), int(truth.sum()), mask.size)["iou"])
            name = f"{role}: γ {cell.gamma:g}, ε {cell.epsilon:g}".replace("-", "−")
            drawn[name] = _upright(relevance), _upright(mask), iou
        start = next(iter(found.values())).account["start"]
        title = f"{scan}\n{kind}, network: {predicted}\nlogit {start:.2f}".replace("logit -", "logit −")
        images.append(ImageMaps(title, _upright(maps.image(scan)[0]), _upright(truth), drawn))
    return rule_overlays_figure(images) if images else None


def _examples(rows: pl.DataFrame) -> list[str]:
    """A few slices: the first of each class in turn, of people not seen yet where there are any."""
    slices = rows.select("scan", "class", "participant_id").unique().sort("scan")
    first = slices.with_columns(seen=pl.cum_count("scan").over("participant_id")).sort("seen", "scan")
    turn = first.with_columns(turn=pl.cum_count("scan").over("class")).sort("turn", "class")
    return turn["scan"].head(EXAMPLES).to_list()


def _upright(values: np.ndarray) -> np.ndarray:
    """From (x to the right, y upwards) to rows downwards, as pictures are drawn."""
    import numpy as np

    return np.rot90(values)
