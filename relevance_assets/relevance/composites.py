"""Named composites: which layer of a network has which relevance rule.

Belongs here: the names that a study may write in `method.composite`, and what each means. Does not belong
here: the rules' formulas (`rules.py`).

| name | first convolution | convolutions | dense layers and sums | average pools | bias |
|---|---|---|---|---|---|
| `disability` | zB(0, 1) | alpha 1, beta 0 | epsilon 1e-8 | z+ | left out |
| `preset_a` | alpha 1, beta 0 | alpha 1, beta 0 | epsilon 0.1 | epsilon 0.1 | kept, both signs |
| `epsilon` | epsilon 0.001 | epsilon 0.001 | epsilon 0.001 | epsilon 0.001 | kept |
| `epsilon_plus` | z+ | z+ | epsilon 1e-6 | z+ | kept, z+ has b+ |

`disability`: Lu et al. 2023. `preset_a`: iNNvestigate's `LRPSequentialPresetA`, as Hofmann et al. 2022.
`epsilon`: Eitel et al. 2019. `epsilon_plus`: zennit's composite of that name. In all of them: relevance passes
elementwise functions and the softmax unchanged, maximum pools give all to the (first) winner, gated products
follow `method.product`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from zennit.core import Composite, Hook
from zennit.rules import Pass

from relevance_assets.models.gated_attention import ContrastSum, Product
from relevance_assets.relevance.canonizers import FoldBatchNorm, ThresholdReLU
from relevance_assets.relevance.rules import AlphaOne, AverageShare, Box, Epsilon, ProductRule, ThresholdPass

__all__ = ["COMPOSITES", "Rules", "build_composite", "first_convolutions"]

CONTAINERS = (nn.Sequential, nn.ModuleList)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool3d)
ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softmax)
BY_GRADIENT = (nn.Flatten, nn.Dropout, nn.Identity, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


@dataclass(frozen=True)
class Rules:
    """What makes a new rule per kind of layer; `first` is for convolutions that read the images.

    `box`: the interval in which the images must lie, where `first` assumes one.
    """

    first: Callable[[], Hook]
    convolution: Callable[[], Hook]
    dense: Callable[[], Hook]
    average: Callable[[], Hook]
    box: tuple[float, float] | None = None


COMPOSITES: dict[str, Rules] = {
    "disability": Rules(
        first=lambda: Box(0.0, 1.0),
        convolution=AlphaOne,
        dense=lambda: Epsilon(1e-8, bias=False),
        average=AverageShare,
        box=(0.0, 1.0),
    ),
    "preset_a": Rules(
        first=lambda: AlphaOne(bias="both", zero=1e-7),
        convolution=lambda: AlphaOne(bias="both", zero=1e-7),
        dense=lambda: Epsilon(0.1, bias=True),
        average=lambda: Epsilon(0.1, bias=True),
    ),
    "epsilon": Rules(
        first=lambda: Epsilon(1e-3, bias=True),
        convolution=lambda: Epsilon(1e-3, bias=True),
        dense=lambda: Epsilon(1e-3, bias=True),
        average=lambda: Epsilon(1e-3, bias=True),
    ),
    "epsilon_plus": Rules(
        first=lambda: AlphaOne(bias="positive"),
        convolution=lambda: AlphaOne(bias="positive"),
        dense=lambda: Epsilon(1e-6, bias=True),
        average=AverageShare,
    ),
}


class Restoring(Composite):
    """A zennit composite that has changed nothing when registering it raises."""

    def register(self, module: nn.Module) -> None:
        try:
            super().register(module)
        except BaseException:
            self.remove()
            raise


def first_convolutions(model: nn.Module) -> set[str]:
    """Names of the convolutions that read the images: the first of each of `model.encoders`, or of the model."""
    encoders = getattr(model, "encoders", None)
    roots = {"": model} if encoders is None else {f"encoders.{k}.": m for k, m in encoders.named_children()}
    names: set[str] = set()
    for prefix, root in roots.items():
        convolutions = [name for name, module in root.named_modules() if isinstance(module, CONVOLUTIONS)]
        names.update(prefix + name for name in convolutions[:1])
    return names


def build_composite(name: str, model: nn.Module, *, product: str = "proposed") -> Composite:
    """The composite `name` for `model`, with the canonizer that it needs.

    Raises
    ------
    ValueError
        For an unknown name; and when the composite is registered, for a layer that has no rule.
    """
    if name not in COMPOSITES:
        raise ValueError(f"composite {name!r} is not known; choose one of {', '.join(sorted(COMPOSITES))}")
    rules, first = COMPOSITES[name], first_convolutions(model)

    def rule_of(context: dict[str, Any], layer: str, module: nn.Module) -> Hook | None:
        hook = _rule(rules, layer in first, module, product)
        if hook is None and not isinstance(module, BY_GRADIENT) and next(module.children(), None) is None:
            if not isinstance(module, CONTAINERS):
                raise ValueError(
                    f"{layer}: no relevance rule for {type(module).__name__}; use a layer that has one, or add it "
                    "to relevance/composites.py"
                )
        elif hook is not None:
            hook.name = layer
        return hook

    return Restoring(module_map=rule_of, canonizers=[FoldBatchNorm()])


def _rule(rules: Rules, first: bool, module: nn.Module, product: str) -> Hook | None:
    if isinstance(module, CONVOLUTIONS):
        return rules.first() if first else rules.convolution()
    if isinstance(module, nn.Linear | ContrastSum):
        return rules.dense()
    if isinstance(module, AVERAGES):
        return rules.average()
    if isinstance(module, Product):
        return ProductRule(product)
    if isinstance(module, ThresholdReLU):
        return ThresholdPass()
    return Pass() if isinstance(module, ELEMENTWISE) else None
