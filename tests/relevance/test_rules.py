"""Rules on one operation, in numbers that can be checked by hand.

Belongs here: closed-form values of every rule, its edge cases, and what the ledger says of them. Does not belong here:
shapes, paddings and strides (`tests/oracles/test_dense_rules.py`), networks.
"""

import pytest
import torch
import zennit.rules
from torch import nn
from torch.nn import functional as F

from relevance_assets.relevance import explain

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

LOSSES = ["bias", "stabiliser", "dead", "clamped"]


class Call(nn.Module):
    """A function as a network."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, *inputs):
        return self.function(*self.parts, *inputs)


def spread(rule, network, relevance, *inputs):
    """Relevance of the inputs, as lists, and the ledger's losses summed over operations."""
    network = network if isinstance(network, nn.Module) else Call(network)
    given = [torch.as_tensor(x, dtype=torch.float64) for x in inputs]
    start = torch.as_tensor(relevance, dtype=torch.float64)
    found = explain(network.double(), given, [rule], start, dtype=torch.float64)
    lost = found.ledger.select(LOSSES).sum().row(0, named=True)
    assert found.ledger["unexplained"].abs().max() < 1e-12
    return [part.tolist() for part in found.relevance], lost


def dense(*weights, bias=None):
    module = nn.Linear(len(weights), 1, bias=bias is not None)
    module.weight.data = torch.tensor([weights], dtype=torch.float64)
    if bias is not None:
        module.bias.data = torch.tensor([bias], dtype=torch.float64)
    return module


def flat(nested):
    """The numbers in nested lists."""
    return [number for part in nested for number in flat(part)] if isinstance(nested, list) else [nested]


def near(values, tolerance=1e-14):
    return pytest.approx(values, abs=tolerance, rel=0)


# ------------------------------------------------------------------------------------------------ weighted operations
def test_box():
    """Contributions .4, 0, .3 of (x, w) = (0, -.4), (1, -.4), (.5, .6): shares 4/7, 0, 3/7."""
    rule = {"rule": "box", "low": 0, "high": 1, "stabiliser": 0.0}
    (result,), lost = spread(rule, dense(-0.4, -0.4, 0.6, bias=5.0), [[1.0]], [[0, 1, 0.5]])
    assert result[0] == near([4 / 7, 0, 3 / 7])
    assert lost == dict.fromkeys(LOSSES, near(0))


def test_box_of_other_bounds():
    """low = -1, high = 3 at x = (2, 0), w = (1, -2): (2 + 1) 1 and (0 - 3) (-2)."""
    rule = {"rule": "box", "low": -1, "high": 3, "stabiliser": 0.0}
    (result,), _ = spread(rule, dense(1.0, -2.0), [[9.0]], [[2.0, 0]])
    assert result[0] == near([3.0, 6.0])


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 1, 1)], ids=["channels", "batch and channels"])
def test_box_with_bounds_per_channel(shape):
    """Channel 0 in [0, 1], channel 1 in [-1, 3]."""
    rule = {"rule": "box", "stabiliser": 0.0}
    rule |= {"low": torch.tensor([0.0, -1]).view(shape), "high": torch.tensor([1.0, 3]).view(shape)}
    conv = nn.Conv2d(2, 1, 1, bias=False)
    conv.weight.data = torch.tensor([0.5, -2.0]).view(1, 2, 1, 1)
    (result,), _ = spread(rule, conv, [[[[1.0]]]], [[[[1.0]], [[2.0]]]])
    assert flat(result) == near([0.5 / 2.5, 2.0 / 2.5])


def test_box_refuses_inputs_outside_its_bounds():
    with pytest.raises(ValueError, match=r"inputs in \[0, 1\], given \[-2, 1\]"):
        spread({"rule": "box"}, dense(1.0, 1.0), [[1.0]], [[-2.0, 1]])


