"""Batch norms folded into their neighbours: what rules see adds up to what the network computes, everywhere.

Belongs here: which batch norm goes where, and that contributions + bias are the unfolded output. Does not belong here:
values of rules (`test_rules.py`), whole networks (`tests/oracles/test_dense_networks.py`).
"""

import itertools

import pytest
import torch
from hard_networks import randomise
from torch import nn
from torch.nn import functional as F

from relevance_assets.relevance import Explainer, check_model, explain

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def batch_norm(gamma, beta, mean, variance, kind=nn.BatchNorm1d):
    """One channel; the variance with the batch norm's epsilon."""
    norm = kind(1, eps=1e-3).double().eval()
    for tensor, value in zip((norm.weight, norm.bias, norm.running_mean, norm.running_var),
                             (gamma, beta, mean, variance - 1e-3), strict=True):  # fmt: skip
        tensor.data.fill_(value)
    return norm


def dense(weight, bias=None):
    layer = nn.Linear(1, 1, bias=bias is not None).double()
    layer.weight.data.fill_(weight)
    if bias is not None:
        layer.bias.data.fill_(bias)
    return layer


def treatment(model, x, composite="epsilon_plus"):
    """(rule, note) of each layer that is no move."""
    return {
        row["layer"]: (row["rule"], row["note"])
        for row in check_model(model, x, composite).to_dicts()
        if row["kind"] != "move"
    }


# ---------------------------------------------------------------------------------------------------------- by hand
@pytest.mark.parametrize(("x", "held", "output"), [(1.0, -1.0, 0.5), (2.0, -1.5, 0.0)])
def test_toy_values(x, held, output):
    """gamma -2, beta 1, mean 0.5, sigma 2: c = -1, d = 1.5; x = 1 gives 0.5, x = 2 gives 0.

    c T(x) = -1 and, held at the threshold, -1.5; d is the bias.
    """
    model = nn.Sequential(batch_norm(-2, 1, 0.5, 4), nn.ReLU(), dense(2.0, 3.0)).eval()
    found = explain(model, torch.tensor([[x]]).double(), [{"rule": "epsilon", "epsilon": 0.0}])
    assert found.output.item() == pytest.approx(2 * output + 3, abs=1e-14)
    assert found.relevance.item() == pytest.approx(2 * held, abs=1e-14)
    row = found.ledger.filter(layer="2").row(0, named=True)
    assert row["bias"] == pytest.approx(2 * 1.5 + 3, abs=1e-14)


def test_relevance_passes_held_units_or_is_clamped_there():
    model = nn.Sequential(batch_norm(-2, 1, 0.5, 4), nn.ReLU(), dense(-2.0)).eval()
    x, start = torch.tensor([[1.0], [2.0]]).double(), torch.ones(2, 1).double()
    rules = [{"rule": "z_plus", "bias": "drop", "stabiliser": 0.0}]
    assert explain(model, x, rules, start).relevance.flatten().tolist() == [1, 1]
    blocked = explain(model, x, [{"kind": "activation", "rule": "block"}, *rules], start)
    assert blocked.relevance.flatten().tolist() == [1, 0]
    assert blocked.ledger.filter(layer="1")["clamped"].to_list() == [0, 1]


def test_epsilon_of_the_batch_norm_counts():
    """sqrt(3 + 1) = 2; without it sqrt(3)."""
    norm = nn.BatchNorm1d(1, eps=1.0, affine=False).double().eval()
    norm.running_var.fill_(3)
    for layers in ((norm, dense(1.0, 1.0)), (dense(1.0, 0.0), norm, Call(lambda x: x + 1))):
        found = explain(
            nn.Sequential(*layers).eval(), torch.tensor([[4.0]]).double(), [{"rule": "epsilon", "epsilon": 0.0}]
        )
        assert found.output.item() == pytest.approx(3, abs=1e-14)
        assert found.relevance.item() == pytest.approx(2, abs=1e-14)


def test_left_by_hand():
    """w = 3, b = 1, c = -1, d = 1.5: weight -3, bias 0.5."""
    model = nn.Sequential(dense(3.0, 1.0), batch_norm(-2, 1, 0.5, 4)).eval()
    found = explain(model, torch.tensor([[2.0]]).double(), [{"rule": "epsilon", "epsilon": 0.0}])
    assert found.output.item() == pytest.approx(-5.5, abs=1e-14)
    assert found.relevance.item() == pytest.approx(-6, abs=1e-14)
    assert found.ledger.to_dicts()[0]["bias"] == pytest.approx(0.5, abs=1e-14)
    assert found.ledger["rule"].to_list() == ["epsilon(epsilon=0), with 1"]


