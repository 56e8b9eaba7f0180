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

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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

Inputs = tuple[Tensor, ...]
Function = Callable[[Inputs], Tensor]
FunctionWithFeatures = Callable[[Inputs], tuple[Tensor, Tensor]]
Value = float | Tensor | Sequence[float | Tensor]
T = TypeVar("T")


def saliency(function: Function, inputs: Inputs, *, signed: bool = False) -> list[Tensor]:
    """|df/dx| (Simonyan et al. 2014), per channel; `signed` keeps the sign. Cost: one forward and backward."""
    gradients = _gradient(function, _checked(inputs))
    return list(gradients) if signed else [gradient.abs() for gradient in gradients]


def gradient_x_input(function: Function, inputs: Inputs) -> list[Tensor]:
    """x df/dx (Shrikumar et al. 2016). Cost: one forward and backward.

    The sum over all inputs is f(x) where f is piecewise linear without bias, so that f(c x) = c f(x) for c > 0.
    """
    inputs = _checked(inputs)
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
    inputs = _checked(inputs)
    shares, weights = _quadrature(riemann, _positive("steps", steps))
    start = reference_inputs(inputs, baseline)
    paths = [x.detach() - x0 for x, x0 in zip(inputs, start, strict=True)]
    batch = len(inputs[0])
    totals = [torch.zeros_like(path) for path in paths]
    for some in _chunks(list(zip(shares, weights, strict=True)), batch, internal_batch_size):
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
    inputs = tuple(x.detach() for x in _checked(inputs))
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
    for some in _chunks(range(_positive("samples", samples)), batch, internal_batch_size):
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

    return list(_gradient(function, _checked(inputs), check))


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
    inputs = _checked(inputs)
    with torch.enable_grad():
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        value, features = function(leaves)
        _check_value(value, leaves)
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


def occlusion(
    function: Function,
    inputs: Inputs,
    *,
    patch: int | Sequence[int] = 16,
    stride: int | Sequence[int] | None = None,
    fill: Value = 0.0,
    per_channel: bool = False,
    internal_batch_size: int = 4,
) -> list[Tensor]:
    """f(x) - f(x with a patch replaced), as a mean over the patches that cover a voxel (Zeiler and Fergus 2014).

    Parameters
    ----------
    function, inputs
        See the module; gradients are not needed.
    patch
        Edge of the patch in voxels, or one per spatial axis. It covers all channels unless `per_channel`. An input
        without spatial axes (covariates) is replaced value by value.
    stride
        From patch to patch, at most the patch's edge; by default the patch's edge: no overlap. The first patch of an
        axis starts at voxel 0, the last one is cut at the volume's edge, so that every voxel is covered.
    fill
        What stands in a patch: a number, a tensor that broadcasts to the input, or one of them per input.
    per_channel
        Replace each channel by itself.
    internal_batch_size
        As for `integrated_gradients`.

    Notes
    -----
    Cost in forwards per sample: 1 + prod over axes of (ceil((length - patch) / stride) + 1), times the channels if
    `per_channel`, + the number of covariates. With one channel:

    ==============  =====  ======  ========
    volume          patch  stride  forwards
    ==============  =====  ======  ========
    64 x 64 x 64       16      16        65
    64 x 64 x 64       16       8       344
    96 x 96 x 96       16      16       217
    96 x 96 x 96       16       8     1 332
    96 x 96 x 96        8       4    12 168
    96 x 112 x 96      16      16       253
    ==============  =====  ======  ========

    Own code because MONAI's `OcclusionSensitivity` takes one sample and one input, and returns class probabilities.
    """
    inputs = tuple(x.detach() for x in _checked(inputs))
    fills = reference_inputs(inputs, fill)
    batch = len(inputs[0])
    maps = []
    with torch.no_grad():
        whole = _value(function, inputs)
        for index, x in enumerate(inputs):
            total, covered = torch.zeros_like(x), torch.zeros_like(x[:1])
            ones = [1] * (x.ndim - 1)
            for some in _chunks(_boxes(x, patch, stride, per_channel), batch, internal_batch_size):
                rows = [y.repeat(len(some), *[1] * (y.ndim - 1)) for y in inputs]
                for copy, box in zip(rows[index].split(batch), some, strict=True):
                    copy[box] = fills[index][box]
                drops = whole - _value(function, tuple(rows)).view(len(some), batch)
                for drop, box in zip(drops, some, strict=True):
                    total[box] += drop.view(-1, *ones)
                    covered[box] += 1
            maps.append(total / covered)
    return maps


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


