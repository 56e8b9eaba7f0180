"""What the command line prints of results: tables for a terminal, read from the Parquet tables.

Belongs here: choosing and formatting. Does not belong here: computing anything new, figures, pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from relevance_assets.configuration import load_studies
from relevance_assets.home import Home
from relevance_assets.report.notices import notices
from relevance_assets.report.tables import interval, number, table
from relevance_assets.report.terminal_lesions import LESION_PARTS
from relevance_assets.report.terminal_rules import RULE_PARTS
from relevance_assets.study import Study
from relevance_assets.tables.store import Store

__all__ = ["frame_table", "status_parts", "study_summary"]

RUNS_SHOWN = 5
HEADLINE = ("auc", "accuracy", "sensitivity", "specificity", "mae", "r", "r2")


def frame_table(frame: pl.DataFrame, rows: int = 100) -> RenderableType:
    """A query's answer; more than `rows` rows are counted, not shown."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name, dtype in frame.schema.items():
        table.add_column(name, justify="right" if dtype.is_numeric() else "left", overflow="fold")
    for row in frame.head(rows).iter_rows():
        table.add_row(*(Text(number(value)) for value in row))
    hidden = frame.height - rows
    if frame.is_empty():
        return Text("no rows", style="dim")
    return Group(table, Text(f"and {hidden} more rows; --format csv shows all", style="dim")) if hidden > 0 else table


# -------------------------------------------------------------------------------------------------------- a study
def study_summary(home: Home, name: str) -> list[RenderableType]:
    """Scores, correlations, localisation, and where things are."""
    study = load_studies(home)[name]
    store = Store(home.tables)
    parts: list[RenderableType] = [Text()]
    given = study.slices.folder if study.slices else study.cohort.subjects or study.cohort.bids
    source = str(given) if given else "synthetic cohort: nothing here says anything about people"
    parts += [Text(study.title, style="bold"), Text(source, style="dim")]
    for make in _makers(study):
        part = make(study, store)
        parts += [Text(), part] if part is not None else []
    return [*parts, Text(), _places(home, study)]


def _makers(study: Study) -> Sequence[Callable[[Study, Store], RenderableType | None]]:
    if study.slices:
        return RULE_PARTS
    return (_scores, _scenarios, _localisation, _sanity, _correlations) if study.model else LESION_PARTS


def _scores(study: Study, store: Store) -> RenderableType | None:
    frame = store.read("scores", study.name).filter(
        (pl.col("set") == "test") & (pl.col("fold") == "ensemble") & pl.col("metric").is_in(HEADLINE)
    )
    if frame.is_empty():
        return None
    order = {metric: index for index, metric in enumerate(HEADLINE)}
    own = {study.network.name: 0}
    rows = sorted(
        frame.iter_rows(named=True), key=lambda row: (own.get(row["model"], 1), row["model"], order[row["metric"]])
    )
    return table(
        "Held-out people, mean of the folds' models",
        ["model", "measure", "value", "95 % interval", "scans"],
        [[row["model"], row["metric"], row["value"], interval(row), row["n"]] for row in rows],
        right_from=2,
    )


def _scenarios(study: Study, store: Store) -> RenderableType | None:
    """Mean AUC under inversion of as many voxels by every scenario, best first, and how they differ from the reference.

    Own masks come last: their sizes differ, so they rank nothing.
    """
    areas = store.read("inversion_areas", study.name)
    if areas.is_empty():
        return None
    alone = areas.filter(pl.col("against") == "nothing")
    named = store.read("scenarios", study.name)
    for control in ("own", "matched_planted"):
        value = alone.filter(pl.col("control") == control).select("method", "map", pl.col("value").alias(control))
        named = named.join(value, on=["method", "map"], how="left")
    matched = areas.filter(pl.col("control") == "matched")
    # of the reference less the scenario: what the scenario is better by
    better = matched.select("against", better="value", better_low="ci_low", better_high="ci_high")
    ranked = (
        named.join(matched.filter(pl.col("against") == "nothing"), on=["method", "map"])
        .with_columns(against=pl.concat_str("method", "map", separator=" "))
        .join(better, on="against", how="left")
        .sort("value", "number", "method", "map", nulls_last=True)
    )
    rows = []
    for row in ranked.iter_rows(named=True):
        paired = interval({"ci_low": row["better_low"], "ci_high": row["better_high"]})
        measured = (
            row["value"],
            interval(row),
            row["better"],
            paired,
            row["own"],
            row["matched_planted"],
            row["passes"],
        )
        rows.append([row["number"], row["method"], row["map"], *measured])
    curves = store.read("inversion_curves", study.name).filter(pl.col("fold") == "mean")
    whole = curves.filter((pl.col("control") == "own") & (pl.col("top_percent") == 0))["auc"]
    said = [f"nothing inverted {number(whole[0])}"] if len(whole) else []
    for control, words in (
        ("planted", "planted region"),
        ("random_planted", "as many random voxels"),
        ("random", "random masks over all N"),
    ):
        found = alone.filter(pl.col("control") == control)["value"].mean()
        said += [f"{words} {number(found)}"] if found is not None else []
    measures = "AUC", "95 % interval", "better by", "95 % interval", "own masks", "planted size", "cost"
    shown = table(
        f"Mean AUC over N when all invert as many voxels, best first: less is better ({', '.join(said)})",
        ["", "method", "maps", *measures],
        rows,
        right_from=3,
        optional=(9, 7, 8, 6),
    )
    together = named["passes_together"].max()
    if together is None:
        return shown
    return Group(shown, Text(f"all together: {number(together)} forward + backward passes", style="dim"))


