"""Relevance by explicit matrices, in NumPy and float64: every rule, every layer, and a tape for whole networks.

Slow, small and plain on purpose. A layer is the dense matrix of its weights over the inputs that it sees, one sample
at a time; convolutions are unrolled by loops over the offsets of their kernels. A rule is one line that makes
contributions out of that matrix. Shares no code with the engine, and knows neither torch nor any network.

Does not belong here: tests, and anything that is faster than the definition.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray
EPSILON = 1e-6


# ------------------------------------------------------------------------------------------------ layers
@dataclass(frozen=True)
class Layer:
    """output[k] = sum_j weights[k, j] x[source[j]] + bias[k], for one sample.

    Columns are what the layer reads, so copies made by replicate padding are columns of their own and zero padding
    is no column. `linked` says which of them output k reads at all, whatever its weight.
    """

    weights: Array
    linked: Array
    source: Array
    bias: Array
    out: tuple[int, ...]
    into: tuple[int, ...]

    def __call__(self, x: Array) -> Array:
        return (self.weights @ x.ravel()[self.source] + self.bias).reshape(self.out)

    def back(self, columns: Array) -> Array:
        """Sum what belongs to one input, copies included."""
        result = np.zeros(int(np.prod(self.into)))
        np.add.at(result, self.source, columns)
        return result.reshape(self.into)

    def scaled(self, factor: Array, shift: Array) -> Layer:
        """The layer with a batch norm after it merged in; one factor and one shift per output channel."""
        repeat = len(self.bias) // len(factor)
        rows, shifts = np.repeat(factor, repeat), np.repeat(shift, repeat)
        return replace(self, weights=self.weights * rows[:, None], bias=self.bias * rows + shifts)


def places(shape: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, shape)))


def each(value: Any, axes: int) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value] * axes


def padded_source(shape: Sequence[int], pads: Sequence[tuple[int, int]], mode: str) -> Array:
    """For every voxel of the padded grid the flat voxel that it copies, -1 for a zero."""
    result = []
    for place in places([n + before + after for n, (before, after) in zip(shape, pads, strict=True)]):
        at = [p - before for p, (before, _) in zip(place, pads, strict=True)]
        if mode == "replicate":
            at = [min(max(a, 0), n - 1) for a, n in zip(at, shape, strict=True)]
        elif mode == "circular":
            at = [a % n for a, n in zip(at, shape, strict=True)]
        elif mode == "reflect":
            at = [n - 1 - abs(n - 1 - abs(a)) for a, n in zip(at, shape, strict=True)]
        inside = all(0 <= a < n for a, n in zip(at, shape, strict=True))
        result.append(np.ravel_multi_index(at, shape) if inside else -1)
    return np.array(result)


def convolution(
    weight: Array,
    bias: Array | None,
    into: tuple[int, ...],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "zeros",
) -> Layer:
    """weight (O, I / groups, *kernel); `into` (I, *grid); `padding` a number or (before, after) per axis."""
    channels, grid = into[0], into[1:]
    axes, kernel = len(grid), weight.shape[2:]
    stride, dilation = each(stride, axes), each(dilation, axes)
    pads = [p if isinstance(p, tuple) else (p, p) for p in each(padding, axes)]
    wide = [n + b + a for n, (b, a) in zip(grid, pads, strict=True)]
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(wide, kernel, stride, dilation, strict=True)]
    weights = np.zeros((len(weight), int(np.prod(out)), channels, int(np.prod(wide))))
    linked = np.zeros(weights.shape, bool)
    outs, ins = len(weight) // groups, channels // groups
    for group in range(groups):
        o, i = slice(group * outs, (group + 1) * outs), slice(group * ins, (group + 1) * ins)
        for row, place in enumerate(places(out)):
            for offset in places(kernel):
                at = [p * s + q * d for p, s, q, d in zip(place, stride, offset, dilation, strict=True)]
                column = np.ravel_multi_index(at, wide)
                weights[o, row, i, column] += weight[(o, slice(None), *offset)]
                linked[o, row, i, column] = True
    one = padded_source(grid, pads, mode)
    size = int(np.prod(grid))
    source = np.concatenate([np.where(one < 0, -1, one + channel * size) for channel in range(channels)])
    return _layer(weights, linked, source, bias, (len(weight), *out), into)


def transposed(
    weight: Array,
    bias: Array | None,
    into: tuple[int, ...],
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Layer:
    """weight (I, O / groups, *kernel): input voxel s writes to s * stride - padding + offset * dilation."""
    channels, grid = into[0], into[1:]
    axes, kernel = len(grid), weight.shape[2:]
    stride, padding, dilation = each(stride, axes), each(padding, axes), each(dilation, axes)
    more = each(output_padding, axes)
    out = [
        (n - 1) * s - 2 * p + d * (k - 1) + m + 1
        for n, s, p, d, k, m in zip(grid, stride, padding, dilation, kernel, more, strict=True)
    ]
    outs, ins = weight.shape[1], channels // groups
    weights = np.zeros((outs * groups, int(np.prod(out)), channels, int(np.prod(grid))))
    linked = np.zeros(weights.shape, bool)
    for group in range(groups):
        o, i = slice(group * outs, (group + 1) * outs), slice(group * ins, (group + 1) * ins)
        for column, place in enumerate(places(grid)):
            for offset in places(kernel):
                at = [s * t - p + q * d for s, t, p, q, d in zip(place, stride, padding, offset, dilation, strict=True)]
                if all(0 <= a < n for a, n in zip(at, out, strict=True)):
                    row = np.ravel_multi_index(at, out)
                    weights[o, row, i, column] += weight[(i, slice(None), *offset)].T
                    linked[o, row, i, column] = True
    source = np.arange(channels * int(np.prod(grid)))
    return _layer(weights, linked, source, bias, (outs * groups, *out), into)


def dense(weight: Array, bias: Array | None, into: tuple[int, ...]) -> Layer:
    """A linear layer on the last axis of `into`."""
    rows = int(np.prod(into[:-1]))
    repeated = None if bias is None else np.tile(bias, rows)
    weights, linked = np.kron(np.eye(rows), weight), np.kron(np.eye(rows), np.ones(weight.shape)) > 0
    source = np.arange(int(np.prod(into)))
    return Layer(
        weights,
        linked,
        source,
        np.zeros(len(weights)) if repeated is None else repeated,
        (*into[:-1], len(weight)),
        into,
    )


def _layer(
    weights: Array, linked: Array, source: Array, bias: Array | None, out: tuple[int, ...], into: tuple[int, ...]
) -> Layer:
    rows = weights.shape[0] * weights.shape[1]
    biases = np.zeros(rows) if bias is None else np.repeat(bias, weights.shape[1])
    read = source >= 0
    return Layer(weights.reshape(rows, -1)[:, read], linked.reshape(rows, -1)[:, read], source[read], biases, out, into)


def windows(
    grid: Sequence[int], kernel: Any, stride: Any, padding: Any = 0, *, ceil_mode: bool = False, dilation: Any = 1
) -> list[list[tuple[list[int], int]]]:
    """Per axis and output: the places inside the grid, and how many places the window has with its padding."""
    axes = len(grid)
    result = []
    for n, k, s, p, d in zip(
        grid, each(kernel, axes), each(stride, axes), each(padding, axes), each(dilation, axes), strict=True
    ):
        room = n + 2 * p - d * (k - 1) - 1
        out = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (out - 1) * s >= n + p:
            out -= 1  # a window may not start in the padding behind the grid
        axis = []
        for o in range(out):
            at = [o * s - p + q * d for q in range(k)]
            axis.append(([a for a in at if 0 <= a < n], len([a for a in at if a < n + p])))
        result.append(axis)
    return result


def average_pool(
    into: tuple[int, ...],
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Layer:
    grid = into[1:]
    axes = windows(grid, kernel, kernel if stride is None else stride, padding, ceil_mode=ceil_mode)
    rows = []
    for window in itertools.product(*axes):
        inside = list(itertools.product(*(at for at, _ in window)))
        count = np.prod([size for _, size in window]) if count_include_pad else len(inside)
        rows.append((inside, divisor or count))
    return _averages(into, rows, tuple(len(axis) for axis in axes))


def adaptive_average_pool(into: tuple[int, ...], out: tuple[int, ...]) -> Layer:
    axes = [
        [list(range(o * n // m, -(-(o + 1) * n // m))) for o in range(m)] for n, m in zip(into[1:], out, strict=True)
    ]
    rows = [list(itertools.product(*window)) for window in itertools.product(*axes)]
    return _averages(into, [(row, len(row)) for row in rows], out)


def _averages(into: tuple[int, ...], rows: list[tuple[list[Any], int]], out: tuple[int, ...]) -> Layer:
    one = np.zeros((len(rows), int(np.prod(into[1:]))))
    for k, (inside, divisor) in enumerate(rows):
        for place in inside:
            one[k, np.ravel_multi_index(place, into[1:])] = 1 / divisor
    return _per_channel(one, into, out)


def reduction(into: tuple[int, ...], axes: tuple[int, ...], *, keepdim: bool = False, mean: bool = True) -> Layer:
    """The mean or the sum over some axes of one sample."""
    kept = [a for a in range(len(into)) if a not in axes]
    weights = np.zeros((int(np.prod([into[a] for a in kept])), int(np.prod(into))))
    for place in places(into):
        row = np.ravel_multi_index([place[a] for a in kept], [into[a] for a in kept]) if kept else 0
        weights[row, np.ravel_multi_index(place, into)] = 1
    if mean:
        weights /= np.prod([into[a] for a in axes])
    out = tuple(1 if a in axes else n for a, n in enumerate(into) if keepdim or a not in axes)
    return Layer(weights, weights > 0, np.arange(weights.shape[1]), np.zeros(len(weights)), out, into)


def interpolation(
    into: tuple[int, ...], out: tuple[int, ...], kind: str = "nearest", *, corners: bool = False, factor: Any = None
) -> Layer:
    """Nearest or linear along every axis; `factor` where the grid was asked for by a factor, not by its size."""
    one = np.ones((1, 1))
    factors = each(factor, len(out))
    for n, m, by in zip(into[1:], out, factors, strict=True):
        scale = 1 / by if by else n / m
        axis = np.zeros((m, n))
        for o in range(m):
            if kind == "nearest":
                axis[o, min(int(np.floor(o * scale)), n - 1)] = 1
                continue
            at = o * (n - 1) / max(m - 1, 1) if corners else max((o + 0.5) * scale - 0.5, 0.0)
            low = min(int(np.floor(at)), n - 1)
            axis[o, low] += 1 - (at - low)
            axis[o, min(low + 1, n - 1)] += at - low
        one = np.kron(one, axis)
    return _per_channel(one, into, out)


def _per_channel(one: Array, into: tuple[int, ...], out: tuple[int, ...]) -> Layer:
    weights = np.kron(np.eye(into[0]), one)
    return Layer(weights, weights != 0, np.arange(weights.shape[1]), np.zeros(len(weights)), (into[0], *out), into)


# ------------------------------------------------------------------------------------------------- rules
@dataclass
class Account:
    """Relevance of a layer's input, and what the layer kept."""

    relevance: Array
    bias: float = 0.0
    stabiliser: float = 0.0
    dead: float = 0.0
    clamped: float = 0.0


