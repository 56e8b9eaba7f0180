"""Explanations: from a network and its inputs to relevance, with an account of every operation.

Belongs here: where relevance starts, the passes forwards and backwards, what is kept and freed. Does not belong here:
formulas (`rules.py`, `structure.py`), which operation has which rule (`plan.py`), files.

The network is copied and traced once per shape of its inputs; weights are prepared once. Each explanation then runs the
traced operations, keeps the tensors that its rules read, and goes back through them. Starts share the forward pass.
Where a start has no relevance (one encoder of three), nothing is computed for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from relevance_assets.relevance.canonizers import affine, shift_of
from relevance_assets.relevance.composites import Composite, composite_of
from relevance_assets.relevance.graph import Graph, Node, Ref, capture, keep, outputs, steady
from relevance_assets.relevance.ledger import Ledger, sums, warn_of_leaks
from relevance_assets.relevance.operations import MOVES, is_computed
from relevance_assets.relevance.others import by_baseline, by_zennit, is_baseline, is_zennit
from relevance_assets.relevance.plan import Plan, Step, make_plan
from relevance_assets.relevance.rules import Losses, WeightedRule, per_sample, prepare, weighted
from relevance_assets.relevance.structure import STRUCTURE, Context

__all__ = ["Explainer", "Explanation", "Inner", "explain"]

Inputs = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Inner:
    """Relevance starts at the output of a named operation inside the network.

    Attributes
    ----------
    layer
        Its name, as `check_model` lists it: `softmax`.
    index
        Along axis 1, the only part that has relevance; None for all.
    values
        The relevance; None for the operation's own output.
    """

    layer: str
    index: int | None = None
    values: Tensor | None = None


Start = None | int | Tensor | Inner


@dataclass(frozen=True)
class Explanation:
    """Why a network said what it said.

    Attributes
    ----------
    relevance
        Shaped like the inputs: a tensor, or a tuple of tensors as they were given.
    output
        What the network said.
    start
        The relevance that was put in.
    ledger
        One row per operation and sample: `sample`, `layer`, `kind`, `rule`, `relevance_in`, `relevance_out`, `bias`,
        `stabiliser`, `dead`, `clamped`, `unexplained`. What came in is what went out, plus what the bias, the
        stabiliser, units without contributions and clamping took, plus what nobody explains. Operations that only
        move values have no row. Empty for methods without rules.
    share_outside
        Per sample, share of the first input's absolute relevance outside the mask; None without a mask.
    """

    relevance: Any
    output: Tensor
    start: Tensor
    ledger: pl.DataFrame
    share_outside: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """(B,): relevance that reached the inputs."""
        parts = (self.relevance,) if isinstance(self.relevance, Tensor) else self.relevance
        return torch.stack([part.flatten(1).sum(1) for part in parts]).sum(0)


@dataclass
class Traced:
    """A network for inputs of given shapes: its graph, and what was prepared for it."""

    graph: Graph
    plans: dict[Any, Plan] = field(default_factory=dict)
    constants: dict[Any, Tensor] = field(default_factory=dict)


class Explainer:
    """A network made ready once, that explains many inputs.

    It works on a copy in evaluation mode; the network given is never touched.

    Parameters
    ----------
    model
        Any network of operations that `check_model` finds rules for.
    composite
        A name, data, a `Composite`, a zennit composite, or the name of a baseline (`relevance.baselines`).
    dtype
        torch.float32 or float64; None: as the model's parameters. Lower precision is refused: a denominator near 0
        decides where relevance goes.
    device
        As torch names them; None: as the model's parameters.
    output
        Which part of the network's output is explained, where it returns several tensors.
    checkpoint
        Number of segments: only tensors at their borders are kept, and each segment runs again when relevance gets
        there. For volumes that do not fit; costs one more forward pass.

    Raises
    ------
    ValueError
        For an unknown composite, or a precision that is refused.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Any = "epsilon_plus",
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        output: int | str | None = None,
        checkpoint: int = 0,
    ) -> None:
        first = next((p for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()), None)
        self.dtype = dtype or (torch.get_default_dtype() if first is None else first.dtype)
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"relevance in {str(self.dtype).removeprefix('torch.')} is not offered: rounding of a denominator near 0 "
                "decides where relevance goes; give dtype=torch.float32 (or float64)"
            )
        self.device = torch.device(device) if device is not None else (first.device if first is not None else "cpu")
        self.model = copy.deepcopy(model).to(self.device, self.dtype).eval().requires_grad_(False)
        self.composite = composite
        self.output, self.checkpoint = output, checkpoint
        self.traced: dict[Any, Traced] = {}
        self.weights: dict[Any, tuple[Tensor, list[Tensor]]] = {}

    def __call__(self, inputs: Inputs, start: Any = None, mask: Tensor | None = None) -> Any:
        """Explain one batch.

        Parameters
        ----------
        inputs
            A tensor (B, C, ...), or several, in the order of the network's arguments.
        start
            None: the predicted class's logit (a network with one output: that). An integer: that class. A tensor
            shaped like the output: the relevance itself. `Inner`: inside the network. A list: one explanation each,
            for one forward pass.
        mask : (spatial) or (B, 1, spatial) bool
            Of the first input: voxels outside have no part in the rules of the first weighted operations.

        Returns
        -------
        Explanation, or a list of them.

        Raises
        ------
        ValueError
            For inputs that are not finite or do not fit, a start that does not fit, an operation without rule.
        """
        starts = start if isinstance(start, list) else [start]
        found = self.several(inputs, [(self.composite, one) for one in starts], mask)
        return found if isinstance(start, list) else found[0]

    def several(
        self, inputs: Inputs, wanted: Sequence[tuple[Any, Start]], mask: Tensor | None = None
    ) -> list[Explanation]:
        """Explanations of one batch by several composites and starts; they share one forward pass."""
        given, pack = self._inputs(inputs)
        results: dict[int, Explanation] = {}
        by_rules = []
        for place, (composite, start) in enumerate(wanted):
            method = by_zennit if is_zennit(composite) else by_baseline if is_baseline(composite) else None
            if method is None:
                by_rules.append(place)
            else:
                parts, output, put_in, ledger = method(self, given, composite, start)
                results[place] = Explanation(tuple(parts), output, put_in, ledger)
        if by_rules:
            found = self._by_rules(given, [wanted[place] for place in by_rules], mask)
            results |= dict(zip(by_rules, found, strict=True))
        inside = None if mask is None else self._mask(mask, given[0])
        return [self._finish(results[place], pack, inside) for place in range(len(wanted))]

    # ------------------------------------------------------------------------------------------------- what is given
    def _inputs(self, inputs: Inputs) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
        single = isinstance(inputs, Tensor)
        given = [inputs] if single else list(inputs)
        if not given or not all(isinstance(value, Tensor) for value in given):
            raise ValueError("inputs must be a tensor or a sequence of tensors")
        if len({len(value) for value in given}) != 1:
            raise ValueError(f"inputs must have one batch size, not {[len(value) for value in given]}")
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise ValueError("relevance under autocast is not offered: leave autocast, the network is copied in full precision")
        ready = []
        for place, value in enumerate(given):
            if not value.is_floating_point():
                raise ValueError(f"input {place} holds {value.dtype}; relevance needs floating-point inputs")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"input {place} holds NaN or infinite values; repair or leave out the scan")
            ready.append(value.detach().to(self.device, self.dtype))
        return ready, (lambda parts: parts[0]) if single else tuple

    def trace(self, inputs: Sequence[Tensor]) -> Traced:
        """The network's graph for inputs of these shapes, traced once."""
        key = tuple(tuple(value.shape) for value in inputs)
        if key not in self.traced:
            self.traced[key] = Traced(capture(self.model, inputs))
        return self.traced[key]

    def _mask(self, mask: Tensor, image: Tensor) -> Tensor:
        spatial = image.shape[2:]
        mask = mask.to(self.device)
        if mask.shape == spatial:
            mask = mask.expand(image.shape[0], 1, *spatial)
        if mask.shape not in ((image.shape[0], 1, *spatial), (1, 1, *spatial)):
            raise ValueError(f"mask {tuple(mask.shape)} does not fit the first input {tuple(image.shape)}")
        return (mask != 0).expand(image.shape[0], 1, *spatial)

    def _finish(self, result: Explanation, pack: Callable[[Sequence[Tensor]], Any], inside: Tensor | None) -> Explanation:
        outside = None
        if inside is not None:
            size = result.relevance[0].abs()
            all_of_it = size.flatten(1).sum(1)
            outside = (size * ~inside).flatten(1).sum(1) / all_of_it.masked_fill(all_of_it == 0, 1)
        return Explanation(pack(result.relevance), result.output, result.start, result.ledger, outside)

    # ------------------------------------------------------------------------------------------------------ by rules
    def _by_rules(
        self, given: list[Tensor], wanted: Sequence[tuple[Any, Start]], mask: Tensor | None
    ) -> list[Explanation]:
        with torch.no_grad(), steady():
            traced = self.trace(given)
            graph = traced.graph
            result = graph.result(self.output)
            groups: dict[tuple[Composite, Ref], list[int]] = {}
            for place, (composite, start) in enumerate(wanted):
                target = Ref(graph.find(start.layer).index) if isinstance(start, Inner) else result
                groups.setdefault((composite_of(composite), target), []).append(place)
            plans = {key: self._plan(traced, *key) for key in groups}
            inside = None if mask is None else self._mask(mask, given[0])
            forward = Forward(graph, given, plans.values(), result, self.checkpoint)
            results: dict[int, Explanation] = {}
            for key, places in groups.items():
                starts = [start_values(forward.values[key[1]], wanted[place][1]) for place in places]
                backward = Backward(self, traced, plans[key], forward, inside, starts)
                found = backward.run(last=len(results) + len(places) == len(wanted))
                results |= dict(zip(places, found, strict=True))
        return [results[place] for place in range(len(wanted))]

    def _plan(self, traced: Traced, composite: Composite, target: Ref) -> Plan:
        key = (composite, target)
        if key not in traced.plans:
            traced.plans[key] = make_plan(traced.graph, composite, target)
        return traced.plans[key]

    def prepared(self, step: Step, key: Any) -> Tensor:
        """Weights of an operation as a rule wants them; made once per network."""
        assert step.weighted is not None
        weight = step.weighted.weight
        norm = None if step.node is step.core else step.node
        sources = [weight] if norm is None else [weight, *(v for v in norm.args[1:5] if v is not None)]
        name = (key, *((v.data_ptr(), v.shape, v.stride()) for v in sources))
        if name not in self.weights:
            scaled = weight if norm is None else weight * step.weighted.rows(affine(norm)[0])
            self.weights[name] = (prepare(scaled, key), sources)  # the sources keep their addresses theirs
        return self.weights[name][0]


