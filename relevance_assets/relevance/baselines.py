"""Maps that relevance is compared with: gradients, Grad-CAM and occlusion.

Belongs here: methods that need no rule per layer, as functions of the number they explain. Does not belong here: how a
network and a start become that number, nor what is inside a mask (the engine); rules; anything about files.

Every method is called `method(function, inputs, **options)` and returns one tensor per input, shaped like it.

inputs
    A tuple of floating tensors, batch first, all with the same batch size B.
function
    `function(inputs) -> Tensor (N,)`: the number explained, one per row, differentiable by autograd. Integrated
    gradients, SmoothGrad and occlusion call it with N = k B rows for various k: **row r belongs to sample r mod B**. Of
    what depends on the sample (its class, its start) the function must therefore take row r mod B, as it was decided
    at the unchanged input: `start.repeat(N // B, ...)`. Rows must not influence one another (batch norms in eval mode).
    k takes at most two values in one call of a method; in occlusion, two per input, and 1.
function, for guided_backprop (`needs == "guided"`)
    The same with `GuidedReLU.apply` in the place of every ReLU. One that was left out is found and is an error.
function, for grad_cam (`needs == "features"`)
    `function(inputs) -> (Tensor (B,), features (B, channels, *spatial))`: also the output of the chosen layer, by
    default the last convolution, as the very tensor of the autograd graph from which the number was computed (neither
    a copy nor changed in place afterwards). It is called once, with the inputs as they are.

None of the methods distributes a given amount by rules, and a mask changes none of them. What their sums are worth says
`BASELINES[name].completeness`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from relevance_assets.relevance.baseline_calls import (
    Function,
    Inputs,
    Value,
    check_value,
    checked,
    chunks,
    positive,
    reference_inputs,
    value_of,
)
from relevance_assets.relevance.occlusion import occlusion

__all__ = [
    "BASELINES",
    "Baseline",
    "GuidedReLU",
    "grad_cam",
    "gradient_x_input",
    "guided_backprop",
    "integrated_gradients",
    "occlusion",
    "reference_inputs",
    "saliency",
    "smoothgrad",
]

FunctionWithFeatures = Callable[[Inputs], tuple[Tensor, Tensor]]


def saliency(function: Function, inputs: Inputs, *, signed: bool = False) -> list[Tensor]:
    """|df/dx| (Simonyan et al. 2014), per channel; `signed` keeps the sign. Cost: one forward and backward."""
    gradients = _gradient(function, checked(inputs))
    return list(gradients) if signed else [gradient.abs() for gradient in gradients]


def gradient_x_input(function: Function, inputs: Inputs) -> list[Tensor]:
    """x df/dx (Shrikumar et al. 2016). Cost: one forward and backward.

    The sum over all inputs is f(x) where f is piecewise linear without bias, so that f(c x) = c f(x) for c > 0.
    """
    inputs = checked(inputs)
    return [x.detach() * gradient for x, gradient in zip(inputs, _gradient(function, inputs), strict=True)]


def integrated_gradients(
    function: Function,
    inputs: Inputs,
    *,
    steps: int = 50,
    baseline: Value = 0.0,
    riemann: Literal["right", "left", "middle", "trapezoid"] = "right",
    multiply: bool = True,
    internal_batch_size: int = 4,
) -> list[Tensor]:
    """(x - x0) times the mean gradient on the line from x0 to x (Sundararajan et al. 2017).

    Parameters
    ----------
    function, inputs
        See the module.
    steps
        Intervals of the line. The sum over all inputs tends to f(x) - f(x0) with 1 / steps (`right`, `left`) or
        1 / steps^2 (`middle`, `trapezoid`).
    baseline
        x0: a number, a tensor that broadcasts to the input, or one of them per input.
    riemann
        Where in its intervals the gradient is taken. `right` is the paper's: at x0 + k / steps (x - x0) for k from 1 to
        `steps`.
    multiply
        False leaves out the factor x - x0.
    internal_batch_size
        Rows in one call of the function, at least the batch itself. Memory follows it, not the number of steps.

    Notes
    -----
    Cost: `steps` forwards and backwards per sample, one more for `trapezoid`.
    """
    inputs = checked(inputs)
    shares, weights = _quadrature(riemann, positive("steps", steps))
    start = reference_inputs(inputs, baseline)
    paths = [x.detach() - x0 for x, x0 in zip(inputs, start, strict=True)]
    batch = len(inputs[0])
    totals = [torch.zeros_like(path) for path in paths]
    for some in chunks(list(zip(shares, weights, strict=True)), batch, internal_batch_size):
        rows = tuple(torch.cat([x0 + share * path for share, _ in some]) for x0, path in zip(start, paths, strict=True))
        for total, gradient in zip(totals, _gradient(function, rows), strict=True):
            for (_, weight), part in zip(some, gradient.split(batch), strict=True):
                total.add_(part, alpha=weight)
    return [total * path for total, path in zip(totals, paths, strict=True)] if multiply else totals


def smoothgrad(
    function: Function,
    inputs: Inputs,
    *,
    samples: int = 50,
    noise: float | Sequence[float] = 0.15,
    seed: int = 0,
    internal_batch_size: int = 4,
) -> list[Tensor]:
    """Mean gradient, with its sign, under Gaussian noise on the inputs (Smilkov et al. 2017).

    Parameters
    ----------
    function, inputs
        See the module.
    samples
        Draws of noise.
    noise
        Standard deviation as a share of the sample's own range (largest less smallest value of that input); one number,
        or one per input. A constant input, and so a single covariate, gets no noise.
    seed
        All samples of a batch see the same draws, each scaled by its own range, so that a map depends neither on the
        batch nor on `internal_batch_size`, the device or the precision.
    internal_batch_size
        As for `integrated_gradients`.

    Notes
    -----
    Cost: `samples` forwards and backwards per sample.
    """
    inputs = tuple(x.detach() for x in checked(inputs))
    levels = [noise] * len(inputs) if isinstance(noise, int | float) else list(noise)
    if len(levels) != len(inputs) or not all(level >= 0 for level in levels):
        raise ValueError(f"noise is {noise}: one number that is not negative, or one per input ({len(inputs)})")
    scales = []
    for x, level in zip(inputs, levels, strict=True):
        flat = x.reshape(len(x), -1)
        scales.append((level * (flat.amax(1) - flat.amin(1))).view(-1, *[1] * (x.ndim - 1)))
    generator = torch.Generator().manual_seed(seed)
    batch = len(inputs[0])
    totals = [torch.zeros_like(x) for x in inputs]
    for some in chunks(range(positive("samples", samples)), batch, internal_batch_size):
        # Draw by draw, input by input: torch's numbers depend on the shape asked for.
        parts = [[x + scale * _noise(x, generator) for x, scale in zip(inputs, scales, strict=True)] for _ in some]
        rows = tuple(torch.cat(part) for part in zip(*parts, strict=True))
        for total, gradient in zip(totals, _gradient(function, rows), strict=True):
            total += gradient.view(len(some), *total.shape).sum(0)
    return [total / samples for total in totals]


class GuidedReLU(torch.autograd.Function):
    """ReLU whose backward pass keeps the gradient only where both the unit and the gradient are positive.

    `GuidedReLU.apply(x)` stands for `torch.relu(x)` in the function given to `guided_backprop`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        output = torch.relu(x)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return torch.where((output > 0) & (gradient > 0), gradient, 0)


