"""Rules of single layers: the table of toy values, and zennit where it means the same."""

import pytest
import torch
import zennit.rules
from torch import nn

from relevance_assets.models.gated_attention import ContrastSum, Product
from relevance_assets.relevance.canonizers import ThresholdReLU
from relevance_assets.relevance.rules import (
    AlphaOne,
    AverageShare,
    Box,
    Epsilon,
    ProductRule,
    ThresholdPass,
    divide,
)


def spread(rule, module, relevance, *inputs):
    """Relevance of the inputs."""
    hook = rule.copy()
    handles = hook.register(module)
    inputs = [x.double().requires_grad_() for x in inputs]
    result = torch.autograd.grad(module.double()(*inputs), inputs, relevance.double())
    handles.remove()
    return (*result, hook)


def dense(*weights, bias=None):
    module = nn.Linear(len(weights), 1, bias=bias is not None)
    module.weight.data = torch.tensor([weights], dtype=torch.float64)
    if bias is not None:
        module.bias.data = torch.tensor([bias], dtype=torch.float64)
    return module


ONE = torch.ones(1, 1)


def test_box_toy_values():
    """Contributions .4, 0, .3 of (x, w) = (0, -.4), (1, -.4), (.5, .6): shares 4/7, 0, 3/7."""
    x = torch.tensor([[0, 1, 0.5]])
    result, hook = spread(Box(0, 1), dense(-0.4, -0.4, 0.6, bias=5.0), ONE, x)
    assert result.tolist()[0] == pytest.approx([4 / 7, 0, 3 / 7], abs=1e-15)
    assert hook.lost.item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("kind", ["proposed", "all"])
def test_product_toy_values(kind):
    s, g = torch.tensor([[0.5, -0.25, 0]]), torch.tensor([[0.5, 0.75, 0.2]])
    r = torch.tensor([[1.0, -2, 3]])
    r_s, r_g, _ = spread(ProductRule(kind), Product(), r, s, g)
    assert r_s.tolist()[0] == pytest.approx([0.5, -0.5, 0] if kind == "proposed" else [1, -2, 3], abs=1e-15)
    assert r_g.tolist()[0] == pytest.approx([0.5, -1.5, 3] if kind == "proposed" else [0, 0, 0], abs=1e-15)


def test_product_of_nothing_is_halved():
    zero = torch.zeros(1, 2)
    r_s, r_g, _ = spread(ProductRule("proposed"), Product(), torch.tensor([[1.0, -4]]), zero, zero)
    assert r_s.tolist() == r_g.tolist() == [[0.5, -2]]


def test_product_rule_is_named():
    with pytest.raises(ValueError, match="'proposed' or 'all'"):
        ProductRule("half")


def test_epsilon_keeps_what_the_formula_says():
    """z = 3 with bias -1: the inputs hold 4; sum R = 4 / 3.1 with the bias, 4 / 4.1 without."""
    x = torch.tensor([[1.0, 3]])
    for bias, expected in ((True, 4 / 3.1), (False, 4 / 4.1)):
        result, hook = spread(Epsilon(0.1, bias=bias), dense(1.0, 1.0, bias=-1.0), ONE, x)
        assert result.sum().item() == pytest.approx(expected, abs=1e-15)
        assert hook.lost.item() == pytest.approx(1 - expected, abs=1e-15)
    result, hook = spread(Epsilon(0.1, bias=False), dense(1.0, -1.0), ONE, torch.ones(1, 2))
    assert result.tolist()[0] == pytest.approx([10, -10])  # z = 0 counts as positive


def test_alpha_one_with_signed_inputs_and_dead_units():
    result, hook = spread(AlphaOne(), dense(1.0, -1.0, 2.0, bias=9.0), ONE, torch.tensor([[2.0, -6, -1]]))
    assert result.tolist()[0] == pytest.approx([0.25, 0.75, 0], abs=1e-15)
    result, hook = spread(AlphaOne(), dense(1.0, -1.0, bias=9.0), ONE, torch.tensor([[-2.0, 1]]))
    assert (result.tolist(), hook.lost.item()) == ([[0, 0]], 1)


def test_alpha_one_as_preset_a_keeps_both_biases():
    for bias, expected in ((2.0, 4 / 6), (-1.0, 4 / 3)):
        result, _ = spread(AlphaOne(bias="both", zero=1e-7), dense(2.0, -1.0, bias=bias), ONE, torch.tensor([[2.0, 3]]))
        assert result.tolist()[0] == pytest.approx([expected, 0], abs=1e-15)


def test_average_share():
    pool = nn.AvgPool3d(2)
    x = torch.zeros(1, 2, 2, 2, 3)
    x[0, 0, 0, 0, 0], x[0, 0, 0, 0, 1], x[0, 0, 1, 0, 0] = 3, 1, -5
    result, hook = spread(AverageShare(), pool, torch.full((1, 2, 1, 1, 1), 8.0), x)
    assert result[0, 0, 0, 0].tolist() == [6, 2, 0]
    assert result[0, 1, :, :, :2].flatten().tolist() == [1] * 8  # nothing positive: equal shares
    assert not result[..., 2].any()  # odd slice, in no window
    assert hook.lost.item() == 0


def test_sum_over_contrasts():
    x = torch.tensor([[[1.0, 2], [3, -1]]])
    result, _ = spread(Epsilon(1e-12, bias=False), ContrastSum(), torch.tensor([[4.0, 1]]), x)
    assert result.flatten().tolist() == pytest.approx([1, 2, 3, -1])


def test_losses_are_counted_per_contrast():
    x = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    _, hook = spread(Epsilon(1e-12, bias=False), dense(1.0, 1.0), torch.ones(1, 2, 1), x)
    assert hook.lost[0].tolist() == pytest.approx([0, 1], abs=1e-11)


def test_threshold_passes_and_reports_clamped():
    relu = ThresholdReLU(torch.tensor([1.0, -1]).double(), torch.tensor([0.5, 0.5]).double())
    result, hook = spread(ThresholdPass(), relu, torch.tensor([[3.0, -1]]), torch.tensor([[0.0, 0]]))
    assert result.tolist() == [[3, -1]]
    assert hook.clamped.item() == 0.75


def test_divide():
    n, d = torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 4, -3])
    assert divide(n, d).tolist() == [0, 0.5, -1]
    assert divide(n, d, 0.5).tolist() == [2, 0.5, -1]


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Epsilon(0.25, bias=True), zennit.rules.Epsilon(0.25)),
        (Epsilon(0.25, bias=False), zennit.rules.Epsilon(0.25, zero_params="bias")),
        (AlphaOne(), zennit.rules.AlphaBeta(1, 0, stabilizer=1e-15, zero_params="bias")),
        (AlphaOne(bias="positive"), zennit.rules.ZPlus(stabilizer=1e-15)),
        (Box(0, 1), zennit.rules.ZBox(0.0, 1.0, stabilizer=1e-15, zero_params="bias")),
    ],
    ids=["epsilon", "epsilon without bias", "alpha-beta", "z+", "box"],
)
def test_zennit_agrees(ours, theirs, padding):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 4, 3, padding=1, padding_mode=padding).double()
    x = torch.rand(1, 3, 5, 4, 6) if isinstance(ours, Box) else torch.randn(1, 3, 5, 4, 6)
    relevance = torch.randn(1, 4, 5, 4, 6)
    mine, _ = spread(ours, conv, relevance, x)
    reference, _ = spread(theirs, conv, relevance, x)
    torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)
