"""Grids of gamma and epsilon: the rules against zennit and plain NumPy, cells against the `Explainer` alone."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from relevance_assets.relevance import Explainer, UnknownOperation, check_model, explain
from relevance_assets.relevance.ledger import LOSSES
from relevance_assets.relevance.rule_grid import Account, RuleGrid, cost
from relevance_assets.relevance.vgg_rules import PUBLISHED, SENSIBLE, VARIANTS, Cell, composite, grid, lrp_0

SHAPE = (3, 64, 64)
GAMMAS = (-20.0, -1.0, 0.0, 0.25, 100.0)
ENDS = (3, 5)  # of the small network: gamma 1 and 2, epsilon 3 and 4, LRP-0 5 and 6


def small_vgg(seed: int = 0) -> nn.Sequential:
    """Five convolutions, two dense layers, as VGG has them."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(8 * 49, 10), nn.ReLU(inplace=True),
        nn.Dropout(), nn.Linear(10, 3),
    )  # fmt: skip
    return net.double().eval()


def picture(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def alone(explainer, image, rules, target) -> tuple[np.ndarray, dict[str, float]]:
    """One cell as the `Explainer` does it: map, and sums of its ledger."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of cells that amplify
        found = explainer.several(image[None], [(rules, target)])[0]
    sums = {name: found.ledger[name].sum() for name in LOSSES}
    return found.relevance[0].sum(0).numpy(), sums | {"start": float(found.start.sum()), "total": float(found.total)}


def close(found, expected, tolerance: float) -> None:
    """In units of the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# ------------------------------------------------------------------------------------------------------------- zennit
def unsigned(epsilon: float):
    """z to z + epsilon, stabilised by 1e-6; 0 counts as positive."""
    from zennit.core import Stabilizer

    return lambda z: Stabilizer(1e-6)(z + epsilon)


def zennit_map(net, image, hooks, target=None, start=None) -> np.ndarray:
    """Relevance by zennit, for hooks by the name of a module."""
    from zennit.attribution import Gradient
    from zennit.composites import NameMapComposite

    def put_in(output):
        return start if start is not None else output * nn.functional.one_hot(torch.tensor([target]), output.shape[1])

    rules = NameMapComposite([([name], hook) for name, hook in hooks.items()])
    with Gradient(net, rules) as attributor:
        return attributor(image[None].clone().requires_grad_(), put_in)[1][0].detach().sum(0).numpy()


def zennit_hooks(gamma: float, epsilon: float, dtype: torch.dtype) -> dict[str, object]:
    from zennit.rules import Epsilon, Gamma, ZBox

    low, high = torch.zeros(1, *SHAPE, dtype=dtype), torch.ones(1, *SHAPE, dtype=dtype)
    hooks = {"0": ZBox(low, high), "13": Epsilon(1e-6), "15": Epsilon(1e-6), "18": Epsilon(1e-6)}
    hooks |= {name: Gamma(gamma, stabilizer=1e-6) for name in ("2", "5")}
    return hooks | {name: Epsilon(unsigned(epsilon)) for name in ("8", "10")}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_gamma_of_one_layer_is_zennits(gamma, dtype, bound):
    from zennit.rules import Gamma

    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()).to(dtype).eval()
    image = picture(dtype)[:, :16, :16]
    start = net(image[None]).detach() * torch.rand(1, 5, 16, 16, dtype=dtype)  # as behind a ReLU: 0 where it is off
    expected = zennit_map(net, image, {"0": Gamma(gamma, stabilizer=1e-6)}, start=start)
    found = explain(net, image[None], [{"rule": "gamma", "gamma": gamma}], start)
    close(found.relevance[0].sum(0), expected, bound)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
def test_grid_is_zennits(dtype, bound):
    net, image = small_vgg().to(dtype), picture(dtype)
    cells = list(RuleGrid(net, SHAPE, grid(ENDS, GAMMAS, (-20.0, 0.0, 0.5)))(image, [1]))
    assert len(cells) == 15
    for one in cells:
        close(
            one.relevance, zennit_map(net, image, zennit_hooks(*one.cell, dtype), 1), max(bound, 1e-7)
        )  # float32 maps


def test_grid_is_zennits_in_float64():
    """What the float32 of a stored map would hide: the `Explainer`'s own numbers, which cells are (see below)."""
    net, image = small_vgg(), picture()
    for gamma in GAMMAS:
        expected = zennit_map(net, image, zennit_hooks(gamma, -0.3, torch.float64), 2)
        close(alone(Explainer(net), image, composite(ENDS, gamma, -0.3), 2)[0], expected, 1e-12)