def guided_backprop(function: Function, inputs: Inputs) -> list[Tensor]:
    """Gradient through `GuidedReLU`s (Springenberg et al. 2015), with its sign. Cost: one forward and backward.

    Other activations keep their derivative: the method is defined for ReLUs.

    Parameters
    ----------
    function
        With `GuidedReLU.apply` in the place of every ReLU.
    inputs
        See the module.

    Raises
    ------
    ValueError
        If a ReLU was left as it was, or if there is none at all: the map would be the gradient, under another name.
    """

    def check(value: Tensor) -> None:
        names = _operations(value)
        if any(name.startswith("ReluBackward") for name in names):
            raise ValueError("a ReLU was not replaced by GuidedReLU: the map would be half a gradient")
        if "GuidedReLUBackward" not in names:
            raise ValueError("no ReLU lies between inputs and output: guided backprop would be the gradient (saliency)")

    return list(_gradient(function, checked(inputs), check))


def grad_cam(function: FunctionWithFeatures, inputs: Inputs, *, signed: bool = False, image: int = 0) -> list[Tensor]:
    """Feature maps weighted by their mean gradient, summed, cut at 0 and interpolated (Selvaraju et al. 2017).

    The map has the resolution of the features: 3 x 3 x 3 for the last convolution of a DenseNet121 at 96 x 96 x 96.

    Parameters
    ----------
    function
        Returns the number explained *and* the features, see the module.
    inputs
        See the module.
    signed
        True leaves out the cut at 0 (before interpolation, as in the paper).
    image
        The input that the features are a picture of. It gets the same map in each of its channels; the other inputs,
        about which Grad-CAM says nothing, get 0.

    Notes
    -----
    Cost: one forward, and a backward to the features. Interpolation is (bi-, tri-)linear with `align_corners=False`.
    """
    inputs = checked(inputs)
    with torch.enable_grad():
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        value, features = function(leaves)
        check_value(value, leaves)
        size = inputs[image].shape[2:]
        if features.ndim < 3 or features.ndim != len(size) + 2 or len(features) != len(value):
            raise ValueError(
                f"features {tuple(features.shape)} are no picture of input {image} {tuple(inputs[image].shape)}: "
                "name a layer whose output is (batch, channel, spatial)"
            )
        if not features.requires_grad:
            raise ValueError("features are cut off from the inputs: the layer's own output is needed, not a copy of it")
        (gradient,) = torch.autograd.grad(value.sum(), features, allow_unused=True)
    if gradient is None:
        raise ValueError("the number explained does not depend on the features: name a layer that it depends on")
    weights = gradient.flatten(2).mean(2)
    cam = torch.einsum("bc...,bc->b...", features.detach(), weights).unsqueeze(1)
    cam = cam if signed else cam.relu()
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    cam = torch.nn.functional.interpolate(cam, size=size, mode=mode, align_corners=False)
    return [
        cam.expand_as(x).clone() if index == image % len(inputs) else torch.zeros_like(x)
        for index, x in enumerate(inputs)
    ]