@pytest.mark.parametrize(("bias", "expected"), [("keep", 4 / 3.1), ("drop", 4 / 4.1), ("distribute", 1 - 0.1 / 3.1)])
def test_epsilon_and_the_bias(bias, expected):
    """z = 3 with bias -1: the inputs hold 4."""
    rule = {"rule": "epsilon", "epsilon": 0.1, "bias": bias}
    (result,), lost = spread(rule, dense(1.0, 1.0, bias=-1.0), [[1.0]], [[1.0, 3]])
    assert sum(result[0]) == near(expected)
    assert lost["stabiliser"] == near(0.1 / 4.1 if bias == "drop" else 0.1 / 3.1)
    assert lost["bias"] == near(-1 / 3.1 if bias == "keep" else 0)
    if bias == "distribute":
        assert result[0] == near([(1 - 0.5) / 3.1, (3 - 0.5) / 3.1])


def test_epsilon_where_contributions_cancel():
    """sgn(0) = 1."""
    rule = {"rule": "epsilon", "epsilon": 0.1}
    (result,), lost = spread(rule, dense(1.0, -1.0), [[1.0]], [[1.0, 1]])
    assert result[0] == near([10, -10])
    assert lost["stabiliser"] == near(1)


def test_epsilon_has_the_sign_of_the_output_unless_it_is_unsigned():
    for signed, denominator in ((True, -2.5), (False, -1.5)):
        rule = {"rule": "epsilon", "epsilon": 0.5, "signed": signed, "stabiliser": 0.0}
        (result,), _ = spread(rule, dense(1.0, -1.0), [[1.0]], [[1.0, 3]])
        assert result[0] == near([1 / denominator, -3 / denominator])


def test_unsigned_epsilon_is_stabilised():
    """z + epsilon = 0: the stabiliser stands alone."""
    rule = {"rule": "epsilon", "epsilon": -2.0, "signed": False, "stabiliser": 0.25}
    (result,), lost = spread(rule, dense(1.0, 1.0), [[1.0]], [[0.5, 1.5]])
    assert result[0] == near([2, 6])
    assert lost["stabiliser"] == near(-7)


@pytest.mark.parametrize("rule", ["zero", "epsilon"])
def test_without_stabiliser_what_cannot_be_divided_is_dead(rule):
    options = {"epsilon": 0.0} if rule == "epsilon" else {}
    (result,), lost = spread({"rule": rule} | options, dense(1.0, -1.0), [[3.0]], [[1.0, 1]])
    assert result == [[0, 0]]
    assert lost["dead"] == 3


def test_a_relative_stabiliser_is_in_units_of_the_mean_output():
    """z = 4 and -2: |z| is 3 in the mean, so 0.1 is 0.3."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[4.0], [-2.0]])
    rule = {"rule": "epsilon", "epsilon": 0.1, "relative": True}
    (result,), lost = spread(rule, layer, [[1.0, 1.0]], [[1.0]])
    assert result[0] == near([4 / 4.3 + 2 / 2.3])
    assert lost["stabiliser"] == near(0.3 / 4.3 + 0.3 / 2.3)


def test_a_relative_stabiliser_does_not_depend_on_what_comes_behind():
    """The same layer with a ReLU behind it, which hides z = -2."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[4.0], [-2.0]])
    rule = {"rule": "epsilon", "epsilon": 0.1, "relative": True}
    summed = Call(lambda layer, x: torch.relu(layer(x)).sum(1), layer)
    found = explain(summed.double(), torch.ones(1, 1).double(), [{"name": "parts.0", **rule}])
    row = found.ledger.filter(layer="parts.0").row(0, named=True)
    assert row["relevance_in"] == pytest.approx(4, rel=1e-6)
    assert row["relevance_out"] == pytest.approx(row["relevance_in"] * 4 / 4.3, rel=1e-12)


def test_z_plus_holds_negative_inputs_times_negative_weights():
    """z = (2, 6, -2); nothing goes to the third."""
    rule = {"rule": "z_plus", "bias": "drop", "stabiliser": 0.0}
    (result,), _ = spread(rule, dense(1.0, -1.0, 2.0, bias=9.0), [[1.0]], [[2.0, -6, -1]])
    assert result[0] == near([0.25, 0.75, 0])
    (result,), lost = spread(rule, dense(1.0, -1.0, bias=9.0), [[1.0]], [[-2.0, 1]])
    assert (result, lost["dead"]) == ([[0, 0]], 1)


