"""Gradients of a network's output and of its attention weights, at many places of one line, with little done twice.

Belongs here: which operations of a network a gradient needs, and in which order. Does not belong here: what is made of
gradients (`scenarios.py`), rules (`engine.py`).

What is shared the traced operations show, whatever the network:

- The output, the attention weights and all places of the line come from one forward pass per place.
- Operations that are affine in the inputs (padding, the first convolution, a batch norm behind it) are affine along a
  line too. They run once per scan; and as they hand on every gradient alike, sums of gradients go back through them.
- Of contrast l's weight only the gradient to contrast l is wanted. What sees one contrast alone (its own encoder) is
  gone back through once for all contrasts, each with its own weight's gradient; only what mixes contrasts (the softmax)
  is gone through once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relevance_assets.relevance.engine import Explainer
from relevance_assets.relevance.graph import Graph, Node, Ref, outputs, steady

__all__ = ["Gradients", "Line"]

Start = Literal["output", "attention"]
Values = dict[Ref, Tensor]

AFFINE = ("move", "scale", "add", "average", "sum", "interpolate", "convolution", "linear", "batch_norm")
VIEWS = ("aten.view", "aten._unsafe_view")
ROWS, VOXELS = 5, 2**20  # places in one pass: all that fit a cache, so that calls cost little beside their numbers
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Line:
    """Gradients along the line from inputs of 0 to a scan.

    Attributes
    ----------
    sums : per start, one for each list of weights
        (C, X, Y, Z) of the images and (P,) of the covariates. Of start `attention`, contrast l holds the gradient of
        contrast l's own weight, and covariates, which have no weight of their own, are 0.
    output, reference
        f(x) and f(0).
    """

    sums: dict[Start, list[tuple[Tensor, Tensor]]]
    output: float
    reference: float


@dataclass(frozen=True)
class _Parts:
    """The operations of a graph, in the order in which a gradient passes them last to first.

    Attributes
    ----------
    affine, own, mixed
        Places of nodes: affine in the inputs; others that see one contrast alone; all others.
    border
        Affine tensors that others read.
    cut
        Tensors of one contrast that `mixed` reads, by contrast.
    open
        Other tensors of `border` that `mixed` reads, and whether they hold contrasts at all: covariates do not.
    target, result
        Attention weights, if asked for, and the output.
    """

    affine: list[int]
    own: list[int]
    mixed: list[int]
    border: list[Ref]
    cut: dict[Ref, int]
    open: dict[Ref, bool]
    target: Ref | None
    result: Ref


class Gradients:
    """A network ready for gradients of many scans.

    Parameters
    ----------
    model
        Images (B, C, X, Y, Z) and covariates (B, P) to (B,).
    attention
        Name of the operation that makes attention weights (B, C); None if they will not be asked for.
    dtype, device
        Of the copy that is used. Float32 takes a third of the time on a CPU, and decides otherwise than float64 at
        units that stand at their threshold: of eight networks and scans, three differed by 2e-5 to 5e-5 of the map's
        largest value at single voxels, the others by less than 2e-6.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        attention: str | None = None,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> None:
        self.explainer = Explainer(model, dtype=dtype, device=device)
        self.attention = attention
        self.known: dict[Any, tuple[_Parts, Values, float]] = {}

    def __call__(
        self,
        images: Tensor,
        covariates: Tensor,
        starts: Collection[Start],
        places: Sequence[float],
        weights: Sequence[Sequence[float]],
    ) -> Line:
        """Weighted sums of gradients at places of the line.

        Parameters
        ----------
        images : (1, C, X, Y, Z)
        covariates : (1, P)
        starts
            What is differentiated.
        places
            t of the inputs t x; the last is 1.
        weights
            For each sum that is wanted, one per place.
        """
        ends = [end.to(self.explainer.device, self.explainer.dtype) for end in (images, covariates)]
        with steady():
            graph = self.explainer.trace(ends).graph
            parts, origin, reference = self._prepared(graph, ends)
            with torch.enable_grad():
                leaves = [end.detach().requires_grad_() for end in ends]
                border = _run(graph, dict(zip(_inputs(graph), leaves, strict=True)), parts.affine, parts.border)
            step = self._rows(graph, ends, len(places))
            totals: dict[tuple[Start, int | None], Values] = {}
            for first in range(0, len(places), step):
                t = ends[0].new_tensor(places[first : first + step])
                shares = ends[0].new_tensor([row[first : first + step] for row in weights])
                rows = {ref: _line(origin[ref], border[ref].detach(), t) for ref in parts.border}
                many = self.explainer.trace([end.expand(len(t), *end.shape[1:]) for end in ends]).graph
                found, output = _gradients(many, parts, rows, starts, ends[0].shape[1])
                for key, parted in found.items():
                    total = totals.setdefault(key, {})
                    for ref, gradient in parted.items():
                        part = torch.tensordot(shares, gradient, 1)
                        total[ref] = total[ref].add_(part) if ref in total else part
            sums = {start: _to_inputs(border, leaves, totals, start, len(weights)) for start in starts}
        return Line(sums, output, reference)

    def _prepared(self, graph: Graph, ends: Sequence[Tensor]) -> tuple[_Parts, Values, float]:
        """What no scan changes: the parts of the graph, and at inputs of 0 their border and the output."""
        key = tuple(end.shape for end in ends)
        if key not in self.known:
            target = None if self.attention is None else graph.find(self.attention)
            parts = _divide(graph, target, graph.result(self.explainer.output), self.explainer.device)
            with torch.no_grad():
                zeros = dict(zip(_inputs(graph), map(torch.zeros_like, ends), strict=True))
                origin = _run(graph, zeros, range(graph.inputs, len(graph.nodes)), [*parts.border, parts.result])
            self.known[key] = parts, origin, float(origin[parts.result].sum())
        return self.known[key]

    def _rows(self, graph: Graph, ends: Sequence[Tensor], places: int) -> int:
        """Places in one pass; a network that does something else to a batch gets them one by one."""
        most = min(ROWS, places, max(1, VOXELS // ends[0].numel()))
        if ends[0].dtype == torch.float64 and ends[0].device.type == "cpu":
            most = 1  # torch's convolutions take several rows longer than one by one
        rows = -(-places // -(-places // most))
        for size in {rows, places % rows or rows}:
            other = self.explainer.trace([end.expand(size, *end.shape[1:]) for end in ends]).graph
            if [(node.name, node.refs) for node in other.nodes] != [(node.name, node.refs) for node in graph.nodes]:
                return 1
        return rows


def _inputs(graph: Graph) -> list[Ref]:
    return [Ref(place) for place in range(graph.inputs)]


def _line(origin: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """origin + t (end - origin), one row per t, ready for gradients."""
    rows = origin + t.view(-1, *(1,) * (end.ndim - 1)) * (end - origin)
    return rows.requires_grad_()


def _run(graph: Graph, given: Mapping[Ref, Tensor], nodes: Collection[int], wanted: Collection[Ref]) -> Values:
    """Run some nodes on what is given; tensors that are not wanted are let go when nothing reads them any more."""
    values, last = dict(given), graph.last_read()
    for index in nodes:
        node = graph.nodes[index]
        other = torch.reshape if node.name in VIEWS else _max_pool(node) if node.kind == "max_pool" else None
        graph.compute(node, values, other)
        for ref in (*node.refs, *outputs(node)):
            if last.get(ref, -1) <= index and ref not in wanted:
                values.pop(ref, None)
    return {ref: values[ref] for ref in wanted}


def _max_pool(node: Node) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The same pool, its winners found with channels last: torch takes a tenth of the time for it.

    Its output stays so, which suits the convolutions behind it; views then have to copy.
    """
    axes = len(node.shape) - 2
    if axes + 2 not in LAST:
        return None

    def pool(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            winners = node.op(x.contiguous(memory_format=LAST[x.ndim]), *args, **kwargs)[1]
        result = x.flatten(2).gather(2, winners.flatten(2)).view(winners.shape)
        return result.contiguous(memory_format=LAST[x.ndim]), winners

    return pool


def contrasts_of(graph: Graph, device: torch.device) -> dict[Ref, frozenset[int]]:
    """Which channels of the first input each tensor depends on, or more of them.

    Moves are followed number by number, so that a slice of the input is known to hold its own channels alone; whatever
    else reads a tensor depends on all that the tensor depends on. Constants that a move adds may pass for a channel,
    which makes the set no smaller.
    """
    shape = graph.nodes[0].shape
    names = torch.arange(1.0, shape[1] + 1, device=device).view(1, -1, *(1,) * (len(shape) - 2)).expand(shape)
    named, found = {Ref(0): names.contiguous()}, {Ref(0): frozenset(range(shape[1]))}
    for node in graph.nodes:
        if node.index == 0:
            continue
        exact = all(kind.is_floating_point for kind in node.dtypes)
        if node.kind == "move" and exact and node.refs and all(ref in named for ref in node.refs):
            graph.compute(node, named)
            for ref in outputs(node):
                found[ref] = frozenset(int(name) - 1 for name in named[ref].unique().tolist() if name >= 1)
        else:
            union = frozenset[int]().union(*(found[ref] for ref in node.refs))
            found |= dict.fromkeys(outputs(node), union)
    return found


def _divide(graph: Graph, target: Ref | None, result: Ref, device: torch.device) -> _Parts:
    contrasts = contrasts_of(graph, device)
    several = graph.nodes[0].shape[1] > 1
    linear = set(_inputs(graph))
    affine: list[int] = []
    own: list[int] = []
    mixed: list[int] = []
    for node in graph.nodes[graph.inputs :]:
        if node.kind in AFFINE and all(ref in linear for ref in node.refs):
            affine.append(node.index)
            linear.update(outputs(node))
        elif several and len(contrasts[outputs(node)[0]]) == 1:
            own.append(node.index)
        else:
            mixed.append(node.index)
    ends = {ref for ref in (target, result) if ref is not None}
    read = {ref for index in (*own, *mixed) for ref in graph.nodes[index].refs} | ends
    border = sorted(read & linear, key=lambda ref: (ref.node, ref.output))
    by_mixed = {ref for index in mixed for ref in graph.nodes[index].refs} | ends
    single = {ref: next(iter(contrasts[ref])) for ref in by_mixed if several and len(contrasts[ref]) == 1}
    cut = {ref: single[ref] for ref in sorted(single, key=lambda ref: (ref.node, ref.output))}
    free = {ref: bool(contrasts[ref]) for ref in border if ref in by_mixed and ref not in cut}
    return _Parts(affine, own, mixed, border, cut, free, target, result)


def _gradients(
    graph: Graph, parts: _Parts, rows: Values, starts: Collection[Start], contrasts: int
) -> tuple[dict[tuple[Start, int | None], Values], float]:
    """Each row's gradients at the border, and the last row's output.

    Returns
    -------
    dict
        By start, and contrast where border tensors mix contrasts: what is to go on to that contrast alone.
    """
    found: dict[tuple[Start, int | None], Values] = {}
    with torch.enable_grad():
        own = _run(graph, rows, parts.own, list(parts.cut))
        leaves = {ref: value.detach().requires_grad_() for ref, value in own.items()}
        leaves |= {ref: rows[ref] for ref in parts.open}
        wanted = [ref for ref in (parts.target, parts.result) if ref is not None]
        made = _run(graph, leaves, parts.mixed, wanted)
        output = made[parts.result]
    at_cut: dict[Start, Values] = {}
    if "output" in starts:
        back = _grad(output.sum(), leaves, leaves)
        at_cut["output"] = {ref: back[ref] for ref in parts.cut}
        found["output", None] = {ref: back[ref] for ref in parts.open}
    if "attention" in starts:
        assert parts.target is not None
        weights = made[parts.target]
        at_cut["attention"] = {}
        for contrast in range(contrasts):
            mine = [ref for ref, whose in parts.cut.items() if whose == contrast]
            shared = [ref for ref, held in parts.open.items() if held]
            back = _grad(weights[:, contrast].sum(), leaves, [*mine, *shared])
            at_cut["attention"] |= {ref: back[ref] for ref in mine}
            if shared:
                found["attention", contrast] = {ref: back[ref] for ref in shared}
    for start, given in at_cut.items():
        if given:
            back = _grad(list(own.values()), rows, parts.border, [given[ref] for ref in own])
            there = found.setdefault((start, None), {})
            for ref, gradient in back.items():
                there[ref] = there[ref] + gradient if ref in there else gradient
    return found, float(output[-1].detach().sum())


def _grad(value: Any, leaves: Values, wanted: Collection[Ref], given: Any = None) -> Values:
    parts = torch.autograd.grad(
        value, [leaves[ref] for ref in wanted], given, retain_graph=True, materialize_grads=True
    )
    return dict(zip(wanted, parts, strict=True))


def _to_inputs(
    border: Values,
    leaves: Sequence[Tensor],
    totals: Mapping[tuple[Start, int | None], Values],
    start: Start,
    sums: int,
) -> list[tuple[Tensor, Tensor]]:
    """Sums of gradients at the border, back through what is affine in the inputs."""
    result = []
    for place in range(sums):
        image, covariates = (torch.zeros_like(leaf[0]) for leaf in leaves)
        for (asked, contrast), parts in totals.items():
            if asked != start:
                continue
            given = [total[place : place + 1] for total in parts.values()]
            made = [border[ref] for ref in parts]
            back = torch.autograd.grad(made, leaves, given, retain_graph=True, materialize_grads=True)
            some = slice(None) if contrast is None else contrast
            image[some] += back[0][0, some]
            if start == "output":
                covariates += back[1][0]
        result.append((image, covariates))
    return result