# ------------------------------------------------------------------------------------------------------- closed forms
def chain(weights: list[float]) -> nn.Sequential:
    """One unit after another, without biases."""
    net = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights)).double().eval()
    for layer, weight in zip(net, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    return net


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("epsilon", [-3.0, -0.25, 0.0, 7.0])
def test_unsigned_epsilon_keeps_z_of_z_plus_epsilon(count, epsilon):
    """Of every layer; and epsilon < -z turns the sign over, so an odd number of layers turns the map over."""
    weights = [0.5, *(1.5 + 0.1 * layer for layer in range(count)), 2.0]
    z = np.cumprod(weights)
    found = explain(chain(weights), torch.ones(1, 1, dtype=torch.float64), composite((1, 1 + count), 0, epsilon), 0)
    shifted = z[1 : 1 + count] + epsilon
    factor = np.prod(z[1 : 1 + count] / (shifted + 1e-6 * np.sign(shifted)))
    expected = z[-1] * factor * z[0] / (z[0] + 1e-6) * z[-1] / (z[-1] + 1e-6)  # zB and LRP-0 with their stabilisers
    assert float(found.total) == pytest.approx(expected, rel=1e-12)
    if epsilon == -3.0 and count < 4:
        assert np.sign(float(found.total)) == (-1) ** count


def test_denominators_of_0_count_as_positive():
    """Unsigned epsilon, with z + epsilon = 0 and z = 0: divided by +1e-6, also where z + 1e-6 is z in float32."""
    dense = nn.Linear(2, 1, bias=False).double()
    for weights, epsilon in (((1.0, -1.0), 0.0), ((0.5, 0.25), -0.75), ((60.0, 40.0), -100.0)):
        dense.weight.data[:] = torch.tensor(weights)
        rule = [{"kind": "linear", "rule": "epsilon", "epsilon": epsilon, "signed": False}]
        for dtype in (torch.float64, torch.float32):
            start, ones = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # one millionfold: rounding shows in the account
                found = explain(dense, ones, rule, start, dtype=dtype).relevance[0]
            assert found.tolist() == pytest.approx([weight / 1e-6 for weight in weights], rel=torch.finfo(dtype).eps)


def dense_gamma(x, weight, bias, gamma, relevance, stabiliser=1e-6):
    """R_j = x_j sum_k w'_kj R_k / z'_k, w' = w + gamma w+, b' alike, as published."""
    weight, bias = weight + gamma * np.maximum(weight, 0), bias + gamma * np.maximum(bias, 0)
    z = weight @ x + bias
    return x * (weight.T @ (relevance / (z + stabiliser * np.where(z >= 0, 1, -1))))


@pytest.mark.parametrize("gamma", [*GAMMAS, -100.0, 1e12])
def test_gamma_as_published(gamma):
    random = np.random.default_rng(5)
    x, weight, bias = random.random(7), random.normal(size=(6, 7)), random.normal(size=6)
    layer = nn.Sequential(nn.Linear(7, 6), nn.ReLU()).double()
    layer[0].weight.data, layer[0].bias.data = torch.tensor(weight), torch.tensor(bias)
    relevance = np.maximum(weight @ x + bias, 0) * random.random(6)
    start = torch.tensor(relevance)[None]
    found = explain(layer, torch.tensor(x)[None], [{"rule": "gamma", "gamma": gamma}], start).relevance[0].numpy()
    close(found, dense_gamma(x, weight, bias, gamma, relevance), 1e-12)
    if gamma == -20:  # the weighted |w| rule: 19 to 1, no signs
        size = np.where(weight > 0, 19 * weight, -weight)
        shares = size * x / (size @ x + np.where(bias > 0, 19 * bias, -bias) + 1e-6)[:, None]
        close(found, shares.T @ relevance, 1e-12)
        assert (found >= 0).all()
    if gamma == 1e12:  # z+
        plus = np.maximum(weight, 0) * x
        shares = plus / (plus.sum(1) + np.maximum(bias, 0))[:, None]
        close(found, shares.T @ relevance, 1e-9)


@pytest.mark.parametrize("boxes", ["as_published", "data_range", (-0.5, 2)])
def test_bounds_of_zb(boxes):
    """R_c = (w_c x_c - w_c+ low_c - w_c- high_c) / sum, for a kernel of one pixel."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    low, high = {"as_published": (-mean / std, (1 - mean) / std), "data_range": (np.zeros(3), np.ones(3))}.get(
        boxes, (np.full(3, -0.5), np.full(3, 2.0))
    )
    weight, x, stabiliser = np.array([0.7, -0.4, 0.2]), np.array([0.1, 0.9, 0.0]), 1e-6
    net = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.ReLU()).double()
    net[0].weight.data = torch.tensor(weight).view(1, 3, 1, 1)
    image, start = torch.tensor(x).view(1, 3, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    found = explain(net, image, composite((1, 1), 0, 0, boxes=boxes), start).relevance.flatten().numpy()
    parts = weight * x - np.maximum(weight, 0) * low - np.minimum(weight, 0) * high
    close(found, parts / (parts.sum() + stabiliser), 1e-12)


def test_an_image_out_of_bounds_is_refused():
    net, image = small_vgg(), 2.0 * picture()
    with pytest.raises(ValueError, match=r"box rule needs inputs in \[0, 1\]"):
        next(RuleGrid(net, SHAPE, grid(ENDS, (0,), (0,)))(image))
    next(RuleGrid(net, SHAPE, grid(ENDS, (0,), (0,), boxes="as_published"))(image))  # up to 2.25


def test_epsilon_in_units_of_the_layer():
    weights = [0.5, 3.0, 2.0]
    for epsilon in (0.1, 1.0):
        rules = composite((1, 2), 0, epsilon, signed=True, relative=True, stabiliser=0)
        found = explain(chain(weights), torch.ones(1, 1, dtype=torch.float64), rules, 0)
        assert float(found.total) == pytest.approx(3.0 / (1 + epsilon))  # one unit: its size is the mean


# ----------------------------------------------------------------------------------------------------------- variants
@pytest.fixture(scope="module")
def vgg16():
    from torchvision.models import vgg16

    torch.manual_seed(0)
    return vgg16(weights=None, init_weights=False).eval()


@pytest.mark.parametrize(
    ("variant", "gammas", "epsilons", "zeros"),
    [
        ("as_published_code", [2, 5, 7, 10, 12, 14, 17], [19, 21, 24, 26, 28], [32, 35, 38]),
        ("figure", [2, 5, 7, 10, 12, 14], [17, 19, 21, 24, 26, 28], [32, 35, 38]),
        ("readme", [2, 5, 7, 10, 12, 14, 17], [19, 21, 24, 26, 28, 32, 35], [38]),
    ],
)
def test_variants_hit_these_leaves(vgg16, variant, gammas, epsilons, zeros):
    """Leaf modules of torchvision's VGG16 in order, as the published code counts them."""
    leaves = [name for name, module in vgg16.named_modules() if not list(module.children())]
    table = check_model(vgg16, torch.rand(1, 3, 64, 64), composite(variant, -20, -40))
    rules = {leaves.index(row["layer"]): row["rule"] for row in table.iter_rows(named=True) if row["layer"] in leaves}
    expected = {0: "box"} | dict.fromkeys(gammas, "gamma(gamma=-20)")
    expected |= dict.fromkeys(epsilons, "epsilon(epsilon=-40, signed=False)")
    expected |= dict.fromkeys(zeros, "zero(epsilon=1e-06)") | {31: "epsilon(1e-06)"}
    pools = {index for index, name in enumerate(leaves) if isinstance(vgg16.get_submodule(name), nn.MaxPool2d)}
    assert len(pools) == 5
    expected |= dict.fromkeys(pools, "winner")
    assert {index: rule for index, rule in rules.items() if rule != "pass"} == expected
    assert set(VARIANTS) == {"as_published_code", "figure", "readme"}


def test_grids():
    published = grid("figure")
    assert len(published) == 121
    assert tuple(range(-100, 101, 20)) == PUBLISHED
    assert list(published)[:2] == [Cell(-100, -100), Cell(-100, -80)]
    assert pytest.approx(np.linspace(0, 1, 11)) == SENSIBLE
    assert len(grid((1, 2), SENSIBLE, SENSIBLE, signed=True, relative=True)) == 121


# -------------------------------------------------------------------------------------------------------------- cells
@pytest.mark.parametrize(
    ("ends", "options"),
    [
        (ENDS, {}),
        (ENDS, {"signed": True, "relative": True}),
        (ENDS, {"boxes": "as_published", "relative": True}),
        ((1, 5), {}),
        ((5, 5), {}),
        ((3, 6), {}),
        ((3, 7), {"signed": True, "relative": True}),
    ],
    ids=str,
)
def test_cells_are_the_explainers(ends, options):
    """Every cell of every target, map and account; in one go, and one at a time."""
    net, image = small_vgg(), picture()
    explainer, composites = Explainer(net), grid(ends, (-20.0, 0.25), (0.2, 0.0, 3.0), **options)
    for memory in (2**30, 1):
        found = {(one.cell, one.target): one for one in RuleGrid(net, SHAPE, composites, memory=memory)(image, [2, 0])}
        assert len(found) == 12
        for (cell, target), one in found.items():
            expected, sums = alone(explainer, image, composites[cell], target)
            close(one.relevance, expected.astype(np.float32), 1.2e-7)
            assert one.relevance.dtype == np.float32
            for name, value in sums.items():
                assert getattr(one.account, name) == pytest.approx(value, rel=1e-12, abs=1e-12 * abs(one.account.start))
            assert one.account.total == pytest.approx(expected.sum(), rel=1e-12)
            assert one.account.sound(torch.float64)
            assert one.account.start - one.account.lost == pytest.approx(one.account.total, abs=1e-12)
            assert one.account.worst_share < 1e-11


def test_cells_are_the_explainers_before_rounding(monkeypatch):
    """Maps are stored in float32; here they are not."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    net, image = small_vgg(), picture()
    composites = grid(ENDS, GAMMAS, (-100.0, 0.0, 0.3))
    for one in RuleGrid(net, SHAPE, composites)(image, [1]):
        close(one.relevance, alone(Explainer(net), image, composites[one.cell], 1)[0], 1e-12)


class Forked(nn.Module):
    """Rules part inside one of two branches, with relevance under way in the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.left, self.right = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last((self.left(x).relu() + self.right(x).relu() + x).mean((2, 3)))


def test_networks_that_fork():
    net, image = Forked().double().eval(), picture()
    composites = grid((2, 3), (0.1, 0.5), (0.2, 0.4))
    for one in RuleGrid(net, SHAPE, composites)(image, [0, 1]):
        close(
            one.relevance, alone(Explainer(net), image, composites[one.cell], one.target)[0].astype(np.float32), 1.2e-7
        )
        assert one.account.sound(torch.float64)


def test_targets():
    """None is the predicted class; twice the same is one; composites that are equal get equal maps."""
    net, image = small_vgg(), picture()
    predicted = int(net(image[None]).argmax())
    other = (predicted + 1) % 3
    run = RuleGrid(net, SHAPE, {"a": composite(ENDS, 0, 0.5), "b": composite(ENDS, 0, 0.5)})
    found = list(run(image.numpy(), [predicted, None, other]))
    assert sorted((one.cell, one.target) for one in found) == sorted((c, t) for c in "ab" for t in (predicted, other))
    logits = net(image[None])[0].tolist()
    assert all(one.account.start == pytest.approx(logits[one.target], rel=1e-12) for one in found)
    maps = {(one.cell, one.target): one.relevance for one in found}
    assert np.array_equal(maps["a", other], maps["b", other])
    assert {one.target for one in run(image)} == {predicted}


def test_a_target_without_relevance():
    """A logit of 0 gives maps of 0, and accounts of 0."""
    net = small_vgg()
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    for one in RuleGrid(net, SHAPE, grid(ENDS, (0, 1), (0, 1)))(picture(), [1]):
        assert not one.relevance.any()
        assert (one.account.start, one.account.total, one.account.lost) == (0, 0, 0)
        assert one.account.sound()


def test_an_account_that_does_not_add_up():
    fine = {"start": -2.0, "total": -1.0, "bias": -1.5, "stabiliser": 0.5, "dead": 0.0, "clamped": 0.0}
    left = {"unexplained": 1e-5, "worst": 1e-4, "worst_share": 0.0}
    assert Account(**fine, **left).sound()
    assert Account(**fine, **left).lost == -1.0
    assert not Account(**fine, **left).sound(torch.float64)
    for changed in ({"unexplained": -3e-4}, {"worst": 3e-4}, {"worst": math.nan}, {"unexplained": math.nan}):
        assert not Account(**fine, **left | changed).sound()
    assert not Account(**fine | {"total": math.inf}, **left).sound()


def test_relevance_that_overflows_is_not_sound():
    """epsilon = -z under 1e-6, layer after layer, beyond float32."""
    net = chain([1.0] * 9).float()
    image = torch.ones(1, 1, 1)
    found = list(RuleGrid(Flat(net), (1, 1, 1), grid((1, 8), (0.0,), (-1.0,)), dtype=torch.float32)(image, [0]))
    assert not found[0].account.sound()


class Flat(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.flatten(1))


def test_the_consumer_keeps_its_own_modes():
    """Maps come one by one; what torch is told while one is made is not left behind."""
    for _ in RuleGrid(small_vgg(), SHAPE, grid(ENDS, (0, 1), (0, 1)))(picture()):
        assert torch.is_grad_enabled()


def test_batch_norms_are_folded():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)).double().eval()  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    composites = grid((2, 2), (-2.0, 0.5), (0.0,))
    for one in RuleGrid(net, SHAPE, composites)(picture(), [1]):
        close(one.relevance, alone(Explainer(net), picture(), composites[one.cell], 1)[0].astype(np.float32), 1.2e-7)


