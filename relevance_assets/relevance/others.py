"""Explanations that are not made by the engine's rules: baselines, and composites of zennit's.

Belongs here: making the functions that baselines explain; running zennit on a copy. Does not belong here: the methods
themselves (`baselines.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import Tensor

from relevance_assets.relevance.baseline_calls import reference_inputs
from relevance_assets.relevance.baselines import BASELINES, GuidedReLU
from relevance_assets.relevance.explanation import Inner, start_values
from relevance_assets.relevance.graph import Ref, steady
from relevance_assets.relevance.ledger import Ledger, warn_of_leaks
from relevance_assets.relevance.rules import per_sample

if TYPE_CHECKING:
    from relevance_assets.relevance.engine import Explainer

__all__ = ["by_baseline", "by_zennit", "is_baseline", "is_zennit"]

Found = tuple[list[Tensor], Tensor, Tensor, pl.DataFrame]  # relevance per input, output, start, ledger


def is_zennit(composite: Any) -> bool:
    """Whether this is a composite of zennit's."""
    return any(kind.__module__ == "zennit.core" for kind in type(composite).__mro__)


def is_baseline(composite: Any) -> bool:
    """Whether this names a baseline: "saliency", {"method": "integrated_gradients", "steps": 20}."""
    name = composite.get("method") if isinstance(composite, Mapping) else composite
    return isinstance(name, str) and name in BASELINES


def by_baseline(explainer: Explainer, given: list[Tensor], composite: Any, start: Any) -> Found:
    """A baseline of the number sum_k w_k f_k(x), whose weights w make it the relevance that is put in.

    The ledger has one row for integrated gradients, whose sum is f(x) - f(x0): f(x0) stands under `bias`, and what its
    steps miss is unexplained. The others' sums mean nothing, and their ledger is empty.
    """
    options = dict(composite) if isinstance(composite, Mapping) else {"method": composite}
    name = options.pop("method")
    layer = options.pop("layer", None)
    method, samples = BASELINES[name], len(given[0])
    with torch.no_grad(), steady():
        graph = explainer.trace(given).graph
        result = graph.result(explainer.output)
        target = graph.find(start.layer) if isinstance(start, Inner) else result
        plain = graph.run(given, wanted={result, target})
        value, output = plain[target], plain[result]
        put_in = start_values(value, start)
        given_values = isinstance(start, Tensor) or (isinstance(start, Inner) and start.values is not None)
        if given_values and bool(((value == 0) & (put_in != 0)).any()):
            raise ValueError(f"{name}: relevance is put where the network says 0, which no gradient can be weighted by")
        weights = torch.where(value == 0, 0.0, put_in / value)
        if not given_values and start is not None:  # a class whose logit is exactly 0 still has a gradient
            weights = start_values(torch.ones_like(value), start)

    relus = {node.index: GuidedReLU.apply for node in graph.nodes if node.name == "aten.relu"}
    features = None
    if method.needs == "features":
        convolutions = [node.index for node in graph.nodes if node.kind == "convolution" and node.index <= target.node]
        if layer is None and not convolutions:
            raise ValueError(f"{name}: the network has no convolution; name a layer")
        features = graph.find(layer) if layer is not None else Ref(convolutions[-1])

    def function(rows: tuple[Tensor, ...]) -> Any:
        with torch.no_grad():
            traced = explainer.trace([row.detach() for row in rows]).graph
        wanted = {target} if features is None else {target, features}
        values = traced.run(rows, wanted=wanted, replace=relus if method.needs == "guided" else None)
        repeated = weights.repeat(len(rows[0]) // samples, *[1] * (weights.ndim - 1))
        number = (values[target] * repeated).flatten(1).sum(1) if weights.ndim > 1 else values[target] * repeated
        return number if features is None else (number, values[features])

    try:
        with steady():
            parts = method(function, tuple(given), **options)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    with torch.no_grad():
        ledger = Ledger(1, samples)
        if method.completeness == "difference":
            before = function(reference_inputs(tuple(given), options.get("baseline", 0.0)))
            total = torch.stack([part.flatten(1).sum(1) for part in parts]).sum(0)
            row = [function(tuple(given))[None], total[None], before[None], 0.0, 0.0, 0.0]
            ledger.add("network", name, name, [0], row)
    return parts, output, put_in, ledger.frames()[0]


def by_zennit(explainer: Explainer, given: list[Tensor], composite: Any, start: Any) -> Found:
    """A composite of zennit's, on a copy of the network: zennit's maps to the last bit.

    zennit keeps no account, so all that goes missing stands in one row of the ledger as unexplained.
    """
    model = copy.deepcopy(explainer.model)
    inputs = [value.clone().requires_grad_() for value in given]
    inner: list[Tensor] = []
    if isinstance(start, Inner):
        named = dict(model.named_modules())
        if start.layer not in named:
            raise ValueError(f"zennit starts at modules, and none is called {start.layer!r}")
    with steady(), torch.enable_grad(), composite.context(model) as registered:
        if isinstance(start, Inner):
            named[start.layer].register_forward_hook(lambda _m, _i, out: inner.append(out))
        returned = registered(*inputs)
        output = returned if explainer.output is None else returned[explainer.output]
        if not isinstance(output, Tensor):
            raise ValueError("the network returned several tensors; say which: output=0 (or its key)")
        value = inner[-1] if inner else output
        put_in = start_values(value.detach(), start)
        parts = torch.autograd.grad(value, inputs, put_in, allow_unused=True)
    found = [torch.zeros_like(x) if part is None else part for x, part in zip(given, parts, strict=True)]
    ledger = Ledger(1, len(given[0]))
    total = torch.stack([part.flatten(1).sum(1) for part in found]).sum(0)
    before = per_sample(put_in.unsqueeze(0), len(given[0]))
    ledger.add("network", "zennit", type(composite).__name__, [0], [before, total[None], 0.0, 0.0, 0.0, 0.0])
    frame = ledger.frames()[0]
    warn_of_leaks(frame, put_in, total.tolist(), explainer.dtype, "zennit keeps no account of what its rules lose")
    return found, output.detach(), put_in, frame
