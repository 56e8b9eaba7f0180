"""What the command line prints of a study of slices.

Belongs here: choosing and formatting. Does not belong here: computing anything new, tables of other studies
(`terminal.py`).
"""

from __future__ import annotations

import polars as pl
from rich.console import Group, RenderableType
from rich.text import Text

from relevance_assets.report.tables import interval, table
from relevance_assets.study import Study
from relevance_assets.study.slices import MAIN_REGION
from relevance_assets.tables.store import Store

__all__ = ["RULE_PARTS"]

METRICS = ("accuracy", "balanced_accuracy", "macro_auc")


def _classes(study: Study, store: Store) -> RenderableType | None:
    """How well classes are told apart on test slices, over all and by class."""
    frame = store.read("scores", study.name).filter(set="test")
    if frame.is_empty():
        return None
    wanted = [*METRICS, *(f"recall_{name}" for name in study.target.classes)]
    rows = {row["metric"]: row for row in frame.iter_rows(named=True)}
    return table(
        f"The network, on test slices{_leak(study, store)}",
        ["measure", "value", "95 %", "slices"],
        [[name, rows[name]["value"], interval(rows[name]), rows[name]["n"]] for name in wanted if name in rows],
    )


def _rules(study: Study, store: Store) -> RenderableType | None:
    """The chosen cell beside all else, by the study's score, on test slices; and the answer in words."""
    assert study.rule_grid is not None
    settings = study.rule_grid
    every = store.read("rule_comparison", study.name).filter(
        (pl.col("explained") == settings.explained[0])
        & (pl.col("score") == settings.score)
        & (pl.col("stratum_kind") == "all")
        & (pl.col("quantile").is_null() | (pl.col("quantile") == settings.quantiles[0]))
    )
    frame = every.filter(region=MAIN_REGION)
    if frame.is_empty():
        return None
    roles = {"chosen": 0, "published": 1, "worst": 2, "reference": 3}
    order = pl.col("role").replace_strict(roles, return_dtype=pl.Int64)
    rows = []
    for row in frame.filter(pl.col("role").is_in(list(roles))).sort(order, "map").iter_rows(named=True):
        difference = {"ci_low": row["difference_low"], "ci_high": row["difference_high"]}
        cell = f" (γ {row['gamma']:g}, ε {row['epsilon']:g})" if row["gamma"] is not None else ""
        name = row["role"] if row["role"] != "reference" else row["method"].replace("_", " ")
        rows.append([f"{name}{cell}", row["value"], row["difference"], interval(difference)])
    for row in every.filter(pl.col("region") != MAIN_REGION, role="chosen").iter_rows(named=True):
        name = f"chosen in the region {row['region']} (γ {row['gamma']:g}, ε {row['epsilon']:g})"
        rows.append([name, row["value"], None, "–"])
    first = frame.filter(role="chosen").row(0, named=True)
    levels = (f", {name} {first[name]:.3f}" for name in ("chance", "ceiling") if first[name] is not None)
    title = f"{settings.score} on {first['n']} test slices{''.join(levels)}{_leak(study, store)}"
    answers = store.read("rule_answers", study.name).filter(
        region=MAIN_REGION, explained=first["explained"], measure=first["measure"]
    )
    found = table(title, ["map", "mean", "chosen minus this", "95 %"], rows)
    return Group(found, Text(), Text(answers["answer"][0])) if answers.height else found


def _leak(study: Study, store: Store) -> str:
    """What a title adds where single slices were divided."""
    leaking = store.read("splits", study.name)["leaking"].any()
    return "; patients are in several sets, so all is too good" if leaking else ""


RULE_PARTS = (_classes, _rules)
