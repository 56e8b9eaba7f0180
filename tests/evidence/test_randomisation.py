"""Randomised parameters: stages of a network, copies that have forgotten, and explanations that must fail the test."""

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from relevance_assets.evidence.randomisation import (
    bins_for,
    complexity,
    measure_randomisation,
    randomisation_verdicts,
    similarity,
)
from relevance_assets.evidence.redrawing import cascade, redrawn, stages
from relevance_assets.models.registry import build

SHAPE = (6, 6, 6)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[1:, 1:, 1:] = True


# ------------------------------------------------------------------------------------------------------- stages
class Tangled(nn.Module):
    """Defined in another order than it is used; two branches in parallel, two layers in series, one not used."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 1)
        self.series = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.branches = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)])
        self.unused = nn.Linear(2, 2)

    def forward(self, left, right):
        both = torch.relu(self.branches[0](left)) + torch.relu(self.branches[1](right))
        for layer in self.series:
            both = torch.relu(layer(both))
        return self.out(both)


def randomised(model, chosen, seed):
    """A copy whose chosen stages are `redrawn`'s; all else is as trained."""
    fresh, changed = redrawn(model, seed).state_dict(), copy.deepcopy(model)
    keys = {key for stage in chosen for key in stage.keys}
    changed.load_state_dict({key: fresh[key] if key in keys else kept for key, kept in model.state_dict().items()})
    return changed.eval()


def units(stage):
    return {key.rpartition(".")[0] for key in stage.keys}


def test_stages_follow_what_is_computed():
    found = stages(Tangled(), torch.ones(1, 2), torch.ones(1, 2))
    assert [units(stage) for stage in found] == [{"branches.0", "branches.1"}, {"series.0"}, {"series.1"}, {"out"}]
    assert found[0].name == "branches.0"


def test_neighbours_are_put_together():
    network, inputs = Tangled(), (torch.ones(1, 2), torch.ones(1, 2))
    assert [units(s) for s in stages(network, *inputs, count=2)] == [
        {"branches.0", "branches.1"},
        {"series.0", "series.1", "out"},
    ]
    assert [stage.name for stage in stages(network, *inputs, count=3)] == ["branches.0", "series.0 .. series.1", "out"]
    assert stages(network, *inputs, count=99) == stages(network, *inputs)
    assert len(stages(network, *inputs, count=1)) == 1


def test_tied_parameters_are_in_the_stages_of_all_their_owners():
    network: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    network[2].weight = network[0].weight
    first = stages(network, torch.ones(1, 2))[0]
    assert set(first.keys) == {"0.weight", "2.weight"}
    changed: Any = randomised(network, [first], 0)
    assert not torch.equal(changed[0].weight, network[0].weight)


@pytest.mark.parametrize(
    ("name", "first", "last", "options"),
    [
        ("gated_attention", {f"encoders.{i}.layers.conv0" for i in range(3)}, {"classifier"}, {"blocks": [1, 1]}),
        ("mrinet", {"features.conv1"}, {"output"}, {"channels": [2, 2]}),
    ],
)
def test_stages_of_our_networks(name, first, last, options):
    network = build(name, shape=(8, 8, 8), contrasts=3, covariates=1, options=options)
    before = copy.deepcopy(network.state_dict())
    found = stages(network, torch.rand(1, 3, 8, 8, 8), torch.rand(1, 1))
    assert units(found[0]) == first
    assert units(found[-1]) == last
    every = [key for stage in found for key in stage.keys]
    assert sorted(every) == sorted(before)  # each in one stage, running statistics too
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training


def test_stages_errors():
    with pytest.raises(ValueError, match="no parameter has a part"):
        stages(nn.Sequential(nn.ReLU()), torch.ones(1, 2))
    with pytest.raises(ValueError, match="count must be at least 1"):
        stages(nn.Linear(2, 1), torch.ones(1, 2), count=0)