def _localisation(study: Study, store: Store) -> RenderableType | None:
    """The maps that matter most: the reference's, or the first method's."""
    frame = store.read("localisation_summary", study.name)
    reference = study.inversion.reference if study.inversion else None
    method = reference.method if reference else next(iter(study.methods))
    frame = frame.filter((pl.col("method") == method) & pl.col("metric").is_in(["share_of_positive", "auc"]))
    if study.has_combined(method):
        frame = frame.filter(pl.col("contrast") == "combined")
    if frame.is_empty():
        return None
    rows = frame.sort("contrast", "region", "metric").iter_rows(named=True)
    return table(
        f"Where the truth is known: {method}, beside the same region shifted elsewhere",
        ["map", "region", "measure", "value", "shifted", "difference, 95 %", "scans"],
        [
            [row["contrast"], row["region"], row["metric"], row["value"], row["chance"], interval(row), row["n"]]
            for row in rows
        ],
        right_from=3,
    )


def _sanity(study: Study, store: Store) -> RenderableType | None:
    frame = store.read("sanity", study.name)
    if frame.is_empty():
        return None
    return table(
        "May the maps be believed?",
        ["method", "test", "value", "passes if", "passed", "scans"],
        [
            [
                row["method"],
                row["test"],
                row["value"],
                f"{row['passes_if'] or ''} {row['threshold']:g}",
                {True: "yes", False: "NO", None: "not testable"}[row["passed"]],
                row["n"],
            ]
            for row in frame.sort("method", "test").iter_rows(named=True)
        ],
        right_from=2,
    )


def _correlations(study: Study, store: Store, most: int = 6) -> RenderableType | None:
    frame = store.read("correlations", study.name).filter(pl.col("value").is_not_null())
    if frame.is_empty():
        return None
    count = frame.filter(pl.col("p_corrected") < 0.05).height
    best = frame.sort("p_corrected", pl.col("value").abs(), descending=[False, True]).head(most)
    return table(
        f"Mean inside the mask and {frame['y'][0]}: {count} of {frame.height} with corrected p < 0.05. Strongest:",
        ["maps", "image", "mask", "Spearman", "95 % interval", "p", "n"],
        [
            [row["analysis"], row["x"], row["stratum"], row["value"], interval(row), row["p_corrected"], row["n"]]
            for row in best.iter_rows(named=True)
        ],
        right_from=3,
        optional=(6,),
    )


def _places(home: Home, study: Study) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = [
        ("database", str(home.database)),
        ("maps, figures", str(home.derivatives(study.name))),
        ("tables", str(home.tables)),
        ("ask", "relevance-assets query sql/queries/…  (or any SQL)"),
        ("look", "relevance-assets ui"),
    ]
    for name, place in rows:
        table.add_row(Text(name, style="dim"), Text(place))
    return Group(Text("Where things are", style="bold"), table)


# --------------------------------------------------------------------------------------------------------- status
def status_parts(home: Home) -> list[RenderableType]:
    """Per study: scans known and left out, items done and failed per stage, reasons."""
    store = Store(home.tables)
    parts: list[RenderableType] = []
    for study in load_studies(home).values():
        scans, runs = store.read("scans", study.name), store.read("runs", study.name)
        stopped = runs.filter((pl.col("item") == "all") & (pl.col("outcome") == "failed"))
        if scans.is_empty() and stopped.height:
            parts += [
                Text.assemble((study.name, "bold"), f"  stopped at {stopped['asset'][0]}: {stopped['reason'][0]}")
            ]
            continue
        if runs.is_empty():
            parts += [
                Text.assemble((study.name, "bold"), "  not run yet: ", f"relevance-assets run {study.name}"),
                Text(),
            ]
            continue
        counts = dict(scans.group_by("status").len().iter_rows())
        words = {"ok": "in the study", "failed": "failed", "excluded": "excluded by the study"}
        line = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if status in counts)
        known = f"{scans.height} scans known: {line}" if scans.height else f"people of {study.cohort.subjects}"
        parts.append(Text.assemble((study.name, "bold"), f"  {known}"))
        stages = runs.group_by("asset", maintain_order=True).agg(
            done=(pl.col("outcome") == "ok").sum(),
            failed=(pl.col("outcome") == "failed").sum(),
            seconds=pl.col("seconds").sum(),
            first=pl.col("started").min(),
        )
        rows = stages.sort("first").select("asset", "done", "failed", "seconds").rows()
        parts.append(table("", ["stage", "done", "failed", "seconds"], [list(row) for row in rows]))
        reasons = pl.concat(
            [
                scans.filter(pl.col("status") == "failed").select("scan", pl.lit("cohort").alias("stage"), "reason"),
                runs.filter(pl.col("outcome") == "failed").select(
                    _item().alias("scan"), pl.col("asset").alias("stage"), "reason"
                ),
            ]
        ).sort("scan", "stage")
        if reasons.height:
            parts.append(
                table("Left out", ["what", "stage", "why"], [list(row) for row in reasons.rows()], right_from=3)
            )
        parts.append(Text())
    latest = [[_when(one.time), one.what, one.why] for one in notices(home)[:RUNS_SHOWN]]
    if latest:
        parts.append(table("Runs of the service that failed last (UTC)", ["when", "what", "why"], latest, right_from=3))
    return parts


def _item() -> pl.Expr:
    """What a record is of: a scan, or a fold, which is a bare number."""
    item = pl.col("item")
    return pl.when(item.str.contains(r"^\d+$")).then(pl.format("fold {}", item)).otherwise(item)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
