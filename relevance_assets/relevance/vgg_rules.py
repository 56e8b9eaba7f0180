"""Rules of the VGG study: the composite zB / gamma / epsilon / LRP-0 with its settings, and grids of it.

Belongs here: which layer has which of these rules, bounds of zB, values of gamma and epsilon. Does not belong here:
formulas (`rules.py`), running a grid (`rule_grid.py`), other composites (`composites.py`).

Source: LRP-model-investigation (github), which uses lrp-pf-auc. Its code, its figure and its README name three
different boundaries, and its bounds of zB are those of images in other units than its own: all of them are settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relevance_assets.relevance.composites import Composite, composite_of

__all__ = ["PUBLISHED", "SENSIBLE", "VARIANTS", "Boundaries", "Cell", "composite", "grid", "lrp_0"]

PUBLISHED = tuple(float(value) for value in range(-100, 101, 20))  # gammas, and absolute unsigned epsilons
SENSIBLE = tuple(step / 10 for step in range(11))  # gammas, and epsilons in units of a layer's mean |z|
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Boundaries(NamedTuple):
    """Where one rule ends and the next begins, counted in convolutions and dense layers, as they run, from 0.

    Attributes
    ----------
    gamma
        Layers 1 to `gamma` - 1 have the gamma rule; layer 0, and whatever else reads the image, zB.
    epsilon
        Layers `gamma` to `epsilon` - 1 have the epsilon rule, those from `epsilon` on LRP-0.
    """

    gamma: int
    epsilon: int


VARIANTS = {
    "as_published_code": Boundaries(8, 13),  # of VGG16: gamma conv1_2 to conv4_1, epsilon conv4_2 to conv5_3
    "figure": Boundaries(7, 13),  # gamma conv1_2 to conv3_3, epsilon conv4_1 to conv5_3
    "readme": Boundaries(8, 15),  # epsilon up to the last dense layer but one; gamma, of which it says no end, as coded
}


def composite(
    variant: str | Sequence[int],
    gamma: float,
    epsilon: float,
    *,
    boxes: str | Sequence[float] = "data_range",
    signed: bool = False,
    relative: bool = False,
    stabiliser: float = 1e-6,
) -> Composite:
    """The composite zB / gamma / epsilon / LRP-0 for a VGG-like network.

    Maximum pools give all to the winner, ReLUs and dropout pass relevance on, averages are LRP-0's (in `readme` too).
    Biases are kept in every denominator.

    Parameters
    ----------
    variant
        A name of `VARIANTS` (boundaries of VGG16), or boundaries of one's own.
    gamma
        z + gamma z+, the bias alike; any number: below -1 the rule shares by |w|, with weight |1 + gamma| on w+.
    epsilon
        Added to z; see `signed` and `relative`.
    boxes
        Bounds of the image for zB: `data_range` (0, 1); `as_published` (0 - mean) / std and (1 - mean) / std of
        ImageNet per channel, which are not the bounds of images in [0, 1]; or two numbers.
    signed
        False, as published: z + epsilon, then stabilised by `stabiliser` sgn(z + epsilon), sgn(0) = 1; |epsilon| above
        |z| with the other sign turns the map's sign over. True: z + epsilon sgn(z), epsilon >= 0.
    relative
        Whether epsilon (with its stabiliser) is in units of the layer's mean |z|.
    stabiliser
        Added with the denominator's sign to those of zB, gamma, unsigned epsilon and LRP-0.

    Raises
    ------
    ValueError
        For an unknown variant or bounds, boundaries out of order, or a negative signed epsilon.
    """
    ends, (low, high) = _boundaries(variant), _bounds(boxes)
    epsilons = {"epsilon": epsilon, "signed": signed, "relative": relative, "stabiliser": stabiliser}
    layers: list[dict[str, Any]] = [
        {"kind": kind, "place": "first", "rule": "box", "low": low, "high": high, "stabiliser": stabiliser}
        for kind in ("convolution", "linear")
    ]
    for kind in ("convolution", "linear"):
        layers += [
            {"kind": kind, "place": (1, ends.gamma), "rule": "gamma", "gamma": gamma, "stabiliser": stabiliser},
            {"kind": kind, "place": (ends.gamma, ends.epsilon), "rule": "epsilon", **epsilons},
            {"kind": kind, "rule": "zero", "epsilon": stabiliser},
        ]
    layers.append({"kind": "average", "rule": "epsilon", "epsilon": stabiliser})
    return composite_of({"layers": layers, "name": f"gamma {gamma:g}, epsilon {epsilon:g}"})


def lrp_0(stabiliser: float = 1e-6) -> Composite:
    """LRP-0 in every layer, the first too: gradient x input of a network of ReLUs, but for the stabiliser."""
    layers = [
        {"kind": kind, "rule": "zero" if kind != "average" else "epsilon", "epsilon": stabiliser}
        for kind in ("convolution", "linear", "average")
    ]
    return composite_of({"layers": layers, "name": "LRP-0"})


def _boundaries(variant: str | Sequence[int]) -> Boundaries:
    if isinstance(variant, str):
        if variant not in VARIANTS:
            raise ValueError(
                f"rule grid: no variant {variant!r}; choose one of {', '.join(VARIANTS)}, or give two ends"
            )
        return VARIANTS[variant]
    ends = tuple(variant)
    if len(ends) != 2 or not all(isinstance(end, int) for end in ends) or not 1 <= ends[0] <= ends[1]:
        raise ValueError(f"rule grid: boundaries are two layer numbers, 1 <= gamma <= epsilon, not {ends!r}")
    return Boundaries(*ends)


def _bounds(boxes: str | Sequence[float]) -> tuple[Any, Any]:
    if boxes == "data_range":
        return 0.0, 1.0
    if boxes == "as_published":
        return _published_bounds()
    if isinstance(boxes, str) or len(boxes) != 2:
        raise ValueError(f"rule grid: bounds are data_range, as_published or two numbers, not {boxes!r}")
    return float(boxes[0]), float(boxes[1])


@cache
def _published_bounds() -> tuple[Tensor, Tensor]:
    """(3, 1, 1) each; the same tensors for all cells, as rules with tensors are equal only then."""
    mean, std = (torch.tensor(IMAGENET[name], dtype=torch.float64).view(3, 1, 1) for name in ("mean", "std"))
    return (0 - mean) / std, (1 - mean) / std


class Cell(NamedTuple):
    """One cell of a grid."""

    gamma: float
    epsilon: float


def grid(
    variant: str | Sequence[int],
    gammas: Sequence[float] = PUBLISHED,
    epsilons: Sequence[float] = PUBLISHED,
    **options: Any,
) -> dict[Cell, Composite]:
    """Composites of all pairs of a gamma and an epsilon; `options` as `composite` takes them."""
    return {Cell(g, e): composite(variant, g, e, **options) for g, e in product(gammas, epsilons)}
