"""zennit 0.5.1 and captum 0.9.0 as independent witnesses: where conventions agree, maps must be equal.

Belongs here: agreement, rule by rule and composite by composite. Where a witness is wrong is in
`test_witnesses_refuted.py`. Formulas have their own oracle (`dense_lrp.py`).

Batch norms have epsilon 0: zennit 0.5.1 leaves theirs in when it merges them, which costs it 1e-6 to 1e-4.
"""

from copy import deepcopy
from functools import cache

import pytest
import torch
import witnesses
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from torch import nn
from witnesses import everywhere, one_hot, zennit_map
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat, NameMapComposite
from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, Pass, WSquare, ZBox, ZPlus

from relevance_assets.relevance import explain

NETWORKS = {
    "cnn1d": (lambda: witnesses.cnn(1), (2, 2, 12)),
    "cnn2d": (lambda: witnesses.cnn(2), (2, 2, 12, 12)),
    "cnn3d": (lambda: witnesses.cnn(3), (2, 2, 12, 12, 12)),
    "transposed3d": (lambda: witnesses.cnn(3, transposed=True), (2, 2, 12, 12, 12)),
    "norm2d": (lambda: witnesses.cnn(2, norm=True, transposed=True), (2, 2, 12, 12)),
    "norm3d": (lambda: witnesses.cnn(3, norm=True), (2, 2, 12, 12, 12)),
    "vgg16": (witnesses.vgg16, (1, 3, 32, 32)),
    "densenet": (witnesses.densenet, (2, 1, 16, 16, 16)),
}


def data(*layers, bias="keep"):
    """Our composite; batch norms go where zennit can put them, into the convolution before."""
    return {"layers": list(layers), "bias": bias, "fold": ["left"]}


def kinds(convolution, linear=None, first=None):
    """A composite of one rule for convolutions, one for dense layers, one for the first of them."""
    layers = [{"place": "first", **first}] if first else []
    return data(*layers, {"kind": "convolution", **convolution}, {"kind": "linear", **(linear or convolution)})