def start_values(value: Tensor, start: Start) -> Tensor:
    """The relevance that is put on a tensor (B, ...).

    Raises
    ------
    ValueError
        If the start does not fit the tensor.
    """
    if isinstance(start, Inner):
        if start.values is not None:
            start = start.values
        elif start.index is None:
            return value.clone()
        else:
            start = start.index
    if isinstance(start, Tensor):
        if start.shape != value.shape:
            raise ValueError(f"start has shape {tuple(start.shape)}, the output {tuple(value.shape)}")
        return start.to(value)
    single = value.ndim == 1 or value.shape[1:].numel() == 1
    if start is None:
        if single:
            return value.clone()
        if value.ndim != 2:
            raise ValueError(
                f"the output has shape {tuple(value.shape)}: say what to explain, start=CLASS or a tensor shaped like it"
            )
        chosen = torch.nn.functional.one_hot(value.argmax(1), value.shape[1])
        return value * chosen
    if single and start == 0:
        return value.clone()
    if value.ndim < 2 or not -value.shape[1] <= start < value.shape[1]:
        raise ValueError(f"start={start}: the output has shape {tuple(value.shape)}")
    result = torch.zeros_like(value)
    result[:, start] = value[:, start]
    return result


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
        self.last_use = self._last_uses()
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
                kept = (final and ref in self.saved) or self.last_use.get(ref, -1) >= high
                if not read_later and not kept:
                    values.pop(ref, None)
        if not final:
            for index in self.splits & set(range(low, high)):
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


