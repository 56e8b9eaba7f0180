"""What holds for every network, image and rule: linearity, symmetries, limits, and that nothing is lost unseen.

Belongs here: statements about relations between explanations, on small random networks. Does not belong here: numbers
(`test_rules.py`), comparisons with other code (`tests/oracles/`).
"""

import itertools

import numpy as np
import pytest
import torch
from hard_networks import account
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from relevance_assets.relevance import Explainer, explain

examples = settings(  # the same ones every time, and no search for smaller ones, which takes longer than all the rest
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
pytestmark = pytest.mark.filterwarnings("ignore:sample .* is unexplained:RuntimeWarning")

RULES = {
    "epsilon": [{"rule": "epsilon", "epsilon": 1e-3}],
    "relative": [{"rule": "epsilon", "epsilon": 0.05, "relative": True}],
    "unsigned": [{"rule": "epsilon", "epsilon": 0.3, "signed": False}],
    "z_plus": [{"rule": "z_plus"}],
    "alpha_beta": [{"kind": "convolution", "rule": "alpha_beta"}, {"rule": "epsilon", "epsilon": 1e-3}],
    "gamma": [{"rule": "gamma"}],
    "gamma_box": [{"place": "first", "rule": "box", "low": -3, "high": 3}, {"rule": "gamma"}],
    "flat": [{"place": "first", "rule": "flat"}, {"rule": "z_plus"}],
    "w_square": [{"place": "first", "rule": "w_square"}, {"rule": "z_plus"}],
    "distribute": {"layers": [{"rule": "epsilon", "epsilon": 1e-2}], "bias": "distribute"},
    "drop": {"layers": [{"rule": "alpha_beta"}], "bias": "drop"},
}
ZERO_GETS_NOTHING = ("epsilon", "relative", "unsigned", "z_plus", "alpha_beta", "gamma", "drop")


class Net(nn.Module):
    """Two convolutions with a batch norm and a skip, a pool, a gate and a dense layer: what networks are made of."""

    def __init__(self, seed, *, width=3, bias=True, norm="left", gate=False, pool="max"):
        super().__init__()
        torch.manual_seed(seed)
        self.order, self.pool = norm, pool
        self.first = nn.Conv2d(2, width, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.gate = nn.Linear(width, width, bias=bias) if gate else None
        self.last = nn.Linear(width, 2, bias=bias)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.1, 0.6)
            if norm:
                self.norm.running_mean.normal_(0, 0.5)
                self.norm.running_var.uniform_(0.5, 2)
                if not bias:
                    self.norm.bias.zero_(), self.norm.running_mean.zero_()
        self.double().eval()

    def forward(self, x):
        x = self.first(x)
        x = torch.relu(self.norm(torch.relu(x) if self.order == "right" else x))
        x = F.max_pool2d(x, 2) if self.pool == "max" else F.avg_pool2d(x, 2)
        x = x + torch.relu(self.second(x))
        x = x.mean((2, 3))
        if self.gate is not None:
            x = x * torch.sigmoid(self.gate(x))
        return self.last(x)


seeds = st.integers(0, 10_000)
networks = st.builds(
    Net, seeds, norm=st.sampled_from(["left", "right", None]), gate=st.booleans(), pool=st.sampled_from(["max", "avg"])
)
rules = st.sampled_from(sorted(RULES))


def images(seed, samples=2, size=(6, 4)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 2, *size, generator=generator, dtype=torch.float64).clamp(-3, 3)


def normal(seed, samples=2):
    """Relevance to put in."""
    return torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def close(found, expected, tolerance=1e-9):
    size = max(expected.abs().max().item(), 1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * size)


@examples
@given(networks, seeds, rules, st.floats(-3, 3))
def test_linear_in_what_is_put_in(model, seed, rule, factor):
    x, explainer = images(seed), Explainer(model, RULES[rule])
    a, b = normal(seed), normal(seed + 1)
    first, second, both = explainer(x, [a, b, a + factor * b])
    size = max(first.relevance.abs().max().item(), second.relevance.abs().max().item())
    expected = first.relevance + factor * second.relevance
    torch.testing.assert_close(both.relevance, expected, rtol=0, atol=1e-10 * size * (1 + abs(factor)))
    for column in ("relevance_in", "relevance_out", "bias", "stabiliser", "dead", "clamped"):
        parts = [one.ledger[column].to_numpy() for one in (first, second, both)]
        tolerance = 1e-10 * (1 + np.abs(parts[0]).max() + np.abs(parts[1]).max()) * (1 + abs(factor))
        np.testing.assert_allclose(parts[2], parts[0] + factor * parts[1], rtol=0, atol=max(tolerance, 1e-9 * size))


@examples
@given(networks, seeds, rules)
def test_samples_of_a_batch_do_not_know_each_other(model, seed, rule):
    x, explainer = images(seed, 3), Explainer(model, RULES[rule])
    start = normal(seed, 3)
    batch = explainer(x, start)
    for sample in range(3):
        close(batch.relevance[[sample]], explainer(x[[sample]], start[[sample]]).relevance)
    close(explainer(x.flip(0), start.flip(0)).relevance, batch.relevance.flip(0))


@examples
@given(networks.filter(lambda net: net.pool == "avg"), seeds, rules, st.sampled_from([[2], [3], [2, 3]]))
def test_a_mirrored_network_explains_the_mirrored_image_by_the_mirrored_map(model, seed, rule, axes):
    """Kernels mirrored, image mirrored; of equals, maximum pools prefer the first."""
    x, start = images(seed, size=(8, 4)), normal(seed)
    expected = explain(model, x, RULES[rule], start)
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight.copy_(layer.weight.flip(axes))
    close(explain(model, x.flip(axes), RULES[rule], start).relevance, expected.relevance.flip(axes), 1e-8)


@examples
@given(networks, seeds, rules, st.permutations(range(3)))
def test_hidden_channels_may_change_places(model, seed, rule, order):
    x, start = images(seed), normal(seed)
    expected = explain(model, x, RULES[rule], start).relevance
    with torch.no_grad():
        for layer in (model.first, model.second, model.norm):
            for tensor in (*layer.parameters(), *layer.buffers()):
                if tensor.ndim:
                    tensor.copy_(tensor[list(order)])
        model.second.weight.copy_(model.second.weight[:, list(order)])
        model.last.weight.copy_(model.last.weight[:, list(order)])
        if model.gate is not None:
            model.gate.weight.copy_(model.gate.weight[list(order)][:, list(order)])
            model.gate.bias.copy_(model.gate.bias[list(order)])
    close(explain(model, x, RULES[rule], start).relevance, expected, 1e-8)


@examples
@given(networks, seeds, rules)
def test_input_channels_may_change_places(model, seed, rule):
    x, start = images(seed), normal(seed)
    expected = explain(model, x, RULES[rule], start).relevance.flip(1)
    with torch.no_grad():
        model.first.weight.copy_(model.first.weight.flip(1))
    close(explain(model, x.flip(1), RULES[rule], start).relevance, expected)


@examples
@given(networks, seeds, st.sampled_from(ZERO_GETS_NOTHING))
def test_a_voxel_of_zero_has_no_relevance(model, seed, rule):
    x = images(seed)
    x = torch.where(x.abs() < 0.5, 0.0, x)
    relevance = explain(model, x, RULES[rule], normal(seed)).relevance
    assert (x == 0).any()
    assert not relevance[x == 0].any()


@pytest.mark.parametrize("rule", ["gamma_box", "flat", "w_square"])
def test_rules_of_the_first_layer_may_give_zeros_something(rule):
    x = images(0)
    x[:, :, :3] = 0
    assert explain(Net(0), x, RULES[rule], torch.ones(2, 2)).relevance[:, :, :3].any()


def gradient_times_input(model, x):
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    return x * gradient


@pytest.mark.parametrize(("norm", "pool"), itertools.product(["left", "right", None], ["max", "avg"]))
def test_small_epsilons_give_gradient_times_input(norm, pool):
    """The difference falls in proportion to epsilon: slope 1 on two logarithmic axes."""
    model, x = Net(5, norm=norm, pool=pool, gate=False), images(1)
    # at units that are held, relevance passes a right-folded ReLU; the gradient does not
    held = [{"kind": "activation", "rule": "block"}]
    expected = gradient_times_input(model, x)
    sizes = np.array([1e-4, 1e-5, 1e-6, 1e-7])
    differences = []
    for size in sizes:
        composite = [*held, {"rule": "epsilon", "epsilon": float(size)}]
        relevance = explain(model, x, {"layers": composite, "fold": ["left"]}, 0).relevance
        if norm == "right":  # a batch norm behind a ReLU stands alone, its scale held fixed as in the gradient
            composite.insert(0, {"kind": "batch_norm", "rule": "epsilon", "epsilon": float(size)})
            relevance = explain(model, x, {"layers": composite, "fold": []}, 0).relevance
        differences.append((relevance - expected).abs().max().item())
    slope = np.polyfit(np.log(sizes), np.log(differences), 1)[0]
    assert slope == pytest.approx(1, abs=0.05)
    assert differences[-1] < 1e-3 * expected.abs().max().item()


HOMOGENEOUS = {
    "relative epsilon": [{"rule": "epsilon", "epsilon": 0.05, "relative": True}],
    "zero": [{"rule": "zero"}, {"rule": "epsilon", "epsilon": 0.0}],
    "z_plus": [{"rule": "z_plus", "stabiliser": 0.0}, {"rule": "epsilon", "epsilon": 0.0}],
    "relative z_plus": [{"kind": "convolution", "rule": "z_plus", "stabiliser": 0.01, "relative": True},
                        {"rule": "epsilon", "epsilon": 0.01, "relative": True}],
    "alpha_beta": [{"rule": "alpha_beta", "stabiliser": 0.0}, {"rule": "epsilon", "epsilon": 0.0}],
    "gamma": [{"rule": "gamma", "stabiliser": 0.0}, {"rule": "epsilon", "epsilon": 0.0}],
    "flat": [{"place": "first", "rule": "flat"}, {"rule": "z_plus", "stabiliser": 0.0},
             {"rule": "epsilon", "epsilon": 0.0}],
}  # fmt: skip


@examples
@given(seeds, seeds, st.sampled_from(sorted(HOMOGENEOUS)), st.floats(0.01, 100))
def test_without_biases_the_map_grows_with_the_image(network, seed, rule, factor):
    """f(c x) = c f(x), so R(c x) = c R(x), where no stabiliser has a size of its own."""
    model, x = Net(network, bias=False, norm=None), images(seed)
    explainer = Explainer(model, HOMOGENEOUS[rule])
    close(explainer(factor * x, 0).relevance, factor * explainer(x, 0).relevance, 1e-8)


@examples
@given(seeds, seeds, st.sampled_from(sorted(HOMOGENEOUS)), st.floats(0.05, 20))
def test_a_hidden_layer_may_be_rescaled(network, seed, rule, factor):
    """Weights and biases times c, the next layer's weights over c: the same function, and the same map."""
    torch.manual_seed(network)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten())
    model = model.double()
    x, start = images(seed), normal(seed, 16).abs().view(2, 16)
    expected = explain(model, x, HOMOGENEOUS[rule], start).relevance
    with torch.no_grad():
        model[0].weight.mul_(factor), model[0].bias.mul_(factor), model[2].weight.div_(factor)
    close(explain(model, x, HOMOGENEOUS[rule], start).relevance, expected, 1e-8)