@pytest.mark.parametrize("rule", ["epsilon", "z_plus"])
def test_padding_with_a_value_is_a_bias(rule):
    """A pad of -1 under a weight of -3 is half of the output, though a ReLU came before."""
    conv = nn.Conv1d(1, 1, 2, bias=False)
    conv.weight.data = torch.tensor([[[-3.0, 3.0]]])
    entry = {"rule": rule} | ({"stabiliser": 0.0} if rule == "z_plus" else {"epsilon": 0.0})
    network = Call(lambda conv, x: conv(F.pad(torch.relu(x), (1, 0), value=-1.0)), conv)
    (result,), lost = spread(entry, network, [[[1.0]]], [[[1.0]]])
    assert flat(result) == near([0.5])
    assert lost["bias"] == near(0.5)


@pytest.mark.parametrize(("bias", "share"), [(4.0, 4 / 12), (-4.0, 0)])
def test_z_plus_keeps_a_positive_bias(bias, share):
    rule = {"rule": "z_plus", "stabiliser": 0.0}
    (result,), lost = spread(rule, dense(1.0, -1.0, 2.0, bias=bias), [[1.0]], [[2.0, -6, -1]])
    assert sum(result[0]) == near(1 - share)
    assert lost["bias"] == near(share)


@pytest.mark.parametrize(("bias", "expected"), [(2.0, 4 / 6), (-1.0, 4 / 3)])
def test_z_plus_with_both_signs_of_the_bias(bias, expected):
    """As iNNvestigate's preset A has it."""
    rule = {"rule": "z_plus", "bias": "both", "stabiliser": 0.0, "at_zero": 1e-7}
    (result,), _ = spread(rule, dense(2.0, -1.0, bias=bias), [[1.0]], [[2.0, 3]])
    assert result[0] == near([expected, 0])


def test_at_zero_stands_for_an_empty_denominator():
    rule = {"rule": "z_plus", "bias": "both", "stabiliser": 0.0, "at_zero": 0.5}
    (result,), lost = spread(rule, dense(2.0, bias=-4.0), [[1.0]], [[2.0]])
    assert result[0] == near([8])
    assert lost["bias"] + lost["stabiliser"] == near(-7)


def test_alpha_beta():
    """z = (2, 6, -2), b = -3: z+ / 8 and z- / (-2 - 3)."""
    rule = {"rule": "alpha_beta", "alpha": 3, "beta": 2, "stabiliser": 0.0}
    (result,), lost = spread(rule, dense(1.0, -1.0, 2.0, bias=-3.0), [[1.0]], [[2.0, -6, -1]])
    assert result[0] == near([3 * 0.25, 3 * 0.75, -2 * 2 / 5])
    assert lost["bias"] == near(-2 * 3 / 5)


def test_alpha_beta_where_one_sign_is_missing():
    """No negative contributions: -beta R has nowhere to go."""
    rule = {"rule": "alpha_beta", "stabiliser": 0.0}
    (result,), lost = spread(rule, dense(1.0, 3.0), [[1.0]], [[1.0, 1]])
    assert result[0] == near([0.5, 1.5])
    assert lost["dead"] == near(-1)


@pytest.mark.parametrize(("small", "share"), [(1e-7, -1), (1e-9, 0)])
def test_alpha_beta_on_a_convolution_keeps_small_rests(small, share):
    """z- = -1e-7 beside z+ = 1e9, whose difference has few digits of it; what is below its last digit is dead."""
    conv = nn.Conv1d(2, 1, 1, bias=False)
    conv.weight.data = torch.tensor([1e9, -small], dtype=torch.float64).view(1, 2, 1)
    rule = {"rule": "alpha_beta", "stabiliser": 0.0}
    (result,), lost = spread(rule, conv, [[[1.0]]], [[[1.0], [1.0]]])
    assert flat(result) == near([2, share], 1e-9)
    assert lost["dead"] == near(-1 - share)


