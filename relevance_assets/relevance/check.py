"""What relevance would meet in a network: every operation, and how it is treated.

Belongs here: the report. Does not belong here: explaining.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import torch
from torch import nn

from relevance_assets.relevance.composites import Place, composite_of
from relevance_assets.relevance.engine import Explainer
from relevance_assets.relevance.operations import MOVES
from relevance_assets.relevance.plan import explain_unknown, make_plan, weighted_places

__all__ = ["check_model"]


def check_model(
    model: nn.Module, example_inputs: Any, composite: Any = "epsilon_plus", *, output: int | str | None = None
) -> pl.DataFrame:
    """Every operation that the inputs reach, in the order of execution.

    Parameters
    ----------
    model, example_inputs, composite, output
        As for `explain`.

    Returns
    -------
    place, layer, operation, kind, rule, note
        `rule` is null where there is none (the note says what to do), and where relevance never goes.
    """
    explainer = Explainer(model, composite, output=output)
    given, _ = explainer._inputs(example_inputs)
    with torch.no_grad():
        graph = explainer.trace(given).graph
    chosen = composite_of(composite)
    target = graph.result(output)
    places = weighted_places(graph, target)
    plan = make_plan(graph, chosen, target)
    unknown = {node.index for node in plan.unknown}
    heads = set(plan.steps) | set(plan.folds.left.values())
    rows = []
    for node in graph.nodes[graph.inputs :]:
        rule, note = None, ""
        if node.index in unknown:
            note = explain_unknown(node)
        elif node.index not in heads:
            note = "no relevance comes here"
        elif node.index in plan.folds.left:
            rule, note = "folded", f"into {graph.nodes[plan.folds.left[node.index]].layer}"
        elif node.index in plan.folds.right:
            rule = "folded"
            note = "into " + ", ".join(graph.nodes[i].layer for i in plan.folds.right[node.index])
        elif node.kind in MOVES:
            rule = "back to where it came from"
        elif node.kind == "scale":
            rule = "pass"
        else:
            rule = str(chosen.rule(node.kind, node.layer, places.get(node.index, Place())))
        rows.append((node.index, node.layer, node.name, node.kind, rule, note))
    schema = ["place", "layer", "operation", "kind", "rule", "note"]
    types = [pl.Int64, *[pl.String] * 5]
    return pl.DataFrame(rows, schema=dict(zip(schema, types, strict=True)), orient="row")