EPSILON, PLUS = {"rule": "epsilon", "epsilon": 1e-6}, {"rule": "z_plus"}
BOX, FLAT = {"rule": "box", "low": 0.0, "high": 1.0}, {"rule": "flat"}
COMPOSITES = {
    "EpsilonPlus": (lambda c: EpsilonPlus(canonizers=c), kinds(PLUS, EPSILON)),
    "EpsilonPlusFlat": (lambda c: EpsilonPlusFlat(canonizers=c), kinds(PLUS, EPSILON, first=FLAT)),
    "EpsilonGammaBox": (
        lambda c: EpsilonGammaBox(low=0.0, high=1.0, canonizers=c),
        kinds({"rule": "gamma", "gamma": 0.25}, EPSILON, first=BOX),
    ),
    "EpsilonAlpha2Beta1": (
        lambda c: EpsilonAlpha2Beta1(canonizers=c),
        kinds({"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0}, EPSILON),
    ),
    "epsilon": (lambda c: everywhere(Epsilon(1e-6), c), kinds(EPSILON)),
    "epsilon 0.5": (lambda c: everywhere(Epsilon(0.5), c), kinds({"rule": "epsilon", "epsilon": 0.5})),
    "z plus": (lambda c: everywhere(ZPlus(), c), kinds(PLUS)),
    "gamma": (lambda c: everywhere(Gamma(0.25), c), kinds({"rule": "gamma", "gamma": 0.25})),
    "gamma 100": (lambda c: everywhere(Gamma(100.0), c), kinds({"rule": "gamma", "gamma": 100.0})),
    "alpha 1 beta 0": (
        lambda c: everywhere(AlphaBeta(1.0, 0.0), c),
        kinds({"rule": "alpha_beta", "alpha": 1.0, "beta": 0.0}),
    ),
    "w square": (lambda c: everywhere(WSquare(), c), kinds({"rule": "w_square"})),
    "flat": (lambda c: everywhere(Flat(), c), kinds(FLAT)),
}
# VGG16 is large: it has zennit's own composites, and one rule everywhere.
CASES = [
    (name, composite)
    for name in NETWORKS
    for composite in COMPOSITES
    if name != "vgg16" or composite.startswith("E") or composite in ("epsilon", "gamma", "w square")
]
WIDE_BOX = (
    lambda c: EpsilonGammaBox(low=-2.0, high=3.0, canonizers=c),
    kinds({"rule": "gamma", "gamma": 0.25}, EPSILON, first={"rule": "box", "low": -2.0, "high": 3.0}),
)


@cache
def network(name, dtype):
    """A network, an image in [0, 1], and all logits as the relevance to begin with."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = witnesses.ready(make(), dtype, eps=0.0)
    x = torch.rand(shape, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        return model, x, model(x)


def canonizers(name, model):
    return witnesses.merge_densenet(model) if name == "densenet" else [SequentialMergeBatchNorm()]


def distance(ours, theirs):
    """Relative L2; the witness must have said something."""
    assert theirs.norm() > 0
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("name", "composite"), CASES)
def test_zennit_says_the_same(name, composite):
    model, x, start = network(name, torch.float64)
    theirs, ours = COMPOSITES[composite]
    expected = zennit_map(model, theirs(canonizers(name, model)), x, start)
    assert distance(explain(model, x, ours, start).relevance, expected) <= 1e-10


@pytest.mark.parametrize(("name", "composite"), CASES)
def test_zennit_says_the_same_in_float32(name, composite):
    """To 1e-5; where zennit's own rounding is more than that, ours is no more than zennit's."""
    model, x, start = network(name, torch.float32)
    theirs, ours = COMPOSITES[composite]
    expected = zennit_map(model, theirs(canonizers(name, model)), x, start)
    relevance = explain(model, x, ours, start).relevance
    if distance(relevance, expected) > 1e-5:
        double = deepcopy(model).double()
        truth = zennit_map(double, theirs(canonizers(name, double)), x.double(), start.double())
        assert distance(expected, truth) > 1e-5
        assert distance(relevance, truth) <= distance(expected, truth)


@pytest.mark.parametrize("composite", ["EpsilonPlus", "box", "EpsilonAlpha2Beta1", "z plus", "gamma"])
@pytest.mark.parametrize("name", ["cnn1d", "cnn3d", "norm3d", "densenet"])
def test_zennit_says_the_same_of_signed_inputs(name, composite):
    model, x, _ = network(name, torch.float64)
    signed = 4 * x - 2
    start = one_hot(model, signed, 1)
    theirs, ours = {**COMPOSITES, "box": WIDE_BOX}[composite]
    expected = zennit_map(model, theirs(canonizers(name, model)), signed, start)
    assert distance(explain(model, signed, ours, start).relevance, expected) <= 1e-10


@pytest.mark.parametrize("gamma", [-20.0, -0.5, 1e6])
def test_zennit_says_the_same_for_any_gamma(gamma):
    model, x, start = network("cnn3d", torch.float64)
    expected = zennit_map(model, everywhere(Gamma(gamma)), x, start)
    assert distance(explain(model, x, kinds({"rule": "gamma", "gamma": gamma}), start).relevance, expected) <= 1e-10


def relative(z):
    """An epsilon of a tenth of the sample's mean absolute output, as zennit takes it: the denominator for z."""
    scale = z.abs().mean(dim=tuple(range(1, z.ndim)), keepdim=True)
    return z + 0.1 * scale * torch.where(z < 0, -torch.ones_like(z), 1)


@pytest.mark.parametrize("name", ["cnn1d", "cnn3d", "vgg16"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("epsilon_plus", EpsilonPlus()),
        ("epsilon_plus_flat", EpsilonPlusFlat()),
        ("gamma_box", EpsilonGammaBox(low=0.0, high=1.0)),
        ("epsilon_alpha2_beta1", EpsilonAlpha2Beta1()),
        ("alpha_beta", EpsilonAlpha2Beta1()),
        ("epsilon", everywhere(Epsilon(relative), stabilizer=relative)),
        ("gamma", everywhere(Gamma(0.25))),
        ("z_plus", everywhere(ZPlus(), stabilizer=lambda z: torch.where(z == 0, 1.0, z))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_our_names_are_zennits_composites(name, ours, theirs):
    """`z_plus` has it for average pools too, which is zennit's Norm without stabiliser."""
    model, x, start = network(name, torch.float64)
    assert distance(explain(model, x, ours, start).relevance, zennit_map(model, theirs, x, start)) <= 1e-10


@pytest.mark.parametrize("name", ["cnn3d", "norm3d", "densenet"])
@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "gamma", "alpha_beta"])
def test_zennit_says_the_same_with_biases_dropped(name, rule):
    model, x, start = network(name, torch.float64)
    make = {"epsilon": Epsilon, "z_plus": ZPlus, "gamma": Gamma, "alpha_beta": AlphaBeta}[rule]
    theirs = everywhere(make(zero_params=["bias"]), canonizers(name, model))
    layers = [{"kind": kind, "rule": rule} for kind in ("convolution", "linear")]
    ours = explain(model, x, data(*layers, bias="drop"), start).relevance
    assert distance(ours, zennit_map(model, theirs, x, start)) <= 1e-10


def test_zennit_says_the_same_of_rules_by_name():
    """Every layer another rule, by its name; per-channel bounds for the box."""
    model, x, start = network("cnn3d", torch.float64)
    low = torch.tensor([0.0, -0.5], dtype=x.dtype).reshape(1, 2, 1, 1, 1)
    rules = [
        ("0", ZBox(low=low, high=1.0 - low), {"rule": "box", "low": low, "high": 1.0 - low}),
        ("3", WSquare(), {"rule": "w_square"}),
        ("6", AlphaBeta(3.0, 2.0), {"rule": "alpha_beta", "alpha": 3.0, "beta": 2.0}),
        ("10", Flat(), {"rule": "flat"}),
        ("12", Epsilon(0.1), {"rule": "epsilon", "epsilon": 0.1}),
    ]
    weighted = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    assert weighted == [name for name, _, _ in rules]
    others = {nn.ReLU: Pass(), nn.AvgPool3d: Norm(), nn.AdaptiveAvgPool3d: Norm()}
    hooks = [(name, others[type(module)]) for name, module in model.named_modules() if type(module) in others]
    hooks += [(name, hook) for name, hook, _ in rules]
    expected = zennit_map(model, NameMapComposite([([name], hook) for name, hook in hooks]), x, start)
    ours = data(*({"name": name, **rule} for name, _, rule in rules))
    assert distance(explain(model, x, ours, start).relevance, expected) <= 1e-10


@pytest.mark.filterwarnings("ignore:.*unexplained:RuntimeWarning")  # zennit keeps no account
@pytest.mark.parametrize("name", ["cnn3d", "norm3d", "densenet", "vgg16"])
@pytest.mark.parametrize("composite", ["EpsilonPlus", "EpsilonPlusFlat", "EpsilonGammaBox", "EpsilonAlpha2Beta1"])
def test_a_zennit_composite_gives_zennits_own_map(name, composite):
    model, x, start = network(name, torch.float32)
    theirs = COMPOSITES[composite][0](canonizers(name, model))
    expected = zennit_map(model, theirs, x, start)
    assert torch.equal(explain(model, x, theirs, start).relevance, expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("rule", "ours", "bias"),
    [
        (lambda: EpsilonRule(1e-9), {"rule": "epsilon", "epsilon": 1e-9}, True),
        (lambda: EpsilonRule(1e-9), {"rule": "epsilon", "epsilon": 1e-9}, False),
        (lambda: GammaRule(0.25), {"rule": "gamma", "gamma": 0.25, "stabiliser": 1e-9}, False),
        (Alpha1_Beta0_Rule, {"rule": "z_plus", "stabiliser": 1e-9}, False),
    ],
    ids=["epsilon with biases", "epsilon", "gamma", "z plus"],
)
def test_captum_says_the_same(dims, rule, ours, bias):
    """Of inputs and logits >= 0, without biases where captum's rule would keep their sign."""
    torch.manual_seed(0)
    model = witnesses.ready(witnesses.cnn(dims, bias=bias), torch.float32)
    with torch.no_grad():
        model[-1].weight.abs_()
        if bias:
            model[-1].bias.abs_()
    x = torch.rand(2, 2, *[12] * dims)
    average = {"kind": "average", "rule": "epsilon", "epsilon": 1e-9}
    relevance = explain(model, x, data(*kinds(ours)["layers"], average), 1).relevance
    assert distance(relevance, witnesses.captum_map(model, rule, x, 1)) <= 1e-5


def test_captum_says_the_same_of_vgg16():
    model, x, _ = network("vgg16", torch.float64)
    average = {"kind": "average", "rule": "epsilon", "epsilon": 1e-9}
    ours = data(*kinds({"rule": "epsilon", "epsilon": 1e-9})["layers"], average)
    assert distance(explain(model, x, ours, 1).relevance, witnesses.captum_map(model, EpsilonRule, x, 1)) <= 1e-5