@dataclass
class Fraction:
    """coefficient[k] * R[k] goes to inputs as parts[k, j] / (sum_j parts[k, j] + bias[k] + unsigned)."""

    parts: Array
    bias: Array
    coefficient: Array
    unsigned: float = 0.0


def up(values: Array) -> Array:
    return np.maximum(values, 0)


def down(values: Array) -> Array:
    return np.minimum(values, 0)


def fractions(layer: Layer, x: Array, rule: str, mask: Array | None = None, **parameters: Any) -> list[Fraction]:
    """What each rule shares out. `mask`: inputs outside have no part."""
    seen = np.ones(len(layer.source)) if mask is None else mask.ravel().astype(float)[layer.source]
    weights, linked, b = layer.weights * seen, layer.linked * seen, layer.bias
    column = x.ravel()[layer.source]
    z = weights * column
    one, none = np.ones(len(b)), np.zeros(len(b))
    if rule == "epsilon":
        return [Fraction(z, b, one, 0.0 if parameters.get("signed", True) else parameters["epsilon"])]
    if rule == "z_plus":
        return [Fraction(up(z), up(b), one)]
    if rule == "alpha_beta":
        alpha, beta = parameters["alpha"], parameters["beta"]
        return [Fraction(up(z), up(b), alpha * one), Fraction(down(z), down(b), -beta * one)]
    if rule == "gamma":
        g, d = parameters["gamma"], parameters.get("output", z.sum(1) + b)
        positive = (d >= 0)[:, None]
        parts = z + g * np.where(positive, up(z), down(z))
        return [Fraction(parts, b + g * np.where(d >= 0, up(b), down(b)), (d != 0) * one)]
    if rule == "box":
        low, high = (np.broadcast_to(parameters[k], x.shape).ravel()[layer.source] for k in ("low", "high"))
        return [Fraction(z - low * up(weights) - high * down(weights), none, one)]
    if rule == "w_square":
        return [Fraction(weights**2, b**2, one)]
    if rule == "flat":
        return [Fraction(linked * 1.0, none, one)]
    if rule == "share":  # z+ of an average: in equal parts where nothing is positive
        positive = up(z)
        return [Fraction(np.where(positive.sum(1, keepdims=True) > 0, positive, weights), none, one)]
    raise ValueError(rule)


