"""The rules of weighted operations, each a list of shares: epsilon, LRP-0, alpha-beta, z+, gamma, zB, w^2, flat.

Belongs here: contributions and their sums, and weights as a rule wants them. Does not belong here: how a share hands
relevance on, stabilisers, sources (`rules.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from relevance_assets.relevance.rules import (
    Bias,
    Key,
    Layer,
    Part,
    Share,
    WeightedRule,
    doubtful,
)

__all__ = ["AlphaBeta", "Box", "Epsilon", "Flat", "Gamma", "WSquare", "ZPlus", "Zero", "prepare"]


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
