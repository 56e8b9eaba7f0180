"""Masks: relevance stays in the brain by rule, and is still accounted for.

Belongs here: what `mask` does to each kind of rule, and how it travels through a network. Does not belong here: brain
masks of scans (`tests/imaging`).
"""

import pytest
import torch
from hard_networks import account, randomise
from torch import nn

from relevance_assets.relevance import COMPOSITES, explain

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

BACKGROUND = -1.7  # as after z-scoring


def head():
    torch.manual_seed(0)
    layers = [
        nn.Conv3d(2, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 3, 3, padding=1),
    ]
    return randomise(nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 2)), 0, 0.4)


def scan(samples=2):
    """A ball of values in [0, 1] in a constant background."""
    at = torch.stack(torch.meshgrid(*[torch.arange(8) - 3.5] * 3, indexing="ij"))
    brain = at.square().sum(0) < 9
    values = torch.rand(samples, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    return torch.where(brain, values, BACKGROUND), brain


FIRST = {
    "epsilon": {"rule": "epsilon", "epsilon": 1e-9},
    "z_plus": {"rule": "z_plus"},
    "alpha_beta": {"rule": "alpha_beta"},
    "gamma": {"rule": "gamma"},
    "box": {"rule": "box"},
    "box of tensors": {"rule": "box", "low": torch.tensor([0.0, -1]).view(2, 1, 1, 1), "high": torch.ones(2, 1, 1, 1)},
    "w_square": {"rule": "w_square"},
    "flat": {"rule": "flat"},
    "distributed": {"rule": "epsilon", "epsilon": 1e-9, "bias": "distribute"},
    "no bias": {"rule": "z_plus", "bias": "drop"},
}


@pytest.mark.parametrize("rule", FIRST)
def test_nothing_leaves_the_brain_and_everything_is_accounted_for(rule):
    x, brain = scan()
    found = explain(head(), x, [{"place": "first", **FIRST[rule]}, {"rule": "gamma"}], mask=brain)
    assert found.share_outside.tolist() == [0, 0]
    assert not (found.relevance * ~brain).any()
    assert (found.relevance * brain).abs().flatten(1).sum(1).min() > 0
    size = found.relevance.abs().sum().item()
    assert (found.start.sum() - found.relevance.sum()).item() == pytest.approx(account(found), abs=1e-12 * max(size, 1))


@pytest.mark.parametrize("name", sorted(COMPOSITES))
def test_every_composite_keeps_to_the_brain(name):
    x, brain = scan()
    model, x = head(), torch.where(brain, x, 0.25)
    without = explain(model, x, name)
    found = explain(model, x, name, mask=brain)
    assert without.share_outside is None
    assert (without.relevance * ~brain).any()
    assert found.share_outside.tolist() == [0, 0]
    assert (found.start.sum() - found.relevance.sum()).item() == pytest.approx(account(found), abs=1e-11)


def test_a_first_layer_by_hand():
    """Two voxels inside, one outside: x = (1, 2 | 5), w = (1, 1, 1)."""
    layer, x = nn.Conv1d(1, 1, 3, bias=False).double(), torch.tensor([[[1.0, 2, 5]]]).double()
    with torch.no_grad():
        layer.weight.fill_(1)
    inside = torch.tensor([True, True, False])
    start = torch.full((1, 1, 1), 6.0).double()
    expected = {
        "epsilon": ([2, 4], 0),  # what is outside has no part in the denominator
        "z_plus": ([2, 4], 0),
        "flat": ([3, 3], 0),
        "w_square": ([3, 3], 0),
    }
    for rule, (values, bias) in expected.items():
        options = {"epsilon": 0.0} if rule == "epsilon" else {"stabiliser": 0.0}
        found = explain(layer, x, [{"rule": rule, **options}], start, inside)
        assert found.relevance.flatten().tolist() == pytest.approx([*values, 0], abs=1e-14)
        assert found.ledger["bias"][0] == bias
    box = {"rule": "box", "low": -1, "high": 5, "stabiliser": 0.0}
    found = explain(layer, x, [box], start, inside)  # (1 + 1), (2 + 1), and nothing outside
    assert found.relevance.flatten().tolist() == pytest.approx([6 * 2 / 5, 6 * 3 / 5, 0], abs=1e-14)


def test_the_output_is_that_of_the_whole_image():
    x, brain = scan()
    model = head()
    torch.testing.assert_close(explain(model, x, mask=brain).output, model(x).detach(), rtol=1e-12, atol=1e-14)


def test_a_mask_of_everything_changes_nothing():
    x, brain = scan()
    for composite in ("epsilon_plus", "gamma_box", "epsilon_plus_flat"):
        given = x.clamp(min=0)
        found = explain(head(), given, composite, mask=torch.ones_like(brain))
        plain = explain(head(), given, composite).relevance
        assert torch.equal(found.relevance, plain)
        assert found.share_outside.tolist() == [0, 0]


def test_a_rule_that_gives_zeros_nothing_needs_no_mask_over_zeros():
    layer = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Flatten()).double()
    x, brain = scan()
    x = x * brain
    plain, masked = explain(layer, x, "z_plus", 5), explain(layer, x, "z_plus", 5, brain)
    torch.testing.assert_close(masked.relevance, plain.relevance, rtol=1e-12, atol=1e-14)


