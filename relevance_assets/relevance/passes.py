"""The passes forwards and backwards through a traced network.

Belongs here: what is kept and freed, the order of steps, the rows of the ledger. Does not belong here: formulas
(`rules.py`, `structure.py`), which operation has which rule (`plan.py`), what relevance starts with (`engine.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from relevance_assets.relevance.brain import Inside
from relevance_assets.relevance.canonizers import shift_of
from relevance_assets.relevance.graph import Graph, Node, Ref, keep, outputs
from relevance_assets.relevance.layer import WeightedLayer
from relevance_assets.relevance.ledger import Ledger, sums
from relevance_assets.relevance.operations import MOVES
from relevance_assets.relevance.plan import Plan, Step
from relevance_assets.relevance.rules import WeightedRule, per_sample, weighted
from relevance_assets.relevance.structure import STRUCTURE, Context

if TYPE_CHECKING:
    from relevance_assets.relevance.engine import Explainer

__all__ = ["Backward", "Forward", "Traced"]

COLUMNS = 2**20


@dataclass
class Traced:
    """A network for inputs of given shapes: its graph, and what was prepared for it."""

    graph: Graph
    plans: dict[Any, Plan] = field(default_factory=dict)
    constants: dict[Any, Tensor] = field(default_factory=dict)
    batch_first: bool | None = None  # whether all operations have samples along axis 0; None: not looked at


class Forward:
    """One pass forwards that keeps what the plans need, in segments where asked to.

    Attributes
    ----------
    values
        Tensors that were kept; `("sum", index)` is an operation's sum of contributions without bias.
    """

    def __init__(
        self, graph: Graph, inputs: Sequence[Tensor], plans: Iterable[Plan], result: Ref, checkpoint: int
    ) -> None:
        self.graph = graph
        self.plans = list(plans)
        self.splits = {step.core.index for plan in self.plans for step in plan.steps.values() if step.split}
        self.saved: set[Ref] = set().union(*(plan.saved for plan in self.plans))
        self.always = {result} | {plan.target for plan in self.plans}
        size = len(graph.nodes)
        count = max(1, min(checkpoint, size - graph.inputs))
        self.borders = [graph.inputs + (size - graph.inputs) * i // count for i in range(count + 1)]
        last_use = self._last_uses()
        # what a segment takes from earlier ones has to be there when it runs again
        self.crossing = {ref for ref, last in last_use.items() if self.segment_of(ref.node) != self.segment_of(last)}
        steps = [step for plan in self.plans for step in plan.steps.values() if step.split]
        apart = [step for step in steps if self.segment_of(step.core.index) != self.segment_of(step.node.index)]
        self.crossing_sums = {step.core.index for step in apart}
        self.inputs = {Ref(place): value for place, value in enumerate(inputs)}
        self.values: dict[Any, Tensor] = dict(self.inputs)
        self.present = -1  # the segment whose inner tensors are there
        for segment in range(count):
            self.compute(segment, final=segment == count - 1)

    def _last_uses(self) -> dict[Ref, int]:
        """The last node or step that reads a tensor."""
        last = self.graph.last_read()
        for plan in self.plans:
            for index, step in plan.steps.items():
                for ref in step.saved:
                    last[ref] = max(last.get(ref, -1), index)
        return last

    def compute(self, segment: int, *, final: bool) -> None:
        """Run a segment; keep all that rules read if it is the next to go back through, else what later ones read."""
        low, high = self.borders[segment], self.borders[segment + 1]
        graph, values = self.graph, self.values
        reads = graph.last_read()
        for node in graph.nodes[low:high]:
            if node.index in self.splits:
                args = tree_map(lambda v: values[v] if isinstance(v, Ref) else v, node.args)
                values["sum", node.index] = plain = node.op(args[0], args[1], None, *args[3:])
                bias = args[2]
                result = plain if bias is None else plain + bias.view(-1, *(1,) * (plain.ndim - 2))
                keep(node, result, values)
            else:
                graph.compute(node, values, self._in_place(node, reads))
                if node.kind == "max_pool":
                    indices = Ref(node.index, 1)
                    values[indices] = values[indices].to(torch.int32)  # half the memory
            for ref in (*node.refs, *outputs(node)):
                if ref in self.always or ref in self.inputs:
                    continue
                read_later = reads.get(ref, -1) > node.index
                kept = (final and ref in self.saved) or ref in self.crossing
                if not read_later and not kept:
                    values.pop(ref, None)
        if not final:
            for index in self.splits.intersection(range(low, high)) - self.crossing_sums:
                del values["sum", index]
        self.present = segment

    def _in_place(self, node: Node, reads: dict[Ref, int]) -> Callable[..., Any] | None:
        """ReLU in place where its input is a fresh tensor that nothing else reads."""
        if node.name != "aten.relu":
            return None
        ref = node.refs[0]
        fresh = self.graph.nodes[ref.node].kind in ("convolution", "batch_norm", "linear", "add")
        unread = self.graph.readers(ref) == [node.index] and ref not in self.saved and ref not in self.always
        return torch.relu_ if fresh and unread and ref.node not in self.splits else None

    def segment_of(self, index: int) -> int:
        """The segment that a node is in."""
        return next(i for i in range(len(self.borders) - 1) if index < self.borders[i + 1])

    def at(self, index: int) -> None:
        """Make the tensors present that the step at a node reads."""
        segment = self.segment_of(index)
        if segment != self.present:
            self.compute(segment, final=True)


class _StartByStart(WeightedLayer):
    """Starts pass a large convolution in float64 one by one, for which torch takes half the time of all at once."""

    def adjoint(self, s: Tensor, weight: Any) -> Tensor:
        slow = self.operation.convolution and s.dtype == torch.float64 and s.device.type == "cpu"
        kernel = self.operation.weight[0].numel() if slow else 0  # times positions: what torch lays out in memory
        if len(s) == 1 or kernel * s[0, 0, 0].numel() < COLUMNS:
            return super().adjoint(s, weight)
        return torch.cat([super(_StartByStart, self).adjoint(part, weight) for part in s.split(1)])


class Backward(Context):
    """One pass backwards for several starts, each with a plan of its own.

    Where the plans of some starts say the same of an operation, these starts pass it together: denominators are
    computed once.

    Attributes
    ----------
    plan
        Of the starts that pass an operation just now.
    last
        Whether nobody needs the forward pass of that operation afterwards.
    """

    def __init__(
        self,
        explainer: Explainer,
        traced: Traced,
        plans: Sequence[Plan],
        forward: Forward,
        inside: Inside,
        starts: Sequence[Tensor],
    ) -> None:
        self.explainer, self.traced, self.plans, self.forward = explainer, traced, plans, forward
        self.graph, self.inside, self.starts = traced.graph, inside, starts
        self.plan, self.last = plans[0], False
        self.padding = Inside(traced.graph, None, explainer.device, padding=True)
        self.samples = next(iter(forward.inputs.values())).shape[0]
        # relevance that has arrived at a tensor, per start; absent where there is none
        self.arrived: dict[Ref, dict[int, Tensor]] = {}
        for place, (plan, start) in enumerate(zip(plans, starts, strict=True)):
            self.arrived.setdefault(plan.target, {})[place] = start
        self.folds = [next(i for i, other in enumerate(plans) if other.folds == plan.folds) for plan in plans]
        self.ledger = Ledger(len(starts), self.samples)
        self.shown: list[set[int]] = []  # the starts that each row of the ledger is about

    def value(self, ref: Ref) -> Tensor:
        value = self.forward.values[ref]
        return value - self.shift(ref, value) if ref in self.plan.folds.path else value

    def raw(self, ref: Ref) -> Tensor:
        return self.forward.values[ref]

    def inside_of(self, ref: Ref) -> Tensor | None:
        """Which positions of a tensor are inside the mask; None for all."""
        return self.inside.at(ref)

    def shift(self, ref: Ref, like: Tensor) -> Tensor:
        """What a folded batch norm added to a tensor."""
        return shift_of(self.graph, self.plan.folds, ref, like)

    def run(self, *, last: bool) -> list[tuple[list[Tensor], pl.DataFrame]]:
        """Relevance of the inputs and ledger, per start; `last`: nobody needs the forward pass afterwards."""
        self.walk(last=last)
        return [(self._arrived(start), self._account(start, frame)) for start, frame in enumerate(self.ledger.frames())]

    def walk(self, *, last: bool) -> None:
        """Take what has arrived through the steps of the plans; what lies before these steps stays in `arrived`."""
        distinct = {id(plan): plan for plan in self.plans}.values()
        steps = [step for plan in distinct for step in plan.steps.values()]
        remaining: dict[Ref, int] = {}
        saved: dict[int, set[Ref]] = {}
        for step in steps:
            saved.setdefault(step.node.index, set()).update(step.saved)
            for ref in step.saved:
                remaining[ref] = min(remaining.get(ref, step.node.index), step.node.index)
        split = {step.node.index: step.core.index for step in steps if step.split}
        kept = self.forward.always | self.forward.crossing | set(self.forward.inputs)
        for index in sorted(saved, reverse=True):
            for ref in outputs(self.graph.nodes[index]):
                groups = self._groups(index, self.arrived.pop(ref, {}))
                for place, arrived in enumerate(groups):
                    self.forward.at(index)
                    self.plan = self.plans[next(iter(arrived))]
                    self.last = last and place == len(groups) - 1
                    self.pass_on(self.plan.steps[index], ref, arrived)
            for ref in saved[index]:
                if last and remaining[ref] == index and ref not in kept:
                    self.forward.values.pop(ref, None)
            if last and index in split:
                self.forward.values.pop(("sum", split[index]), None)

    def _groups(self, index: int, arrived: dict[int, Tensor]) -> list[dict[int, Tensor]]:
        """What has arrived at a node, starts of one rule together."""
        groups: dict[Any, dict[int, Tensor]] = {}
        for start, relevance in arrived.items():
            step = self.plans[start].steps[index]
            key = (step.rule, step.core.index, step.output, step.vanishing, self.folds[start])
            groups.setdefault(key, {})[start] = relevance
        return list(groups.values())

    def _account(self, start: int, frame: pl.DataFrame) -> pl.DataFrame:
        """The ledger without operations that this start's plan never came to, or that had another rule there."""
        about = [start in shown for shown in reversed(self.shown)]
        return frame if all(about) else frame.filter(pl.Series(about * self.samples, dtype=pl.Boolean))

    def pass_on(self, step: Step, ref: Ref, arrived: dict[int, Tensor]) -> None:
        """Relevance of one operation to its operands, and a row of the ledger."""
        if isinstance(step.rule, WeightedRule):
            # what has no relevance costs no convolution: one encoder of three, for a start at its own weight
            arrived = {start: r for start, r in arrived.items() if len(self.starts) == 1 or bool(r.any())}
        active = list(arrived)
        if not active:
            return
        relevance = torch.stack([arrived[s] for s in active]) if len(active) > 1 else arrived[active[0]].unsqueeze(0)
        arrived.clear()
        given = per_sample(relevance, self.samples)
        if isinstance(step.rule, WeightedRule):
            layer = _StartByStart(self, step)
            back, losses = weighted(step.rule, layer, relevance)
            handed: list[tuple[Ref, Tensor | None]] = [(step.source, back)]
        else:
            rule: Any = step.rule
            parts, losses = STRUCTURE[step.node.kind](self, step.node, rule, relevance, ref.output)
            handed = list(zip(step.node.refs, parts, strict=True))
        same = len(handed) == 1 and handed[0][1] is relevance
        del relevance
        if step.node.kind not in MOVES or not isinstance(losses.bias, float):
            out: Tensor | float = 0.0
            for _, part in handed:
                if part is not None:
                    out = out + (given if same else per_sample(part, self.samples))
            kind = step.core.kind
            name = str(step.rule)
            if step.node is not step.core:
                name += f", with {step.node.layer}"
            elif step.node.index in self.plan.folds.right:
                name = (
                    f"pass: in {', '.join(self.graph.nodes[i].layer for i in self.plan.folds.right[step.node.index])}"
                )
            self.ledger.add(step.core.layer, kind, name, active, sums(given, out, losses))
            about = {id(self.plans[start]) for start in active}
            self.shown.append({start for start, plan in enumerate(self.plans) if id(plan) in about})
        for target, part in handed:
            if part is not None:
                there = self.arrived.setdefault(target, {})
                for place, start in enumerate(active):
                    there[start] = there[start] + part[place] if start in there else part[place]

    def _arrived(self, start: int) -> list[Tensor]:
        """What one start sent to each input."""
        inputs = self.forward.inputs.items()
        return [self.arrived.get(ref, {}).get(start, torch.zeros_like(value)) for ref, value in inputs]
