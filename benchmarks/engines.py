"""The networks of the benchmark, and one explanation by each engine, made ready so that only it is measured.

Belongs here: networks, composites that say the same to every engine, calls. Does not belong here: measuring
(`measure.py`), tables (`relevance_engine.py`). Libraries are imported where they are used: a process that measures
one engine's memory loads no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ENGINES", "RULES", "Rule", "image", "network", "prepare"]

ENGINES = ("ours", "zennit", "captum")
CLASSES = 10
Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rule:
    """A family of rules: what issue 3 demands of it, and which engine has it.

    convolution, linear, first
        Rules as data, for those layers; `first` wins where it is given.
    flops, speed
        At most so many forward + backward; at least so many times as fast as zennit on the CPU.
    captum
        Name and arguments of captum's rule, or None. Its gamma adds nothing to biases, its z+ knows no sign of the
        input: both cost less than the rules they are named after.
    """

    title: str
    convolution: dict[str, Any]
    linear: dict[str, Any]
    flops: float
    speed: float | None = None
    first: dict[str, Any] | None = None
    captum: tuple[str, tuple[float, ...]] | None = None


EPSILON = {"rule": "epsilon", "epsilon": 1e-6}
GAMMA = {"rule": "gamma", "gamma": 0.25}
BOX = {"rule": "box", "low": 0.0, "high": 1.0}
WIDE_BOX = {"rule": "box", "low": -10.0, "high": 10.0}
# On a DenseNet121 of random weights 1e-6 would amplify relevance by 10^19: beyond every float, in every engine.
LARGE = {"rule": "epsilon", "epsilon": 0.1}
RULES = {
    "epsilon": Rule("epsilon 0.1", LARGE, LARGE, 1.05, 1.8, captum=("EpsilonRule", (0.1,))),
    "z_plus": Rule("z+", {"rule": "z_plus"}, {"rule": "z_plus"}, 1.6, 2.0, captum=("Alpha1_Beta0_Rule", ())),
    "gamma": Rule("gamma", GAMMA, GAMMA, 1.6, captum=("GammaRule", (0.25,))),
    "alpha_beta": Rule("alpha 2 beta 1", {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0}, EPSILON, 2.1, 2.0),
    "gamma_box": Rule("gamma, box first", GAMMA, EPSILON, 1.6, 3.0, first=BOX),
}


# ---------------------------------------------------------------------------------------------------------- networks
def plain(channels: int = 1) -> nn.Module:
    """Four blocks of 3 x 3 x 3 convolution, ReLU and maximum pool, and a dense layer on the mean."""
    blocks: list[nn.Module] = []
    for before, after in pairwise((channels, 8, 16, 32, 64)):
        blocks += [nn.Conv3d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def densenet121(channels: int = 1) -> nn.Module:
    from monai.networks.nets import DenseNet121

    return DenseNet121(spatial_dims=3, in_channels=channels, out_channels=CLASSES)


NETWORKS = {"plain": plain, "densenet121": densenet121}


def network(name: str, channels: int = 1, seed: int = 0) -> nn.Module:
    """One of `NETWORKS` with weights and batch norms as after training, frozen, in eval mode.

    Batch norms have epsilon 0, since zennit 0.5.1 leaves a batch norm's epsilon in when it merges it.
    """
    torch.manual_seed(seed)
    model = NETWORKS[name](channels)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.eps = 0.0
            elif isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1)
    return model.eval().requires_grad_(False)


def image(*shape: int, signed: bool = False, seed: int = 0) -> Tensor:
    """A smooth ellipsoid of tissue on a background of 0, scaled to [0, 1]; `signed`: z-scored inside it."""
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-1, 1, n) for n in shape[2:]]
    inside = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij")) < 0.8
    values = torch.nn.functional.avg_pool3d(torch.rand(shape, generator=generator), 3, 1, 1)
    if signed:
        tissue = values[..., inside]
        return (values - tissue.mean()) / tissue.std() * inside
    return values / values.max() * inside


# ------------------------------------------------------------------------------------------------------------ engines
def prepare(
    engine: str,
    model: nn.Module,
    rule: str | None,
    name: str,
    *,
    index: int = 0,
    signed: bool = False,
    fold: Sequence[str] = ("left",),
) -> Call:
    """A call that explains the logit of class `index`, on a copy of `model`; `signed`: of z-scored images.

    `engine` "unit" is one forward + backward to the input, whatever the rule. zennit stays registered between calls
    and canonized once, which is its best case; captum needs its rules anew for every call.
    """
    model = deepcopy(model)
    if engine == "unit":
        return lambda x: _gradient(model, x, index)
    assert rule is not None
    family = RULES[rule]
    if signed and family.first:
        family = replace(family, first=WIDE_BOX)
    if engine == "ours":
        return _ours(model, composite(family, fold), index)
    return {"zennit": _zennit, "captum": _captum}[engine](model, family, name, index)


def _traced(x: Tensor) -> Tensor:
    """The image as an input that has a gradient, no leaf: torch's FLOP counter cannot follow `autograd.grad` to one."""
    return x.detach().clone().requires_grad_().view_as(x)


