"""Relevance rules: how the relevance of one operation's output goes to its inputs, and what is lost on the way.

Belongs here: formulas. Does not belong here: which operation has which rule (`composites.py`), the order of the
backward pass (`engine.py`).

z_ki = w_ki x_i is what input i contributes to output k, b_k the bias; (.)+ and (.)- are max and min with 0. A rule for
weighted operations is a list of `Share`s: each hands coefficient * R_k to the inputs in proportion to its own
contributions, whose sum, with the bias where it is kept, is `total`. A stabiliser s enlarges the denominator:
total + s sgn(total), sgn(0) = 1; where the denominator is exactly 0, relevance has nowhere to go and is `dead`.

Sources: epsilon, alpha-beta: Bach et al. 2015; z+, zB, w^2, flat: Montavon et al. 2017, 2019; gamma: Montavon et al.
2019, for both signs as in zennit; products: Lu et al. 2023 (equations 6-7), Arras et al. 2017; softmax and matrix
products: Achtibat et al. 2024 (AttnLRP).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

__all__ = [
    "AlphaBeta",
    "Box",
    "Epsilon",
    "Flat",
    "Gamma",
    "Losses",
    "Part",
    "Rule",
    "Share",
    "WSquare",
    "WeightedRule",
    "ZPlus",
    "Zero",
    "per_sample",
    "weighted",
]

Bias = Literal["keep", "drop", "distribute", "both"]
Key = Any  # names prepared weights; see `prepare`


@dataclass(frozen=True)
class Rule:
    """A rule with its parameters; `name` is what composites call it."""

    name: ClassVar[str]

    def __str__(self) -> str:
        changed = [f"{f.name}={v:g}" if isinstance(v := getattr(self, f.name), float) else f"{f.name}={v}"
                   for f in fields(self) if not isinstance(getattr(self, f.name), Tensor)
                   and getattr(self, f.name) != f.default]  # fmt: skip
        return f"{self.name}({', '.join(changed)})" if changed else self.name


@dataclass(frozen=True)
class Part:
    """Contributions x_i * v_ki with prepared weights v; x None stands for ones (or the mask)."""

    x: Tensor | None
    weight: Key


@dataclass
class Share:
    """coefficient * R_k, shared in proportion to `parts`.

    Attributes
    ----------
    total : (B, *output)
        Sum of the contributions, with `bias` where that is not None.
    bias : broadcastable to (B, *output), or (O,)
        What the bias holds of `total`.
    where : (B, *output) bool
        Outputs that this share is for; None for all.
    owned
        Whether `total` may be written to.
    reference : (B, *output)
        Denominators whose mean size a relative stabiliser is measured in; None: `total`.
    """

    coefficient: float
    parts: list[Part]
    total: Tensor
    bias: Tensor | None = None
    where: Tensor | None = None
    owned: bool = False
    reference: Tensor | None = None


class Layer(Protocol):
    """What a rule needs to know of a weighted operation and one batch."""

    @property
    def x(self) -> Tensor:
        """Its input, less what was moved into its bias, 0 outside a mask."""

    nonnegative: bool
    """Whether `x` is known to be >= 0."""

    vanishing: bool
    """Whether relevance is known to be 0 wherever the ReLU behind the operation is off."""

    def apply(self, x: Tensor | None, weight: Key, bias: Tensor | None = None) -> Tensor:
        """The operation with prepared weights, and with a bias of its own layout if one is given."""

    def adjoint(self, s: Tensor, weight: Key) -> Tensor:
        """Its transposed."""

    def total(self, relevance: Tensor) -> Tensor:
        """sum_i z_ki + b_k; right wherever relevance is not 0."""

    def contributions(self) -> Tensor:
        """sum_i z_ki, in a tensor that may be written to; to be asked for once."""

    def bias(self, sign: int = 0) -> Tensor | None:
        """b_k, b_k+ (sign 1) or b_k- (sign -1)."""

    def constant(self, weight: Key, x: Tensor | None = None, name: Any = None) -> Tensor:
        """`apply` of ones, or of something else with a name, that does not depend on the scan; computed once."""

    def add_bias(self, contributions: Tensor, bias: Tensor | None) -> Tensor:
        """contributions + bias."""

    def bounds(self, low: Any, high: Any) -> tuple[Tensor, Tensor]:
        """The box's bounds at the operation's input, 0 outside a mask."""

    def inside(self) -> Tensor | None:
        """1 inside the mask, 0 outside; None without a mask."""

    def absorbed(self, s: Tensor, bias: Tensor) -> Tensor:
        """(starts, B): sum_k s_k b_k."""

    name: str
    samples: int


@dataclass
class Losses:
    """Relevance that did not reach an input, (starts, B) each."""

    bias: Tensor | float = 0.0
    stabiliser: Tensor | float = 0.0
    dead: Tensor | float = 0.0
    clamped: Tensor | float = 0.0


def per_sample(values: Tensor, samples: int) -> Tensor:
    """(starts, *anything) to (starts, B): the sum over all but starts and samples."""
    return values.reshape(values.shape[0], samples, -1).sum(-1)


def mean_size(total: Tensor, samples: int) -> Tensor:
    """Mean absolute value per sample, laid out to broadcast to `total`, whose rows go by sample."""
    mean = total.reshape(samples, -1).abs().mean(1)
    if total.shape[0] % samples:  # samples beside channels, as instance norms have them
        return mean.repeat_interleave(total.numel() // samples).view(total.shape)
    return mean.repeat_interleave(total.shape[0] // samples).view(-1, *(1,) * (total.ndim - 1))


def dot(s: Tensor, other: Tensor, samples: int) -> Tensor:
    """(starts, B): sum of s * other, without a copy of their product."""
    rows = s.reshape(s.shape[0], samples, -1)
    columns = (
        other.reshape(samples, -1) if other.shape == s.shape[1:] else other.expand(s.shape[1:]).reshape(samples, -1)
    )
    if s.shape[0] == samples == 1:
        return torch.dot(rows[0, 0], columns[0]).view(1, 1)
    return torch.einsum("sbn,bn->sb", rows, columns)


@dataclass(frozen=True)
class WeightedRule(Rule, ABC):
    """A rule for convolutions and dense operations.

    Attributes
    ----------
    bias
        `keep`: in the denominator, where it takes its share. `drop`: not in the denominator. `distribute`: its share
        is spread evenly over the inputs. `both` (z+ and alpha-beta): kept with both signs in each denominator, as
        iNNvestigate does.
    stabiliser
        Added to the denominator with its sign.
    relative
        Whether the stabiliser is in units of the mean absolute denominator of the operation, per sample.
    at_zero
        What stands for a denominator that is exactly 0; 0 drops the relevance.
    """

    bias: Bias = "keep"
    stabiliser: float = 1e-6
    relative: bool = False
    at_zero: float = 0.0

    splits: ClassVar[bool] = False  # whether it needs sum_i z_ki exactly, apart from the bias
    first_only: ClassVar[bool] = False  # whether relevance reaches inputs of 0

    @abstractmethod
    def shares(self, layer: Layer, relevance: Tensor) -> Iterator[Share]:
        """How R_k is shared; see `Share`."""

    @property
    def never_empty(self) -> bool:
        """Whether no denominator can be 0."""
        return self.stabiliser > 0 and not self.relative

    def extra(self, total: Tensor, size: Any) -> Tensor | None:
        """What is added to the denominators, where stabilisers are in units of `size`."""
        return self._signed(total, self.stabiliser * size)

    def denominator(self, total: Tensor, extra: Tensor | None, size: Any, *, owned: bool) -> Tensor:
        """total + extra, in the place of `total` where that is `owned`."""
        return total if extra is None else total.add_(extra) if owned else total + extra

    def _signed(self, total: Tensor, size: Any) -> Tensor | None:
        if not isinstance(size, Tensor) and size == 0 and self.at_zero == 0:
            return None
        amount = torch.as_tensor(size, dtype=total.dtype, device=total.device)
        extra = torch.copysign(amount, total)
        if self.at_zero:
            extra = torch.where(total + extra == 0, self.at_zero, extra)
        return extra

    def kept(self, layer: Layer, sign: int = 0) -> Tensor | None:
        """The bias that takes part in the denominator."""
        if self.bias == "drop":
            return None
        return layer.bias(0 if self.bias == "both" else sign)


def weighted(rule: WeightedRule, layer: Layer, relevance: Tensor) -> tuple[Tensor, Losses]:
    """Relevance of a weighted operation's input.

    Parameters
    ----------
    relevance : (starts, B, *output)

    Returns
    -------
    (starts, B, *input), and what was lost.
    """
    losses, result = Losses(), None
    for share in rule.shares(layer, relevance):
        given = relevance if share.where is None else relevance * share.where
        if not share.parts and share.bias is None:
            losses.dead += share.coefficient * per_sample(given, layer.samples)
            continue
        s, extra, dead = _quotient(rule, given, share, layer.samples)
        del given
        losses.dead += dead
        if extra is not None:
            losses.stabiliser += dot(s, extra, layer.samples)
        del extra
        if share.bias is not None and rule.bias != "distribute":
            losses.bias += layer.absorbed(s, share.bias)
        for part in share.parts:
            back = layer.adjoint(s, part.weight)
            factor = layer.inside() if part.x is None else part.x
            if factor is not None:
                back = back.mul_(factor)
            result = back if result is None else result.add_(back)
        if share.bias is not None and rule.bias == "distribute":
            spread, alone = _spread(layer, s, share.bias)
            losses.bias += alone
            result = spread if result is None else result.add_(spread)
    if result is None:  # no contributions of the sign in question
        result = torch.zeros(relevance.shape[:1] + layer.x.shape, dtype=relevance.dtype, device=relevance.device)
    return result, losses


def _quotient(rule: WeightedRule, given: Tensor, share: Share, samples: int) -> tuple[Tensor, Tensor | None, Any]:
    """coefficient * given / denominator; what was added to the denominator; what is dead.

    Written to touch each number as seldom as possible: at full resolution this costs as much as the convolution.
    """
    reference = share.total if share.reference is None else share.reference
    size = mean_size(reference, samples) if rule.relative else 1.0
    extra, total = rule.extra(share.total, size), share.total
    denominator = rule.denominator(total, extra, size, owned=share.owned)
    dead: Any = 0.0
    if not rule.never_empty:
        empty = denominator == 0
        if bool(empty.any()):
            dead = share.coefficient * per_sample(given * empty, samples)
            given = given.masked_fill(empty, 0)
            denominator = denominator.masked_fill(empty, 1)
    if given.shape[0] == 1 and (share.owned or denominator is not share.total):
        s = torch.div(given[0], denominator, out=denominator).unsqueeze(0)
    else:
        s = given / denominator
    if share.coefficient != 1:
        s = s.mul_(share.coefficient)
    return s, extra, dead


def _spread(layer: Layer, s: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The bias's share in equal parts to the inputs that an output reads, and that of outputs which read none."""
    amount = layer.add_bias(torch.zeros_like(s[0]), bias) * s
    count = layer.constant("ones")
    alone = per_sample(amount * (count == 0), layer.samples)
    back = layer.adjoint(torch.where(count == 0, 0.0, amount / count.clamp(min=1)), "ones")
    inside = layer.inside()
    return (back if inside is None else back.mul_(inside)), alone


