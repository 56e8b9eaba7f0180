"""Rules of operations without weights: sums, averages, pools, products, softmax, matrix products, norms, moves.

Belongs here: for each kind of operation, how relevance (starts, B, *output) goes to its computed operands. Does not
belong here: convolutions and dense operations (`rules.py`).

Each rule is a function of a `Step`'s node, the values of its operands, and the relevance; it returns one tensor per
computed operand (None where it gets nothing) and what was lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from relevance_assets.relevance.canonizers import affine
from relevance_assets.relevance.composites import Plain
from relevance_assets.relevance.graph import Graph, Node, Ref
from relevance_assets.relevance.operations import adjoint, is_computed
from relevance_assets.relevance.rules import Losses, dot, mean_size, per_sample

__all__ = ["STRUCTURE", "gate_of", "needs"]

Result = tuple[list[Tensor | None], Losses]


class Context(Protocol):
    """What a structural rule may ask: values of tensors, shapes, samples.

    `value(ref)` is a tensor without what a folded batch norm added to it, `raw(ref)` with it; `inside_of(ref)` says
    where it comes from voxels inside the mask.
    """

    graph: Graph
    samples: int

    def value(self, ref: Ref) -> Tensor: ...

    def raw(self, ref: Ref) -> Tensor: ...

    def inside_of(self, ref: Ref) -> Tensor | None: ...

    def shape(self, ref: Ref) -> tuple[int, ...]:
        return self.graph.nodes[ref.node].shapes[ref.output]


Structural = Callable[[Context, Node, Plain, Tensor, int], Result]


def needs(graph: Graph, node: Node, rule: Plain, *, masked: bool) -> list[Ref]:
    """Tensors that the rule of a node reads, with a mask or without."""
    kind, own = node.kind, [ref for ref in node.refs if graph.nodes[ref.node].dtypes[ref.output].is_floating_point]
    if kind in ("average", "sum", "interpolate"):
        return [] if rule.rule == "flat" else own
    if kind == "max_pool":
        return [Ref(node.index, 1)] + (own if masked or rule.rule == "proportional" else [])
    if kind == "activation":
        return [Ref(node.index)] if rule.rule == "block" else []
    if kind == "softmax":
        return [*own, Ref(node.index)] if rule.rule == "gradient" else []
    if kind in ("norm", "batch_norm"):
        return own if rule.rule == "epsilon" else []
    if kind == "product":
        return (
            [preactivation(graph, ref) for ref in own] if rule.rule == "abs" else own if rule.rule == "proposed" else []
        )
    if kind == "select":
        return node.refs
    return own if kind in ("add", "matmul") else []


# ------------------------------------------------------------------------------------------------------ small tools
def fit(relevance: Tensor, shape: Sequence[int]) -> Tensor:
    """Relevance of a broadcast operand: summed over the axes it was spread along."""
    return relevance if relevance.shape[1:] == tuple(shape) else relevance.sum_to_size(relevance.shape[0], *shape)


def every(op: Any, node: Node, context: Context, output: int, s: Tensor) -> list[Tensor]:
    """The transposed map of a linear operation for all starts."""
    starts = [adjoint(op, node.args, node.kwargs, context.shape, output, s[i]) for i in range(s.shape[0])]
    return [torch.stack(parts) if len(parts) > 1 else parts[0].unsqueeze(0) for parts in zip(*starts, strict=True)]


def stabilised(total: Tensor, rule: Plain, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Denominator, what was added to it, and where it is 0 (1 stands there instead)."""
    size: Any = torch.full((), rule.epsilon, dtype=total.dtype, device=total.device)
    if rule.relative:
        size = size * mean_size(total, samples)
    extra = torch.copysign(size, total)
    denominator = total + extra
    empty = denominator == 0
    return denominator.masked_fill(empty, 1), extra, empty


def share(relevance: Tensor, total: Tensor, rule: Plain, samples: int) -> tuple[Tensor, Losses]:
    """s = R / total, stabilised, and the losses to the stabiliser and to empty denominators."""
    denominator, extra, empty = stabilised(total, rule, samples)
    s = (relevance / denominator).masked_fill(empty, 0)
    return s, Losses(stabiliser=dot(s, extra, samples), dead=per_sample(relevance * empty, samples))