def stabilised(total: Array, stabiliser: float, relative: bool = False) -> Array:
    """total + stabiliser * sgn(total) with sgn(0) = 1; relative to the mean |total| of the layer."""
    size = stabiliser * np.abs(total).mean() if relative else stabiliser
    return total + size * np.where(total >= 0, 1.0, -1.0)


def explain_layer(
    layer: Layer,
    x: Array,
    relevance: Array,
    rule: str,
    *,
    bias: str = "keep",
    stabiliser: float | None = None,
    relative: bool = False,
    at_zero: float = 0.0,
    mask: Array | None = None,
    **parameters: Any,
) -> Account:
    """R_i = sum_k coefficient_k parts_ki / st(sum_i parts_ki + bias_k) R_k, and the account of what is missing.

    `bias="both"`: with its own sign in every denominator (iNNvestigate); `at_zero` stands for a denominator of 0.
    """
    if rule == "zero":
        rule, parameters = "epsilon", {"epsilon": 0.0}
    if rule == "epsilon":
        parameters = {"epsilon": EPSILON} | parameters
        if parameters.get("signed", True):
            stabiliser = parameters["epsilon"]
    stabiliser = EPSILON if stabiliser is None else stabiliser
    r = relevance.ravel()
    account = Account(np.zeros(len(layer.source)), dead=float(r.sum()))
    for fraction in fractions(layer, x, rule, mask, **parameters):
        b = {"drop": 0 * fraction.bias, "both": layer.bias}.get(bias, fraction.bias)
        total = fraction.parts.sum(1) + b
        denominator = stabilised(total + fraction.unsigned, stabiliser, relative)
        denominator = np.where(denominator == 0, at_zero, denominator)
        alive = denominator != 0
        q = np.where(alive, fraction.coefficient * r / np.where(alive, denominator, 1), 0)
        account.relevance += fraction.parts.T @ q
        kept = b * q
        if bias == "distribute":
            many = layer.linked if mask is None else layer.linked * mask.ravel()[layer.source]
            count = many.sum(1)
            account.relevance += (many / np.where(count, count, 1)[:, None]).T @ np.where(count, kept, 0)
            kept = np.where(count, 0, kept)
        account.bias += kept.sum()
        account.stabiliser += ((denominator - total) * q).sum()
        account.dead -= (fraction.coefficient * r)[alive].sum()
    account.relevance = layer.back(account.relevance)
    return account