# --------------------------------------------------------------------------------------------------------------- cost
def test_cost_in_forward_passes():
    """Counted by hand: what is shared is paid once. The account's sums, which torch counts too, are small beside."""
    gammas, epsilons, targets = (0.1, 0.2, 0.3), (0.1, 0.2, 0.4, 0.5), 2
    layers = {"box": 3 * 6 * 9 * 64**2, "gamma": 6 * 6 * 9 * 64**2 + 6 * 8 * 9 * 32**2,
              "epsilon": 2 * 8 * 8 * 9 * 16**2, "zero": 8 * 49 * 10 + 10 * 3}  # fmt: skip
    forward, lanes = sum(layers.values()), len(epsilons) * targets
    expected = forward + targets * layers["zero"] + lanes * layers["epsilon"]
    expected += len(gammas) * (1 + lanes) * layers["gamma"]  # denominators once per gamma
    expected += len(gammas) * lanes * 2 * layers["box"]  # w+ and w-
    found = cost(RuleGrid(small_vgg(), SHAPE, grid(ENDS, gammas, epsilons)), picture(), [0, 1])
    assert found["flops_of_forward"] == 2 * forward
    assert expected / forward < found["forwards_per_image"] < 1.02 * expected / forward
    assert found["forwards_per_map"] == pytest.approx(found["forwards_per_image"] / (12 * targets), rel=1e-12)
    single = cost(RuleGrid(small_vgg(), SHAPE, grid(ENDS, (0.1,), (0.1,))), picture(), [0])
    assert found["forwards_per_map"] < 0.6 * single["forwards_per_map"]