@examples
@given(networks, seeds, rules)
def test_what_does_not_arrive_is_in_the_ledger(model, seed, rule):
    x, start = images(seed), normal(seed)
    found = explain(model, x, RULES[rule], start)
    ledger = found.ledger
    size = 1 + ledger.select("relevance_in", "relevance_out").to_numpy().__abs__().max()
    assert (found.start.sum() - found.relevance.sum()).item() == pytest.approx(account(found), abs=1e-11 * size)
    assert ledger["unexplained"].abs().max() < 1e-12 * size
    for sample in range(2):
        rows = ledger.filter(sample=sample)
        lost = rows.select("bias", "stabiliser", "dead", "clamped").sum().sum_horizontal().item()
        assert (found.start[sample].sum() - found.relevance[sample].sum()).item() == pytest.approx(
            lost, abs=1e-11 * size
        )


@examples
@given(networks, seeds, rules, st.integers(0, 3))
def test_masks_keep_relevance_inside_and_the_account_complete(model, seed, rule, rows):
    x, start = images(seed), normal(seed)
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[:rows] = False
    found = explain(model, x, RULES[rule], start, mask)
    assert not found.relevance[:, :, :rows].any()
    size = 1 + found.ledger.select("relevance_in", "relevance_out").to_numpy().__abs__().max()
    assert (found.start.sum() - found.relevance.sum()).item() == pytest.approx(account(found), abs=1e-11 * size)


@examples
@given(seeds, seeds, st.sampled_from(["z_plus", "flat", "w_square"]))
def test_rules_without_signs_keep_the_sign_of_what_is_put_in(network, seed, rule):
    """Without a bias; epsilon at the sums' averages, whose terms are all positive."""
    model, x = Net(network, norm=None, gate=False), images(seed)
    start = normal(seed).abs()
    layers = [entry | {"bias": "drop"} for entry in RULES[rule]]
    relevance = explain(model, x, layers, start).relevance
    assert relevance.min() >= 0
    close(explain(model, x, layers, -start).relevance, -relevance)