def folded(layer: Layer, shift: Array) -> Layer:
    """The layer as it reads x - shift instead of x, with the same output: its bias takes W shift, place by place."""
    return replace(layer, bias=layer.bias + layer.weights @ shift.ravel()[layer.source])


def max_pool(
    x: Array, kernel: Any, stride: Any = None, padding: Any = 0, *, ceil_mode: bool = False, dilation: Any = 1
) -> tuple[Array, list[Array]]:
    """Output, and per output the flat inputs of its window in order."""
    axes = windows(
        x.shape[1:], kernel, kernel if stride is None else stride, padding, ceil_mode=ceil_mode, dilation=dilation
    )
    inside = []
    for channel in range(len(x)):
        for window in itertools.product(*axes):
            at = itertools.product([channel], *(places_ for places_, _ in window))
            inside.append(np.array([np.ravel_multi_index(p, x.shape) for p in at]))
    out = np.array([x.ravel()[w].max() for w in inside])
    return out.reshape(len(x), *(len(axis) for axis in axes)), inside


def explain_max_pool(x: Array, inside: list[Array], relevance: Array, rule: str) -> Array:
    """To the first of the largest, or in proportion to the positive parts, evenly where there are none."""
    result, flat = np.zeros(x.size), x.ravel()
    for window, r in zip(inside, relevance.ravel(), strict=True):
        values = flat[window]
        if rule == "winner":
            share = (np.arange(len(window)) == values.argmax()) * 1.0
        else:
            share = up(values) if (values > 0).any() else np.ones(len(window))
            share = share / share.sum()
        result[window] += share * r
    return result.reshape(x.shape)