def doubtful(ratio: Tensor, relevance: Tensor) -> bool:
    """Whether rounding of a difference shows in what it decides about.

    Parameters
    ----------
    ratio : (B, *output)
        Size of what was subtracted, relative to the difference; overwritten.
    """
    size = relevance.abs().amax(0)
    bound = 1e-5 if ratio.dtype == torch.float32 else 1e-12
    error = ratio.mul_(torch.finfo(ratio.dtype).eps).mul_(size).masked_fill_(size == 0, 0)
    return not bool(error.sum() <= bound * size.sum())


def _parts(layer: Layer, positive: Key, negative: Key) -> list[Part]:
    """x+ with one set of weights and x- with the other; what is 0 everywhere is left out."""
    x = layer.x
    if layer.nonnegative:
        return [Part(x, positive)]
    lowest, highest = (float(v) for v in torch.aminmax(x))
    parts = []
    if highest > 0:
        parts.append(Part(x if lowest >= 0 else x.clamp(min=0), positive))
    if lowest < 0:
        parts.append(Part(x if highest <= 0 else x.clamp(max=0), negative))
    return parts


def _sum(layer: Layer, parts: list[Part], relevance: Tensor, bias: Tensor | None = None) -> Tensor:
    """Sum of the contributions, and of the bias."""
    if not parts:
        return layer.add_bias(torch.zeros_like(relevance[0]), bias)
    total = layer.apply(parts[0].x, parts[0].weight, bias)
    for part in parts[1:]:
        total.add_(layer.apply(part.x, part.weight))
    return total


