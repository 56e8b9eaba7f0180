"""Relevance rules of single layers, as zennit hooks, each with an account of the relevance it loses.

Belongs here: how one layer's relevance goes to its inputs. Does not belong here: which layer has which rule
(`composites.py`), where relevance starts (`engine.py`).

Formulas and their sources are in the classes. z_ik = x_i w_ik; (.)+ and (.)- are max and min with 0. Rules that
drop the bias leave it out of the denominators only; the network's output never changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from zennit.core import BasicHook, Hook
from zennit.rules import ClampMod, NoMod, Pass

__all__ = ["AlphaOne", "AverageShare", "Box", "Epsilon", "ProductRule", "ThresholdPass", "divide"]

Relevance = tuple[Tensor | None, ...]


def divide(numerator: Tensor, denominator: Tensor, zero: float = 0.0) -> Tensor:
    """numerator / denominator; where the denominator is 0: 0, or numerator / `zero` if that is not 0."""
    missing = denominator == 0
    quotient = numerator / torch.where(missing, zero if zero else 1.0, denominator)
    return quotient if zero else torch.where(missing, 0.0, quotient)


class Accounted(BasicHook):
    """A zennit rule that knows its layer's name and how much relevance it lost in the last backward pass.

    `lost` is what came in less what went out: (batch, contrasts) for a layer from (batch, contrast, channel) to
    the same, else (batch, 1).
    """

    name: str = ""
    lost: Tensor | None = None

    def backward(self, module: nn.Module, grad_input: Relevance, grad_output: Relevance) -> Relevance:
        result = super().backward(module, grad_input, grad_output)
        before, after = grad_output[0], result[0]
        assert before is not None
        assert after is not None
        self.lost = _total(before, after) - _total(after, before)
        return result

    def copy(self) -> Accounted:
        copied = super().copy()
        copied.name = self.name
        return copied


def _total(relevance: Tensor, other: Tensor) -> Tensor:
    if relevance.ndim == other.ndim == 3:
        return relevance.sum(dim=2)
    return relevance.flatten(1).sum(dim=1, keepdim=True)


class Epsilon(Accounted):
    """R_i = sum_k z_ik / (z_k + epsilon sgn(z_k)) R_k with sgn(0) = 1 (Bach et al. 2015, eq. 58).

    With `bias`, z_k holds the bias too, which then keeps its share.
    """

    def __init__(self, epsilon: float, *, bias: bool) -> None:
        def scale(out_grad: Tensor, outputs: list[Tensor]) -> list[Tensor]:
            z = outputs[0]
            return [out_grad / torch.where(z < 0, z - epsilon, z + epsilon)]

        super().__init__(
            input_modifiers=[lambda x: x],
            param_modifiers=[NoMod(zero_params=None if bias else ["bias"])],
            output_modifiers=[lambda z: z],
            gradient_mapper=scale,
            reducer=lambda inputs, gradients: inputs[0] * gradients[0],
        )


class AlphaOne(Accounted):
    """alpha = 1, beta = 0: R_i = sum_k z_ik+ / (sum_i z_ik+) R_k, where z+ holds x < 0, w < 0 too.

    bias
        `none`: z_k+ is the inputs' part alone. `positive`: with b+ (zennit). `both`: with b+ and b-, as the
        layers of iNNvestigate's preset A, where the denominator may then become negative.
    zero
        What stands for a denominator of exactly 0; 0 drops the relevance.
    """

    def __init__(self, *, bias: str = "none", zero: float = 0.0) -> None:
        drop = ["bias"]
        super().__init__(
            input_modifiers=[lambda x: x.clamp(min=0), lambda x: x.clamp(max=0)],
            param_modifiers=[
                ClampMod(min=0.0, zero_params=drop if bias == "none" else None),
                ClampMod(max=0.0, zero_params=None if bias == "both" else drop),
            ],
            output_modifiers=[lambda z: z] * 2,
            gradient_mapper=lambda out_grad, outputs: [divide(out_grad, outputs[0] + outputs[1], zero)] * 2,
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] + inputs[1] * gradients[1],
        )


class Box(Accounted):
    """zB for inputs in [low, high]: contributions x w - low w+ - high w- = (x - low) w+ + (x - high) w-.

    All are >= 0, also where x = 0: a background of 0 receives |w-| (Montavon et al. 2017). Written as two
    products of one sign each, nothing cancels.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__(
            input_modifiers=[lambda x: x - low, lambda x: x - high],
            param_modifiers=[ClampMod(min=0.0, zero_params=["bias"]), ClampMod(max=0.0, zero_params=["bias"])],
            output_modifiers=[lambda z: z] * 2,
            gradient_mapper=lambda out_grad, outputs: [divide(out_grad, outputs[0] + outputs[1])] * 2,
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] + inputs[1] * gradients[1],
        )


class AverageShare(Accounted):
    """z+ for average pools: R_i = x_i+ / (sum x+) R, in equal shares where all x are <= 0."""

    def __init__(self) -> None:
        def scale(out_grad: Tensor, outputs: list[Tensor]) -> list[Tensor]:
            positive, ones = outputs
            return [divide(out_grad, positive), torch.where(positive == 0, out_grad / ones, 0.0)]

        super().__init__(
            input_modifiers=[lambda x: x.clamp(min=0), torch.ones_like],
            output_modifiers=[lambda z: z] * 2,
            gradient_mapper=scale,
            reducer=lambda inputs, gradients: inputs[0] * gradients[0] + inputs[1] * gradients[1],
        )


class ThresholdPass(Pass):
    """Relevance unchanged through a threshold-ReLU, also where it holds a unit at its threshold (Binder et al.).

    `clamped` is the share of absolute relevance on such units in the last backward pass.
    """

    name: str = ""
    clamped: Tensor | None = None

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Tensor) -> None:
        self.stored_tensors["clamped"] = output.detach() != input[0].detach()

    def backward(self, module: nn.Module, grad_input: Relevance, grad_output: Relevance) -> Relevance:
        assert grad_output[0] is not None
        size = grad_output[0].abs()
        self.clamped = divide((size * self.stored_tensors["clamped"]).sum(), size.sum())
        return grad_output

    def copy(self) -> ThresholdPass:
        copied = type(self)()
        copied.name = self.name
        return copied


class ProductRule(Hook):
    """A gated product signal * gate (Lu et al. 2023, equations 6-7), elementwise.

    `proposed`: R_signal = |s| / (|s| + |g|) R and R_gate the rest; halves where both are 0. `all`: the signal
    takes everything, the gate 0.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in ("proposed", "all"):
            raise ValueError(f"product rule must be 'proposed' or 'all', not {kind!r}")
        self.kind = kind

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Tensor) -> None:
        self.stored_tensors["input"] = input

    def backward(self, module: nn.Module, grad_input: Relevance, grad_output: Relevance) -> Relevance:
        relevance = grad_output[0]
        assert relevance is not None
        if self.kind == "all":
            return relevance, torch.zeros_like(relevance)
        signal, gate = (tensor.detach().abs() for tensor in self.stored_tensors["input"])
        both = signal + gate
        share = torch.where(both == 0, 0.5, divide(signal, both))
        rest = torch.where(both == 0, 0.5, divide(gate, both))
        return share * relevance, rest * relevance

    def copy(self) -> ProductRule:
        return type(self)(self.kind)