class Backward(Context):
    """One pass backwards through the steps of a plan, for several starts."""

    def __init__(
        self,
        explainer: Explainer,
        traced: Traced,
        plan: Plan,
        forward: Forward,
        inside: Tensor | None,
        starts: list[Tensor],
    ) -> None:
        self.explainer, self.traced, self.plan, self.forward = explainer, traced, plan, forward
        self.graph, self.inside, self.starts = traced.graph, inside, starts
        self.samples = next(iter(forward.inputs.values())).shape[0]
        # relevance that has arrived at a tensor, per start; absent where there is none
        self.arrived: dict[Ref, dict[int, Tensor]] = {plan.target: dict(enumerate(starts))}
        self.ledger = Ledger(len(starts), self.samples)

    def value(self, ref: Ref) -> Tensor:
        value = self.forward.values[ref]
        return value - self.shift(ref, value) if ref in self.plan.folds.path else value

    def shift(self, ref: Ref, like: Tensor) -> Tensor:
        """What a folded batch norm added to a tensor."""
        return shift_of(self.graph, self.plan.folds, ref, like)

    def run(self, *, last: bool) -> list[Explanation]:
        """Go back from the target to the inputs; `last`: nobody needs the forward pass afterwards."""
        remaining: dict[Ref, int] = {}
        if last:
            for step in self.plan.steps.values():
                for ref in step.saved:
                    remaining[ref] = min(remaining.get(ref, step.node.index), step.node.index)
        for index in sorted(self.plan.steps, reverse=True):
            step = self.plan.steps[index]
            for ref in outputs(step.node):
                arrived = self.arrived.pop(ref, None)
                if arrived:
                    self.forward.at(index)
                    self.pass_on(step, ref, arrived)
            for ref in step.saved:
                if remaining.get(ref) == index and ref not in self.forward.always and ref not in self.forward.inputs:
                    self.forward.values.pop(ref, None)
            if last and step.split:
                self.forward.values.pop(("sum", step.core.index), None)
        return self.explanations()

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
            layer = WeightedLayer(self, step)
            back, losses = weighted(step.rule, layer, relevance)
            handed: list[tuple[Ref, Tensor | None]] = [(step.source, back)]
        else:
            rule: Any = step.rule
            parts, losses = STRUCTURE[step.node.kind](self, step.node, rule, relevance, ref.output)
            handed = list(zip(self.operands(step), parts, strict=True))
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
                name = f"pass: in {', '.join(self.graph.nodes[i].layer for i in self.plan.folds.right[step.node.index])}"
            self.ledger.add(step.core.layer, kind, name, active, sums(given, out, losses))
        for target, part in handed:
            if part is not None:
                there = self.arrived.setdefault(target, {})
                for place, start in enumerate(active):
                    there[start] = there[start] + part[place] if start in there else part[place]

    def operands(self, step: Step) -> list[Ref]:
        """The computed operands that the parts of a structural rule belong to."""
        return step.node.refs

    def explanations(self) -> list[Explanation]:
        """What arrived at the inputs, per start."""
        frames = self.ledger.frames()
        output = self.forward.values[self.graph.result(self.explainer.output)]
        found = []
        for start, put_in in enumerate(self.starts):
            parts = []
            for ref, value in self.forward.inputs.items():
                parts.append(self.arrived.get(ref, {}).get(start, torch.zeros_like(value)))
            explanation = Explanation(tuple(parts), output, put_in, frames[start])
            given = per_sample(put_in.unsqueeze(0), self.samples)[0].tolist()
            warn_of_leaks(frames[start], given, explanation.total.tolist(), self.explainer.dtype)
            found.append(explanation)
        return found