# ------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variant": "thesis"}, "no variant 'thesis'; choose one of as_published_code, figure, readme"),
        ({"variant": (5, 3)}, r"1 <= gamma <= epsilon, not \(5, 3\)"),
        ({"variant": (0, 3)}, "boundaries are two layer numbers"),
        ({"variant": (1, 2, 3)}, "boundaries are two layer numbers"),
        ({"boxes": "imagenet"}, "bounds are data_range, as_published or two numbers"),
        ({"boxes": (1, 0)}, "box needs low <= high"),
        ({"signed": True}, "epsilon must not be negative, given -20"),
        ({"gamma": math.nan}, "gamma is not a number"),
    ],
)
def test_settings_that_cannot_be_meant(given, message):
    with pytest.raises(ValueError, match=message):
        composite(**{"variant": "figure", "gamma": 1, "epsilon": -20.0} | given)


def test_what_does_not_fit_is_refused():
    net, cells = small_vgg(), grid(ENDS, (0,), (0,))
    with pytest.raises(ValueError, match="no composites are given"):
        RuleGrid(net, SHAPE, {})
    with pytest.raises(ValueError, match=r"inputs of shape 1x2x64x64 fail"):
        RuleGrid(net, (2, 64, 64), cells)
    run = RuleGrid(net, SHAPE, cells)
    with pytest.raises(ValueError, match=r"the image has shape \(3, 32, 32\), not \(3, 64, 64\)"):
        next(run(picture()[:, :32, :32]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        next(run(picture() * math.nan))
    with pytest.raises(ValueError, match="start=3"):
        next(run(picture(), [3]))
    with pytest.raises(UnknownOperation, match="cumsum"):
        RuleGrid(Explainer(Running()).model, SHAPE, cells)


class Running(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).cumsum(1)


def test_lrp_0_alone_is_gradient_times_input():
    """In every layer, by algebra; the gradient is autograd's."""
    net, image = small_vgg(), picture()
    (found,) = RuleGrid(net, SHAPE, {"zero": lrp_0(1e-14)})(image, (2,))
    x = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[0, 2], x)
    close(found.relevance, (gradient * x)[0].sum(0).detach(), 1e-6)
