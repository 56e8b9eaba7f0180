"""Every rule on every layer against explicit matrices, in float64: relevance and what the ledger says of it.

The first part holds the oracle itself to the field's toy values, to torch's forward pass and to conservation; the
second holds the engine to the oracle. Whole networks are in `test_dense_networks.py`.
"""

import itertools
from functools import cache

import dense_rules as oracle
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from relevance_assets.relevance import explain as explain_in_any_type

TOLERANCE = 1e-12
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# name: module of (bias), shape of one sample
WEIGHTED = {
    "conv1d": (lambda b: nn.Conv1d(2, 3, 3, bias=b), (2, 7)),
    "conv1d_stride_replicate": (
        lambda b: nn.Conv1d(3, 4, 5, stride=2, padding=2, padding_mode="replicate", bias=b),
        (3, 9),
    ),
    "conv2d_zeros_stride": (lambda b: nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=b), (2, 5, 6)),
    "conv2d_groups_dilation": (lambda b: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=b), (4, 5, 4)),
    "conv2d_same": (lambda b: nn.Conv2d(2, 3, (4, 3), padding="same", bias=b), (2, 5, 4)),
    "conv2d_reflect": (lambda b: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect", bias=b), (2, 4, 5)),
    "conv3d_zeros": (lambda b: nn.Conv3d(2, 3, 3, padding=1, bias=b), (2, 4, 3, 4)),
    "conv3d_replicate_stride": (
        lambda b: nn.Conv3d(2, 3, 3, stride=(2, 1, 2), padding=1, padding_mode="replicate", bias=b),
        (2, 4, 3, 5),
    ),
    "conv3d_depthwise_dilation": (
        lambda b: nn.Conv3d(3, 6, (3, 2, 2), padding=(2, 1, 0), dilation=(2, 1, 1), groups=3, bias=b),
        (3, 4, 3, 3),
    ),
    "transposed1d": (lambda b: nn.ConvTranspose1d(3, 2, 4, stride=3, padding=1, output_padding=2, bias=b), (3, 4)),
    "transposed2d_groups_dilation": (
        lambda b: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2, bias=b),
        (4, 3, 4),
    ),
    "transposed3d": (lambda b: nn.ConvTranspose3d(2, 3, 2, stride=2, bias=b), (2, 2, 3, 2)),
    "transposed3d_overlap": (
        lambda b: nn.ConvTranspose3d(2, 2, 3, stride=2, padding=1, output_padding=(1, 0, 1), bias=b),
        (2, 3, 2, 2),
    ),
    "linear": (lambda b: nn.Linear(6, 4, bias=b), (6,)),
    "linear_tokens": (lambda b: nn.Linear(5, 3, bias=b), (4, 5)),
}
# name: the rule with its parameters, as a composite says it and as the oracle takes it
RULES = {
    "epsilon": {"rule": "epsilon"},
    "epsilon_0.1": {"rule": "epsilon", "epsilon": 0.1},
    "epsilon_0": {"rule": "epsilon", "epsilon": 0.0},
    "epsilon_relative": {"rule": "epsilon", "epsilon": 0.05, "relative": True},
    "epsilon_drop": {"rule": "epsilon", "epsilon": 1e-8, "bias": "drop"},
    "epsilon_distribute": {"rule": "epsilon", "epsilon": 1e-3, "bias": "distribute"},
    "epsilon_unsigned": {"rule": "epsilon", "epsilon": 20.0, "signed": False},
    "epsilon_unsigned_negative": {"rule": "epsilon", "epsilon": -40.0, "signed": False, "stabiliser": 0.0},
    "zero": {"rule": "zero"},
    "zero_drop": {"rule": "zero", "bias": "drop"},
    "z_plus": {"rule": "z_plus"},
    "z_plus_0": {"rule": "z_plus", "stabiliser": 0.0},
    "z_plus_relative": {"rule": "z_plus", "stabiliser": 1e-2, "relative": True},
    "z_plus_drop": {"rule": "z_plus", "bias": "drop"},
    "z_plus_distribute": {"rule": "z_plus", "bias": "distribute"},
    "z_plus_both": {"rule": "z_plus", "bias": "both", "stabiliser": 0.0, "at_zero": 1e-7},
    "alpha1_beta0": {"rule": "alpha_beta", "alpha": 1.0, "beta": 0.0},
    "alpha2_beta1": {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0},
    "alpha1.5_beta0.5_drop": {"rule": "alpha_beta", "alpha": 1.5, "beta": 0.5, "bias": "drop"},
    "alpha3_beta2_0": {"rule": "alpha_beta", "alpha": 3.0, "beta": 2.0, "stabiliser": 0.0},
    "alpha2_beta1_distribute": {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0, "bias": "distribute"},
    "alpha2_beta1_relative": {
        "rule": "alpha_beta",
        "alpha": 2.0,
        "beta": 1.0,
        "stabiliser": 1e-2,
        "relative": True,
    },
    "gamma_0.25": {"rule": "gamma", "gamma": 0.25},
    "gamma_0.25_0": {"rule": "gamma", "gamma": 0.25, "stabiliser": 0.0},
    "gamma_0.25_drop": {"rule": "gamma", "gamma": 0.25, "bias": "drop"},
    "gamma_0.25_distribute": {"rule": "gamma", "gamma": 0.25, "bias": "distribute"},
    "gamma_0.25_relative": {"rule": "gamma", "gamma": 0.25, "stabiliser": 1e-2, "relative": True},
    "gamma_-20": {"rule": "gamma", "gamma": -20.0},
    "gamma_-20_0": {"rule": "gamma", "gamma": -20.0, "stabiliser": 0.0},
    "gamma_-1": {"rule": "gamma", "gamma": -1.0},
    "gamma_100": {"rule": "gamma", "gamma": 100.0},
    "gamma_100_drop": {"rule": "gamma", "gamma": 100.0, "bias": "drop"},
    "box": {"rule": "box", "low": -3.0, "high": 3.0},
    "box_0_1": {"rule": "box", "low": 0.0, "high": 1.0, "stabiliser": 0.0},
    "w_square": {"rule": "w_square"},
    "w_square_drop": {"rule": "w_square", "bias": "drop"},
    "w_square_distribute": {"rule": "w_square", "bias": "distribute"},
    "flat": {"rule": "flat"},
    "flat_0": {"rule": "flat", "stabiliser": 0.0},
}
AVERAGES = {
    "avg1d": (nn.AvgPool1d(3, 2, padding=1), (2, 7)),
    "avg2d_ceil": (nn.AvgPool2d(3, 2, ceil_mode=True), (2, 6, 4)),
    "avg2d_ceil_padding": (nn.AvgPool2d((3, 2), 2, padding=1, ceil_mode=True), (2, 6, 5)),
    "avg3d": (nn.AvgPool3d(2), (2, 4, 4, 2)),
    "avg3d_padding": (nn.AvgPool3d(3, 2, padding=1), (2, 4, 5, 3)),
    "avg3d_no_count": (nn.AvgPool3d(3, 2, padding=1, count_include_pad=False), (2, 4, 5, 3)),
    "avg3d_ceil_no_count": (nn.AvgPool3d(3, 2, padding=1, ceil_mode=True, count_include_pad=False), (2, 4, 5, 3)),
    "avg2d_divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 4, 4)),
    "adaptive2d": (nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 7)),
    "adaptive3d_one": (nn.AdaptiveAvgPool3d(1), (3, 3, 2, 4)),
    "adaptive3d_uneven": (nn.AdaptiveAvgPool3d((2, 1, 3)), (2, 5, 3, 4)),
}
AVERAGE_RULES = {
    "epsilon": {"rule": "epsilon"},
    "epsilon_0.1": {"rule": "epsilon", "epsilon": 0.1},
    "epsilon_relative": {"rule": "epsilon", "epsilon": 0.05, "relative": True},
    "norm": {"rule": "norm"},
    "z_plus": {"rule": "z_plus"},
    "flat": {"rule": "flat"},
}


