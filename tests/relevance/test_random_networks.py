"""Random networks, as tangled as networks get: ways of computing the same explanation agree.

Belongs here: networks drawn at random, and comparisons of the engine with itself: shortcuts taken and not taken, batch
and single samples, whole and in segments. Does not belong here: values (`tests/oracles/`).
"""

import random
from functools import cache

import pytest
import torch
from hard_networks import account, randomise
from torch import nn
from torch.nn import functional as F

from relevance_assets.relevance import explain, passes, plan

pytestmark = pytest.mark.filterwarnings("ignore:sample .* is unexplained:RuntimeWarning")

LAYERS = {
    "conv": lambda: nn.Conv1d(4, 4, 3, padding=1),
    "conv without bias": lambda: nn.Conv1d(4, 4, 3, padding=1, bias=False),
    "replicate": lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="replicate"),
    "groups": lambda: nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=2),
    "pointwise": lambda: nn.Conv1d(4, 4, 1),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "instance norm": lambda: nn.InstanceNorm1d(4, affine=True),
}
FUNCTIONS = {
    "relu": lambda a, b: torch.relu(a),
    "leaky": lambda a, b: F.leaky_relu(a, 0.1),
    "tanh": lambda a, b: torch.tanh(a),
    "maximum": lambda a, b: F.max_pool1d(a, 3, 1, 1),
    "average": lambda a, b: F.avg_pool1d(a, 3, 1, 1),
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - 0.5 * b,
    "add rectified": lambda a, b: torch.relu(a) + torch.relu(b),
    "concatenate": lambda a, b: torch.cat([a[:, :2], b[:, 2:]], 1),
    "gate": lambda a, b: a * torch.sigmoid(b),
    "scale": lambda a, b: a * torch.tensor([1.0, -2, 0.5, 3]).view(1, 4, 1),
    "swap": lambda a, b: torch.cat(a.chunk(2, 1)[::-1], 1),
    "shift": lambda a, b: F.pad(a, (1, 0))[..., :-1],
    "flip": lambda a, b: a.flip(2),
    "constant": lambda a, b: a + 0.3,
}
# as often as in networks
WEIGHTS = {"conv": 2, "batch norm": 3, "relu": 4}
COMPOSITES = [
    "epsilon",
    "z_plus",
    "gamma",
    "epsilon_plus",
    "alpha_beta",
    "preset_a",
    "epsilon_plus_flat",
    "attention",
    [{"rule": "epsilon", "epsilon": 1e-3}],
    [{"place": [1, 3], "rule": "flat"}, {"kind": "product", "rule": "proposed"}, {"rule": "gamma"}],
    [{"kind": kind, "rule": "epsilon"} for kind in ("norm", "batch_norm")] + [{"rule": "flat", "kind": "average"}],
    {
        "layers": [
            {"kind": "max_pool", "rule": "proportional"},
            {"kind": "product", "rule": "half"},
            {"kind": "add", "rule": "z_plus"},
            {"rule": "epsilon", "epsilon": 1e-2},
        ],
        "bias": "distribute",
    },
    {
        "layers": [{"rule": "w_square", "place": [0, 2]}, {"rule": "alpha_beta"}],
        "bias": "drop",
        "fold": ["right"],
    },
]


class Tangle(nn.Module):
    """Each step reads one of the last three tensors, and any earlier one."""

    def __init__(self, seed, steps=9):
        super().__init__()
        draw = random.Random(seed)
        names = [*LAYERS, *FUNCTIONS]
        kinds = draw.choices(names, [WEIGHTS.get(name, 1) for name in names], k=steps)
        self.steps = [(kind, draw.randint(max(0, i - 2), i), draw.randint(0, i)) for i, kind in enumerate(kinds)]
        self.layers = nn.ModuleList(LAYERS[kind]() if kind in LAYERS else nn.Identity() for kind in kinds)
        self.head = nn.Linear(4, 2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.05 + 0.6 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x):
        known = [x]
        for (kind, first, second), layer in zip(self.steps, self.layers, strict=True):
            a, b = known[first], known[second]
            known.append(layer(a) if kind in LAYERS else FUNCTIONS[kind](a, b))
        return self.head(known[-1].mean(2))


@cache
def case(seed):
    draw = random.Random(seed)
    model = randomise(Tangle(seed), seed, last_scale=draw.choice([0.0, 0.5, -0.7]))
    generator = torch.Generator().manual_seed(seed)
    x, start = torch.randn(2, 4, 7, generator=generator).double(), torch.randn(2, 2, generator=generator).double()
    return model, x, draw.sample(COMPOSITES, 3), start


def size_of(found):
    """What rounding is measured by: relevance grows on its way where signs cancel."""
    rows = found.ledger.select("relevance_in", "relevance_out").to_numpy()
    return 1 + max(abs(rows).max(), found.relevance.abs().max().item())


SEEDS = range(14)


@pytest.mark.parametrize("seed", SEEDS)
def test_shortcuts_change_nothing(seed, monkeypatch):
    """Inputs that cannot be negative, units whose relevance vanishes, ReLUs in place."""
    model, x, composites, start = case(seed)
    quick = [explain(model, x, composite, start) for composite in composites]
    for name in ("_vanishes", "_nonnegative"):
        monkeypatch.setattr(plan, name, lambda *given: False)
    monkeypatch.setattr(passes.Forward, "_in_place", lambda *given: None)
    for composite, found in zip(composites, quick, strict=True):
        expected = explain(model, x, composite, start)
        torch.testing.assert_close(found.relevance, expected.relevance, rtol=0, atol=1e-9 * size_of(expected))
        torch.testing.assert_close(found.output, expected.output, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_is_accounted_for_and_the_output_is_the_networks(seed):
    model, x, composites, start = case(seed)
    for composite in composites:
        found = explain(model, x, composite, start)
        assert (found.start.sum() - found.relevance.sum()).item() == pytest.approx(
            account(found), abs=1e-11 * size_of(found)
        )
        assert found.ledger["unexplained"].abs().max() < 1e-12 * size_of(found)
        torch.testing.assert_close(found.output, model(x).detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_gives_what_singles_give(seed):
    model, x, composites, start = case(seed)
    for composite in composites:
        batch = explain(model, x, composite, start)
        for sample in range(2):
            alone = explain(model, x[[sample]], composite, start[[sample]])
            torch.testing.assert_close(batch.relevance[[sample]], alone.relevance, rtol=0, atol=1e-9 * size_of(batch))


@pytest.mark.parametrize("seed", SEEDS)
def test_segments_change_no_bit(seed):
    model, x, composites, start = case(seed)
    for composite in composites:
        whole = explain(model, x, composite, start)
        for segments in (2, 4, 99):
            assert torch.equal(whole.relevance, explain(model, x, composite, start, checkpoint=segments).relevance)