@pytest.mark.parametrize(("bias", "total"), [(-1.0, 3.0), (-9.0, -5.0)])
def test_gamma_favours_the_sign_of_the_output(bias, total):
    """z = (6, -2) with bias: contributions z + z+ / 4 above 0, z + z- / 4 below; the bias alike."""
    up = total > 0
    z = [6 * (1.25 if up else 1), -2 * (1 if up else 1.25)]
    b = bias * (1 if up else 1.25)
    rule = {"rule": "gamma", "gamma": 0.25, "stabiliser": 0.0}
    (result,), lost = spread(rule, dense(3.0, 2.0, bias=bias), [[1.0]], [[2.0, -1]])
    assert result[0] == near([v / (sum(z) + b) for v in z])
    assert lost["bias"] == near(b / (sum(z) + b))


def test_gamma_of_nothing_is_dead():
    (result,), lost = spread({"rule": "gamma"}, dense(1.0, -1.0), [[2.0]], [[1.0, 1]])
    assert result == [[0, 0]]
    assert lost["dead"] == 2


def test_negative_gamma_weighs_absolute_values():
    """gamma = -20 at z = (3, -1): (-57 and -1) / -58."""
    rule = {"rule": "gamma", "gamma": -20.0, "stabiliser": 0.0}
    (result,), _ = spread(rule, dense(3.0, -1.0), [[1.0]], [[1.0, 1]])
    assert result[0] == near([57 / 58, 1 / 58])


@pytest.mark.parametrize(("bias", "b"), [("keep", 4), ("drop", 0)])
def test_w_square_does_not_look_at_inputs(bias, b):
    rule = {"rule": "w_square", "stabiliser": 0.0, "bias": bias}
    (result,), lost = spread(rule, dense(1.0, -3.0, bias=-2.0), [[1.0]], [[0.0, 5]])
    assert result[0] == near([1 / (10 + b), 9 / (10 + b)])
    assert lost["bias"] == near(b / (10 + b))


def test_flat_shares_equally():
    rule = {"rule": "flat", "stabiliser": 0.0}
    (result,), lost = spread(rule, dense(1.0, 0.0, -3.0, bias=-2.0), [[1.0]], [[0.0, 5, 1]])
    assert result[0] == near([1 / 3, 1 / 3, 1 / 3])
    assert lost["bias"] == 0


def test_flat_gives_padding_nothing():
    """Kernel 3, padding 1 on two voxels: each output reads both voxels."""
    conv = nn.Conv1d(1, 1, 3, padding=1)
    (result,), lost = spread({"rule": "flat", "stabiliser": 0.0}, conv, [[[1.0, 3.0]]], [[[7.0, 8.0]]])
    assert result == [[near([2, 2])]]
    assert lost == dict.fromkeys(LOSSES, 0)


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"rule": "epsilon", "epsilon": 0.25}, zennit.rules.Epsilon(0.25)),
        ({"rule": "epsilon", "epsilon": 0.25, "bias": "drop"}, zennit.rules.Epsilon(0.25, zero_params="bias")),
        (
            {"rule": "alpha_beta", "alpha": 1, "beta": 0, "bias": "drop", "stabiliser": 0.0},
            zennit.rules.AlphaBeta(1, 0, stabilizer=1e-15, zero_params="bias"),
        ),
        ({"rule": "alpha_beta"}, zennit.rules.AlphaBeta(2, 1)),
        ({"rule": "z_plus", "stabiliser": 0.0}, zennit.rules.ZPlus(stabilizer=1e-15)),
        ({"rule": "gamma", "gamma": 0.5}, zennit.rules.Gamma(0.5)),
        ({"rule": "box", "stabiliser": 0.0}, zennit.rules.ZBox(0.0, 1.0, stabilizer=1e-15, zero_params="bias")),
    ],
    ids=["epsilon", "epsilon without bias", "alpha 1 beta 0", "alpha 2 beta 1", "z+", "gamma", "box"],
)
def test_zennit_agrees(ours, theirs, padding):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 4, 3, padding=1, padding_mode=padding).double()
    signed = ours["rule"] != "box"
    x = torch.randn(1, 3, 5, 4, 6).double() if signed else torch.rand(1, 3, 5, 4, 6).double()
    relevance = torch.randn(1, 4, 5, 4, 6).double()
    mine = explain(conv, x, [ours], relevance).relevance
    leaf = x.clone().requires_grad_()
    handles = theirs.copy().register(conv)
    (reference,) = torch.autograd.grad(conv(leaf), leaf, relevance)
    handles.remove()
    torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------- sums, averages, pools