def test_the_bias_differs_from_place_to_place_where_a_convolution_pads_with_zeros():
    """d = 2 under a kernel of three ones: 4 at the ends, 6 between."""
    conv = nn.Conv1d(1, 1, 3, padding=1, bias=False).double()
    conv.weight.data.fill_(1)
    model = nn.Sequential(batch_norm(1, 2, 0, 1), nn.ReLU(), conv).eval()
    x = torch.tensor([[[1.0, 2, 3, 4]]]).double()
    z = model(x).detach()
    assert z.flatten().tolist() == pytest.approx([7, 12, 15, 11], abs=1e-14)
    starts = [torch.zeros_like(z).index_fill(2, torch.tensor([k]), z[0, 0, k].item()) for k in range(4)]
    found = explain(model, x, [{"rule": "epsilon", "epsilon": 0.0}], starts)
    assert [one.ledger.filter(layer="2")["bias"][0] for one in found] == pytest.approx([4, 6, 6, 4], abs=1e-13)
    assert [one.relevance.sum().item() for one in found] == pytest.approx([3, 6, 9, 7], abs=1e-13)


@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "gamma", "alpha_beta"])
@pytest.mark.parametrize("beta", [0.7, -0.7])
def test_a_channel_with_gamma_0_is_all_bias(rule, beta):
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 2, 3, padding=1)))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, beta
    found = explain(model, torch.rand(1, 3, 3, 3, 3).double(), [{"rule": rule}], 0)
    assert not found.relevance[:, 1].any()
    assert found.relevance[:, 0].any()


@pytest.mark.parametrize("scale", [1.0, -0.3, 17.0])
def test_what_is_off_before_a_batch_norm_is_exactly_off_behind_it(scale):
    """ReLU gives 0, the batch norm d: y - d is 0 and not its rounding, which z+ would hand relevance out by."""
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.ReLU(), nn.BatchNorm3d(4), nn.Conv3d(4, 3, 3, padding=1)), last_scale=scale)
    x = -torch.rand(1, 4, 3, 3, 3).double()
    found = explain(model, x, [{"rule": "z_plus", "bias": "drop", "stabiliser": 0.0}], torch.ones(1, 3, 3, 3, 3))
    assert not found.relevance.any()
    assert found.ledger.filter(layer="2")["dead"][0] == 81