# ------------------------------------------------------------------------------------------------------------ kinds
def move(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """Relevance goes back to where the value came from; what lands on constants is absorbed as by a bias."""
    losses = Losses()
    if node.name in ("aten.cat", "aten.stack") and not all(is_computed(value) for value in node.args[0]):
        pieces = [
            torch.full(context.shape(v) if is_computed(v) else v.shape, float(is_computed(v))) for v in node.args[0]
        ]
        constant = node.op(pieces, *node.args[1:], **node.kwargs) == 0
        losses.bias = per_sample(relevance * constant.to(relevance.device), context.samples)
    if node.name == "aten.constant_pad_nd":
        losses.bias = per_sample(
            relevance * ~padded(node, context.shape(node.refs[0]), relevance.device), context.samples
        )
    return list(every(node.op, node, context, output, relevance)), losses


def padded(node: Node, shape: Sequence[int], device: torch.device) -> Tensor:
    """Where the output of a padding operation holds its input."""
    return torch.nn.functional.pad(torch.ones(shape, dtype=torch.bool, device=device), node.args[1], value=False)


def select(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """`where`, `masked_fill`: to the operand that was chosen."""
    condition = node.args[0 if node.name == "aten.where" else 1]
    mask = context.value(condition) if is_computed(condition) else condition
    taken = [mask, ~mask] if node.name == "aten.where" else [~mask, mask]
    lost = torch.zeros(relevance.shape[0], context.samples, dtype=relevance.dtype, device=relevance.device)
    back: list[Tensor | None] = []
    for value in node.args:
        if value is condition:
            back += [None] if is_computed(value) else []
            continue
        part = relevance * taken.pop(0)
        if is_computed(value):
            back.append(fit(part, context.shape(value)))
        else:
            lost = lost + per_sample(part, context.samples)
    return back, Losses(bias=lost)


def scale(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """x * constant, x / constant: unchanged; nothing passes a factor of 0."""
    losses = Losses()
    constant = next((v for v in node.args if isinstance(v, Tensor)), None)
    if constant is not None and node.name == "aten.mul":
        empty = constant == 0
        if bool(empty.any()):
            losses.dead = per_sample(relevance * empty, context.samples)
            relevance = relevance * ~empty
    return [fit(relevance, context.shape(node.refs[0]))], losses


def linear_map(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """Averages, sums, interpolation: weights that are not negative and are not learnt."""
    ref = node.refs[0]

    def apply(x: Tensor) -> Tensor:
        return node.op(*(x if is_computed(value) else value for value in node.args), **node.kwargs)

    def back(s: Tensor) -> Tensor:
        return every(node.op, node, context, 0, s)[0]

    ones = torch.ones(context.shape(ref), dtype=relevance.dtype, device=relevance.device)
    inside = context.inside_of(ref)
    if inside is not None:
        ones = ones * inside
    if rule.rule == "flat":
        s, losses = share(relevance, apply(ones), Plain("flat", epsilon=0.0), context.samples)
        return [back(s) * ones], losses
    x = context.value(ref)
    x = x if inside is None else x * inside
    if rule.rule == "epsilon":
        s, losses = share(relevance, apply(x), rule, context.samples)
        return [back(s) * x], losses
    positive = x.clamp(min=0)
    total = apply(positive)
    empty = total == 0
    result = back((relevance / total.masked_fill(empty, 1)).masked_fill(empty, 0)) * positive
    if bool(empty.any()):  # in equal shares where nothing is positive
        count = apply(ones)
        outside = count == 0  # a window of padding alone
        s = (relevance * empty / count.masked_fill(outside, 1)).masked_fill(outside, 0)
        result = result + back(s) * ones
        return [result], Losses(dead=per_sample(relevance * outside, context.samples))
    return [result], Losses()


def add(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """a + b: in proportion to the terms; a constant term is a bias."""
    factors = [1.0, 1.0]
    alpha = float(node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1))
    if node.name == "aten.sub":
        factors[1] = -1.0
    if node.name == "aten.rsub":
        factors[0] = -1.0
    factors[0 if node.name == "aten.rsub" else 1] *= alpha
    terms: list[tuple[Ref, Tensor]] = []
    constant: Any = None
    for value, factor in zip(node.args[:2], factors, strict=True):
        if is_computed(value):
            term, inside = context.value(value), context.inside_of(value)
            term = term if inside is None else term * inside
            terms.append((value, term if factor == 1 else term * factor))
        else:
            constant = value * factor if isinstance(value, Tensor) else torch.as_tensor(value * factor).to(relevance)
    if rule.rule == "z_plus":
        terms = [(ref, term.clamp(min=0)) for ref, term in terms]
        constant = None if constant is None else constant.clamp(min=0)
    if constant is not None and rule.bias == "drop":
        constant = None
    total = sum((term for _, term in terms), torch.zeros((), dtype=relevance.dtype, device=relevance.device))
    total = total if constant is None else total + constant
    total = total.expand(relevance.shape[1:])
    if rule.rule == "z_plus":
        return _evenly_where_empty(context, node, rule, relevance, terms, constant, total)
    s, losses = share(relevance, total, rule, context.samples)
    if constant is not None:
        losses.bias = dot(s, constant.expand(relevance.shape[1:]), context.samples)
    return [fit(s * term, context.shape(ref)) for ref, term in terms], losses


def _evenly_where_empty(
    context: Context, node: Node, rule: Plain, relevance: Tensor, terms: Any, constant: Any, total: Tensor
) -> Result:
    empty = total == 0
    s = (relevance / total.masked_fill(empty, 1)).masked_fill(empty, 0)
    inside = [context.inside_of(ref) for ref, _ in terms]
    parts = [torch.ones_like(total) if mask is None else torch.ones_like(total) * mask for mask in inside]
    count: Any = sum(parts)
    even = relevance * empty / count.clamp(min=1)
    losses = Losses(dead=per_sample(relevance * empty * (count == 0), context.samples))
    if constant is not None:
        losses.bias = dot(s, constant.expand(relevance.shape[1:]), context.samples)
    shared = zip(terms, parts, strict=True)
    return [fit(s * term + even * part, context.shape(ref)) for (ref, term), part in shared], losses


def max_pool(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """`winner`: all to the maximum (inside a mask), the first of equals. `proportional`: x+ / the window's sum."""
    ref = node.refs[0]
    shape = context.shape(ref)
    axes = next(n for n in (3, 2, 1) if f"{n}d" in node.name)
    if rule.rule == "winner":
        indices = context.value(Ref(node.index, 1)).long()
        inside = context.inside_of(ref)
        if inside is not None:  # the winner among the voxels that may have relevance
            indices = node.op(context.value(ref).masked_fill(~inside, -torch.inf), *node.args[1:], **node.kwargs)[1]
        lead = shape[: len(shape) - axes]
        flat = relevance.new_zeros(relevance.shape[0], *lead, math.prod(shape[len(shape) - axes :]))
        places = indices.reshape(*lead, -1).expand(relevance.shape[0], *lead, -1)
        flat.scatter_add_(-1, places, relevance.reshape(places.shape))
        return [flat.view(relevance.shape[0], *shape)], Losses()
    if "adaptive" in node.name:
        raise ValueError(f"{node.layer}: an adaptive maximum pool has no rule 'proportional'; use 'winner'")
    options: list[Any] = [[], 0, 1, False]
    options[: len(node.args) - 2] = node.args[2:]
    kernel, (stride, padding, dilation, ceil) = node.args[1], options
    if any(d != 1 for d in (dilation if isinstance(dilation, list | tuple) else [dilation])):
        raise ValueError(f"{node.layer}: a dilated maximum pool has no rule 'proportional'; use 'winner'")
    pool = getattr(torch.nn.functional, f"avg_pool{axes}d")

    def windows(x: Tensor) -> Tensor:
        return pool(x, kernel, stride or None, padding, ceil, divisor_override=1)

    def back(s: Tensor) -> Tensor:
        with torch.enable_grad():
            dummy = torch.zeros(shape, dtype=s.dtype, device=s.device, requires_grad=True)
            made = windows(dummy)
            return torch.stack([torch.autograd.grad(made, dummy, s[i], retain_graph=True)[0] for i in range(len(s))])

    positive = context.value(ref).clamp(min=0)
    ones = torch.ones_like(positive)
    inside = context.inside_of(ref)
    if inside is not None:
        positive, ones = positive * inside, ones * inside
    total = windows(positive)
    empty = total == 0
    result = back((relevance / total.masked_fill(empty, 1)).masked_fill(empty, 0)) * positive
    if bool(empty.any()):
        count = windows(ones)
        outside = count == 0
        s = (relevance * empty / count.masked_fill(outside, 1)).masked_fill(outside, 0)
        return [result + back(s) * ones], Losses(dead=per_sample(relevance * outside, context.samples))
    return [result], Losses()


def activation(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """`pass`: unchanged. `block`: nothing passes where a ReLU is off, or held at its threshold."""
    if rule.rule == "pass":
        return [relevance], Losses()
    if node.name != "aten.relu":
        raise ValueError(f"{node.layer}: rule 'block' is for ReLUs, not {node.name}; use 'pass'")
    off = context.raw(Ref(node.index)) <= 0
    return [relevance * ~off], Losses(clamped=per_sample(relevance * off, context.samples))


def softmax(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """`pass`: unchanged. `gradient`: R_i = x_i (R_i - y_i sum R), a Taylor expansion at x (Achtibat et al., eq. 11).

    Its constant term, R_j (1 - x_j + sum_i y_i x_i) per output, is absorbed as by a bias.
    """
    if rule.rule == "pass":
        return [relevance], Losses()
    if node.name == "aten._log_softmax":
        raise ValueError(f"{node.layer}: log-softmax has no rule 'gradient'; use 'pass'")
    x, y, axis = context.value(node.refs[0]), context.value(Ref(node.index)), int(node.args[1])
    x = torch.where(y == 0, 0.0, x)  # masked scores are -inf
    along = axis if axis < 0 else axis + 1
    result = x * (relevance - y * relevance.sum(along, keepdim=True))
    mean = (x * y).sum(axis, keepdim=True)
    return [result], Losses(bias=per_sample(relevance * (1 - x + mean), context.samples))


def gate_of(graph: Graph, node: Node) -> int:
    """Which operand of a product gates the other: 0 or 1.

    The one that comes from a sigmoid or softmax; else the one that was broadcast; else the second.
    """
    if node.name == "aten.div":
        return 1

    def gating(ref: Ref) -> bool:
        found = graph.nodes[ref.node]
        while found.kind in ("move", "scale") and found.refs:
            found = graph.nodes[found.refs[0].node]
        return found.kind == "softmax" or found.name in ("aten.sigmoid", "aten.hardsigmoid")

    first, second = (gating(ref) for ref in node.refs[:2])
    if first != second:
        return 0 if first else 1
    sizes = [math.prod(graph.nodes[ref.node].shapes[ref.output]) for ref in node.refs[:2]]
    return 0 if sizes[0] < sizes[1] else 1


def preactivation(graph: Graph, ref: Ref) -> Ref:
    """What an activation was given, where a tensor is one's output."""
    node = graph.nodes[ref.node]
    return node.refs[0] if node.kind == "activation" else ref


def product(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """signal * gate.

    `proposed`: |s| / (|s| + |g|) and the rest (Lu et al. 2023, equations 6-7), halves where both are 0; `abs`: the same
    with the pre-activations; `half`; `all`: the signal takes everything.
    """
    a, b = node.refs
    if rule.rule == "all" or node.name == "aten.div":
        whole: list[Tensor | None] = [None, None]
        signal = 1 - gate_of(context.graph, node)
        ref = node.refs[signal]
        mask = context.inside_of(ref)
        whole[signal] = fit(relevance if mask is None else relevance * mask, context.shape(ref))
        outside = Losses() if mask is None else Losses(dead=per_sample(relevance * ~mask, context.samples))
        return whole, outside
    if rule.rule == "half":
        shares = [torch.full_like(relevance[0], 0.5)] * 2
    else:
        if rule.rule == "abs":
            a, b = preactivation(context.graph, a), preactivation(context.graph, b)
        first, second = context.value(a).abs(), context.value(b).abs()
        both = first + second
        empty = both == 0
        both = both.masked_fill(empty, 1)
        shares = [torch.where(empty, 0.5, part / both) for part in (first, second)]
    losses = Losses()
    inside = [context.inside_of(ref) for ref in node.refs]
    if any(mask is not None for mask in inside):  # an operand outside gets nothing, and the other one all
        shares = [part if mask is None else part * mask for part, mask in zip(shares, inside, strict=True)]
        total = shares[0] + shares[1]
        empty = total == 0
        shares = [part / total.masked_fill(empty, 1) for part in shares]
        losses.dead = per_sample(relevance * empty, context.samples)
    return [fit(part * relevance, context.shape(ref)) for part, ref in zip(shares, node.refs, strict=True)], losses


def matmul(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """O = A B. `half`: epsilon to A and B, halved (Achtibat et al., eq. 14); `all`: what is no gate takes it."""
    a, b = node.refs[-2:]
    left, right = context.value(a), context.value(b)
    s, losses = share(relevance, torch.matmul(left, right), rule, context.samples)
    backs = [torch.matmul(s, right.transpose(-1, -2)) * left, torch.matmul(left.transpose(-1, -2), s) * right]
    if rule.rule == "half":
        return [None] * (len(node.refs) - 2) + [back / 2 for back in backs], losses
    gate = gate_of(context.graph, node)
    return [None if place == gate else back for place, back in enumerate(backs)], losses


def norm(context: Context, node: Node, rule: Plain, relevance: Tensor, output: int) -> Result:
    """Statistics held fixed, y = c x + d. `pass`: unchanged. `epsilon`: c x / (y + eps sgn(y)); d absorbs as a bias."""
    if rule.rule == "pass":
        return [relevance], Losses()
    x = context.value(node.refs[0])
    slope, shift = slope_and_shift(node, x)
    kept = rule.bias == "keep"
    s, losses = share(relevance, slope * x + shift if kept else slope * x, rule, context.samples)
    if kept:
        losses.bias = dot(s, shift.expand(relevance.shape[1:]), context.samples)
    return [s * (slope * x)], losses


def slope_and_shift(node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
    """c and d of a norm at x, broadcastable to x."""
    name = node.name.removeprefix("aten.")
    if node.kind == "batch_norm":
        axes = (1, -1) + (1,) * (x.ndim - 2)
        scale, shift = affine(node)
        return scale.view(axes), shift.view(axes)
    if name == "native_layer_norm":
        dims = tuple(range(x.ndim - len(node.args[1]), x.ndim))
        weight, bias, eps = node.args[2], node.args[3], node.args[4]
        mean, scale = x.mean(dims, keepdim=True), torch.rsqrt(x.var(dims, correction=0, keepdim=True) + eps)
    elif name == "native_group_norm":
        weight, bias, groups, eps = node.args[1], node.args[2], node.args[6], node.args[7]
        grouped = x.reshape(x.shape[0], groups, -1)
        spread = (x.shape[0], groups, x.shape[1] // groups)
        axes = (*x.shape[:2],) + (1,) * (x.ndim - 2)
        mean = grouped.mean(2, keepdim=True).expand(spread).reshape(axes)
        scale = torch.rsqrt(grouped.var(2, correction=0, keepdim=True) + eps).expand(spread).reshape(axes)
        weight, bias = (None if v is None else v.view(1, -1, *axes[2:]) for v in (weight, bias))
    elif node.kind == "norm" and "batch_norm" in name:  # instance norm
        dims, axes = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
        weight, bias, eps = node.args[1], node.args[2], node.args[-1]
        mean, scale = x.mean(dims, keepdim=True), torch.rsqrt(x.var(dims, correction=0, keepdim=True) + eps)
        weight, bias = (None if v is None else v.view(axes) for v in (weight, bias))
    else:
        raise ValueError(f"{node.layer}: {node.name} has no rule 'epsilon'; use 'pass'")
    slope = scale if weight is None else scale * weight
    shift = -mean * slope
    return slope, shift if bias is None else shift + bias


STRUCTURE: dict[str, Structural] = {
    "move": move,
    "select": select,
    "scale": scale,
    "average": linear_map,
    "sum": linear_map,
    "interpolate": linear_map,
    "add": add,
    "max_pool": max_pool,
    "activation": activation,
    "softmax": softmax,
    "product": product,
    "matmul": matmul,
    "norm": norm,
    "batch_norm": norm,
}