@dataclass(frozen=True)
class Baseline:
    """A method, what its function must offer, and what the sum of its map is.

    Attributes
    ----------
    method
        `method(function, inputs, **options)`; calling the Baseline calls it.
    needs
        Which function: "plain", "guided" (ReLUs replaced by `GuidedReLU`) or "features" (returns them too); see the
        module.
    completeness
        "difference": the sum over all inputs tends to f(x) - f(x0) with the number of steps, where x0 is
        `reference_inputs(inputs, baseline)`; "homogeneous": it is f(x) where f is piecewise linear without bias;
        "none": it means nothing.
    """

    method: Callable[..., list[Tensor]]
    needs: Literal["plain", "guided", "features"] = "plain"
    completeness: Literal["difference", "homogeneous", "none"] = "none"

    def __call__(self, function: Callable[[Inputs], Any], inputs: Inputs, **options: Any) -> list[Tensor]:
        return self.method(function, inputs, **options)


BASELINES: dict[str, Baseline] = {
    "saliency": Baseline(saliency),
    "gradient_x_input": Baseline(gradient_x_input, completeness="homogeneous"),
    "integrated_gradients": Baseline(integrated_gradients, completeness="difference"),
    "smoothgrad": Baseline(smoothgrad),
    "guided_backprop": Baseline(guided_backprop, needs="guided"),
    "grad_cam": Baseline(grad_cam, needs="features"),
    "occlusion": Baseline(occlusion),
}


def _gradient(function: Function, inputs: Inputs, check: Callable[[Tensor], None] | None = None) -> Inputs:
    """Each row's own gradient (rows do not influence one another); 0 for an input that the function does not use."""
    with torch.enable_grad():
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        value = value_of(function, leaves)
        if not value.requires_grad:
            raise ValueError("the function's value is cut off from its inputs: no gradient can be taken")
        if check is not None:
            check(value)
        return torch.autograd.grad(value.sum(), leaves, materialize_grads=True)


def _operations(value: Tensor) -> set[str]:
    """Names of the operations in the autograd graph of `value`."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return {node.name() for node in seen}


def _quadrature(riemann: str, steps: int) -> tuple[list[float], list[float]]:
    """Places on [0, 1] and their weights, whose sum is 1."""
    if riemann == "trapezoid":
        weights = [0.5 / steps, *[1 / steps] * (steps - 1), 0.5 / steps]
        return [k / steps for k in range(steps + 1)], weights
    shifts = {"right": 1.0, "left": 0.0, "middle": 0.5}
    if riemann not in shifts:
        raise ValueError(f"riemann {riemann!r} is none of right, left, middle, trapezoid")
    return [(k + shifts[riemann]) / steps for k in range(steps)], [1 / steps] * steps


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape[1:], generator=generator, dtype=torch.float64).to(x)
