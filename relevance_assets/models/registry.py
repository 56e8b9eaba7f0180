"""Networks by name.

Belongs here: which names there are, and that their options are checked before anything is built.
Does not belong here: the networks.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from relevance_assets.models.gated_attention import GatedAttentionNet
from relevance_assets.models.mrinet import MRINet

__all__ = ["MODELS", "build"]

MODELS: dict[str, type[nn.Module]] = {"gated_attention": GatedAttentionNet, "mrinet": MRINet}
GIVEN = {"self", "shape", "contrasts", "covariates", "target_mean"}


def build(
    name: str,
    *,
    shape: tuple[int, int, int],
    contrasts: int,
    covariates: int,
    options: dict[str, Any],
    target_mean: float = 0.0,
) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Parameters
    ----------
    name
        A key of `MODELS`.
    shape, contrasts, covariates
        Grid of the images, images per scan, numbers beside them.
    options
        The network's own keyword arguments, as written in `model.options`.
    target_mean
        Mean of the training targets; networks for regression begin there, others leave it aside.

    Raises
    ------
    ValueError
        For an unknown name or option, or a value that the network refuses.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not known; choose one of {', '.join(sorted(MODELS))}")
    parameters = inspect.signature(MODELS[name].__init__).parameters
    allowed = sorted(set(parameters) - GIVEN)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"model {name}: unknown option {unknown[0]!r}; it has {', '.join(allowed)}")
    extra = {"target_mean": target_mean} if "target_mean" in parameters else {}
    return MODELS[name](shape, contrasts, covariates, **options, **extra)