# ------------------------------------------------------------------------------- contributions + bias = unfolded output
CUBE = (4, 5, 4, 3)
EXACT = {
    "zeros": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1)), CUBE),
    "replicate": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1, padding_mode="replicate")), CUBE),
    "reflect": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1, padding_mode="reflect")), CUBE),
    "no padding": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 3)), CUBE),
    "same": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, (2, 3, 2), padding="same")), CUBE),
    "strided, dilated": (
        (nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2, dilation=2, padding=2)),
        (4, 6, 7),
    ),
    "groups": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 6, 3, groups=2, bias=False)), CUBE),
    "groups and zeros": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 6, 3, groups=2, padding=1)), CUBE),
    "transposed": ((nn.BatchNorm3d(4), nn.ReLU(), nn.ConvTranspose3d(4, 2, 3, stride=2, padding=1)), (4, 2, 3, 2)),
    "transposed groups": ((nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, groups=2)), (4, 2, 3)),
    "without ReLU": ((nn.BatchNorm3d(4), nn.Conv3d(4, 3, 3, padding=1)), CUBE),
    "in place": ((nn.BatchNorm3d(4), nn.ReLU(inplace=True), nn.Conv3d(4, 3, 3, padding=1)), CUBE),
    "dropout": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Dropout(), nn.Conv3d(4, 3, 3, padding=1)), CUBE),
    "flatten": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 60, 3)), CUBE),
    "adaptive pool": (
        (nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)),
        CUBE,
    ),
    "adaptive pool, uneven": (
        (nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 3)),
        CUBE,
    ),
    "mean": ((nn.BatchNorm3d(4), nn.ReLU(), Call(lambda x: x.mean((2, 3, 4))), nn.Linear(4, 3)), CUBE),
    "mean of channels": (
        (nn.BatchNorm3d(4), nn.ReLU(), Call(lambda x: x.mean(1, keepdim=True)), nn.Conv3d(1, 3, 3)),
        CUBE,
    ),
    "average pool": ((nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(4, 3, 1)), CUBE),
    "padded average pool": ((nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(3, 2, 1), nn.Conv3d(4, 3, 1)), CUBE),
    "ceiled average pool": (
        (nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2, ceil_mode=True), nn.Conv3d(4, 3, 1)),
        CUBE,
    ),
    "average pool that counts no padding": (
        (nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(3, 2, 1, count_include_pad=False), nn.Conv3d(4, 3, 1)),
        CUBE,
    ),
    "average pool, then zeros": (
        (nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(4, 3, 3, padding=1)),
        CUBE,
    ),
    "constant padding": ((nn.BatchNorm3d(4), nn.ReLU(), nn.ConstantPad3d(1, 2.0), nn.Conv3d(4, 3, 3)), CUBE),
    "nearest": (
        (nn.BatchNorm3d(4), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv3d(4, 2, 3, padding=1)),
        (4, 2, 2, 2),
    ),
    "crop": ((nn.BatchNorm3d(4), nn.ReLU(), Call(lambda x: x[:, 1:, :3]), nn.Conv3d(3, 2, 3, padding=1)), CUBE),
    "features last": (
        (nn.BatchNorm1d(4), nn.ReLU(), Call(lambda x: x.transpose(1, 2).contiguous()), nn.Linear(4, 3)),
        (4, 5),
    ),
    "pixel shuffle": ((nn.BatchNorm2d(4), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(1, 3, 3, padding=1)), (4, 3, 3)),
    "left": ((nn.Conv3d(4, 6, 3, padding=1), nn.BatchNorm3d(6)), CUBE),
    "left without bias": ((nn.Conv3d(4, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6)), CUBE),
    "left groups": ((nn.Conv3d(4, 6, 3, groups=2), nn.BatchNorm3d(6)), CUBE),
    "left transposed": ((nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2), nn.BatchNorm3d(6)), (4, 2, 3, 2)),
    "left dense": ((nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,)),
    "left dense without bias": ((nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)), (4,)),
    "no affine": ((nn.BatchNorm3d(4, affine=False), nn.ReLU(), nn.Conv3d(4, 6, 1)), CUBE),
    "both sides": ((nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 5, 3, padding=1), nn.BatchNorm3d(5)), CUBE),
    "both sides, dense": (
        (nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(240, 5), nn.BatchNorm1d(5)),
        CUBE,
    ),
    "one after the other": ((nn.BatchNorm3d(4), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1)), CUBE),
    "channels along rows": ((nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(4, 2)), (3, 4)),
}
CASES = [case if hasattr(case, "marks") else pytest.param(*case) for case in EXACT.values()]


def constant(model, x):
    """What the network would say of an input without contributions: d behind a leading batch norm, else 0."""
    if not isinstance(model[0], nn.modules.batchnorm._BatchNorm):
        return model(torch.zeros_like(x))
    held = nn.Sequential(
        *itertools.takewhile(lambda m: isinstance(m, nn.ReLU | nn.modules.batchnorm._BatchNorm), model)
    )
    norm = [module for module in held if not isinstance(module, nn.ReLU)][-1]
    scale = (norm.running_var + norm.eps).rsqrt() * (norm.weight if norm.affine else 1.0)
    d = (norm.bias if norm.affine else 0.0) - norm.running_mean * scale
    if isinstance(held[-1], nn.ReLU):
        d = torch.where(scale == 0, d.clamp(min=0), d)
    return model[len(held) :](d.view(1, -1, *(1,) * (x.ndim - 2)).expand(x.shape))


