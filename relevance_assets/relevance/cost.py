"""What ways of explaining cost, in passes of the network.

Belongs here: counting. Does not belong here: wall time (`benchmarks/`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from relevance_assets.relevance.maps import Scenarios
from relevance_assets.study import Method

__all__ = ["TOGETHER", "flops", "passes"]

TOGETHER = "all together"


def passes(
    model: nn.Module,
    methods: Mapping[str, Method],
    images: ArrayLike,
    covariates: ArrayLike,
    brain: ArrayLike | None = None,
) -> dict[str, float]:
    """FLOPs of each method's maps of one scan, and of all methods together, by those of a forward and backward pass.

    Parameters
    ----------
    model
        Images (B, C, X, Y, Z) and covariates (B, P) to (B,).
    methods
        By name.
    images : (C, X, Y, Z)
    covariates : (P,)
    brain : (X, Y, Z) bool
        As `Scenarios` takes it. Rules cost more with a mask that leaves something out.

    Returns
    -------
    dict
        By the method's name; `TOGETHER` shares what they have in common. What is done once per network (tracing,
        preparing weights) is not counted.
    """
    network = copy.deepcopy(model).double().eval().requires_grad_(False)
    q = torch.as_tensor(np.asarray(images, dtype=np.float64))[None].requires_grad_()
    p = torch.as_tensor(np.asarray(covariates, dtype=np.float64)).reshape(1, -1)

    def unit() -> None:
        x = q.view_as(q)  # no leaf: the counter cannot follow `autograd.grad` to one
        torch.autograd.grad(network(x, p).sum(), x)

    one = flops(unit)
    scenarios = Scenarios(model, methods)
    scenarios(images, covariates, brain)  # traces
    counted = {name: [name] for name in methods} | {TOGETHER: list(methods)}
    return {
        name: flops(lambda only=only: scenarios(images, covariates, brain, only)) / one
        for name, only in counted.items()
    }


def flops(call: Callable[..., Any]) -> int:
    """Floating point operations of convolutions and matrix products, as torch dispatches them."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
