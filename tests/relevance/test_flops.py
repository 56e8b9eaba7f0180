"""What an explanation costs in multiplications, relative to one forward + backward of the same network.

Belongs here: counts, which are exact on any machine. Does not belong here: seconds (`benchmarks/`).
"""

from itertools import pairwise

import pytest
import torch
from monai.networks.nets import DenseNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from relevance_assets.relevance import Explainer

RATIOS = {
    "epsilon": 1.05,
    "z_plus": 1.6,
    "gamma": 1.6,
    "gamma_box": 1.6,
    "epsilon_plus": 1.6,
    "alpha_beta": 2.1,
}


def plain():
    """Four blocks of convolution, ReLU and pool, one dense layer: the benchmark's network, for 32 voxels a side."""
    widths = (1, 8, 16, 32, 64)
    blocks = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Conv3d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2))
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def densenet():
    return DenseNet(3, 1, 10, init_features=16, growth_rate=8, block_config=(2, 2, 2)).eval()


# The account's sums are matrix products where there are several samples or starts.
ACCOUNT = 1.02
NETWORKS = {"plain": plain, "densenet": densenet}


def flops(call, *arguments):
    with FlopCounterMode(display=False) as counter:
        call(*arguments)
    return counter.get_total_flops()


def forward_backward(model, x):
    # No leaf: the counter cannot follow `autograd.grad` to one.
    x = x.clone().requires_grad_().view_as(x)
    torch.autograd.grad(model(x)[:, 0].sum(), x)


@pytest.fixture(params=NETWORKS)
def case(request):
    torch.manual_seed(0)
    model = NETWORKS[request.param]()
    x = torch.rand(1, 1, 32, 32, 32)
    return model, x, flops(forward_backward, model, x)


@pytest.mark.parametrize("composite", RATIOS)
def test_at_the_floor(case, composite):
    """With the weights prepared and the graph traced, which is once per model and shape; images are >= 0."""
    model, x, unit = case
    explainer = Explainer(model, composite)
    explainer(x)
    cost = flops(explainer, x)
    assert unit < 1.001 * cost
    assert cost <= RATIOS[composite] * unit


@pytest.mark.parametrize("composite", RATIOS)
def test_a_second_image_needs_no_preparation(case, composite):
    model, x, _ = case
    explainer = Explainer(model, composite)
    first, second = flops(explainer, x), flops(explainer, 1 - x)
    third = flops(explainer, 0.5 * x)
    assert second <= first
    assert second == third


@pytest.mark.parametrize("composite", RATIOS)
def test_starts_share_one_forward(case, composite):
    """Three maps cost one forward and three ways back."""
    model, x, _ = case
    explainer = Explainer(model, composite)
    explainer(x)
    one, three = flops(explainer, x, 0), flops(explainer, x, [0, 1, 2])
    forward = flops(model, x)
    assert three <= ACCOUNT * (3 * one - 2 * forward)


def test_rules_share_one_forward(case):
    model, x, _ = case
    explainer = Explainer(model)
    pairs = [(composite, 0) for composite in RATIOS]
    explainer.several(x, pairs)
    apart = 0
    for composite in RATIOS:
        single = Explainer(model, composite)
        single(x, 0)
        apart += flops(single, x, 0)
    assert flops(explainer.several, x, pairs) <= apart - (len(RATIOS) - 1) * flops(model, x)


def test_a_batch_costs_what_its_images_cost(case):
    model, x, _ = case
    explainer = Explainer(model, "gamma_box")
    batch = torch.cat([x, 1 - x, 0.5 * x])
    explainer(x)
    explainer(batch)
    assert flops(explainer, batch) <= ACCOUNT * 3 * flops(explainer, x)