# ------------------------------------------------------------------------------------------------- re-drawn copies
def trained(seed=7):
    """A network whose every number, running statistics too, is far from where networks begin."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv3d(2, 3, 3, padding=1), nn.BatchNorm3d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 216, 1)
        )
        for value in network.state_dict().values():
            value.copy_(torch.randint(2, 9, value.shape) + torch.rand(value.shape) if value.ndim else value + 5)
    return network.eval()


def test_everything_is_drawn_anew():
    network = trained()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    fresh: Any = redrawn(network, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    assert fresh[1].running_mean.abs().max() == 0
    assert (fresh[1].running_var == 1).all()
    again: Any = redrawn(network, 1)
    other: Any = redrawn(network, 2)
    assert torch.equal(again[0].weight, fresh[0].weight)
    assert not torch.equal(other[0].weight, fresh[0].weight)
    bound = (2 * 27) ** -0.5  # torch's convolutions: uniform within 1 / sqrt(inputs)
    assert 0.8 * bound < fresh[0].weight.abs().max() <= bound
    assert not fresh.training


def test_a_network_begins_as_its_builder_says():
    def make() -> Any:
        return build("mrinet", shape=(4, 4, 4), contrasts=1, covariates=0, options={"channels": [2]}, target_mean=50.0)

    network = make()
    with torch.no_grad():
        network.output.bias.fill_(3)
        network.features.conv1.bias.fill_(3)
    plain: Any = redrawn(network, 0)
    assert plain.output.bias != 50  # its modules do not know the network's own initialisation
    fresh: Any = redrawn(network, 0, make)
    assert fresh.output.bias == 50
    assert (fresh.features.conv1.bias == 0).all()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(make().output.weight, fresh.output.weight)


def test_only_the_chosen_stages_are_drawn_anew():
    network = trained()
    found = stages(network, torch.rand(1, 2, *SHAPE))
    changed = randomised(network, found[1:2], 3)
    same = {key for key, value in changed.state_dict().items() if torch.equal(value, network.state_dict()[key])}
    assert same == set(network.state_dict()) - set(found[1].keys)


def test_the_cascade_goes_from_the_output_to_the_input():
    network = trained()
    found, state = stages(network, torch.rand(1, 2, *SHAPE)), network.state_dict()
    steps = list(cascade(network, found, 3))
    assert [name for name, _ in steps] == [stage.name for stage in reversed(found)] == ["4", "1", "0"]
    forgotten = [
        {key for key, value in copied.state_dict().items() if not torch.equal(value, state[key])} for _, copied in steps
    ]
    assert forgotten[0] == {"4.weight", "4.bias"}
    assert all(small < large for small, large in pairwise(forgotten))
    everything = redrawn(network, 3).state_dict()
    assert all(torch.equal(value, everything[key]) for key, value in steps[-1][1].state_dict().items())


def test_redrawing_errors():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match="inner: has parameters and no reset_parameters; give the function"):
        redrawn(nn.ModuleDict({"inner": Own()}), 0)
    with pytest.raises(ValueError, match="is not the one that was trained"):
        redrawn(nn.Linear(2, 1), 0, lambda: nn.Linear(3, 1))


# ------------------------------------------------------------------------------------------------------- measures
def loop_spearman(first, second):
    """Mid-ranks by counting, then Pearson's sums."""
    ranks = [
        [1 + sum(w < v for w in values) + 0.5 * (values.count(v) - 1) for v in values] for values in (first, second)
    ]
    middle = (len(first) + 1) / 2
    xy, xx, yy = (
        sum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))
        for one, other in ((ranks[0], ranks[1]), (ranks[0], ranks[0]), (ranks[1], ranks[1]))
    )
    return xy / (xx * yy) ** 0.5


def test_similarity_is_the_rank_correlation_of_sizes_in_the_brain():
    random = np.random.default_rng(0)
    first, second = (random.normal(size=(2, *SHAPE)).round(1) for _ in range(2))  # with ties
    wanted = [loop_spearman(*(np.abs(m[c][BRAIN]).tolist() for m in (first, second))) for c in range(2)]
    assert similarity(first, second, BRAIN) == pytest.approx(np.mean(wanted), abs=1e-12)
    assert similarity(first, -first, BRAIN) == pytest.approx(1)
    assert similarity(first, np.where(BRAIN, first, 9), BRAIN) == pytest.approx(1)


def test_similarity_of_maps_that_do_not_vary_is_not_defined():
    random = np.random.default_rng(0).normal(size=(2, *SHAPE))
    assert similarity(np.ones((2, *SHAPE)), random, BRAIN) is None
    assert similarity(random, np.where(random > 0, 2.0, -2.0), BRAIN) is None  # all of one size
    assert similarity(random, random, np.zeros(SHAPE, bool)) is None
    half = random.copy()
    half[1] = 0
    assert similarity(half, random, BRAIN) == pytest.approx(1)  # the contrast that varies


