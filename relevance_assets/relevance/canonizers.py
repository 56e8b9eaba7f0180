"""Batch norms folded into their neighbours, so that relevance rules meet only linear layers and thresholds.

Belongs here: what changes a network's modules without changing its output, and puts them back.
Does not belong here: rules, composites.

BN, ReLU, Conv (or Linear, also behind flatten or an average pool) becomes threshold-ReLU, Conv: with
sigma = sqrt(var + eps), c = gamma / sigma, d = beta - mean * c and t = -d / c,

    ReLU(c x + d) = c T(x) + d,   T(x) = max(x, t) if c > 0, min(x, t) if c < 0,

so weights become W_oi c_i and biases b_o + sum_i W_oi d_i (Binder et al.). A channel with gamma = 0 is the
constant ReLU(beta): it goes into the bias, and its weights become 0. A batch norm that has no linear layer to
its right (the first, before a maximum pool) goes into the convolution on its left. Folded batch norms are
replaced by `nn.Identity`, so their eps plays no further part.

Where every ReLU before a convolution is off, its output is exactly its own bias; the folded form gives that
bias plus rounding, and a rule that divides by the next layer's contributions would hand relevance out by that
rounding. So a folded convolution's output is computed from the unfolded layers; only rules see the folded form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from zennit.canonizers import Canonizer

__all__ = ["CanonizationError", "FoldBatchNorm", "ThresholdReLU"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BETWEEN = (nn.Flatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool3d)


class CanonizationError(ValueError):
    """A batch norm that cannot be folded without changing what the network says."""


class ThresholdReLU(nn.Module):
    """max(x, t) in channels of sign +1, min(x, t) in channels of sign -1; channels are axis 1.

    Parameters
    ----------
    sign, threshold
        (channels,) each; a threshold of -inf with sign +1 lets the channel through.
    """

    sign: Tensor
    threshold: Tensor

    def __init__(self, sign: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self.register_buffer("sign", sign)
        self.register_buffer("threshold", threshold)

    def forward(self, features: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (features.ndim - 2)
        sign, threshold = self.sign.view(shape), self.threshold.view(shape)
        return sign * torch.maximum(sign * features, sign * threshold)


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """c and d, (channels,) each, of a batch norm in evaluation: c x + d."""
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(gamma) if norm.bias is None else norm.bias.detach()
    scale = gamma / torch.sqrt(norm.running_var + norm.eps)
    return scale, beta - norm.running_mean * scale


class FoldBatchNorm(Canonizer):
    """Fold every batch norm of a network, to the right where that is possible, else to the left.

    The network is looked at as nested `nn.Sequential`s: neighbours in one of them follow each other. `apply`
    either folds all or, when it raises, has changed nothing; `remove` puts the very modules and parameters
    back, so a state dict is the same to the last bit.

    Raises
    ------
    CanonizationError
        If a batch norm stands where it cannot be folded, has no running statistics or is in training mode, or
        if a convolution to its right pads with zeros (its new bias would not hold at the border).
    """

    def __init__(self) -> None:
        self.replaced: list[tuple[nn.Module, str, nn.Module | None]] = []
        self.rewritten: list[tuple[Any, nn.Parameter, nn.Parameter | None]] = []
        self.handles: list[RemovableHandle] = []

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Fold; a list of one canonizer whose `remove` undoes it."""
        instance = self.copy()
        try:
            instance.register(root_module)
        except BaseException:
            instance.remove()
            raise
        return [instance]

    def register(self, root_module: nn.Module) -> None:
        """Fold the batch norms of `root_module` in place."""
        for name, parent in list(root_module.named_modules()):
            if isinstance(parent, nn.Sequential):
                for key, norm in list(parent.named_children()):
                    if isinstance(norm, BATCH_NORMS):
                        self._fold(f"{name}.{key}".lstrip("."), parent, key)
        for name, module in root_module.named_modules():
            if isinstance(module, BATCH_NORMS) or "BatchNorm" in type(module).__name__:
                raise CanonizationError(
                    f"{name}: batch norm outside an nn.Sequential cannot be folded; put it and its neighbours into one"
                )

    def remove(self) -> None:
        """Put modules and parameters back, the last change first."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for module, weight, bias in reversed(self.rewritten):
            module.weight, module.bias = weight, bias
        for parent, key, module in reversed(self.replaced):
            parent._modules[key] = module
        self.rewritten.clear()
        self.replaced.clear()

    def copy(self) -> FoldBatchNorm:
        """A canonizer that has not been applied."""
        return type(self)()

    def _fold(self, name: str, parent: nn.Sequential, key: str) -> None:
        keys, modules = list(parent._modules), list(parent)
        place = keys.index(key)
        norm: Any = modules[place]
        if norm.training or norm.running_mean is None:
            raise CanonizationError(f"{name}: folding needs running statistics and evaluation mode: model.eval()")
        relu = modules[place + 1] if place + 1 < len(keys) else None
        right = _linear_right(modules[place + 2 :])
        left = modules[place - 1] if place else None
        if type(relu) is nn.ReLU and right is not None:
            self._replace(parent, keys[place + 1], self._fold_right(name, norm, right))
        elif isinstance(left, (*CONVOLUTIONS, nn.Linear)):
            self._fold_left(norm, left)
        else:
            raise CanonizationError(f"{name}: no convolution or linear layer beside this batch norm to fold it into")
        self._replace(parent, key, nn.Identity())

    def _replace(self, parent: nn.Module, key: str, module: nn.Module) -> None:
        self.replaced.append((parent, key, parent._modules[key]))
        parent._modules[key] = module.train(False)

    def _rewrite(self, module: Any, weight: Tensor, bias: Tensor) -> None:
        self.rewritten.append((module, module.weight, module.bias))
        module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
        module.bias = nn.Parameter(bias, requires_grad=module.weight.requires_grad)

    def _fold_left(self, norm: Any, left: Any) -> None:
        c, d = affine(norm)
        weight = left.weight.detach()
        bias = torch.zeros_like(c) if left.bias is None else left.bias.detach()
        self._rewrite(left, weight * c.view(-1, *(1,) * (weight.ndim - 1)), bias * c + d)

    def _fold_right(self, name: str, norm: Any, right: Any) -> ThresholdReLU:
        if isinstance(right, CONVOLUTIONS) and right.padding_mode == "zeros" and set(right.padding) != {0}:
            raise CanonizationError(
                f"{name}: the convolution behind it pads with zeros, where the folded bias does not hold; "
                "use padding_mode='replicate'"
            )
        c, d = affine(norm)
        threshold = -d / c
        folded = (c != 0) & torch.isfinite(threshold)
        constant = torch.relu(d)  # where c = 0
        weight, bias = right.weight.detach(), right.bias
        if isinstance(right, CONVOLUTIONS):
            unfolded = _unfolded(weight, bias, torch.where(folded, c, 0.0), torch.where(folded, d, constant), threshold)
            self.handles.append(right.register_forward_hook(unfolded))
        scale = _per_weight(torch.where(folded, c, 0.0), right)
        shift = _per_weight(torch.where(folded, d, constant), right)
        moved = (weight * shift).flatten(1).sum(1)
        self._rewrite(right, weight * scale, moved if bias is None else bias.detach() + moved)
        return ThresholdReLU(torch.where(folded, torch.sign(c), 1.0), torch.where(folded, threshold, -torch.inf))


def _linear_right(following: list[nn.Module]) -> nn.Module | None:
    """The linear layer that follows, when all before it commutes with an affine map per channel."""
    for module in following:
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            return module
        padding = getattr(module, "padding", 0)
        if not isinstance(module, BETWEEN) or padding not in (0, (0,) * 3, (0,) * 2, (0,)):
            return None
    return None


def _unfolded(
    weight: Tensor, bias: Tensor | None, c: Tensor, d: Tensor, threshold: Tensor
) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook: the convolution of ReLU(c x + d), with the gradient of the folded one of T(x)."""

    def hook(convolution: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        held = inputs[0].detach()
        shape = (1, -1) + (1,) * (held.ndim - 2)
        values = held * c.view(shape) + d.view(shape)
        values = torch.where(held == threshold.view(shape), 0.0, values)
        exact = convolution._conv_forward(values, weight, bias)
        return output + (exact - output).detach()

    return hook


def _per_weight(values: Tensor, linear: Any) -> Tensor:
    """(channels,) values laid out so that they multiply the weights of the layer that reads the channels."""
    weight = linear.weight
    if isinstance(linear, nn.Linear):
        return values.repeat_interleave(weight.shape[1] // len(values)).unsqueeze(0)
    rows = values.view(linear.groups, 1, -1).expand(-1, weight.shape[0] // linear.groups, -1)
    return rows.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