@dataclass(frozen=True)
class Epsilon(WeightedRule):
    """R_i = sum_k z_ki / (z_k + epsilon sgn(z_k)) R_k, z_k with the bias where that is kept (Bach et al. 2015, eq. 58).

    `signed=False` adds +epsilon to every z_k, which is then stabilised by `stabiliser`.
    """

    name: ClassVar[str] = "epsilon"
    epsilon: float = 1e-6
    signed: bool = True

    def __post_init__(self) -> None:
        if self.signed and self.epsilon < 0:
            raise ValueError(f"composite: epsilon must not be negative, given {self.epsilon!r}; or set signed to false")

    @property
    def never_empty(self) -> bool:
        return self.signed and self.epsilon > 0 and not self.relative

    def extra(self, total: Tensor, size: Any) -> Tensor | None:
        if self.signed:
            return self._signed(total, self.epsilon * size)
        shifted = total + self.epsilon * size
        more = self._signed(shifted, self.stabiliser * size)
        return shifted - total if more is None else shifted - total + more

    def denominator(self, total: Tensor, extra: Tensor | None, size: Any, *, owned: bool) -> Tensor:
        if self.signed:
            return super().denominator(total, extra, size, owned=owned)
        # not by way of `extra`, whose rounding is larger than a stabiliser where epsilon is near -total
        shifted = total + self.epsilon * size
        more = self._signed(shifted, self.stabiliser * size)
        return shifted if more is None else shifted + more

    def shares(self, layer: Layer, relevance: Tensor) -> Iterator[Share]:
        kept = self.bias != "drop"
        total = layer.total(relevance) if kept else layer.contributions()
        yield Share(1.0, [Part(layer.x, "plain")], total, layer.bias() if kept else None)