@pytest.mark.parametrize(("layers", "shape"), CASES, ids=EXACT)
@pytest.mark.parametrize("statistics", ["as trained", "gammas 0"])
def test_contributions_and_bias_are_the_unfolded_output(layers, shape, statistics):
    """Output by output: means, variances and scales of both signs, scales of 0.

    Where the relevance put in is the output, its shares are the contributions and the bias.
    """
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    if next(module for module in model if isinstance(module, nn.modules.batchnorm._BatchNorm)).affine:
        model = randomise(model, last_scale=0.0 if statistics == "gammas 0" else -0.6)
    model = model.double().eval()
    x = torch.randn(2, *shape).double()
    with torch.no_grad():
        z, bias = model(x), constant(model, x)
    places = [torch.unravel_index(torch.tensor(k), z.shape[1:]) for k in {0, 1, z[0].numel() // 2, z[0].numel() - 1}]
    starts = [torch.zeros_like(z) for _ in places]
    for start, place in zip(starts, places, strict=True):
        start[(slice(None), *place)] = z[(slice(None), *place)]
    for found, place in zip(explain(model, x, [{"rule": "epsilon", "epsilon": 0.0}], starts), places, strict=True):
        torch.testing.assert_close(found.output, z, rtol=1e-12, atol=1e-14)
        rows = found.ledger.filter(found.ledger["kind"].is_in(["convolution", "linear"]))
        expected, size = bias[(slice(None), *place)], z.abs().max().item()
        contributions = z[(slice(None), *place)] - expected
        assert rows["bias"].to_list() == pytest.approx(expected.tolist(), rel=0, abs=1e-12 * size)
        assert rows["relevance_out"].to_list() == pytest.approx(contributions.tolist(), rel=0, abs=1e-12 * size)
        assert rows["unexplained"].abs().max() <= 1e-12 * size


def test_every_batch_norm_of_those_was_folded():
    for name, case in EXACT.items():
        layers, shape = case.values if hasattr(case, "marks") else case
        table = check_model(nn.Sequential(*layers).eval(), torch.randn(2, *shape))
        rules = table.filter(kind="batch_norm")["rule"].to_list()
        expected = {"one after the other": ["pass", "folded"], "both sides": ["folded"] * 2}
        assert rules == expected.get(name, expected["both sides"][: len(rules)]), name


@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "alpha_beta", "gamma", "w_square", "flat"])
def test_a_fold_to_the_right_is_a_constant_in_the_input(rule):
    """What rules see: T(x) c with weights w, and b + w d as bias, as a network without a batch norm has them."""
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 3, 3, padding=1, padding_mode="replicate")
    model = randomise(nn.Sequential(nn.BatchNorm3d(4), nn.ReLU(), conv), last_scale=-0.6)
    norm = model[0]
    c = norm.weight / (norm.running_var + norm.eps).sqrt()
    d = (norm.bias - norm.running_mean * c).detach()
    other = nn.Conv3d(4, 3, 3, padding=1, padding_mode="replicate").double()
    other.load_state_dict({"weight": conv.weight, "bias": conv.bias + conv.weight.sum((2, 3, 4)) @ d})
    x, start = torch.randn(2, 4, 4, 3, 4).double(), torch.randn(2, 3, 4, 3, 4).double()
    seen = (torch.relu(norm(x)) - d.view(-1, 1, 1, 1)).detach()
    found, expected = explain(model, x, [{"rule": rule}], start), explain(other, seen, [{"rule": rule}], start)
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "alpha_beta", "gamma", "box", "w_square", "flat"])
def test_a_fold_to_the_left_is_one_convolution(rule):
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Conv3d(4, 3, 3, padding=1), nn.BatchNorm3d(3)), last_scale=-0.6)
    conv, norm = model
    c = norm.weight / (norm.running_var + norm.eps).sqrt()
    other = nn.Conv3d(4, 3, 3, padding=1).double()
    bias = (conv.bias - norm.running_mean) * c + norm.bias
    other.load_state_dict({"weight": conv.weight * c.view(-1, 1, 1, 1, 1), "bias": bias})
    x, start = torch.rand(2, 4, 4, 3, 4).double(), torch.randn(2, 3, 4, 3, 4).double()
    found, expected = explain(model, x, [{"rule": rule}], start), explain(other, x, [{"rule": rule}], start)
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------------------------------------- which goes where
X = torch.rand(2, 2, 4, 4, 4)


def conv(inputs=2, outputs=2, **options):
    return nn.Conv3d(inputs, outputs, 3, padding=1, **options)


def test_the_order_of_preference_decides_where_both_are_possible():
    model = nn.Sequential(conv(), nn.BatchNorm3d(2), nn.ReLU(), conv()).eval()
    both = {"layers": []}
    assert treatment(model, X, both)["1"] == ("folded", "into 0")
    assert treatment(model, X, both | {"fold": ["right", "left"]})["1"] == ("folded", "into 3")
    assert treatment(model, X, both | {"fold": ["right"]})["1"] == ("folded", "into 3")
    assert treatment(model, X, both | {"fold": []})["1"] == ("pass", "")


