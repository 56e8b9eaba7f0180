"""Folded batch norms: the network says the same, and comes back to the last bit."""

import pytest
import torch
from conftest import randomise, snapshot
from torch import nn

from relevance_assets.relevance.canonizers import CanonizationError, FoldBatchNorm, ThresholdReLU, affine


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_toy_values():
    """gamma -2, beta 1, mean 0.5, sigma 2: c = -1, d = 1.5, t = 1.5; x = 1 gives 0.5, x = 2 gives 0."""
    norm = nn.BatchNorm3d(1, eps=1e-3).double().eval()
    for tensor, value in zip(
        (norm.weight, norm.bias, norm.running_mean, norm.running_var), (-2, 1, 0.5, 4 - 1e-3), strict=True
    ):
        tensor.data.fill_(value)
    c, d = affine(norm)
    assert (c.item(), d.item()) == pytest.approx((-1, 1.5), abs=1e-15)
    relu = ThresholdReLU(torch.sign(c), -d / c)
    x = torch.tensor([1.0, 2.0]).double().view(2, 1, 1, 1, 1)
    assert relu(x).flatten().tolist() == pytest.approx([1, 1.5], abs=1e-15)
    assert (c * relu(x).flatten() + d).tolist() == pytest.approx([0.5, 0], abs=1e-15)


def test_the_network_says_the_same(network):
    """Random statistics, negative scales, scales of 0: float64, 1e-12."""
    images, covariates = torch.rand(2, 3, 16, 17, 16).double(), torch.rand(2, 1).double()
    images[:, :, :3] = 0
    before = snapshot(network)
    expected, attention = network(images, covariates), network.attention(images)
    (canonizer,) = FoldBatchNorm().apply(network)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in network.modules())
    assert relative(network(images, covariates), expected) <= 1e-12
    assert relative(network.attention(images), attention) <= 1e-12
    canonizer.remove()
    assert snapshot(network) == before
    assert torch.equal(network(images, covariates), expected)


def blocks():
    yield (
        "padded",
        (nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 6, 3, padding=1, padding_mode="replicate")),
        (4, 5, 4, 3),
    )
    yield "groups", (nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 6, 3, groups=2, bias=False)), (4, 5, 4, 3)
    yield "flatten", (nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 60, 3)), (4, 5, 4, 3)
    yield (
        "pool",
        (nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)),
        (4, 5, 4, 3),
    )
    yield "average", (nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(4, 3, 1)), (4, 5, 4, 3)
    yield "left", (nn.Conv3d(4, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2)), (4, 5, 4, 3)
    yield "left dense", (nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,)
    yield "no affine", (nn.BatchNorm3d(4, affine=False), nn.ReLU(), nn.Conv3d(4, 6, 1)), (4, 5, 4, 3)


@pytest.mark.parametrize(("layers", "shape"), [b[1:] for b in blocks()], ids=[b[0] for b in blocks()])
def test_each_neighbourhood(layers, shape):
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    norm = next(m for m in model if hasattr(m, "running_mean"))
    if norm.affine:
        model = randomise(model)
    model = model.double().eval()
    x = torch.randn(2, *shape).double()
    expected, before = model(x), snapshot(model)
    (canonizer,) = FoldBatchNorm().apply(model)
    assert relative(model(x), expected) <= 1e-12
    for module in model:  # the folded weights too, which are what the rules see
        module._forward_hooks.clear()
    assert relative(model(x), expected) <= 1e-12
    canonizer.remove()
    assert snapshot(model) == before


def test_all_off_is_exactly_off():
    """Where all ReLUs before it are off, a convolution gives 0, not the rounding of its folded bias."""
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 5, 3, padding=1, padding_mode="replicate", bias=False))
    )
    c, d = affine(model[0])
    x = torch.where(c > 0, -d / c - 1, torch.where(c < 0, -d / c + 1, 0.0)).view(1, 8, 1, 1, 1).expand(1, 8, 4, 4, 4)
    model[0].bias.data[c == 0] = -1  # the constant channel is off as well
    FoldBatchNorm().apply(model)
    assert not model(x).any()
    folded = model[2]._conv_forward(model[1](x), model[2].weight, model[2].bias)
    assert 0 < folded.abs().max() < 1e-14


class Loose(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
        self.norm = nn.BatchNorm3d(2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.BatchNorm3d(2), nn.ReLU(), nn.Conv3d(2, 2, 3, padding=1)),
            "0: the convolution behind it pads with zeros",
        ),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm3d(2)), "1: no convolution or linear layer beside"),
        (nn.Sequential(nn.BatchNorm3d(2), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(2, 2, 1)), "0: no convolution"),
        (nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2, track_running_stats=False)), "running statistics"),
        (Loose(), "norm: batch norm outside an nn.Sequential"),
    ],
)
def test_what_cannot_be_folded_is_named_and_nothing_changes(model, message):
    model = nn.Sequential(nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)), model).eval()
    before = snapshot(model)
    with pytest.raises(CanonizationError, match=message):
        FoldBatchNorm().apply(model)
    assert snapshot(model) == before


def test_training_mode_is_refused(network):
    network.train()
    before = snapshot(network)
    with pytest.raises(CanonizationError, match=r"encoders\.0\.layers\.norm0: .*model.eval\(\)"):
        FoldBatchNorm().apply(network)
    assert snapshot(network) == before