def test_addition_shares_in_proportion():
    rule = {"kind": "add", "rule": "epsilon", "epsilon": 0.0}
    (a, b), _ = spread(rule, lambda a, b: a + b, [[6.0, 1.0]], [[1.0, 4]], [[2.0, -2]])
    assert (a[0], b[0]) == (near([2, 2]), near([4, -1]))


def test_subtraction_is_addition_of_the_negative():
    rule = {"kind": "add", "rule": "epsilon", "epsilon": 0.0}
    (a, b), _ = spread(rule, lambda a, b: a - b, [[6.0]], [[1.0]], [[-2.0]])
    assert (a[0], b[0]) == (near([2]), near([4]))
    (a,), lost = spread(rule, lambda a: 5 - a, [[6.0]], [[2.0]])
    assert a[0] == near([-4])
    assert lost["bias"] == near(10)


def test_addition_with_a_factor():
    rule = {"kind": "add", "rule": "epsilon", "epsilon": 0.0}
    (a, b), _ = spread(rule, lambda a, b: torch.add(a, b, alpha=3), [[8.0]], [[2.0]], [[2.0]])
    assert (a[0], b[0]) == (near([2]), near([6]))


def test_what_is_added_to_itself_has_all():
    (a,), _ = spread({"kind": "add", "rule": "epsilon", "epsilon": 0.0}, lambda a: a + a, [[6.0]], [[2.0]])
    assert a[0] == near([6])


@pytest.mark.parametrize(("bias", "expected"), [("keep", 2.0), ("drop", 6.0)])
def test_a_constant_term_is_a_bias(bias, expected):
    rule = {"kind": "add", "rule": "epsilon", "epsilon": 0.0, "bias": bias}
    (a,), lost = spread(rule, lambda a: a + 2, [[6.0]], [[1.0]])
    assert a[0] == near([expected])
    assert lost["bias"] == near(6 - expected)


def test_addition_z_plus():
    """Negative terms get nothing; where no term is positive, halves."""
    rule = {"kind": "add", "rule": "z_plus"}
    (a, b), _ = spread(rule, lambda a, b: a + b, [[6.0, 4.0, 2.0]], [[1.0, 4, -1]], [[2.0, -2, 0]])
    assert (a[0], b[0]) == (near([2, 4, 1]), near([4, 0, 1]))


def test_terms_that_were_broadcast_collect_their_shares():
    rule = {"kind": "add", "rule": "epsilon", "epsilon": 0.0}
    (a, b), _ = spread(rule, lambda a, b: a + b, [[3.0, 4.0]], [[1.0, 2]], [[2.0]])
    assert (a[0], b[0]) == (near([1, 2]), near([2 + 2]))


def test_sum_over_contrasts():
    rule = {"kind": "sum", "rule": "epsilon", "epsilon": 1e-12}
    (result,), _ = spread(rule, lambda x: x.sum(1), [[4.0, 1]], [[[1.0, 2], [3, -1]]])
    assert result[0] == [near([1, 2], 1e-11), near([3, -1], 1e-11)]


def test_average_z_plus():
    x = torch.zeros(1, 2, 2, 2, 3)
    x[0, 0, 0, 0, 0], x[0, 0, 0, 0, 1], x[0, 0, 1, 0, 0] = 3, 1, -5
    rule = {"kind": "average", "rule": "z_plus"}
    (result,), lost = spread(rule, nn.AvgPool3d(2), torch.full((1, 2, 1, 1, 1), 8.0), x)
    result = torch.tensor(result)
    assert result[0, 0, 0, 0].tolist() == [6, 2, 0]
    assert result[0, 1, :, :, :2].flatten().tolist() == [1] * 8  # nothing positive: equal shares
    assert not result[..., 2].any()  # odd slice, in no window
    assert lost == dict.fromkeys(LOSSES, 0)