def explain(*args):
    """In float64, which a network without parameters does not ask for by itself."""
    return explain_in_any_type(*args, dtype=torch.float64)


class Call(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def numbers(seed, *shape, signed=True):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values if signed else values.clamp(min=0)


def fixed(module, seed=0):
    """Float64, and weights that are the same on every machine."""
    module = module.double().eval()
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            parameter.copy_(numbers(100 * seed + place, *parameter.shape) * 0.5)
    return module


def array(tensor):
    return tensor.detach().numpy()


def as_layer(module, into):
    """The matrix of a torch layer."""
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        weight, bias = array(module.weight), None if module.bias is None else array(module.bias)
        common = {"stride": module.stride, "dilation": module.dilation, "groups": module.groups}
    if isinstance(module, CONVOLUTIONS):
        padding = module.padding
        if padding == "same":  # the odd one goes behind
            total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            padding = [(t // 2, t - t // 2) for t in total]
        return oracle.convolution(weight, bias, into, padding=padding, mode=module.padding_mode, **common)
    if isinstance(module, TRANSPOSED):
        more = {"padding": module.padding, "output_padding": module.output_padding}
        return oracle.transposed(weight, bias, into, **more, **common)
    if isinstance(module, nn.Linear):
        return oracle.dense(array(module.weight), None if module.bias is None else array(module.bias), into)
    if isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
        return oracle.average_pool(
            into,
            module.kernel_size,
            module.stride,
            module.padding,
            ceil_mode=module.ceil_mode,
            count_include_pad=module.count_include_pad,
            divisor=getattr(module, "divisor_override", None),
        )
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        return oracle.adaptive_average_pool(into, tuple(oracle.each(module.output_size, len(into) - 1)))
    raise TypeError(module)


@cache
def weighted(name, bias):
    make, shape = WEIGHTED[name]
    module = fixed(make(bias), seed=len(name))
    return module, as_layer(module, shape)


def boxed(x, rule):
    """Inputs that the box rule may be asked to explain."""
    return x.clamp(rule["low"], rule["high"]) if rule["rule"] == "box" else x


def close(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    difference, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
    assert difference <= TOLERANCE * size, f"differs by {difference / size if size else difference:.3g}"


def ledger_close(explanation, kind, accounts, starts):
    """One row per sample; what it keeps is what the oracle kept, relative to the relevance that came in."""
    rows = [row for row in explanation.ledger.iter_rows(named=True) if row["kind"] == kind]
    assert len(rows) == len(accounts)
    for row, account, start in zip(sorted(rows, key=lambda row: row["sample"]), accounts, starts, strict=True):
        size = np.abs(start).sum()
        expected = {
            "relevance_in": start.sum(),
            "relevance_out": account.relevance.sum(),
            "bias": account.bias,
            "stabiliser": account.stabiliser,
            "dead": account.dead,
            "clamped": 0.0,
            "unexplained": 0.0,
        }
        for column, value in expected.items():
            assert abs(row[column] - value) <= TOLERANCE * size, (column, row[column], value)


def check_layer(module, layer, x, kind, rule, *, oracle_rule=None, mask=None):
    """The engine on a network of one layer, a batch at a time, against the oracle, a sample at a time."""
    start = numbers(7, len(x), *layer.out)
    explanation = explain(nn.Sequential(module), x, [{"kind": kind, **rule}], start, mask)
    taken = dict(rule if oracle_rule is None else oracle_rule)
    if mask is not None:
        taken["mask"] = np.broadcast_to(array(mask), x.shape[1:])
    accounts = [
        oracle.explain_layer(layer, array(sample), array(r), **taken) for sample, r in zip(x, start, strict=True)
    ]
    close(explanation.output, np.stack([layer(array(sample)) for sample in x]))
    close(explanation.relevance, np.stack([account.relevance for account in accounts]))
    ledger_close(explanation, kind, accounts, array(start))
    return explanation, accounts


# ------------------------------------------------------------------------------------------ the oracle itself
@pytest.mark.parametrize("bias", [False, True], ids=["none", "bias"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_oracle_layers_are_torchs(name, bias):
    make, shape = WEIGHTED[name]
    module, x = fixed(make(bias)), numbers(1, 2, *shape)
    layer = as_layer(module, shape)
    close(np.stack([layer(array(sample)) for sample in x]), array(module(x)))


@pytest.mark.parametrize("name", AVERAGES)
def test_oracle_averages_are_torchs(name):
    module, shape = AVERAGES[name]
    x = numbers(1, 2, *shape)
    layer = as_layer(module, shape)
    close(np.stack([layer(array(sample)) for sample in x]), array(module(x)))


def one_unit(weights, bias=0.0):
    return oracle.dense(np.array([weights], float), np.array([bias]), (len(weights),))


@pytest.mark.parametrize(
    ("weights", "x", "rule", "expected"),
    [
        ([2, -1], [1, 1], {"rule": "zero"}, [2, -1]),
        ([2, -1], [1, 1], {"rule": "epsilon", "epsilon": 1.0}, [1, -0.5]),
        ([-2, 1], [1, 1], {"rule": "epsilon", "epsilon": 1.0}, [1, -0.5]),  # the sum is -1: epsilon has its sign
        ([-2, 1], [1, 1], {"rule": "epsilon", "epsilon": 3.0, "signed": False, "stabiliser": 0}, [-1, 0.5]),
        ([2, -1], [1, 1], {"rule": "z_plus", "stabiliser": 0}, [1, 0]),
        ([2, -1], [1, -2], {"rule": "z_plus", "stabiliser": 0}, [0.5, 0.5]),  # x < 0, w < 0 counts
        ([2, -1], [1, 1], {"rule": "alpha_beta", "alpha": 2, "beta": 1, "stabiliser": 0}, [2, -1]),
        ([3, 1, -2], [1, 1, 1], {"rule": "gamma", "gamma": 1, "stabiliser": 0}, [1, 1 / 3, -1 / 3]),
        ([1, -3], [1, 1], {"rule": "gamma", "gamma": 1, "stabiliser": 0}, [-0.2, 1.2]),
        ([0.6, -0.4, -0.4], [0.5, 1, 0], {"rule": "box", "low": 0, "high": 1, "stabiliser": 0}, [3 / 7, 0, 4 / 7]),
        ([3, -1], [5, 0], {"rule": "w_square", "stabiliser": 0}, [0.9, 0.1]),
        ([3, 0], [5, 0], {"rule": "flat", "stabiliser": 0}, [0.5, 0.5]),
        ([2, -2], [1, 1], {"rule": "zero"}, [0, 0]),  # dead
    ],
)
def test_oracle_toy_rules(weights, x, rule, expected):
    account = oracle.explain_layer(one_unit(weights), np.array(x, float), np.ones(1), **rule)
    np.testing.assert_allclose(account.relevance, expected, rtol=1e-15, atol=1e-15)


def test_oracle_toy_bias():
    layer, x = one_unit([2, -1], 1.0), np.ones(2)
    kept = oracle.explain_layer(layer, x, np.ones(1), "zero")
    np.testing.assert_allclose(kept.relevance, [1, -0.5])
    assert (kept.bias, kept.dead) == (0.5, 0)
    dropped = oracle.explain_layer(layer, x, np.ones(1), "zero", bias="drop")
    np.testing.assert_allclose(dropped.relevance, [2, -1])
    distributed = oracle.explain_layer(layer, x, np.ones(1), "zero", bias="distribute")
    np.testing.assert_allclose(distributed.relevance, [1.25, -0.25])
    assert (distributed.bias, distributed.relevance.sum()) == (0, 1)


def test_oracle_toy_products():
    s, g, r = np.array([0.5, -0.25, 0]), np.array([0.5, 0.75, 0.2]), np.array([1.0, -2, 3])
    signal, gate = oracle.explain_product(s, g, r, "proposed")
    np.testing.assert_allclose(signal, [0.5, -0.5, 0])
    np.testing.assert_allclose(gate, [0.5, -1.5, 3])
    signal, gate = oracle.explain_product(np.zeros(1), np.zeros(1), np.ones(1), "proposed")
    assert (signal, gate) == (0.5, 0.5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["conv3d_replicate_stride", "transposed2d_groups_dilation", "linear_tokens"])
def test_oracle_accounts_for_all(name, rule):
    """In = out + bias + stabiliser + dead, and for a rule without either, in = out."""
    make, shape = WEIGHTED[name]
    layer, x = as_layer(fixed(make(True)), shape), array(numbers(1, *shape))
    r = array(numbers(2, *layer.out))
    account = oracle.explain_layer(layer, x, r, **RULES[rule])
    parts = (account.relevance.sum(), account.bias, account.stabiliser, account.dead)
    assert sum(parts) == pytest.approx(r.sum(), abs=1e-12 * max(np.abs(parts).max(), np.abs(r).sum()))
    if RULES[rule].get("bias") == "drop" and RULES[rule].get("stabiliser", RULES[rule].get("epsilon")) == 0:
        assert account.relevance.sum() == pytest.approx(r.sum(), rel=1e-12)


def test_oracle_fold_changes_no_output():
    layer = as_layer(fixed(WEIGHTED["conv3d_zeros"][0](True)), (2, 4, 3, 4))
    x, shift = array(numbers(1, 2, 4, 3, 4)), np.broadcast_to([[[[0.7]]], [[[-0.3]]]], (2, 4, 3, 4))
    moved = oracle.folded(layer, shift)
    close(moved(x - shift), layer(x))
    assert len(np.unique(moved.bias.round(12))) > 3  # it depends on the place


# ------------------------------------------------------------------------------------------- weighted layers
@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("rule", RULES)
def test_weighted(rule, name):
    kind = "linear" if name.startswith("linear") else "convolution"
    for bias, signed in itertools.product((True, False), repeat=2):
        module, layer = weighted(name, bias)
        x = boxed(numbers(3, 2, *layer.into, signed=signed), RULES[rule])
        check_layer(module, layer, x, kind, RULES[rule])


EXACT_RULES = ["zero", "zero_drop", "z_plus_0", "alpha3_beta2_0", "gamma_0.25_0", "gamma_-20_0", "box_0_1", "flat_0"]


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_in_whole_numbers(name):
    """Sums without rounding cancel to exactly 0, as where a stack of ReLUs is off: dead units by the dozen."""
    kind, dead = "linear" if name.startswith("linear") else "convolution", []
    for bias, lowest in itertools.product((True, False), (-1, 0)):
        generator = torch.Generator().manual_seed(len(name))
        module = WEIGHTED[name][0](bias).double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
        layer = as_layer(module, WEIGHTED[name][1])
        x = torch.randint(lowest, 2, (2, *layer.into), generator=generator).double()
        x[1] = -x[1].abs() if lowest else 0
        for rule in EXACT_RULES:
            _, accounts = check_layer(module, layer, boxed(x, RULES[rule]), kind, RULES[rule])
            dead += [account.dead != 0 for account in accounts]
    assert sum(dead) > len(dead) / 4


MASKED_RULES = ["epsilon", "zero_drop", "z_plus", "z_plus_distribute", "alpha2_beta1", "gamma_0.25", "gamma_-20", "box"]


@pytest.mark.parametrize("rule", [*MASKED_RULES, "w_square", "w_square_distribute", "flat", "flat_0"])
@pytest.mark.parametrize("name", ["conv3d_zeros", "conv3d_replicate_stride", "conv2d_groups_dilation", "conv2d_same"])
def test_mask(name, rule):
    """Voxels outside have no part: no share, none in the denominators; what they hold does not matter."""
    module, layer = weighted(name, True)
    x, mask = boxed(numbers(3, 2, *layer.into), RULES[rule]), numbers(11, *layer.into[1:]) > -0.3
    explanation, _ = check_layer(module, layer, x, "convolution", RULES[rule], mask=mask)
    assert explanation.relevance[..., ~mask].abs().max() == 0
    np.testing.assert_array_equal(explanation.share_outside, 0)


def test_a_mask_per_sample():
    module, layer = weighted("conv3d_zeros", True)
    x, mask = numbers(3, 2, *layer.into), numbers(11, 2, 1, *layer.into[1:]) > 0
    start = numbers(7, 2, *layer.out)
    for name in ("z_plus", "box", "w_square", "flat"):
        given = boxed(x, RULES[name])
        ours = explain(nn.Sequential(module), given, [{"kind": "convolution", **RULES[name]}], start, mask)
        theirs = [
            oracle.explain_layer(layer, u, r, mask=np.broadcast_to(m, u.shape), **RULES[name]).relevance
            for u, r, m in zip(array(given), array(start), array(mask), strict=True)
        ]
        close(ours.relevance, np.stack(theirs))


@pytest.mark.parametrize("name", ["conv2d_zeros_stride", "conv3d_replicate_stride", "conv3d_depthwise_dilation"])
def test_box_per_voxel(name):
    make, shape = WEIGHTED[name]
    module = fixed(make(True))
    middle, width = numbers(21, *shape), 0.1 + numbers(22, *shape).abs()
    rule = {"rule": "box", "low": middle - width, "high": middle + width}
    taken = rule | {"low": array(rule["low"]), "high": array(rule["high"])}
    x = middle + width * (2 * torch.rand((2, *shape), generator=torch.Generator().manual_seed(3)) - 1)
    check_layer(module, as_layer(module, shape), x, "convolution", rule, oracle_rule=taken)


# ------------------------------------------------------------------------------------- averages, sums, grids
def average_oracle(rule):
    """The oracle's name of an average's rule. Only epsilon has a stabiliser: nothing cancels in the others."""
    name = {"norm": "epsilon", "z_plus": "share"}.get(rule["rule"], rule["rule"])
    return rule | {"rule": name} | ({} if name == "epsilon" else {"stabiliser": 0.0})


@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
@pytest.mark.parametrize("rule", AVERAGE_RULES)
@pytest.mark.parametrize("name", AVERAGES)
def test_averages(name, rule, signed):
    module, shape = AVERAGES[name]
    rule, x = AVERAGE_RULES[rule], numbers(3, 2, *shape, signed=signed)
    check_layer(module, as_layer(module, shape), x, "average", rule, oracle_rule=average_oracle(rule))


@pytest.mark.parametrize("rule", ["epsilon", "epsilon_0.1", "z_plus", "flat"])
@pytest.mark.parametrize("name", ["avg3d", "avg3d_no_count", "adaptive3d_uneven"])
def test_mask_before_an_average(name, rule):
    """A pool that reads the images keeps to the mask like a convolution."""
    module, shape = AVERAGES[name]
    rule, x, mask = AVERAGE_RULES[rule], numbers(3, 2, *shape), numbers(11, *shape[1:]) > -0.3
    explanation, _ = check_layer(
        module, as_layer(module, shape), x, "average", rule, oracle_rule=average_oracle(rule), mask=mask
    )
    assert explanation.relevance[..., ~mask].abs().max() == 0


@pytest.mark.parametrize("rule", AVERAGE_RULES)
@pytest.mark.parametrize(
    ("function", "axes", "keepdim", "mean"),
    [
        (lambda x: x.mean((2, 3, 4)), (1, 2, 3), False, True),
        (lambda x: torch.mean(x, dim=(-3, -1), keepdim=True), (1, 3), True, True),
        (lambda x: x.mean(1), (0,), False, True),
        (lambda x: x.sum((2, 3)), (1, 2), False, False),
    ],
    ids=["mean", "keepdim", "channels", "sum"],
)
def test_reductions(function, axes, keepdim, mean, rule):
    shape = (3, 2, 3, 4)
    if not mean and rule == "flat":
        pytest.skip("averages only")
    layer = oracle.reduction(shape, axes, keepdim=keepdim, mean=mean)
    rule = AVERAGE_RULES[rule]
    kind = "average" if mean else "sum"
    check_layer(Call(function), layer, numbers(3, 2, *shape), kind, rule, oracle_rule=average_oracle(rule))


@pytest.mark.parametrize("rule", [{"rule": "epsilon"}, {"rule": "z_plus"}], ids=["epsilon", "z_plus"])
@pytest.mark.parametrize(
    ("into", "out", "mode", "corners", "factor"),
    [
        ((2, 5, 4), (3, 2), "bilinear", False, None),
        ((2, 6), (15,), "linear", False, 2.5),
        ((2, 3, 2, 3), (6, 4, 6), "trilinear", False, 2),
        ((2, 3, 2, 3), (5, 4, 7), "trilinear", True, None),
    ],
)
def test_interpolation(into, out, mode, corners, factor, rule):
    size = {"size": out} if factor is None else {"scale_factor": factor}
    module = Call(lambda x: F.interpolate(x, mode=mode, align_corners=corners, **size))
    layer = oracle.interpolation(into, out, "linear", corners=corners, factor=factor)
    check_layer(module, layer, numbers(3, 2, *into), "interpolate", rule, oracle_rule=average_oracle(rule))


@pytest.mark.parametrize(
    ("into", "out", "factor"),
    [((2, 6), (15,), 2.5), ((2, 3, 4), (6, 8), 2), ((2, 3, 4), (5, 7), None), ((2, 5, 2, 3), (3, 4, 3), None)],
)
def test_interpolation_to_the_nearest(into, out, factor):
    """Every output is one input, so relevance goes back where the value came from, and nothing can be lost."""
    size = {"size": out} if factor is None else {"scale_factor": factor}
    layer, x = oracle.interpolation(into, out, "nearest", factor=factor), numbers(3, 2, *into)
    start = numbers(7, 2, *layer.out)
    explanation = explain(Call(lambda x: F.interpolate(x, mode="nearest", **size)), x, "epsilon", start)
    close(explanation.output, np.stack([layer(array(sample)) for sample in x]))
    close(explanation.relevance, np.stack([(layer.weights.T @ array(r).ravel()).reshape(into) for r in start]))
    assert len(explanation.ledger) == 0


@pytest.mark.parametrize("rule", ["winner", "proportional"])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.MaxPool1d(3, 2, padding=1), (2, 7)),
        (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 6, 4)),
        (nn.MaxPool2d(2, 1, dilation=2), (2, 5, 4)),
        (nn.MaxPool3d(3, 2, padding=1), (2, 4, 5, 3)),
        (nn.MaxPool3d(2, ceil_mode=True), (2, 3, 5, 4)),
    ],
)
@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
def test_max_pool(module, shape, rule, signed):
    x = numbers(3, 2, *shape, signed=signed)  # with zeros, so with ties, when not signed
    if rule == "proportional" and module.dilation != 1:
        with pytest.raises(ValueError, match="dilated"):
            explain(nn.Sequential(module), x, [{"kind": "max_pool", "rule": rule}], module(x))
        return
    geometry = {"padding": module.padding, "dilation": module.dilation, "ceil_mode": module.ceil_mode}
    pools = [oracle.max_pool(array(sample), module.kernel_size, module.stride, **geometry) for sample in x]
    start = numbers(7, 2, *pools[0][0].shape)
    explanation = explain(nn.Sequential(module), x, [{"kind": "max_pool", "rule": rule}], start)
    close(explanation.output, np.stack([out for out, _ in pools]))
    expected = [
        oracle.explain_max_pool(array(sample), inside, array(r), rule)
        for sample, (_, inside), r in zip(x, pools, start, strict=True)
    ]
    close(explanation.relevance, np.stack(expected))
    accounts = [oracle.Account(relevance) for relevance in expected]
    ledger_close(explanation, "max_pool", accounts, array(start))


# --------------------------------------------------------------------------- sums and products of two branches
SUM_RULES = {
    "epsilon": ({"rule": "epsilon"}, {}),
    "epsilon_0.1": ({"rule": "epsilon", "epsilon": 0.1}, {"stabiliser": 0.1}),
    "epsilon_0": ({"rule": "epsilon", "epsilon": 0.0}, {"stabiliser": 0.0}),
    "drop": ({"rule": "epsilon", "bias": "drop"}, {"bias": "drop"}),
    "z_plus": ({"rule": "z_plus"}, {"rule": "z_plus"}),
}


@pytest.mark.parametrize("rule", SUM_RULES)
@pytest.mark.parametrize("sign", [1, -1], ids=["add", "subtract"])
def test_add(rule, sign):
    entry, taken = SUM_RULES[rule]
    a, b, start = numbers(1, 2, 3, 4), numbers(2, 2, 3, 4), numbers(3, 2, 3, 4)
    a[0, 0], b[0, 0] = -1, -sign  # no positive term
    if rule == "epsilon_0":
        a[1, 1], b[1, 1] = 1, -sign  # cancels: dead
    function = Call(torch.add if sign > 0 else torch.sub)
    explanation = explain(function, (a, b), [{"kind": "add", **entry}], start)
    found = [
        oracle.explain_sum([u, sign * v], 0.0, r, **taken)
        for u, v, r in zip(array(a), array(b), array(start), strict=True)
    ]
    for which in range(2):
        close(explanation.relevance[which], np.stack([shares[which] for shares, _ in found]))
    ledger_close(explanation, "add", [account for _, account in found], array(start))


@pytest.mark.parametrize("rule", SUM_RULES)
@pytest.mark.parametrize("form", ["constant + x", "x + constant", "constant - x", "x - constant", "x + 2"])
def test_add_constant(form, rule):
    """A constant operand is the sum's bias."""
    entry, taken = SUM_RULES[rule]
    x, start, c = numbers(1, 2, 3, 4), numbers(3, 2, 3, 4), numbers(5, 3, 4)
    function = {
        "constant + x": lambda x: c + x,
        "x + constant": lambda x: x + c,
        "constant - x": lambda x: c - x,
        "x - constant": lambda x: x - c,
        "x + 2": lambda x: x + 2,
    }[form]
    constant = {"x - constant": -array(c), "x + 2": 2.0}.get(form, array(c))
    sign = -1 if form == "constant - x" else 1
    explanation = explain(Call(function), x, [{"kind": "add", **entry}], start)
    found = [oracle.explain_sum([sign * u], constant, r, **taken) for u, r in zip(array(x), array(start), strict=True)]
    close(explanation.relevance, np.stack([shares[0] for shares, _ in found]))
    ledger_close(explanation, "add", [account for _, account in found], array(start))


def test_a_tensor_added_to_itself():
    """Both operands are the same tensor, which gets both shares."""
    x, start = numbers(1, 2, 3, 4), numbers(3, 2, 3, 4)
    explanation = explain(Call(lambda x: x + x), x, [{"kind": "add", "rule": "epsilon"}], start)
    found = [oracle.explain_sum([u, u], 0.0, r) for u, r in zip(array(x), array(start), strict=True)]
    close(explanation.relevance, np.stack([sum(shares) for shares, _ in found]))


@pytest.mark.parametrize("gate_first", [False, True], ids=["signal*gate", "gate*signal"])
@pytest.mark.parametrize("rule", ["proposed", "all", "half", "abs"])
def test_product(rule, gate_first):
    def gated(u, v):
        signal, gate = torch.tanh(u), torch.sigmoid(v)
        return gate * signal if gate_first else signal * gate

    u, v, start = numbers(1, 2, 3, 4), numbers(2, 2, 3, 4), numbers(3, 2, 3, 4)
    u[0, 0, 0] = 0
    explanation = explain(Call(gated), (u, v), [{"kind": "product", "rule": rule}], start)
    s, g = np.tanh(array(u)), 1 / (1 + np.exp(-array(v)))
    expected = oracle.explain_product(s, g, array(start), rule, (array(u), array(v)))
    for ours, theirs in zip(explanation.relevance, expected, strict=True):
        assert np.abs(array(ours) - theirs).max() <= TOLERANCE * np.abs(array(start)).max()


def test_product_of_zeros_is_halved():
    u, v = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    start = numbers(3, 1, 3)
    for ours in explain(Call(torch.mul), (u, v), [{"kind": "product", "rule": "proposed"}], start).relevance:
        close(ours, array(start) / 2)


@pytest.mark.parametrize("rule", ["pass", "gradient"])
def test_softmax(rule):
    x, start = numbers(1, 2, 3, 4), numbers(3, 2, 3, 4)
    explanation = explain(nn.Softmax(dim=-1), x, [{"kind": "softmax", "rule": rule}], start)
    close(explanation.output, oracle.softmax(array(x)))
    close(explanation.relevance, oracle.explain_softmax(array(x), array(start), rule))


def heads_by_einsum(a, b):
    return torch.einsum("bhnm,bhmp->bhnp", a, b)


@pytest.mark.parametrize(
    ("function", "heads"),
    [
        (torch.matmul, ()),
        (torch.bmm, ()),
        (torch.matmul, (3,)),
        (heads_by_einsum, (3,)),
    ],
    ids=["matmul", "bmm", "heads", "einsum"],
)
def test_matmul_half(function, heads):
    a, b, start = numbers(1, 2, *heads, 3, 4), numbers(2, 2, *heads, 4, 5), numbers(3, 2, *heads, 3, 5)
    explanation = explain(Call(function), (a, b), [{"kind": "matmul", "rule": "half"}], start)
    parts = [oracle.explain_matmul(*sample) for sample in zip(array(a), array(b), array(start), strict=True)]
    for which in range(2):
        close(explanation.relevance[which], np.stack([part[which] for part in parts]))
    accounts = [part[2] for part in parts]
    for account, part in zip(accounts, parts, strict=True):
        account.relevance = np.array([part[0].sum(), part[1].sum()])
    ledger_close(explanation, "matmul", accounts, array(start))


def test_matmul_all():
    """What a softmax weights takes all of it, as the signal of a product does."""
    a, b, start = numbers(1, 2, 3, 4), numbers(2, 2, 4, 5), numbers(3, 2, 3, 5)
    attend = Call(lambda a, b: torch.softmax(a, -1) @ b)
    explanation = explain(attend, (a, b), [{"kind": "matmul", "rule": "all"}], start)
    halves = [
        oracle.explain_matmul(oracle.softmax(p), q, r)[1]
        for p, q, r in zip(array(a), array(b), array(start), strict=True)
    ]
    assert explanation.relevance[0].abs().max() == 0
    close(explanation.relevance[1], 2 * np.stack(halves))


NORMS = {
    "layer": (nn.LayerNorm(5), (4, 5), "norm"),
    "layer_two_axes": (nn.LayerNorm((4, 5)), (3, 4, 5), "norm"),
    "instance": (nn.InstanceNorm3d(2, affine=True), (2, 3, 4, 3), "norm"),
    "instance_plain": (nn.InstanceNorm2d(2), (2, 3, 4), "norm"),
    "group": (nn.GroupNorm(2, 4), (4, 3, 3), "norm"),
    "batch": (nn.BatchNorm3d(2), (2, 3, 4, 3), "batch_norm"),
}


@pytest.mark.parametrize("rule", ["pass", "epsilon"])
@pytest.mark.parametrize("name", NORMS)
def test_norms(name, rule):
    """`epsilon`: y = scale * x + shift with both detached; the shift is the bias."""
    module, shape, kind = NORMS[name]
    module = fixed(module)
    if kind == "batch_norm":
        module.running_mean.copy_(numbers(8, 2))
        module.running_var.copy_(numbers(9, 2).abs() + 0.3)
    x, start = numbers(1, 2, *shape), numbers(3, 2, *shape)
    explanation = explain(nn.Sequential(module), x, [{"kind": kind, "rule": rule}], start)
    if rule == "pass":
        close(explanation.relevance, array(start))
        return
    accounts = []
    for sample, r in zip(x, start, strict=True):
        y, scale = array(module(sample[None])[0]), norm_scale(module, array(sample))
        accounts.append(oracle.explain_sum([scale * array(sample)], y - scale * array(sample), array(r))[1])
    close(explanation.relevance, np.stack([account.relevance for account in accounts]))
    ledger_close(explanation, kind, accounts, array(start))


def norm_scale(module, x):
    """gamma / sigma of one sample, of its shape."""
    per_channel = (-1, *(1,) * (x.ndim - 1))
    if isinstance(module, nn.BatchNorm3d):
        return (array(module.weight) / np.sqrt(array(module.running_var) + module.eps)).reshape(per_channel)
    if isinstance(module, nn.LayerNorm):
        axes = tuple(range(-len(module.normalized_shape), 0))
        return array(module.weight) / np.sqrt(x.var(axis=axes, keepdims=True) + module.eps)
    groups = len(x) if isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d) else module.num_groups
    variance = x.reshape(groups, -1).var(axis=1) + module.eps
    sigma = np.sqrt(np.repeat(variance, len(x) // groups)).reshape(per_channel)
    return (1.0 if module.weight is None else array(module.weight).reshape(per_channel)) / sigma


# ----------------------------------------------------------------------------------------------- by hand
def linear(weights, bias):
    module = nn.Linear(len(weights[0]), len(weights)).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weights))
        module.bias.copy_(torch.tensor(bias))
    return module


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def only_row(explanation):
    (row,) = explanation.ledger.iter_rows(named=True)
    return row


@pytest.mark.parametrize("rule", ["zero", "z_plus", "gamma"])
def test_dead_unit(rule):
    """Contributions that cancel, or none that are positive: its relevance is dropped, and the ledger says so."""
    weights = [[1.0, -1.0], [2.0, 1.0]] if rule != "z_plus" else [[-1.0, -1.0], [2.0, 1.0]]
    module, x = linear(weights, [0.0, 0.0]), tensor([1.0, 1.0])
    entry = {"kind": "linear", "rule": rule} | ({} if rule == "zero" else {"stabiliser": 0.0})
    explanation = explain(nn.Sequential(module), x, [entry], tensor([5.0, 3.0]))
    close(explanation.relevance, [[2.0, 1.0]])
    row = only_row(explanation)
    assert (row["dead"], row["relevance_in"], row["relevance_out"]) == (5.0, 8.0, 3.0)
    assert (row["bias"], row["stabiliser"], row["unexplained"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("stabiliser", [0.0, 1e-6])
@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "alpha_beta", "gamma"])
def test_input_of_zeros(rule, stabiliser):
    """Nothing comes in, so nothing gets relevance; the biases have it all."""
    module = linear([[1.0, -2.0], [2.0, 1.0]], [0.5, 0.25])
    entry = {"kind": "linear", "rule": rule, "epsilon" if rule == "epsilon" else "stabiliser": stabiliser}
    entry |= {"alpha_beta": {"alpha": 2.0, "beta": 1.0}, "gamma": {"gamma": 0.25}}.get(rule, {})
    start = tensor([5.0, 3.0])
    explanation = explain(nn.Sequential(module), tensor([0.0, 0.0]), [entry], start)
    np.testing.assert_array_equal(explanation.relevance, 0)
    parameters = {key: value for key, value in entry.items() if key != "kind"}
    account = oracle.explain_layer(as_layer(module, (2,)), np.zeros(2), array(start), **parameters)
    row = only_row(explanation)
    for column in ("bias", "stabiliser", "dead"):
        assert row[column] == pytest.approx(getattr(account, column), abs=1e-14)
    assert row["unexplained"] == pytest.approx(0, abs=1e-14)


def test_one_voxel():
    """1 x 1 x 1: with replicate padding all 27 weights read the same voxel, with zeros only the middle one."""
    for mode in ("replicate", "zeros"):
        module = fixed(nn.Conv3d(1, 2, 3, padding=1, padding_mode=mode))
        layer = as_layer(module, (1, 1, 1, 1))
        assert len(layer.source) == (27 if mode == "replicate" else 1)
        for rule in RULES.values():
            check_layer(module, layer, tensor([[[[0.7]]]]), "convolution", rule)


def test_ties_in_a_maximum_pool():
    """The first of equals wins, as torch has it."""
    x = tensor([[[1.0, 3.0, 3.0, 0.0], [3.0, 1.0, 0.0, 0.0]], [[-2.0, -2.0, 0.0, 0.0], [-2.0, -2.0, 0.0, 0.0]]])
    start = tensor([[[5.0, 7.0]], [[2.0, 4.0]]])
    pool = nn.Sequential(nn.MaxPool2d(2))
    winner = explain(pool, x, [{"kind": "max_pool", "rule": "winner"}], start)
    zero = [0.0] * 4
    close(winner.relevance, [[[[0.0, 5.0, 7.0, 0.0], zero], [[2.0, 0.0, 4.0, 0.0], zero]]])
    shared = explain(pool, x, [{"kind": "max_pool", "rule": "proportional"}], start).relevance
    close(shared, [[[[0.625, 1.875, 7, 0], [1.875, 0.625, 0, 0]], [[0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1]]]])


def test_gamma_of_minus_one():
    """Above zero the positive contributions vanish, below it the negative ones."""
    module, x = linear([[3.0, -1.0, -1.0], [-3.0, 1.0, 1.5]], [0.0, 0.0]), tensor([1.0, 1.0, 1.0])
    entry = {"kind": "linear", "rule": "gamma", "gamma": -1.0, "stabiliser": 0.0}
    explanation = explain(nn.Sequential(module), x, [entry], tensor([4.0, 5.0]))
    close(explanation.relevance, [[0.0, 4.0, 5.0]])


def test_gamma_drops_what_is_exactly_zero():
    """As zennit: neither the positive nor the negative form holds at an output of 0."""
    module, x = linear([[1.0, -1.0], [1.0, 0.0]], [0.0, 0.0]), tensor([1.0, 1.0])
    explanation = explain(nn.Sequential(module), x, [{"kind": "linear", "rule": "gamma"}], tensor([4.0, 5.0]))
    assert explanation.relevance[0, 1] == 0
    assert only_row(explanation)["dead"] == 4.0
