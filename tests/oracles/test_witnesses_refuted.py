"""Where zennit 0.5.1 or captum 0.9.0 is wrong: what they say, what is right, and that ours is right.

Belongs here: one test per fault, on the smallest network that shows it, each with its own ground of truth: an
equivalent network on which the witness is sound, or the sum that must be kept. Does not belong here: agreement
(`test_witnesses.py`).
"""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
import witnesses
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule
from monai.networks.nets import ResNet
from torch import nn
from witnesses import everywhere, one_hot, ready, zennit_map
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from zennit.rules import Epsilon, WSquare, ZPlus

from relevance_assets.relevance import explain


def distance(one, other):
    return float((one - other).norm() / other.norm())


def image(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def without_shifts(model):
    """Nothing that could absorb relevance: no biases, no shifts in batch norms."""
    with torch.no_grad():
        for module in model.modules():
            for part in ("bias", "running_mean"):
                if getattr(module, part, None) is not None:
                    getattr(module, part).zero_()
    return model


# --------------------------------------------------------------------------------------------------- which is first
class TwoConvolutions(nn.Module):
    """conv1, ReLU, conv2, ReLU, mean, whichever way its layers are declared."""

    def __init__(self, declared):
        super().__init__()
        layers = {"conv1": nn.Conv3d(1, 4, 3, padding=1), "conv2": nn.Conv3d(4, 4, 3, padding=1)}
        for name in declared:
            setattr(self, name, layers[name])
        self.relu, self.pool, self.out = nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.pool(self.relu(self.conv2(self.relu(self.conv1(x))))).flatten(1))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("epsilon_plus_flat", EpsilonPlusFlat()), ("gamma_box", EpsilonGammaBox(low=0.0, high=1.0))],
    ids=["flat", "box"],
)
def test_zennit_takes_the_layer_declared_first_for_the_first(name, theirs):
    torch.manual_seed(0)
    straight = ready(TwoConvolutions(["conv1", "conv2"]))
    turned = TwoConvolutions(["conv2", "conv1"]).double().eval()
    turned.load_state_dict(straight.state_dict())
    x = image(1, 1, 8, 8, 8)
    start = one_hot(straight, x, 1)
    right = zennit_map(straight, theirs, x, start)
    assert distance(zennit_map(turned, theirs, x, start), right) > 0.5
    assert distance(explain(straight, x, name, start).relevance, right) < 1e-10
    assert distance(explain(turned, x, name, start).relevance, right) < 1e-10


# ------------------------------------------------------------------------------------------------ what is not a module
class Functional(nn.Module):
    """A network as it is often written: its mean is no module."""

    def __init__(self, body, out):
        super().__init__()
        self.body, self.out = body, out

    def forward(self, x):
        return self.out(self.body(x).mean((2, 3, 4)))


def test_zennit_shares_out_a_functional_mean_evenly():
    torch.manual_seed(0)
    body, out = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU()), nn.Linear(4, 2)
    modules = ready(nn.Sequential(body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), out))
    functional = Functional(body, out)
    x = image(1, 1, 8, 8, 8)
    start = one_hot(modules, x, 1)
    right = zennit_map(modules, EpsilonPlus(), x, start)
    assert distance(zennit_map(functional, EpsilonPlus(), x, start), right) > 0.2
    assert distance(explain(modules, x, "epsilon_plus", start).relevance, right) < 1e-10
    assert distance(explain(functional, x, "epsilon_plus", start).relevance, right) < 1e-10


