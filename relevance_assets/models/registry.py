"""Networks by name.

Belongs here: which names there are, and that their options are checked before anything is built.
Does not belong here: the networks.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from relevance_assets.models.gated_attention import GatedAttentionNet
from relevance_assets.models.mrinet import MRINet
from relevance_assets.models.vgg16 import VGG16

__all__ = ["FILES", "MODELS", "build"]

MODELS: dict[str, type[nn.Module]] = {"gated_attention": GatedAttentionNet, "mrinet": MRINet, "vgg16": VGG16}
GIVEN = {"self", "shape", "contrasts", "covariates", "target_mean", "classes"}
FILES = ("weights",)  # options that name a file from which weights begin; a trained model does not need it


def build(
    name: str,
    *,
    shape: tuple[int, int, int],
    contrasts: int,
    covariates: int,
    options: dict[str, Any],
    target_mean: float = 0.0,
    classes: int = 0,
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
    classes
        Outputs of a network that tells classes apart; 0 for a target that is one number.

    Raises
    ------
    ValueError
        For an unknown name or option, a value that the network refuses, or a network for another kind of target.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not known; choose one of {', '.join(sorted(MODELS))}")
    parameters = _parameters(MODELS[name])
    allowed = sorted(set(parameters) - GIVEN)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"model {name}: unknown option {unknown[0]!r}; it has {', '.join(allowed)}")
    if bool(classes) != ("classes" in parameters):
        kind, other = ("one number", "classes") if classes else ("classes", "one number")
        fitting = sorted(
            each for each, network in MODELS.items() if bool(classes) == ("classes" in _parameters(network))
        )
        raise ValueError(f"model {name}: is for a target of {kind}, not of {other}; take {' or '.join(fitting)}")
    extra: dict[str, Any] = {"target_mean": target_mean} if "target_mean" in parameters else {}
    extra |= {"classes": classes} if classes else {}
    return MODELS[name](shape, contrasts, covariates, **options, **extra)


def _parameters(network: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(network.__init__).parameters