def _gradient(model: nn.Module, x: Tensor, index: int) -> Tensor:
    x = _traced(x)
    return torch.autograd.grad(model(x)[:, index].sum(), x)[0]


def composite(family: Rule, fold: Sequence[str] = ("left",)) -> dict[str, Any]:
    """The rule for every layer, as data; `fold`: where batch norms go, ("left",) being all that zennit can."""
    first = [{"place": "first", **family.first}] if family.first else []
    layers = [{"kind": "convolution", **family.convolution}, {"kind": "linear", **family.linear}]
    return {"layers": first + layers, "bias": "keep", "fold": list(fold)}


def _ours(model: nn.Module, rules: dict[str, Any], index: int) -> Call:
    from relevance_assets.relevance import Explainer

    explainer = Explainer(model, rules)
    return lambda x: explainer(x, index).relevance


def _zennit(model: nn.Module, family: Rule, name: str, index: int) -> Call:
    from zennit.attribution import Gradient
    from zennit.canonizers import NamedMergeBatchNorm
    from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite, layer_map_base
    from zennit.rules import AlphaBeta, Epsilon, Gamma, ZBox, ZPlus
    from zennit.types import Convolution

    hooks = {"epsilon": Epsilon, "z_plus": ZPlus, "gamma": Gamma, "alpha_beta": AlphaBeta, "box": ZBox}

    def hook(data: dict[str, Any]) -> Any:
        return hooks[data["rule"]](**{key: value for key, value in data.items() if key != "rule"})

    layers = [*layer_map_base(), (Convolution, hook(family.convolution)), (nn.Linear, hook(family.linear))]
    canonizers = [NamedMergeBatchNorm(_merges(model))] if name == "densenet121" else []
    if family.first:
        first = [(Convolution, hook(family.first))]
        rules = SpecialFirstLayerMapComposite(layers, first, canonizers=canonizers)
    else:
        rules = LayerMapComposite(layers, canonizers=canonizers)
    rules.register(model)

    def start(output: Tensor) -> Tensor:
        relevance = torch.zeros_like(output)
        relevance[:, index] = output[:, index].detach()
        return relevance

    attributor = Gradient(model=model, composite=rules)
    return lambda x: attributor(_traced(x), start)[1]


def _merges(model: nn.Module) -> list[tuple[list[str], str]]:
    """A DenseNet's convolutions that a batch norm follows: the stem's, and the first of each dense layer."""
    norms = [name for name, _ in model.named_modules() if name.endswith("layers.norm2")]
    return [(["features.conv0"], "features.norm0"), *(([n.replace("norm2", "conv1")], n) for n in norms)]


def _captum(model: nn.Module, family: Rule, name: str, index: int) -> Call:
    from captum.attr import LRP
    from captum.attr._utils import lrp_rules

    assert family.captum is not None
    kind, arguments = family.captum

    def call(x: Tensor) -> Tensor:
        for module in model.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                module.rule = getattr(lrp_rules, kind)(*arguments)
            elif isinstance(module, nn.MaxPool3d | nn.AdaptiveAvgPool3d | nn.Flatten):
                module.rule = lrp_rules.EpsilonRule(1e-6)
        return LRP(model).attribute(_traced(x), target=index)

    return call


def has(engine: str, rule: str, name: str, fold: Sequence[str] = ("left",)) -> bool:
    """Whether the engine has the rule, and folds batch norms so.

    captum cannot explain a DenseNet: `tests/oracles/test_witnesses_refuted.py`.
    """
    if engine == "captum" and (RULES[rule].captum is None or name != "plain"):
        return False
    return engine == "ours" or "right" not in fold
