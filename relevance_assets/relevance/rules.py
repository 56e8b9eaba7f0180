"""Relevance rules: how the relevance of one operation's output goes to its inputs, and what is lost on the way.

Belongs here: what all rules have in common, and the one formula of weighted ones. Does not belong here: each weighted
rule (`weighted_rules.py`), which operation has which rule (`composites.py`), the order of the backward pass
(`engine.py`).

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
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

__all__ = [
    "Bias",
    "Key",
    "Layer",
    "Losses",
    "Part",
    "Rule",
    "Share",
    "WeightedRule",
    "dot",
    "doubtful",
    "mean_size",
    "per_sample",
    "weighted",
]

Bias = Literal["keep", "drop", "distribute", "both"]
Key = Any  # names prepared weights; see `weighted_rules.prepare`


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