class FunctionalReLU(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.first, _, self.second, self.pool, _ = layers

    def forward(self, x):
        return self.pool(self.second(F.relu(self.first(x)))).flatten(1)


def test_zennit_does_not_see_a_functional_relu():
    """Its gradient drops what a rule like w squared gives to units that are off; zennit's rule for ReLU passes it."""
    torch.manual_seed(0)
    modules = ready(nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 3), nn.AvgPool3d(4), nn.Flatten()))
    functional = FunctionalReLU(modules)
    x = image(1, 1, 8, 8, 8)
    start = one_hot(modules, x, 1)
    theirs = everywhere(WSquare())
    right = zennit_map(modules, theirs, x, start)
    assert distance(zennit_map(functional, theirs, x, start), right) > 0.1
    layers = [{"kind": "convolution", "rule": "w_square"}]
    assert distance(explain(functional, x, layers, start).relevance, right) < 1e-10


def test_zennit_loses_relevance_at_residual_sums():
    """MONAI's ResNet adds with `+=`: its gradient gives both summands all of the relevance."""
    torch.manual_seed(0)
    model = ResNet("basic", [1, 1, 1, 1], [4, 6, 8, 10], n_input_channels=1, num_classes=2)
    model = without_shifts(ready(model))
    x = image(1, 1, 24, 24, 24)
    start = one_hot(model, x, 1)
    theirs = zennit_map(model, everywhere(Epsilon(1e-9), [SequentialMergeBatchNorm()], 1e-9), x, start)
    assert abs(theirs.sum() - start.sum()) > start.sum().abs()
    kinds = ("convolution", "linear", "average", "add")
    ours = explain(model, x, [{"kind": kind, "rule": "epsilon", "epsilon": 1e-9} for kind in kinds], start)
    assert abs(ours.relevance.sum() - start.sum()) < 1e-3 * start.sum().abs()
    lost = ours.ledger.select("bias", "stabiliser", "dead", "clamped").sum().sum_horizontal().item()
    assert abs(start.sum() - ours.relevance.sum() - lost) < 1e-10 * start.sum().abs()


def test_zennit_overwrites_what_it_stored_of_a_module_used_twice():
    torch.manual_seed(0)
    shared = nn.Conv3d(2, 2, 3, padding=1)
    head = [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2)]
    twice = ready(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), *head))
    apart = nn.Sequential(shared, nn.ReLU(), deepcopy(shared), nn.ReLU(), *head)
    x = image(1, 2, 8, 8, 8)
    start = one_hot(twice, x, 1)
    right = zennit_map(apart, EpsilonPlus(), x, start)
    assert distance(zennit_map(twice, EpsilonPlus(), x, start), right) > 0.01
    assert distance(explain(twice, x, "epsilon_plus", start).relevance, right) < 1e-10


# ------------------------------------------------------------------------------------------------------- batch norms
def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_zennit_leaves_a_densenet_broken_when_it_cannot_merge():
    """Its merge pairs each dense layer's last convolution with the next layer's first batch norm."""
    torch.manual_seed(0)
    model = ready(witnesses.densenet())
    x = image(1, 1, 16, 16, 16)
    before, broken = state(model), deepcopy(model)
    theirs = EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])
    with pytest.raises(RuntimeError, match="must match the size"):
        theirs.register(broken)
    theirs.remove()
    assert not same(state(broken), before)
    explanation = explain(model, x, "epsilon_plus", 1)
    assert same(state(model), before)
    assert explanation.relevance.abs().sum() > 0
    # Given to us, zennit works on a copy: it still fails, and breaks nothing of the user's.
    with pytest.raises(RuntimeError, match="must match the size"):
        explain(model, x, EpsilonPlus(canonizers=[SequentialMergeBatchNorm()]), 1)
    assert same(state(model), before)


def test_zennit_forgets_the_epsilon_of_batch_norms_it_merged():
    """It leaves a factor 1/sqrt(1 + eps) at every batch norm; merged by torch there is none."""
    torch.manual_seed(0)
    model = ready(witnesses.cnn(3, norm=True))
    fused = nn.Sequential(*model)
    for at, layer in reversed(list(enumerate(model))):
        if isinstance(layer, nn.BatchNorm3d):
            fused[at - 1] = nn.utils.fuse_conv_bn_eval(model[at - 1], layer)
            del fused[at]
    x = image(1, 2, 12, 12, 12)
    start = one_hot(fused, x, 1)
    right = zennit_map(fused, everywhere(Epsilon(1e-6)), x, start)
    assert distance(zennit_map(model, everywhere(Epsilon(1e-6), [SequentialMergeBatchNorm()]), x, start), right) > 1e-7
    assert distance(explain(model, x, [{"rule": "epsilon", "epsilon": 1e-6}], start).relevance, right) < 1e-10