def test_masks_of_each_sample():
    x, brain = scan()
    other = brain.roll(1, 0)
    both = torch.stack([brain, other]).unsqueeze(1)
    model = head()
    found = explain(model, x, "epsilon_plus_flat", mask=both)
    for sample, mask in enumerate((brain, other)):
        alone = explain(model, x[sample : sample + 1], "epsilon_plus_flat", mask=mask)
        torch.testing.assert_close(found.relevance[sample], alone.relevance[0], rtol=1e-11, atol=1e-13)


def test_masks_of_other_types_are_truth_values():
    x, brain = scan()
    expected = explain(head(), x, mask=brain).relevance
    for mask in (brain.double(), brain.to(torch.uint8), brain.expand(1, 1, 8, 8, 8), brain.expand(2, 1, 8, 8, 8)):
        assert torch.equal(explain(head(), x, mask=mask).relevance, expected)


@pytest.mark.parametrize("shape", [(7, 8, 8), (2, 2, 8, 8, 8), (3, 1, 8, 8, 8), (8, 8)])
def test_masks_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"mask .* does not fit the first input \(2, 2, 8, 8, 8\)"):
        explain(head(), scan()[0], mask=torch.ones(shape, dtype=torch.bool))


def test_a_mask_of_nothing_gives_nothing_and_says_so():
    x, brain = scan()
    found = explain(head(), x, "z_plus", mask=torch.zeros_like(brain))
    assert not found.relevance.any()
    assert account(found) == pytest.approx(found.start.sum().item(), rel=1e-12)
    assert found.share_outside.tolist() == [0, 0]


def test_covariates_are_not_masked():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.last = head(), nn.Linear(4, 2)

        def forward(self, image, others):
            return self.last(torch.cat([self.image(image), others], 1))

    torch.manual_seed(0)
    x, brain = scan()
    model = Both().double()
    inputs = (x, torch.rand(2, 2).double())
    found = explain(model, inputs, "epsilon_plus", mask=brain)
    torch.testing.assert_close(
        found.relevance[1], explain(model, inputs, "epsilon_plus").relevance[1], rtol=1e-12, atol=1e-14
    )
    assert found.relevance[1].all()
    assert found.share_outside.tolist() == [0, 0]


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x[:, :, 1:],
        lambda x: nn.functional.pad(x, (1, 1, 1, 1, 1, 1), mode="replicate"),
        lambda x: x * 2 - 1,
        lambda x: x.flip(2),
        lambda x: nn.functional.avg_pool3d(x, 2),
        lambda x: nn.functional.max_pool3d(x, 2),
        lambda x: nn.functional.interpolate(x, scale_factor=0.5, mode="trilinear"),
        lambda x: torch.cat([x, x], 1)[:, 1:3],
    ],
    ids=["crop", "pad", "scale", "flip", "average", "maximum", "interpolate", "channels"],
)
@pytest.mark.parametrize(
    "composite",
    ["epsilon_plus", "epsilon_plus_flat", [{"place": "first", "rule": "w_square"}, {"rule": "gamma"}]],
    ids=["plus", "flat", "w_square"],
)
def test_what_comes_before_the_first_layer_moves_the_mask(before, composite):
    class Prepared(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head()

        def forward(self, x):
            return self.head(before(x))

    x, brain = scan()
    found = explain(Prepared().eval(), x, composite, mask=brain)
    assert found.share_outside.tolist() == [0, 0]
    assert (found.start.sum() - found.relevance.sum()).item() == pytest.approx(account(found), abs=1e-11)
    assert found.relevance.any()


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        (lambda a, b: a + b, {"kind": "add", "rule": "z_plus"}),
        (torch.mul, {"kind": "product", "rule": "half"}),
        (torch.mul, {"kind": "product", "rule": "proposed"}),
        (lambda a, b: a * torch.sigmoid(b), {"kind": "product", "rule": "abs"}),
        (torch.mul, {"kind": "product", "rule": "all"}),
    ],
    ids=["add", "half", "proposed", "abs", "all"],
)
def test_operands_outside_the_mask_get_nothing(operation, rule):
    """x and its left neighbour: at the border of the mask one of them is outside, and the other takes all that it can.

    What only a signal could take that is outside has nowhere to go.
    """

    class Neighbours(nn.Module):
        def forward(self, x):
            return operation(x, nn.functional.pad(x, (1, 0))[..., :-1])

    x = torch.tensor([[[-1.0, -2, -3, -4]]]).double()
    inside = torch.tensor([False, True, True, False])
    start = torch.tensor([[[0.0, 4, 4, 4]]]).double()
    found = explain(Neighbours(), x, [rule], start, inside, dtype=torch.float64)
    assert found.share_outside.item() == 0
    lost = 4 if rule["rule"] == "all" else 0
    assert account(found) == pytest.approx(lost, abs=1e-12)
    assert found.relevance.sum().item() == pytest.approx(12 - lost, abs=1e-12)