@pytest.mark.parametrize(
    ("rule", "expected"), [("epsilon", [9, -3]), ("z_plus", [6, 0]), ("flat", [3, 3])], ids=lambda v: str(v)
)
def test_average_rules(rule, expected):
    options = {"epsilon": 0.0} if rule == "epsilon" else {}
    for network in (nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1), lambda x: x.mean(2, keepdim=True)):
        (result,), _ = spread({"kind": "average", "rule": rule} | options, network, [[[6.0]]], [[[3.0, -1]]])
        assert result[0][0] == near(expected)


def test_interpolation_collects_what_a_voxel_gave():
    """Linear, 2 to 4 voxels, corners apart: weights (1, 0), (3/4, 1/4), (1/4, 3/4), (0, 1)."""
    rule = {"kind": "interpolate", "rule": "epsilon", "epsilon": 0.0}
    (result,), _ = spread(
        rule, lambda x: F.interpolate(x, scale_factor=2, mode="linear"), [[[1.0, 1, 1, 1]]], [[[1.0, 2]]]
    )
    first = 1 + 0.75 / 1.25 + 0.25 / 1.75
    assert result[0][0] == near([first, 4 - first])


def test_max_pool_gives_all_to_the_first_of_equals():
    (result,), _ = spread({"kind": "max_pool", "rule": "winner"}, nn.MaxPool1d(4), [[[7.0]]], [[[1.0, 3, 3, 2]]])
    assert result[0][0] == [0, 7, 0, 0]


def test_overlapping_maximum_pools_add_up():
    (result,), _ = spread({"kind": "max_pool", "rule": "winner"}, nn.MaxPool1d(2, 1), [[[1.0, 2]]], [[[0.0, 5, 1]]])
    assert result[0][0] == [0, 3, 0]


def test_max_pool_proportional():
    """Negative values get nothing; a window without positive ones is shared equally."""
    rule = {"kind": "max_pool", "rule": "proportional"}
    (result,), _ = spread(rule, nn.MaxPool1d(3), [[[8.0, 9.0]]], [[[1.0, 3, -3, -1, 0, -2]]])
    assert result[0][0] == near([2, 6, 0, 3, 3, 3])


def test_max_pool_proportional_gives_padding_nothing():
    rule = {"kind": "max_pool", "rule": "proportional"}
    (result,), _ = spread(rule, nn.MaxPool1d(2, padding=1), [[[4.0, 9.0]]], [[[-1.0, 3]]])
    assert result[0][0] == near([4, 9])


# ------------------------------------------------------------------------------------ products, attention, activations
PRODUCTS = {
    "proposed": ([0.5, -0.5, 0], [0.5, -1.5, 3]),
    "all": ([1, -2, 3], [0, 0, 0]),
    "half": ([0.5, -1, 1.5], [0.5, -1, 1.5]),
}


@pytest.mark.parametrize("rule", PRODUCTS)
def test_product(rule):
    signal, gate = [[0.5, -0.25, 0]], [[0.5, 0.75, 0.2]]
    (s, g), lost = spread({"kind": "product", "rule": rule}, torch.mul, [[1.0, -2, 3]], signal, gate)
    assert (s[0], g[0]) == tuple(map(near, PRODUCTS[rule]))
    assert lost == dict.fromkeys(LOSSES, 0)


@pytest.mark.parametrize("rule", ["proposed", "abs"])
def test_product_of_nothing_is_halved(rule):
    zero = torch.zeros(1, 2)
    (s, g), _ = spread({"kind": "product", "rule": rule}, torch.mul, [[1.0, -4]], zero, zero)
    assert s == g == [[0.5, -2]]


def test_abs_weighs_what_activations_were_given():
    """tanh of 3 and sigmoid of -1: 3/4 and 1/4."""
    rule = {"kind": "product", "rule": "abs"}
    (s, g), _ = spread(rule, lambda s, g: torch.tanh(s) * torch.sigmoid(g), [[4.0]], [[3.0]], [[-1.0]])
    assert (s, g) == ([[3]], [[1]])