@dataclass(frozen=True)
class Zero(Epsilon):
    """LRP-0: epsilon with epsilon = 0."""

    name: ClassVar[str] = "zero"
    epsilon: float = 0.0


@dataclass(frozen=True)
class AlphaBeta(WeightedRule):
    """R_i = sum_k (alpha z_ki+ / sum z+ - beta z_ki- / sum z-) R_k; z+ holds x < 0, w < 0 too (Bach et al., eq. 60).

    The kept bias is b+ in the first denominator and b- in the second.
    """

    name: ClassVar[str] = "alpha_beta"
    alpha: float = 2.0
    beta: float = 1.0
    splits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta) < 0 or abs(self.alpha - self.beta - 1) > 1e-12:
            raise ValueError(f"alpha_beta needs alpha - beta = 1 and beta >= 0, not {self.alpha:g}, {self.beta:g}")

    def shares(self, layer: Layer, relevance: Tensor) -> Iterator[Share]:
        positive = _sum(layer, parts := _parts(layer, "positive", "negative"), relevance)
        bias = self.kept(layer, 1)
        rest = self._rest(layer, positive, relevance) if self.beta else None
        total = layer.add_bias(positive, bias)
        del positive
        yield Share(self.alpha, parts, total, bias, owned=True)
        del total
        if rest is not None:
            bias = self.kept(layer, -1)
            total = layer.add_bias(rest, bias)
            del rest
            yield Share(-self.beta, _parts(layer, "negative", "positive"), total, bias, owned=True)

    def _rest(self, layer: Layer, positive: Tensor, relevance: Tensor) -> Tensor:
        """sum z-: as sum z - sum z+, which spares a convolution, unless its rounding would move relevance.

        A rest below the rounding of sum z+ counts as none; the account has its relevance under `dead`.
        """
        rest = layer.contributions().sub_(positive).clamp_(max=0)
        if doubtful(torch.div(positive, rest).abs_().masked_fill_(rest == 0, 0), relevance):
            return _sum(layer, _parts(layer, "negative", "positive"), relevance)
        return rest


@dataclass(frozen=True)
class ZPlus(WeightedRule):
    """R_i = sum_k z_ki+ / sum z+ R_k: alpha-beta with alpha = 1, beta = 0."""

    name: ClassVar[str] = "z_plus"

    def shares(self, layer: Layer, relevance: Tensor) -> Iterator[Share]:
        bias = self.kept(layer, 1)
        parts = _parts(layer, "positive", "negative")
        yield Share(1.0, parts, _sum(layer, parts, relevance, bias), bias, owned=True)


@dataclass(frozen=True)
class Gamma(WeightedRule):
    """Contributions z + gamma z+ where z_k > 0, z + gamma z- where z_k < 0, the bias alike; any gamma.

    For non-negative inputs and z_k > 0 this is w + gamma w+ (Montavon et al. 2019). Relevance at z_k = 0 is dead.
    """

    name: ClassVar[str] = "gamma"
    gamma: float = 0.25

    def shares(self, layer: Layer, relevance: Tensor) -> Iterator[Share]:
        above, below = ("gamma", self.gamma, 1), ("gamma", self.gamma, -1)
        if layer.vanishing and not self.relative:
            yield self._share(layer, relevance, 1, (above, below), None)
            return
        total = layer.total(relevance)
        up = total > 0
        if not self.relative and not bool(relevance.masked_fill(up, 0).any()):  # as after every ReLU
            yield self._share(layer, relevance, 1, (above, below), None)
            return
        shares = [
            self._share(layer, relevance, 1, (above, below), up),
            self._share(layer, relevance, -1, (below, above), total < 0),
        ]
        if self.relative:
            reference = torch.where(up, shares[0].total, shares[1].total)
            shares = [replace(share, reference=reference) for share in shares]
        yield from shares
        yield Share(1.0, [], total, None, total == 0)

    def _share(self, layer: Layer, relevance: Tensor, sign: int, keys: tuple[Key, Key], where: Tensor | None) -> Share:
        parts = _parts(layer, *keys)
        bias = None if self.bias == "drop" else layer.bias()
        if bias is not None:
            bias = bias + self.gamma * (bias.clamp(min=0) if sign > 0 else bias.clamp(max=0))
        return Share(1.0, parts, _sum(layer, parts, relevance, bias), bias, where, owned=True)