def test_similarity_errors():
    maps = np.ones((2, *SHAPE))
    with pytest.raises(ValueError, match="do not fit together"):
        similarity(maps, maps[:1], BRAIN)
    with pytest.raises(ValueError, match="NaN or infinite"):
        similarity(maps, np.full_like(maps, np.nan), BRAIN)


def test_complexity_is_the_entropy_of_a_histogram():
    values = np.random.default_rng(1).normal(size=(2, *SHAPE))
    inside = values[:, BRAIN].ravel()
    low, width = inside.min(), (inside.max() - inside.min()) / 7
    counts = [0] * 7
    for value in inside:
        counts[min(int((value - low) / width), 6)] += 1
    wanted = -sum(c / inside.size * np.log(c / inside.size) for c in counts if c)
    assert complexity(values, BRAIN, 7) == pytest.approx(wanted, rel=1e-12)
    for factor in (1e-30, 1e30):
        assert complexity(values * factor, BRAIN, 7) == pytest.approx(wanted, rel=1e-6)


def test_complexity_of_known_maps():
    even = np.arange(200.0).reshape(1, 200, 1, 1)
    assert complexity(even, np.ones((200, 1, 1), bool), 20) == pytest.approx(np.log(20))
    assert complexity(np.zeros((1, *SHAPE)), BRAIN, 20) == 0
    assert complexity(even, np.zeros((200, 1, 1), bool), 20) == 0
    one = np.zeros((1, 200, 1, 1))
    one[0, 0] = 1
    assert complexity(one, np.ones((200, 1, 1), bool), 20) == pytest.approx(
        -(0.005 * np.log(0.005) + 0.995 * np.log(0.995))
    )


def test_bins():
    brain = np.ones((1000, 1, 1), bool)
    even = np.arange(1000.0).reshape(1, 1000, 1, 1)
    spread = ((1000**2 - 1) / 12) ** 0.5  # of 0 .. 999
    assert bins_for([even], [brain]) == int(np.ceil(999 / (3.49 * spread / 10)))
    peak = np.zeros((1, 1000, 1, 1))
    peak[0, 0] = 1
    assert bins_for([peak], [brain]) == 91  # range 1, s = sqrt(0.001 * 0.999), n^(1/3) = 10: 90.7
    assert bins_for([np.zeros((1, 1000, 1, 1))], [brain]) == 10
    assert bins_for([np.pad(even, [(0, 0), (0, 10**6), (0, 0), (0, 0)])], [np.ones((1001000, 1, 1), bool)]) == 200


# ------------------------------------------------------------------------------------------------------- verdicts
SCANS = [np.random.default_rng(scan).random((2, *SHAPE)).astype(np.float32) for scan in range(4)]


def learnt() -> Any:
    """A network that looks at one corner."""
    network: Any = redrawn(trained(), 11)
    with torch.no_grad():
        weights = network[4].weight.view(3, *SHAPE)
        weights[:, 3:] = 0
        weights[:, :, 3:] = 0
        weights *= 3
    return network


def input_gradient(network):
    maps = []
    for scan in SCANS:
        image = torch.from_numpy(scan)[None].requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(image).sum(), image)
        maps.append((image * gradient)[0].detach().numpy())
    return maps


def edges(network):
    """Looks at the image alone."""
    return [np.abs(np.diff(scan, axis=1, append=0)) for scan in SCANS]


def first_layer(network):
    """Looks at the first convolution alone."""
    with torch.no_grad():
        layer = network[0]
        return [
            torch.nn.functional.conv3d(torch.from_numpy(scan)[None], layer.weight.abs(), padding=1)[0, :2].numpy()
            for scan in SCANS
        ]


NOISE = np.random.default_rng(5)


def noise(network):
    return [NOISE.normal(size=scan.shape) for scan in SCANS]


def constant(network):
    return [np.full(scan.shape, network[0].weight[0, 0, 0, 0, 0].item()) for scan in SCANS]


def said(network):
    with torch.no_grad():
        return network(torch.from_numpy(np.stack(SCANS)))[:, 0].numpy()


