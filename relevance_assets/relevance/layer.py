"""A weighted operation and one batch, as rules see it (`rules.Layer`).

Belongs here: folded weights, inputs and biases; masks; what is computed once and kept. Does not belong here: rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from relevance_assets.relevance.canonizers import affine
from relevance_assets.relevance.graph import Ref, keep
from relevance_assets.relevance.operations import is_computed
from relevance_assets.relevance.plan import Step
from relevance_assets.relevance.rules import per_sample

if TYPE_CHECKING:
    from relevance_assets.relevance.passes import Backward

__all__ = ["WeightedLayer"]


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
        inside, unpadded = backward.inside_of(step.source), backward.padding.at(step.source)
        both = inside if unpadded is None else unpadded if inside is None else inside & unpadded
        self._inside = None if both is None else both.to(x.dtype)  # inputs that count
        self.name = step.core.layer
        self.masked = False  # whether anything outside had a contribution
        if inside is not None:
            self.masked = bool((x * ~inside).any())
            x = x * inside if self.masked else x
        self.x = x
        self.nonnegative = step.nonnegative and not self.shifted
        self.vanishing = step.vanishing and not backward.inside.masked

    # ------------------------------------------------------------------------------------------------ linear algebra
    def apply(self, x: Tensor | None, weight: Any, bias: Tensor | None = None) -> Tensor:
        prepared = self.backward.explainer.prepared(self.step, weight)
        along = bias if self.operation.convolution and bias is not None and bias.ndim == 1 else None
        made = self.operation.apply(self.ones() if x is None else x, prepared, along)
        return made if along is not None else self.add_bias(made, bias)

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
        if self.vanishing:
            return total
        if output.node != self.step.node.index and bool((relevance * (total == 0)).any()):
            # relevance at units that the ReLU switched off: their output has to be computed again
            total = self.add_bias(self.apply(self.x, "plain"), self.bias())
        return total

    def contributions(self) -> Tensor:
        name: Any = ("sum", self.step.core.index)
        kept = self.values.get(name)
        if kept is None or self.masked or self.shifted:
            return self.apply(self.x, "plain")
        if self.step.node is self.step.core:
            # without a bias it is the operation's output itself, which others may read
            mine = self.backward.last and self.operation.bias is not None
            return self.values.pop(name) if mine else kept.clone()
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
        same = operation.convolution or shift.shape[0] == 1 or bool((shift == shift[:1]).all())  # in every row
        full = (shift[:1] if same else shift).expand(1 if same else len(shift), *self.raw.shape[1:])
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
    def constant(self, weight: Any, x: Tensor | None = None, name: Any = None) -> Tensor:
        if self.backward.inside.masked or (x is not None and x.ndim > 0 and x.shape[0] != 1):
            return self.apply(x if x is None else x.expand_as(self.x), weight)
        key = (self.step.node.index, "constant", weight, name)
        constants = self.backward.traced.constants
        if key not in constants:
            full = self.ones()[:1] if x is None else x.expand(1, *self.x.shape[1:]).contiguous()
            constants[key] = self.apply(full, weight)
        return constants[key]

    def bounds(self, low: Any, high: Any) -> tuple[Tensor, Tensor]:
        made = []
        for bound in (low, high):
            tensor = torch.as_tensor(bound).to(self.x)
            if self.step.first and (tensor.ndim > 0 or not self._reads_inputs()):
                tensor = self._at_source(tensor)
            made.append(tensor if self._inside is None else (tensor * self._inside).expand_as(self.x))
        return made[0], made[1]

    def _reads_inputs(self) -> bool:
        """Whether its input is made of the network's inputs by moves alone, under which a number stays that number."""
        graph, stack = self.backward.graph, [self.step.source.node]
        while stack:
            node = graph.nodes[stack.pop()]
            if node.op is not None and node.kind != "move":
                return False
            stack += [ref.node for ref in node.refs]
        return True

    def _at_source(self, leaf: Tensor) -> Tensor:
        """What a number, or a tensor that broadcasts to the inputs, becomes on its way to this operation."""
        graph = self.backward.graph
        values: dict[Ref, Tensor] = {}

        def find(ref: Ref) -> Tensor:
            if ref in values:
                return values[ref]
            node = graph.nodes[ref.node]
            if node.op is None:
                values[ref] = leaf.expand_as(self.backward.forward.inputs[ref])
                return values[ref]
            made = {source: find(source) for source in node.refs}
            if node.kind not in ("move", "scale", "add", "batch_norm"):
                raise ValueError(
                    f"{self.step.core.layer}: what the input becomes in {node.layer} ({node.name}) has no bounds; use "
                    "box rules where the first weighted operation reads the input itself"
                )
            args, kwargs = tree_map(lambda v: made[v] if is_computed(v) else v, (node.args, node.kwargs))
            keep(node, node.op(*args, **kwargs), values)
            return values[ref]

        return find(self.step.source)