def reference_inputs(inputs: Inputs, value: Value) -> Inputs:
    """`value` in the inputs' shapes: a number, a tensor that broadcasts to the input, or one of them per input.

    Raises
    ------
    ValueError
        If their number is not that of the inputs, or one does not broadcast.
    """
    if isinstance(value, int | float):
        values: Sequence[float | Tensor] = [value] * len(inputs)
    else:
        values = [value] if isinstance(value, Tensor) else value
    if len(values) != len(inputs):
        raise ValueError(f"{len(values)} values for {len(inputs)} inputs: give a number, or one value per input")
    filled = []
    for x, one in zip(inputs, values, strict=True):
        tensor = torch.as_tensor(one, dtype=x.dtype, device=x.device)
        try:
            filled.append(tensor.detach().expand_as(x))
        except RuntimeError:
            shapes = f"{tuple(tensor.shape)} does not broadcast to an input {tuple(x.shape)}"
            raise ValueError(f"a value of shape {shapes}") from None
    return tuple(filled)


def _checked(inputs: Inputs) -> Inputs:
    inputs = tuple(inputs)
    for index, x in enumerate(inputs):
        if not x.is_floating_point():
            raise ValueError(f"input {index} is {x.dtype}: a floating tensor is needed")
        if len(x) != len(inputs[0]):
            raise ValueError(f"input {index} has batch size {len(x)}, the first {len(inputs[0])}")
    return inputs


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}: at least 1 is needed")
    return value


def _check_value(value: Tensor, inputs: Inputs) -> None:
    if value.shape != (len(inputs[0]),):
        raise ValueError(f"the function returned {tuple(value.shape)} for {len(inputs[0])} rows: one number per row")


def _value(function: Function, inputs: Inputs) -> Tensor:
    value = function(inputs)
    _check_value(value, inputs)
    return value


def _gradient(function: Function, inputs: Inputs, check: Callable[[Tensor], None] | None = None) -> Inputs:
    """Each row's own gradient (rows do not influence one another); 0 for an input that the function does not use."""
    with torch.enable_grad():
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        value = _value(function, leaves)
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


def _chunks(items: Sequence[T], batch: int, internal_batch_size: int) -> Iterator[Sequence[T]]:
    """Items in groups of equal size but the last, each at most `internal_batch_size` rows or one item."""
    most = max(1, _positive("internal_batch_size", internal_batch_size) // batch)
    # As equal as can be: with a remainder of one or two, that call would be mostly overhead.
    size = math.ceil(len(items) / math.ceil(len(items) / most))
    for first in range(0, len(items), size):
        yield items[first : first + size]


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


def _boxes(
    x: Tensor, patch: int | Sequence[int], stride: int | Sequence[int] | None, per_channel: bool
) -> list[tuple[slice, ...]]:
    """Every place of the patch, as slices of the input."""
    shape, axes = x.shape[2:], x.ndim - 2
    if axes < 1:
        return [(slice(None), *(slice(i, i + 1) for i in at)) for at in itertools.product(*map(range, x.shape[1:]))]
    edges, steps = _per_axis(patch, axes), _per_axis(patch if stride is None else stride, axes)
    if min(steps) < 1 or any(step > edge for step, edge in zip(steps, edges, strict=True)):
        raise ValueError(f"patch {patch}, stride {stride}: 1 <= stride <= patch is needed, or voxels are left out")
    spans = []
    for length, edge, step in zip(shape, edges, steps, strict=True):
        count = math.ceil(max(length - edge, 0) / step) + 1
        spans.append([slice(k * step, k * step + edge) for k in range(count)])
    channels = [slice(c, c + 1) for c in range(x.shape[1])] if per_channel else [slice(None)]
    return [(slice(None), channel, *box) for channel in channels for box in itertools.product(*spans)]


def _per_axis(value: int | Sequence[int], axes: int) -> Sequence[int]:
    values = [value] * axes if isinstance(value, int) else value
    if len(values) != axes:
        raise ValueError(f"{value} has {len(values)} numbers for {axes} spatial axes")
    return values
