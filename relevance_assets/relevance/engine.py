"""Explanations: from a network and its inputs to relevance, with an account of every operation.

Belongs here: the passes forwards and backwards, what is kept and freed. Does not belong here: where relevance starts
and what comes out (`explanation.py`), formulas (`rules.py`, `structure.py`), which operation has which rule
(`plan.py`), files.

The network is copied and traced once per shape of its inputs; weights are prepared once. Each explanation then runs the
traced operations, keeps the tensors that its rules read, and goes back through them. Starts share the forward pass.
Where a start has no relevance (one encoder of three), nothing is computed for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from relevance_assets.relevance.brain import Inside
from relevance_assets.relevance.canonizers import affine
from relevance_assets.relevance.composites import Composite, composite_of
from relevance_assets.relevance.explanation import Explanation, Inner, Start, merged, start_values
from relevance_assets.relevance.graph import Graph, Ref, UnknownOperation, steady
from relevance_assets.relevance.ledger import warn_of_leaks
from relevance_assets.relevance.operations import MOVES
from relevance_assets.relevance.others import by_baseline, by_zennit, is_baseline, is_zennit
from relevance_assets.relevance.passes import Backward, Forward, Traced
from relevance_assets.relevance.plan import Plan, Step, explain_unknown, make_plan
from relevance_assets.relevance.recording import capture
from relevance_assets.relevance.weighted_rules import prepare

__all__ = ["Explainer", "explain"]

Inputs = Tensor | Sequence[Tensor]


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
        torch.float32 or float64; None: as the model's parameters (float64 if it has none). Lower precision is refused:
        a denominator near 0 decides where relevance goes.
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
        self.dtype = dtype or (torch.float64 if first is None else first.dtype)
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"relevance in {str(self.dtype).removeprefix('torch.')} is not offered: rounding of a denominator near "
                "0 decides where relevance goes; give dtype=torch.float32 (or float64)"
            )
        self.device = torch.device(device if device is not None else "cpu" if first is None else first.device)
        self.model = copy.deepcopy(model).to(self.device, self.dtype).eval().requires_grad_(False)
        self.composite = composite if is_zennit(composite) or is_baseline(composite) else composite_of(composite)
        if not isinstance(checkpoint, int) or checkpoint < 0:
            raise ValueError(f"checkpoint is a number of segments, not {checkpoint!r}")
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
        self,
        inputs: Inputs,
        wanted: Sequence[tuple[Any, Start]],
        mask: Tensor | None = None,
        *,
        together: bool = False,
    ) -> list[Explanation]:
        """Explanations of one batch by several composites and starts; they share one forward pass.

        With `together` they share the pass backwards as well, wherever their rules are the same: faster where
        composites differ in few operations, but relevance of all of them is in memory at once.
        """
        given, pack = self._inputs(inputs)
        if len(given[0]) > 1 and not self._batch_first(given):
            return self._one_by_one(inputs, wanted, mask, together)
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
            found = self._by_rules(given, [wanted[place] for place in by_rules], mask, together)
            results |= dict(zip(by_rules, found, strict=True))
        inside = None if mask is None else self._mask(mask, given[0])
        return [self._finish(results[place], pack, inside) for place in range(len(wanted))]

    # ------------------------------------------------------------------------------------------------- what is given
    def _inputs(self, inputs: Inputs) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
        single = isinstance(inputs, Tensor)
        given: list[Tensor] = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if not given or not all(isinstance(value, Tensor) and value.ndim for value in given):
            raise ValueError("inputs must be a tensor or a sequence of tensors, batch first")
        if len({len(value) for value in given}) != 1:
            raise ValueError(f"inputs must have one batch size, not {[len(value) for value in given]}")
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise ValueError(
                "relevance under autocast is not offered: leave autocast, the network is copied in full precision"
            )
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
        mask = torch.as_tensor(mask).to(self.device)
        if mask.shape == spatial:
            mask = mask.expand(image.shape[0], 1, *spatial)
        if mask.shape not in ((image.shape[0], 1, *spatial), (1, 1, *spatial)):
            raise ValueError(f"mask {tuple(mask.shape)} does not fit the first input {tuple(image.shape)}")
        return (mask != 0).expand(image.shape[0], 1, *spatial)

    def _finish(
        self, result: Explanation, pack: Callable[[Sequence[Tensor]], Any], inside: Tensor | None
    ) -> Explanation:
        outside = None
        if inside is not None:
            size = result.relevance[0].abs()
            all_of_it = size.flatten(1).sum(1)
            outside = (size * ~inside).flatten(1).sum(1) / all_of_it.masked_fill(all_of_it == 0, 1)
        return Explanation(pack(result.relevance), result.output, result.start, result.ledger, outside)

    # -------------------------------------------------------------------------------------------------------- batches
    def _batch_first(self, given: Sequence[Tensor]) -> bool:
        """Whether every operation has its samples along axis 0, as accounts and relative stabilisers count on.

        Raises
        ------
        ValueError
            If samples of a batch influence each other.
        """
        traced = self.trace(given)
        if traced.batch_first is None:
            traced.batch_first = self._look_at_batch(traced.graph, given)
        return traced.batch_first

    def _look_at_batch(self, many: Graph, given: Sequence[Tensor]) -> bool:
        last = [value[-1:] for value in given]  # the first may be what others are compared with
        try:
            one = self.trace(last).graph
        except UnknownOperation:
            raise
        except ValueError:
            return True  # a network for this batch size alone
        result, alone = many.result(self.output), one.result(self.output)
        if one.nodes[alone.node].shape[:1] != (1,):
            return True
        with torch.no_grad(), steady():
            together = many.run(given, wanted={result})[result][-1:]
            apart = one.run(last, wanted={alone})[alone]
        bound = 1e-3 if self.dtype == torch.float32 else 1e-9
        if together.shape != apart.shape or (together - apart).abs().max() > bound * apart.abs().max():
            raise ValueError("samples of a batch influence each other in this network; explain them one by one")
        if len(many.nodes) != len(one.nodes):
            return False
        for node, other in zip(many.nodes, one.nodes, strict=True):
            if node.kind in MOVES:
                continue
            axis = 1 if node.kind == "norm" and node.shape[0] == 1 else 0  # instance norms: samples beside channels
            scaled = tuple(size * len(given[0]) if i == axis else size for i, size in enumerate(other.shape))
            if node.shape != scaled:
                return False
        return True

    def _one_by_one(
        self, inputs: Inputs, wanted: Sequence[tuple[Any, Start]], mask: Tensor | None, together: bool
    ) -> list[Explanation]:
        """Sample by sample, for networks that move the batch to another axis."""
        parts = [inputs] if isinstance(inputs, Tensor) else list(inputs)

        def of(value: Any, sample: int) -> Any:
            if isinstance(value, Inner) and value.values is not None:
                return replace(value, values=value.values[sample : sample + 1])
            return value[sample : sample + 1] if isinstance(value, Tensor) else value

        found = []
        for sample in range(len(parts[0])):
            own = [part[sample : sample + 1] for part in parts]
            starts = [(composite, of(start, sample)) for composite, start in wanted]
            per_scan = mask is not None and mask.ndim == parts[0].ndim and len(mask) > 1
            masked = mask[sample : sample + 1] if mask is not None and per_scan else mask
            given = own[0] if isinstance(inputs, Tensor) else own
            found.append(self.several(given, starts, masked, together=together))
        return [merged(list(explanations)) for explanations in zip(*found, strict=True)]

    # ------------------------------------------------------------------------------------------------------ by rules
    def _by_rules(
        self, given: list[Tensor], wanted: Sequence[tuple[Any, Start]], mask: Tensor | None, together: bool
    ) -> list[Explanation]:
        with torch.no_grad(), steady():
            traced = self.trace(given)
            graph = traced.graph
            result = graph.result(self.output)
            keys: list[tuple[Composite, Ref]] = []
            for composite, start in wanted:
                target = graph.find(start.layer) if isinstance(start, Inner) else result
                keys.append((composite_of(composite), target))
            groups: dict[Any, list[int]] = {}
            for place, key in enumerate(keys):
                groups.setdefault(None if together else key, []).append(place)
            kept = None if mask is None else self._mask(mask, given[0])
            if kept is not None and bool(kept.all()):
                kept = None  # nothing is outside: the same sums as without a mask, to the last bit
            plans = {key: self._plan(traced, *key, masked=kept is not None) for key in dict.fromkeys(keys)}
            inside = Inside(graph, kept, self.device)
            forward = Forward(graph, given, plans.values(), result, self.checkpoint)
            results: dict[int, Explanation] = {}
            for places in groups.values():
                starts = [start_values(forward.values[keys[place][1]], wanted[place][1]) for place in places]
                backward = Backward(self, traced, [plans[keys[place]] for place in places], forward, inside, starts)
                found = backward.run(last=len(results) + len(places) == len(wanted))
                output = forward.values[result]
                for place, put_in, (parts, ledger) in zip(places, starts, found, strict=True):
                    results[place] = self._checked(Explanation(tuple(parts), output, put_in, ledger))
        return [results[place] for place in range(len(wanted))]

    def _checked(self, found: Explanation) -> Explanation:
        """Warns of what nobody explains."""
        warn_of_leaks(found.ledger, found.start, found.total.tolist(), self.dtype)
        return found

    def _plan(self, traced: Traced, composite: Composite, target: Ref, *, masked: bool) -> Plan:
        key = (composite, target, masked)
        if key not in traced.plans:
            plan = make_plan(traced.graph, composite, target, masked=masked)
            if plan.unknown:
                raise UnknownOperation(explain_unknown(plan.unknown[0]))
            traced.plans[key] = plan
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