def test_zennit_loses_all_at_an_instance_norm():
    """A norm that it does not know is left to its gradient, which sums to 0 over what it normalises."""
    torch.manual_seed(0)
    parts = [nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.ReLU()]
    model = without_shifts(ready(nn.Sequential(*parts, nn.AvgPool3d(8), nn.Flatten(), nn.Linear(4, 2))))
    x = image(1, 1, 8, 8, 8)
    start = one_hot(model, x, 1)
    theirs = zennit_map(model, everywhere(Epsilon(1e-9), stabilizer=1e-9), x, start)
    assert abs(theirs.sum()) < 1e-3 * start.sum().abs()
    kinds = ("convolution", "linear", "average")
    ours = explain(model, x, [{"kind": kind, "rule": "epsilon", "epsilon": 1e-9} for kind in kinds], start)
    assert abs(ours.relevance.sum() - start.sum()) < 1e-5 * start.sum().abs()


# ----------------------------------------------------------------------------------------------------------- captum
def test_captum_ignores_the_sign_of_inputs_in_z_plus():
    """z+ takes positive contributions; captum takes positive weights, also times negative voxels."""
    torch.manual_seed(0)
    model = ready(witnesses.cnn(3, bias=False))
    x = 2 * image(1, 2, 12, 12, 12) - 1
    start = one_hot(model, x, 1)
    right = zennit_map(model, everywhere(ZPlus(1e-9), stabilizer=1e-9), x, start)
    theirs = witnesses.captum_map(model, Alpha1_Beta0_Rule, x, 1)
    assert distance(theirs, right) > 0.5
    assert theirs.sum().item() == pytest.approx(right.sum().item(), rel=1e-4)
    kinds = {"convolution": "z_plus", "linear": "z_plus", "average": "epsilon"}
    named = {"z_plus": "stabiliser", "epsilon": "epsilon"}
    layers = [{"kind": kind, "rule": rule, named[rule]: 1e-9} for kind, rule in kinds.items()]
    assert distance(explain(model, x, layers, start).relevance, right) < 1e-10


class Dense(nn.Module):
    """One dense layer: its input is joined to its output."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv3d(1, 3, 3, padding=1, bias=False)
        self.second = nn.Conv3d(3, 3, 3, padding=1, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.pool, self.flatten, self.out = nn.AvgPool3d(8), nn.Flatten(), nn.Linear(6, 2, bias=False)

    def forward(self, x):
        x = self.relu1(self.first(x))
        x = torch.cat([x, self.relu2(self.second(x))], 1)
        return self.out(self.flatten(self.pool(x)))


def test_captum_multiplies_again_what_a_joined_tensor_brings_back():
    """Its hook on a tensor weighs the sum of all that comes back to it, not each way's own part."""
    torch.manual_seed(0)
    model = ready(Dense())
    x = image(1, 1, 8, 8, 8)
    start = one_hot(model, x, 1)
    theirs = witnesses.captum_map(model, lambda: EpsilonRule(1e-9), x, 1)
    assert abs(theirs.sum() - start.sum()) > 0.05 * start.sum().abs()
    kinds = ("convolution", "linear", "average")
    ours = explain(model, x, [{"kind": kind, "rule": "epsilon", "epsilon": 1e-9} for kind in kinds], start).relevance
    assert abs(ours.sum() - start.sum()) < 1e-5 * start.sum().abs()
    assert distance(ours, zennit_map(model, everywhere(Epsilon(1e-9), stabilizer=1e-9), x, start)) < 1e-10