class WeightedLayer:
    """A weighted operation and one batch, as rules see it (`rules.Layer`)."""

    def __init__(self, backward: Backward, step: Step) -> None:
        assert step.weighted is not None
        self.backward, self.step, self.operation = backward, step, step.weighted
        self.samples = backward.samples
        self.values = backward.forward.values
        self.raw = self.values[step.source]
        x = self.raw
        self.shifted = step.source in backward.plan.folds.path
        if self.shifted:
            x = x - backward.shift(step.source, x)
        self.masked = False
        self._inside: Tensor | None = None
        if step.first and backward.inside is not None:
            self._inside = self._at_source(backward.inside.to(x.dtype), backward.inside, moves_only=True)
            inner = x * self._inside
            self.masked = bool((inner != x).any())
            x = inner
        self.x = x

    # ------------------------------------------------------------------------------------------------ linear algebra
    def apply(self, x: Tensor | None, weight: Any) -> Tensor:
        return self.operation.apply(self.ones() if x is None else x, self.backward.explainer.prepared(self.step, weight))

    def adjoint(self, s: Tensor, weight: Any) -> Tensor:
        return self.operation.adjoint(s, self.backward.explainer.prepared(self.step, weight), self.x.shape)

    def ones(self) -> Tensor:
        """Ones like the input, 0 outside the mask."""
        ones = torch.ones_like(self.x)
        return ones if self._inside is None else ones * self._inside

    def inside(self) -> Tensor | None:
        return self._inside

    # ---------------------------------------------------------------------------------------- outputs and denominators
    def total(self, relevance: Tensor) -> Tensor:
        if self.masked:
            return self.add_bias(self.contributions(), self.bias())
        output = self.step.output
        assert output is not None
        total = self.values[output]
        if output.node != self.step.node.index and bool((relevance * (total == 0)).any()):
            # relevance at units that the ReLU switched off: their output has to be computed again
            total = self.add_bias(self.apply(self.x, "plain"), self.bias())
        return total

    def contributions(self) -> Tensor:
        kept = self.values.get(("sum", self.step.core.index))  # type: ignore[call-overload]
        if kept is None or self.masked or self.shifted:
            return self.apply(self.x, "plain")
        if self.step.node is self.step.core:
            return kept
        scale, _ = affine(self.step.node)
        return kept * scale.view(-1, *(1,) * (kept.ndim - 2))

    def bias(self, sign: int = 0) -> Tensor | None:
        name = (self.step.node.index, "bias", self.shifted)
        constants = self.backward.traced.constants
        if name not in constants:
            constants[name] = self._bias()
        bias = constants[name]
        if bias.numel() == 0:
            return None
        return bias if sign == 0 else bias.clamp(min=0) if sign > 0 else bias.clamp(max=0)

    def _bias(self) -> Tensor:
        """(O,), or (1, *output) where it differs from place to place; empty if there is none."""
        bias = self.operation.bias
        if self.shifted:
            moved = self._moved()
            if moved.ndim == 1 or bias is None or not self.operation.convolution:
                bias = moved if bias is None else moved + bias
            else:
                bias = moved + bias.view(-1, *(1,) * (moved.ndim - 2))
        if self.step.node is not self.step.core:
            scale, shift = affine(self.step.node)
            if bias is not None and bias.ndim > 1 and self.operation.convolution:
                scale, shift = (v.view(-1, *(1,) * (bias.ndim - 2)) for v in (scale, shift))
            bias = shift if bias is None else bias * scale + shift
        return self.raw.new_empty(0) if bias is None else bias

    def _moved(self) -> Tensor:
        """What the shift of a folded batch norm adds to the output."""
        operation, shift = self.operation, self.backward.shift(self.step.source, self.raw)
        padded = operation.convolution and (any(operation.options[1]) or operation.transposed)
        full = shift.expand(1, *self.raw.shape[1:]) if shift.shape[0] == 1 else shift[:1].expand(1, *self.raw.shape[1:])
        if operation.convolution and not padded and shift.numel() == shift.shape[1]:
            kernel = operation.weight.shape[2:]
            options = ([1] * len(kernel), [0] * len(kernel), [1] * len(kernel), *operation.options[3:])
            small = shift.expand(1, -1, *kernel)
            return torch.ops.aten.convolution(small, operation.weight, None, *options).flatten()
        return operation.apply(full, operation.weight)

    def add_bias(self, contributions: Tensor, bias: Tensor | None) -> Tensor:
        return contributions if bias is None else contributions + self._spread(bias, contributions.ndim)

    def _spread(self, bias: Tensor, ndim: int) -> Tensor:
        """A bias laid out to broadcast to the output."""
        return bias.view(-1, *(1,) * (ndim - 2)) if self.operation.convolution and bias.ndim == 1 else bias

    def absorbed(self, s: Tensor, bias: Tensor) -> Tensor:
        if bias.ndim == 1:
            axis = 2 if self.operation.convolution else s.ndim - 1
            if self.operation.convolution or s.shape[1] == self.samples:
                others = tuple(i for i in range(2, s.ndim) if i != axis)
                return (s.sum(others) if others else s) @ bias.to(s)
        spread = self._spread(bias, s.ndim - 1)
        return per_sample(s * spread, self.samples)

    # -------------------------------------------------------------------------------------------- what no scan changes
    def constant(self, weight: Any, x: Any = None) -> Tensor:
        if self._inside is not None or (isinstance(x, Tensor) and x.shape[:1] != (1,) and x.numel() > 1):
            return self.apply(x, weight)
        number = float(x) if isinstance(x, Tensor) and x.numel() == 1 else None
        name = (self.step.node.index, "constant", str(weight), number if number is not None else id(x) if x is not None else None)
        constants = self.backward.traced.constants
        if name not in constants:
            if x is None:
                full = torch.ones_like(self.x[:1])
            else:
                full = x.expand(1, *self.x.shape[1:])
            constants[name] = self.apply(full.contiguous(), weight)
        return constants[name]

    def bounds(self, low: Any, high: Any) -> tuple[Tensor, Tensor]:
        made = []
        for bound in (low, high):
            tensor = torch.as_tensor(bound).to(self.x)
            if self.step.first and (tensor.ndim > 0 or not self._moves_keep_constants()):
                tensor = self._at_source(tensor, None)
            made.append(tensor if self._inside is None else tensor * self._inside)
        return made[0], made[1]

    def _moves_keep_constants(self) -> bool:
        return self._path_is({"move"}, but=("constant_pad_nd",))

    def _path_is(self, kinds: set[str], but: tuple[str, ...] = ()) -> bool:
        graph, stack = self.backward.graph, [self.step.source.node]
        while stack:
            node = graph.nodes[stack.pop()]
            if node.op is not None and (node.kind not in kinds or node.name.removeprefix("aten.") in but):
                return False
            stack += [ref.node for ref in node.refs]
        return True

    def _at_source(self, leaf: Tensor, inside: Tensor | None, *, moves_only: bool = False) -> Tensor:
        """What a tensor shaped like the first input becomes on its way to this operation.

        With `moves_only`, operations that change values but not places are passed by, and other inputs count as inside.
        """
        graph = self.backward.graph
        values: dict[Ref, Tensor] = {}

        def find(ref: Ref) -> Tensor:
            if ref in values:
                return values[ref]
            node = graph.nodes[ref.node]
            if node.op is None:
                given = self.backward.forward.inputs[ref]
                fits = given.ndim == leaf.ndim and given.shape[2:] == leaf.shape[2:]
                values[ref] = leaf.expand_as(given) if fits or leaf.ndim < given.ndim else torch.ones_like(given)
                return values[ref]
            made = {source: find(source) for source in node.refs}
            if moves_only and node.kind in ("scale", "add", "batch_norm", "activation"):
                values[ref] = made[node.refs[0]].expand(node.shapes[ref.output])
                return values[ref]
            if node.kind not in ("move", "scale", "add", "batch_norm"):
                raise ValueError(
                    f"{self.step.core.layer}: what the input becomes in {node.layer} ({node.name}) has no bounds; use box "
                    "rules and masks where the first weighted operation reads the input itself"
                )
            args, kwargs = tree_map(lambda v: made[v] if is_computed(v) else v, (node.args, node.kwargs))
            keep(node, node.op(*args, **kwargs), values)
            return values[ref]

        return find(self.step.source)


def explain(
    model: nn.Module,
    inputs: Inputs,
    composite: Any = "epsilon_plus",
    start: Any = None,
    mask: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    output: int | str | None = None,
    checkpoint: int = 0,
) -> Any:
    """Explain one batch; for many of one network make an `Explainer`, whose parameters these are."""
    explainer = Explainer(model, composite, dtype=dtype, device=device, output=output, checkpoint=checkpoint)
    return explainer(inputs, start, mask)