def test_one_batch_norm_goes_into_all_that_read_it():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.BatchNorm3d(2), conv(), nn.Conv3d(2, 2, 1)

        def forward(self, x):
            x = torch.relu(self.norm(x))
            return self.a(x) + self.b(x)

    torch.manual_seed(0)
    model = randomise(Branches(), last_scale=-0.5)
    assert treatment(model, X)["norm"] == ("folded", "into a, b")
    found = explain(model, X.double(), "epsilon_plus", torch.ones(2, 2, 4, 4, 4))
    assert found.ledger.filter(found.ledger["layer"].is_in(["a", "b"]))["bias"].abs().min() > 0


class Skips(nn.Module):
    """A batch norm that an addition reads too."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm3d(2), conv()

    def forward(self, x):
        x = self.norm(x)
        return x + self.conv(x)


class ReadTwice(nn.Module):
    """A convolution whose output is read without the batch norm too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm3d(2)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class Tokens(nn.Module):
    """A dense layer over the last axis, a batch norm over the second."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm = nn.Linear(4, 4), nn.BatchNorm3d(2)

    def forward(self, x):
        return self.norm(self.dense(x))


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (nn.Sequential(nn.ReLU(), nn.BatchNorm3d(2)), "1"),
        (nn.Sequential(nn.BatchNorm3d(2), nn.ReLU(), nn.MaxPool3d(2), conv()), "0"),
        (nn.Sequential(nn.BatchNorm3d(2), nn.LeakyReLU(), conv()), "0"),
        (nn.Sequential(nn.BatchNorm3d(2), nn.ReLU(), nn.ReLU(), conv()), "0"),
        (nn.Sequential(nn.BatchNorm3d(2), nn.AvgPool3d(2), nn.ReLU(), conv()), "0"),
        (nn.Sequential(nn.BatchNorm3d(2), Call(lambda x: 2 * x), conv()), "0"),
        (Skips(), "norm"),
        (ReadTwice(), "norm"),
        (Tokens(), "norm"),
    ],
)
def test_what_cannot_be_folded_has_a_rule_of_its_own(model, layer):
    torch.manual_seed(0)
    model = randomise(model, last_scale=-0.5)
    assert treatment(model, X)[layer] == ("pass", "")
    own = [{"kind": "batch_norm", "rule": "epsilon", "epsilon": 1e-3}]
    assert treatment(model, X, own)[layer] == ("epsilon(0.001)", "")
    start = torch.rand_like(model(X.double())).detach()
    for composite in ("epsilon_plus", "alpha_beta", own):
        found = explain(model, X.double(), composite, start)
        assert found.ledger["unexplained"].abs().max() < 1e-10


def test_the_network_says_the_same(network):
    """Random statistics, negative scales, scales of 0, whatever is folded."""
    images, covariates = torch.rand(2, 3, 16, 17, 16).double(), torch.rand(2, 1).double()
    images[:, :, :3] = 0
    expected = network(images, covariates).detach()
    folds = (["left", "right"], ["right", "left"], [])
    wanted = [({"layers": [{"rule": "z_plus"}], "fold": fold}, None) for fold in folds]
    for found in Explainer(network).several((images, covariates), wanted):
        torch.testing.assert_close(found.output, expected, rtol=1e-12, atol=0)
    table = check_model(network, (images, covariates), "disability").filter(kind="batch_norm")
    assert table["rule"].unique().to_list() == ["folded"]
    assert table.height == 3 * (1 + 16 + 3 + 1)


def test_functional_batch_norms_are_batch_norms():
    norm = randomise(nn.Sequential(nn.BatchNorm3d(2)))[0]
    functional = Call(
        lambda x: F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    )
    layer = conv().double()
    start = torch.rand(2, 2, 4, 4, 4)
    first = explain(nn.Sequential(norm, nn.ReLU(), layer).eval(), X.double(), "alpha_beta", start)
    second = explain(nn.Sequential(functional, nn.ReLU(), layer).eval(), X.double(), "alpha_beta", start)
    assert torch.equal(first.relevance, second.relevance)