def judged(explain, logits=None, count=None):
    network = learnt()
    found = stages(network, torch.rand(1, 2, *SHAPE), count=count)
    measured = measure_randomisation(network, found, explain, [BRAIN] * 4, logits=logits)
    return measured, {verdict.test: verdict for verdict in randomisation_verdicts(measured)}


def test_an_explanation_of_the_parameters_passes():
    measured, verdicts = judged(input_gradient, said)
    assert [verdict.passed for verdict in verdicts.values()] == [True] * 3
    assert measured.height == 4 * (1 + 3 + 2)
    assert measured["step"].unique(maintain_order=True).to_list() == ["none", "4", "1", "all"]
    assert (measured.filter(pl.col("step") == "none")["similarity"] > 1 - 1e-12).all()
    assert verdicts["randomisation_all"].n == 4
    assert "correlation with the output's entropy" in verdicts["randomisation_complexity"].note
    logits = said(learnt())
    p = 1 / (1 + np.exp(-logits.astype(float)))
    wanted = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(measured["output_entropy_trained"][:4], wanted, rtol=1e-6)


def test_an_edge_detector_fails():
    _, verdicts = judged(edges)
    assert [verdict.passed for verdict in verdicts.values()] == [False] * 3
    assert verdicts["randomisation_all"].value == pytest.approx(1)
    assert verdicts["randomisation_complexity"].value == 0


def test_a_map_of_the_first_layer_fails_the_cascade():
    _, verdicts = judged(first_layer)
    assert not verdicts["randomisation_cascade"].passed
    assert verdicts["randomisation_cascade"].value == pytest.approx(1)


def test_noise_fails():
    _, verdicts = judged(noise)
    assert abs(verdicts["randomisation_all"].value) < 0.5
    assert not verdicts["randomisation_all"].passed
    assert "unchanged parameters differ" in verdicts["randomisation_all"].note


def test_a_constant_map_cannot_be_tested():
    _, verdicts = judged(constant)
    assert [verdict.passed for verdict in verdicts.values()] == [None] * 3
    assert verdicts["randomisation_all"].value is None
    assert "4 maps of the trained network do not vary" in verdicts["randomisation_all"].note


def test_a_map_that_grows_simpler_fails():
    """As complex as noise for the trained network, one peak for any other."""
    weight = learnt()[4].weight

    def explain(network):
        same = torch.equal(network[4].weight, weight)
        return [scan if same else (scan == scan.max()).astype(float) for scan in SCANS]

    _, verdicts = judged(explain)
    assert verdicts["randomisation_complexity"].value < 0
    assert not verdicts["randomisation_complexity"].passed


def test_a_single_stage_has_no_cascade():
    _, verdicts = judged(input_gradient, count=1)
    assert list(verdicts) == ["randomisation_all", "randomisation_complexity"]


def test_the_whole_interval_must_lie_below_the_threshold():
    """A mean of 0.4 over few scans that differ much is no proof of less than 0.5."""
    measured, _ = judged(input_gradient)
    for values, passed in (([0.1, 0.3, 0.5, 0.7], False), ([0.38, 0.39, 0.41, 0.42], True), ([0.6] * 4, False)):
        each = pl.when(pl.col("step") == "none").then(1.0).otherwise(pl.col("scan").replace_strict(range(4), values))
        for verdict in randomisation_verdicts(measured.with_columns(similarity=each))[:2]:
            assert (verdict.passed, verdict.passes_if) == (passed, "below")
            assert verdict.value == pytest.approx(np.mean(values))


def test_one_person_cannot_be_tested():
    measured, _ = judged(input_gradient)
    assert [verdict.passed for verdict in randomisation_verdicts(measured, ["a"] * 4)] == [None] * 3
    measured, _ = judged(noise)
    assert randomisation_verdicts(measured, ["a"] * 4)[0].passed is False  # needs no interval


def test_people_are_needed_for_all_scans():
    measured, _ = judged(input_gradient)
    assert randomisation_verdicts(measured, ["a", "a", "b", "b"])[0].n == 4
    with pytest.raises(ValueError, match="4 scans and 3 people"):
        randomisation_verdicts(measured, ["a", "b", "c"])
    with pytest.raises(ValueError, match="at least one stage"):
        measure_randomisation(learnt(), [], input_gradient, [BRAIN] * 4)