@pytest.mark.parametrize("order", [1, -1], ids=["gate second", "gate first"])
def test_the_gate_is_what_a_sigmoid_or_softmax_made(order):
    for gating in (torch.sigmoid, lambda g: torch.softmax(g, 1), lambda g: 2 * torch.sigmoid(g).unsqueeze(0)[0]):
        (s, g), _ = spread(
            {"kind": "product", "rule": "all"},
            lambda s, g, gating=gating: torch.mul(*(s, gating(g))[::order]),
            [[4.0, 1.0]],
            [[3.0, 1.0]],
            [[-1.0, 0.0]],
        )
        assert (s, g) == ([[4, 1]], [[0, 0]])


def test_the_gate_is_else_what_was_broadcast():
    for product in (lambda s, g: g * s, torch.mul):
        (s, g), _ = spread({"kind": "product", "rule": "all"}, product, [[4.0, 1.0]], [[3.0, 1.0]], [[2.0]])
        assert (s, g) == ([[4, 1]], [[0]])


def test_a_divisor_is_a_gate():
    (s, g), _ = spread({"kind": "product", "rule": "half"}, torch.div, [[4.0]], [[3.0]], [[2.0]])
    assert (s, g) == ([[4]], [[0]])


def test_a_factor_changes_nothing_unless_it_is_0():
    factor = torch.tensor([2.0, -0.5, 0]).double()
    (result,), lost = spread({"rule": "epsilon"}, lambda x: x * factor / 3, [[1.0, 2, 4]], [[1.0, 1, 1]])
    assert result == [[1, 2, 0]]
    assert lost["dead"] == 4


def test_softmax():
    """x (R - y sum R) at x = (log 2, 0, log 3), y = (1/3, 1/6, 1/2); or unchanged."""
    x = torch.tensor([[2.0, 1, 3]]).double().log()
    start = [[1.0, 2, -2]]
    (result,), lost = spread({"kind": "softmax", "rule": "gradient"}, nn.Softmax(1), start, x)
    log2, log3 = x[0, 0].item(), x[0, 2].item()
    assert result[0] == near([log2 * (1 - 1 / 3), 0, log3 * (-2 - 1 / 2)])
    assert lost["bias"] == near(1 - sum(result[0]))
    assert spread({"kind": "softmax", "rule": "pass"}, nn.Softmax(1), start, x)[0] == [start]


def test_matrix_product():
    """O = (1, 2) (3, 4)' = 11: halves of 3/11 and 8/11 to both."""
    a, b = [[[1.0, 2]]], [[[3.0], [4]]]
    options = {"kind": "matmul", "epsilon": 0.0}
    (left, right), _ = spread({"rule": "half"} | options, torch.bmm, [[[22.0]]], a, b)
    assert left[0] == [near([3, 8])]
    assert right[0] == [near([3]), near([8])]
    (left, right), _ = spread({"rule": "all"} | options, torch.bmm, [[[22.0]]], a, b)
    assert left[0] == [near([6, 16])]
    assert not any(map(sum, right[0]))


@pytest.mark.parametrize(
    "activation",
    [torch.relu, torch.tanh, torch.sigmoid, F.elu, F.gelu, F.silu, F.leaky_relu, F.softplus, nn.PReLU(), F.hardswish],
)
def test_activations_pass_relevance(activation):
    (result,), lost = spread({"kind": "activation", "rule": "pass"}, activation, [[3.0, -1]], [[-0.5, 2]])
    assert result == [[3, -1]]
    assert lost == dict.fromkeys(LOSSES, 0)


def test_block_stops_relevance_at_units_that_are_off():
    rule = {"kind": "activation", "rule": "block"}
    (result,), lost = spread(rule, torch.relu, [[3.0, -1, 5]], [[-0.5, 2, 0]])
    assert result == [[0, -1, 0]]
    assert lost["clamped"] == 8


