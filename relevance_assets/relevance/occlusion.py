"""Occlusion: what a network says without a part of its input.

Belongs here: places of the patch, and the mean over them. Does not belong here: methods by gradients (`baselines.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from relevance_assets.relevance.baseline_calls import (
    Function,
    Inputs,
    Value,
    checked,
    chunks,
    reference_inputs,
    value_of,
)

__all__ = ["occlusion"]


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
        See `baselines`; gradients are not needed.
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
    inputs = tuple(x.detach() for x in checked(inputs))
    fills = reference_inputs(inputs, fill)
    batch = len(inputs[0])
    maps = []
    with torch.no_grad():
        whole = value_of(function, inputs)
        for index, x in enumerate(inputs):
            total, covered = torch.zeros_like(x), torch.zeros_like(x[:1])
            ones = [1] * (x.ndim - 1)
            for some in chunks(_boxes(x, patch, stride, per_channel), batch, internal_batch_size):
                rows = [y.repeat(len(some), *[1] * (y.ndim - 1)) for y in inputs]
                for copy, box in zip(rows[index].split(batch), some, strict=True):
                    copy[box] = fills[index][box]
                drops = whole - value_of(function, tuple(rows)).view(len(some), batch)
                for drop, box in zip(drops, some, strict=True):
                    total[box] += drop.view(-1, *ones)
                    covered[box] += 1
            maps.append(total / covered)
    return maps


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