@dataclass(frozen=True)
class Box(WeightedRule):
    """zB for inputs in [low, high]: contributions (x - low) w+ + (x - high) w- >= 0 (Montavon et al. 2017).

    Inputs of 0 receive relevance too. `low`, `high`: numbers, or tensors that broadcast to the input (per channel:
    (C, 1, 1, 1)). With a mask both are 0 outside it. The bias has no part.
    """

    name: ClassVar[str] = "box"
    low: Any = 0.0
    high: Any = 1.0
    bias: Bias = "drop"
    splits: ClassVar[bool] = True
    first_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
            raise ValueError(f"composite: box needs low <= high, not {self.low!r}, {self.high!r}")

    def shares(self, layer: Layer, relevance: Tensor) -> Iterator[Share]:
        low, high = layer.bounds(self.low, self.high)
        slack = 1e-6 * (high - low).abs().max()  # as of a bound in another precision
        if bool(((layer.x < low - slack) | (layer.x > high + slack)).any()):
            raise ValueError(
                f"{layer.name}: the box rule needs inputs in [{float(low.min()):g}, {float(high.max()):g}], given "
                f"[{float(layer.x.min()):g}, {float(layer.x.max()):g}]; scale them, or give the rule other bounds"
            )
        parts = [Part(layer.x - low, "positive"), Part(layer.x - high, "negative")]
        yield Share(1.0, parts, self._total(layer, parts, low, high, relevance), owned=True)

    def _total(self, layer: Layer, parts: list[Part], low: Tensor, high: Tensor, relevance: Tensor) -> Tensor:
        """sum z - low sum w+ - high sum w-, which no image changes, unless its rounding would move relevance.

        Where inputs stand at their bounds the sum is 0, and its rounding must not be.
        """
        if layer.inside() is None:
            total = layer.contributions()
            size = total.abs()
            for bound, weight in ((low, "positive"), (high, "negative")):
                if bool(bound.any()):
                    # the rule lives as long as what is kept under its own bound's identity
                    constant = layer.constant(weight, bound, id(self.low if bound is low else self.high))
                    total -= constant
                    size += constant.abs()
            if not doubtful(size.div_(total).abs_(), relevance):
                return total
        return _sum(layer, parts, relevance)


@dataclass(frozen=True)
class WSquare(WeightedRule):
    """R_i = sum_k w_ki^2 / (sum w^2 + b^2) R_k, whatever the input is (Montavon et al. 2017)."""

    name: ClassVar[str] = "w_square"
    first_only: ClassVar[bool] = True

    def shares(self, layer: Layer, relevance: Tensor) -> Iterator[Share]:
        bias = None if self.bias == "drop" else layer.bias()
        bias = None if bias is None else bias.square()
        total = layer.add_bias(layer.constant("square").expand_as(relevance[0]), bias)
        yield Share(1.0, [Part(None, "square")], total, bias)


@dataclass(frozen=True)
class Flat(WeightedRule):
    """Equal shares to all inputs that an output reads; padding is no input. The bias has no part."""

    name: ClassVar[str] = "flat"
    bias: Bias = "drop"
    first_only: ClassVar[bool] = True

    def shares(self, layer: Layer, relevance: Tensor) -> Iterator[Share]:
        yield Share(1.0, [Part(None, "ones")], layer.constant("ones").expand_as(relevance[0]))


def prepare(weight: Tensor, key: Key) -> Tensor:
    """Weights as a rule wants them: `plain`, `positive`, `negative`, `square`, `ones`, ("gamma", gamma, sign)."""
    if key == "plain":
        return weight
    if key == "positive":
        return weight.clamp(min=0)
    if key == "negative":
        return weight.clamp(max=0)
    if key == "square":
        return weight.square()
    if key == "ones":
        return torch.ones_like(weight)
    _, gamma, sign = key
    return weight + gamma * (weight.clamp(min=0) if sign > 0 else weight.clamp(max=0))