def test_relevance_of_a_selection_goes_to_what_was_selected():
    (a, b), lost = spread(
        {"rule": "epsilon"}, lambda a, b: torch.where(a > 0, a, b), [[1.0, 2]], [[1.0, -1]], [[5.0, 5]]
    )
    assert (a, b) == ([[1, 0]], [[0, 2]])
    (a,), lost = spread({"rule": "epsilon"}, lambda a: a.masked_fill(a < 0, 9), [[1.0, 2]], [[1.0, -1]])
    assert a == [[1, 0]]
    assert lost["bias"] == 2


def test_relevance_of_constants_is_counted_as_a_bias():
    """Of what is concatenated, and of padding."""
    one = torch.ones(1, 1).double()
    (a,), lost = spread({"rule": "epsilon"}, lambda a: torch.cat([a, one], 1), [[1.0, 2]], [[5.0]])
    assert (a, lost["bias"]) == ([[1]], 2)
    (a,), lost = spread({"rule": "epsilon"}, lambda a: F.pad(a, (1, 0), value=3.0), [[1.0, 2]], [[5.0]])
    assert (a, lost["bias"]) == ([[2]], 1)


# ------------------------------------------------------------------------------------------------------------- norms
def test_norms_hold_their_statistics_fixed():
    """x = (1, 3): mean 2, sd 1; y = 2 (x - 2) + 5 = (3, 7), of which x brings 2 x."""
    norm = nn.LayerNorm(2, eps=0.0)
    norm.weight.data.fill_(2), norm.bias.data.fill_(5)
    options = {"kind": "norm", "epsilon": 0.0}
    (result,), lost = spread({"rule": "epsilon"} | options, norm, [[1.0, 1]], [[1.0, 3]])
    assert result[0] == near([2 / 3, 6 / 7])
    assert lost["bias"] == near(1 / 3 + 1 / 7)
    (result,), lost = spread({"rule": "epsilon", "bias": "drop"} | options, norm, [[1.0, 1]], [[1.0, 3]])
    assert result[0] == near([1, 1])
    (result,), _ = spread({"rule": "pass"} | options, norm, [[1.0, 1]], [[1.0, 3]])
    assert result[0] == [1, 1]


@pytest.mark.parametrize("norm", [nn.InstanceNorm1d(2, eps=0.0, affine=True), nn.GroupNorm(2, 2, eps=0.0)])
def test_norms_over_space_are_one_norm_per_channel(norm):
    """Means 2 and 20, sds 1 and 10: y = 2 (x - 2) + 5 and (x - 20) / 10 + 0.5."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 1])), norm.bias.copy_(torch.tensor([5.0, 0.5]))
    rule = {"kind": "norm", "rule": "epsilon", "epsilon": 0.0}
    (result,), lost = spread(rule, norm, [[[1.0, 1], [1, 1]]], [[[1.0, 3], [10, 30]]])
    assert flat(result) == near([2 / 3, 6 / 7, 1 / -0.5, 3 / 1.5])
    assert lost["bias"] == near(1 / 3 + 1 / 7 + (0.5 - 2) / -0.5 + (0.5 - 2) / 1.5)


def test_a_batch_norm_on_its_own_has_a_rule():
    """gamma 2, beta 1, mean 1, variance 4: y = x."""
    norm = nn.BatchNorm1d(1, eps=0.0)
    for tensor, value in zip((norm.weight, norm.bias, norm.running_mean, norm.running_var), (2, 3, 1, 4), strict=True):
        tensor.data.fill_(value)
    rule = {"kind": "batch_norm", "rule": "epsilon", "epsilon": 0.0}
    (result,), lost = spread(rule, norm.eval(), [[5.0]], [[2.0]])
    assert result == [[2.5]]  # y = (x - 1) + 3 = 4
    assert lost["bias"] == 2.5
    assert spread({"kind": "batch_norm", "rule": "pass"}, norm, [[5.0]], [[2.0]])[0] == [[[5]]]


# ------------------------------------------------------------------------------------------------------ per sample
def test_losses_are_counted_per_sample():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    found = explain(dense(1.0, 1.0), x, [{"rule": "epsilon", "epsilon": 1e-12}], torch.ones(2, 1).double())
    assert found.ledger["sample"].to_list() == [0, 1]
    assert found.ledger["stabiliser"].to_list() == near([0, 1], 1e-11)