def explain_sum(
    terms: list[Array],
    constant: Array | float,
    relevance: Array,
    *,
    stabiliser: float = EPSILON,
    bias: str = "keep",
    rule: str = "epsilon",
) -> tuple[list[Array], Account]:
    """The epsilon rule on the terms of a sum, elementwise; the constant is its bias.

    `z_plus`: in proportion to positive terms, evenly where no term is positive.
    """
    constant = np.broadcast_to(0.0 if bias == "drop" else constant, relevance.shape)
    if rule == "z_plus":
        stabiliser, constant = 0.0, up(constant)
        none = sum(up(term) for term in terms) + constant == 0
        terms = [np.where(none, 1.0, up(term)) for term in terms]
    total = sum(terms) + constant
    denominator = stabilised(total, stabiliser)
    alive = denominator != 0
    q = np.where(alive, relevance / np.where(alive, denominator, 1), 0)
    shares = [term * q for term in terms]
    account = Account(
        sum(shares),
        bias=float((constant * q).sum()),
        stabiliser=float(((denominator - total) * q).sum()),
        dead=float(relevance[~alive].sum()),
    )
    return shares, account


def explain_product(
    signal: Array, gate: Array, relevance: Array, rule: str, before: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Lu et al. 2023, equations 6 and 7, and what else is done with a gated product."""
    if rule == "all":
        return relevance, np.zeros_like(relevance)
    if rule == "half":
        return relevance / 2, relevance / 2
    s, g = (np.abs(v) for v in ((signal, gate) if rule == "proposed" or before is None else before))
    share = np.where(s + g == 0, 0.5, s / np.where(s + g == 0, 1, s + g))
    return share * relevance, (1 - share) * relevance


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def explain_softmax(x: Array, relevance: Array, rule: str) -> Array:
    """`gradient`: x_i sum_j dy_j/dx_i R_j / y_j = x_i (R_i - y_i sum_j R_j), by the explicit Jacobian."""
    if rule == "pass":
        return relevance
    result = np.zeros(x.shape)
    for row in places(x.shape[:-1]):
        y = softmax(x[row])
        jacobian = np.diag(y) - np.outer(y, y)
        result[row] = x[row] * (jacobian.T @ (relevance[row] / y))
    return result


def explain_matmul(
    a: Array, b: Array, relevance: Array, *, stabiliser: float = EPSILON
) -> tuple[Array, Array, Account]:
    """Half of the epsilon rule on z[n, m, p] = a[n, m] b[m, p] to each operand (Achtibat et al. 2024, AttnLRP)."""
    z = np.einsum("...nm,...mp->...nmp", a, b)
    total = z.sum(axis=-2)
    denominator = stabilised(total, stabiliser)
    alive = denominator != 0
    q = np.where(alive, relevance / np.where(alive, denominator, 1), 0)
    shares = z * q[..., None, :]
    account = Account(relevance, 0.0, float(((denominator - total) * q).sum()), float(relevance[~alive].sum()))
    return shares.sum(axis=-1) / 2, shares.sum(axis=-3) / 2, account


# -------------------------------------------------------------------------------------------------- tape
@dataclass
class Node:
    value: Array
    parents: tuple[Node, ...] = ()
    pull: Callable[[Array], tuple[Array, ...]] | None = None
    relevance: Array = field(init=False)

    def __post_init__(self) -> None:
        self.value = np.asarray(self.value, float)
        self.relevance = np.zeros(self.value.shape)


class Tape:
    """What one sample goes through, in order, and back."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.accounts: dict[str, Account] = {}

    def node(self, value: Array, *parents: Node, pull: Callable[[Array], tuple[Array, ...]] | None = None) -> Node:
        self.nodes.append(Node(value, parents, pull))
        return self.nodes[-1]

    def back(self, *starts: tuple[Node, Array]) -> None:
        for node, relevance in starts:
            node.relevance = node.relevance + relevance
        for node in reversed(self.nodes):
            if node.pull is not None:
                for parent, relevance in zip(node.parents, node.pull(node.relevance), strict=True):
                    parent.relevance = parent.relevance + np.asarray(relevance).reshape(parent.value.shape)

    def kept(self) -> Account:
        """Everything that the layers kept."""
        total = Account(np.zeros(0))
        for account in self.accounts.values():
            total.bias += account.bias
            total.stabiliser += account.stabiliser
            total.dead += account.dead
            total.clamped += account.clamped
        return total

    def weighted(
        self, name: str, layer: Layer, x: Node, shift: Array | None = None, *, carry: bool = False, **rule: Any
    ) -> Node:
        """A layer; with `shift` its rules see x - shift, as behind a batch norm folded to the right.

        The shift goes into the bias, or is carried on to what comes next (an average on the way to a linear layer).
        """
        value = layer(x.value)
        seen, rules_layer = x.value, layer
        if shift is not None:
            seen = x.value - shift
            rules_layer = layer if carry else folded(layer, np.broadcast_to(shift, x.value.shape))
        if rule["rule"] == "gamma" and "mask" not in rule:
            rule = rule | {"output": value.ravel()}

        def pull(relevance: Array) -> tuple[Array, ...]:
            self.accounts[name] = explain_layer(rules_layer, seen, relevance, **rule)
            return (self.accounts[name].relevance,)

        return self.node(value, x, pull=pull)

    def passed(self, value: Array, x: Node) -> Node:
        """An elementwise function, or another view of the same numbers."""
        return self.node(value, x, pull=lambda r: (r,))

    def relu(self, x: Node) -> Node:
        return self.passed(up(x.value), x)

    def blocked(self, name: str, value: Array, x: Node) -> Node:
        """A ReLU that relevance does not pass where it is off."""

        def pull(relevance: Array) -> tuple[Array, ...]:
            on = relevance * (value > 0)
            self.accounts[name] = Account(on, clamped=float((relevance - on).sum()))
            return (on,)

        return self.node(value, x, pull=pull)

    def cat(self, *parts: Node) -> Node:
        ends = np.cumsum([len(p.value) for p in parts])[:-1]
        return self.node(np.concatenate([p.value for p in parts]), *parts, pull=lambda r: tuple(np.split(r, ends)))

    def add(self, name: str, *terms: Node, **rule: Any) -> Node:
        def pull(relevance: Array) -> tuple[Array, ...]:
            shares, self.accounts[name] = explain_sum([t.value for t in terms], 0.0, relevance, **rule)
            return tuple(shares)

        return self.node(sum(t.value for t in terms), *terms, pull=pull)

    def product(self, signal: Node, gate: Node, rule: str, before: tuple[Node, Node] | None = None) -> Node:
        values = None if before is None else (before[0].value, before[1].value)
        return self.node(
            signal.value * gate.value,
            signal,
            gate,
            pull=lambda r: explain_product(signal.value, gate.value, r, rule, values),
        )

    def softmax(self, name: str, x: Node, rule: str = "pass") -> Node:
        """Over the last axis. What the gradient form does not hand on is the bias of the tangent plane at x."""

        def pull(relevance: Array) -> tuple[Array, ...]:
            result = explain_softmax(x.value, relevance, rule)
            self.accounts[name] = Account(result, bias=float(relevance.sum() - result.sum()))
            return (result,)

        return self.node(softmax(x.value), x, pull=pull)

    def matmul(self, name: str, a: Node, b: Node, **rule: Any) -> Node:
        def pull(relevance: Array) -> tuple[Array, ...]:
            to_a, to_b, self.accounts[name] = explain_matmul(a.value, b.value, relevance, **rule)
            return to_a, to_b

        return self.node(a.value @ b.value, a, b, pull=pull)

    def max_pool(self, x: Node, kernel: int, rule: str = "winner", **geometry: Any) -> Node:
        value, inside = max_pool(x.value, kernel, **geometry)
        return self.node(value, x, pull=lambda r: (explain_max_pool(x.value, inside, r, rule),))
