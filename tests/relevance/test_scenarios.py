"""All methods of a study on one scan: what they share changes nothing, gradients are gradients, and what it costs."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
from hard_networks import randomise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from relevance_assets.models.gated_attention import GatedAttentionNet
from relevance_assets.relevance.ledger import COLUMNS
from relevance_assets.relevance.maps import ScanExplainer, Scenarios, account, mean_maps
from relevance_assets.study import Method

SHAPE = (10, 11, 9)
IG = {"method": "integrated_gradients", "steps": 7}
STARTS = ("attention", "output")
RULES = {
    f"{start}_{product}": Method(start=start, composite="disability", product=product)
    for start in STARTS
    for product in ("proposed", "all")
}
GRADIENTS = {f"{start}_saliency": Method(start=start, composite="saliency") for start in STARTS}
GRADIENTS |= {f"{start}_ig": Method(start=start, composite=IG) for start in STARTS}
TWELVE = RULES | GRADIENTS  # of which each map by rules is also looked at combined


@pytest.fixture
def scan():
    generator = np.random.default_rng(3)
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 3:-2, 2:-3] = True
    return generator.random((3, *SHAPE)) * brain, [0.46], brain


def gated(head):
    torch.manual_seed(0)
    small = {"blocks": (2, 1), "init_features": 8, "embedding": 8, "gate": 4}
    return randomise(GatedAttentionNet(SHAPE, 3, 1, head=head, **small))


@pytest.fixture(params=["flatten", "gap"])
def network(request):
    return gated(request.param)


def near(ours, theirs, bound=1e-12):
    assert np.abs(ours - theirs).max() <= bound * max(np.abs(theirs).max(), 1e-300)


# --------------------------------------------------------------------------------------------------------------- rules
@pytest.mark.parametrize("masked", [True, False])
def test_shared_relevance_is_what_each_method_finds_alone(network, scan, masked):
    images, covariates, brain = scan
    methods = {name: method.model_copy(update={"mask": masked}) for name, method in RULES.items()}
    together = Scenarios(network, methods)(images, covariates, brain)
    assert list(together) == list(methods)
    for name, method in methods.items():
        alone = ScanExplainer(network, method)(images, covariates, brain)
        for contrast in range(3):
            near(together[name].maps[contrast], alone.maps[contrast])
        near(together[name].start, alone.start)
        near(together[name].covariates, alone.covariates)
        size = np.abs(alone.ledger["relevance_in"].to_numpy()).max()
        near(together[name].lost, alone.lost, 1e-12 * size / np.abs(alone.lost).max())
        keys = ["layer", "kind", "rule"]
        assert together[name].ledger.select(keys).equals(alone.ledger.select(keys))
        for column in COLUMNS:
            ours, theirs = together[name].ledger[column].to_numpy(), alone.ledger[column].to_numpy()
            assert np.abs(ours - theirs).max() <= 1e-10 * size


def test_methods_with_and_without_mask_in_one_study(network, scan):
    images, covariates, brain = scan
    inside = RULES["output_all"]
    methods = {"inside": inside, "anywhere": inside.model_copy(update={"mask": False})}
    found = Scenarios(network, methods)(images, covariates, brain)
    assert np.abs(found["inside"].maps[:, ~brain]).max() == 0
    assert np.abs(found["anywhere"].maps[:, ~brain]).max() > 0
    near(found["anywhere"].maps, ScanExplainer(network, inside)(images, covariates).maps)


def test_some_of_the_methods_are_what_each_finds_alone(network, scan):
    """To the last bit, also after all were asked for."""
    scenarios = Scenarios(network, TWELVE)
    scenarios(*scan)
    for name, method in TWELVE.items():
        found = scenarios(*scan, [name])
        alone = ScanExplainer(network, method)(*scan)
        assert list(found) == [name]
        assert np.array_equal(found[name].maps, alone.maps)
        assert found[name].ledger.equals(alone.ledger)
    assert list(scenarios(*scan, set(GRADIENTS))) == list(GRADIENTS)


@pytest.mark.parametrize("name", RULES)
def test_every_map_by_rules_adds_up(network, scan, name):
    images, covariates, brain = scan
    found = Scenarios(network, RULES)(images, covariates, brain)[name]
    weights = network.attention(torch.tensor(images)[None])[0].detach().numpy()
    output = network(torch.tensor(images)[None], torch.tensor([covariates], dtype=torch.float64)).item()
    near(found.start, weights if name.startswith("attention") else np.array([output]))
    for index in range(3) if name.startswith("attention") else [None]:
        row = account(found, index)
        size = max(abs(row["start"]), abs(row["lost"]), found.ledger["relevance_in"].abs().max() * 1e-3)
        assert abs(row["unexplained"]) <= 1e-10 * size


def test_all_to_the_signal_leaves_nothing_to_the_attention_branch(network, scan):
    found = Scenarios(network, RULES)(*scan)
    branch = pl.col("layer").str.contains("signal|gate|score|softmax")
    into = pl.col("relevance_in").abs() + pl.col("relevance_out").abs()
    assert found["output_all"].ledger.filter(branch).select(into.sum()).item() == 0
    assert found["output_proposed"].ledger.filter(branch).select(into.sum()).item() > 0
    # U, V and w decide nothing but the weights: with the same weights, the same maps
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.score.bias += 3.0  # moves every score alike, and so no weight
    near(Scenarios(other, RULES)(*scan)["output_all"].maps, found["output_all"].maps, 1e-9)


# ----------------------------------------------------------------------------------------------------------- gradients
class Mixing(nn.Module):
    """Contrasts meet before, beside and behind what belongs to one of them; a covariate has a part in one's own."""

    def __init__(self, early):
        super().__init__()
        self.stem = nn.Conv3d(3 if early else 1, 4, 3, padding=1)
        self.own = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Conv3d(4, 4, 3), nn.Tanh()) for _ in range(3))
        self.pool, self.early, self.skip = nn.MaxPool3d(3, 2, 1), early, nn.Conv3d(3, 3, 1)
        self.softmax, self.last = nn.Softmax(dim=1), nn.Linear(6, 1)

    def parts(self, images, covariates):
        made, skips = [], []
        for index, own in enumerate(self.own):
            x = self.stem(images if self.early else images[:, index : index + 1])
            x = torch.tanh(self.pool(x))
            skips.append(x.mean((1, 2, 3, 4)))  # read by the own part and by what mixes
            x = own(x) * (1 + covariates.view(-1, 1, 1, 1, 1)) if index == 1 else own(x)
            made.append(x.square().mean((1, 2, 3, 4)))
        return torch.stack(made, 1), torch.stack(skips, 1)

    def attention(self, images, covariates):
        made, skips = self.parts(images, covariates)
        skips = skips * torch.sigmoid(self.skip(images).mean((2, 3, 4))) if self.early is None else skips
        return self.softmax(5 * made + skips * made.flip(1))

    def forward(self, images, covariates):
        made, skips = self.parts(images, covariates)
        skips = skips * torch.sigmoid(self.skip(images).mean((2, 3, 4))) if self.early is None else skips
        weights = self.softmax(5 * made + skips * made.flip(1))
        return self.last(torch.cat([weights * made, skips], 1)).squeeze(-1) * (1 + covariates[:, 0])


def mixing(early):
    torch.manual_seed(1)
    return Mixing(early).double().eval()


def plain(network, images, covariates):
    """Each weight's gradient to its own contrast, and the output's to all inputs, by one backward pass each."""
    q, p = torch.tensor(images)[None].requires_grad_(), torch.tensor([covariates], dtype=torch.float64).requires_grad_()
    given = (q,) if isinstance(network, GatedAttentionNet) else (q, p)
    own = []
    for contrast in range(3):
        (found,) = torch.autograd.grad(network.attention(*given)[0, contrast], q)
        own.append(found[0, contrast])
    back = torch.autograd.grad(network(q, p).sum(), (q, p))
    return torch.stack(own).numpy(), back[0][0].numpy(), back[1][0].numpy()


@pytest.fixture(params=["flatten", "gap", "own", "mixed first", "mixed beside"])
def any_network(request):
    if request.param in ("flatten", "gap"):
        return gated(request.param)
    return mixing({"own": False, "mixed first": True, "mixed beside": None}[request.param])


def test_gradients_are_those_of_a_plain_loop(any_network, scan):
    images, covariates, brain = scan
    images = images + 0.1 * np.random.default_rng(0).random(images.shape)  # no ties in pools
    found = Scenarios(any_network, GRADIENTS)(images, covariates, brain)
    own, output, covariate = plain(any_network, images, covariates)
    near(found["attention_saliency"].maps, np.abs(own), 1e-11)
    near(found["output_saliency"].maps, np.abs(output), 1e-11)
    near(found["output_saliency"].covariates, np.abs(covariate), 1e-11)
    steps = [plain(any_network, images * t, [covariates[0] * t]) for t in np.arange(1, 8) / 7]
    near(found["attention_ig"].maps, images * np.mean([s[0] for s in steps], axis=0), 1e-11)
    near(found["output_ig"].maps, images * np.mean([s[1] for s in steps], axis=0), 1e-11)
    near(found["output_ig"].covariates, covariates[0] * np.mean([s[2] for s in steps], axis=0), 1e-11)
    assert not found["attention_ig"].covariates.any()


def test_integrated_gradients_are_captums(scan):
    captum = pytest.importorskip("captum.attr")
    network = gated("flatten")
    images, covariates, _ = scan
    given = (torch.tensor(images)[None], torch.tensor([covariates], dtype=torch.float64))
    methods = {f"{start}_ig": Method(start=start, composite=IG | {"steps": 8}) for start in STARTS}
    found = Scenarios(network, methods)(images, covariates)  # captum's 1/7 would be float32's
    maps, numbers = captum.IntegratedGradients(network).attribute(given, n_steps=8, method="riemann_right")
    near(found["output_ig"].maps, maps[0].numpy(), 1e-11)
    near(found["output_ig"].covariates, numbers[0].numpy(), 1e-11)
    for contrast in range(3):
        maps = captum.IntegratedGradients(network.attention).attribute(
            given[0], target=contrast, n_steps=8, method="riemann_right"
        )
        near(found["attention_ig"].maps[contrast], maps[0, contrast].numpy(), 1e-11)


def test_single_precision_differs_at_single_voxels(network, scan):
    """Where a unit stands at its threshold, or two voxels of a window are equal but for rounding."""
    exact = Scenarios(network, GRADIENTS)(*scan)
    for name, found in Scenarios(network, GRADIENTS, gradients=torch.float32)(*scan).items():
        difference = np.abs(found.maps - exact[name].maps) / np.abs(exact[name].maps).max()
        assert (difference > 1e-5).mean() < 0.01
        assert difference.max() < 1e-3


def test_gradients_without_an_account_say_so(network, scan):
    images, covariates, brain = scan
    found = Scenarios(network, TWELVE)(images, covariates, brain)
    for name in ("attention_saliency", "output_saliency", "attention_ig"):
        row = account(found[name])
        assert row.pop("total") == pytest.approx(found[name].maps.sum() + found[name].covariates.sum())
        assert set(row.values()) == {None}
        assert found[name].ledger.is_empty()
    assert found["output_saliency"].ledger.columns == found["output_all"].ledger.columns
    with torch.no_grad():
        q, p = torch.tensor(images)[None], torch.tensor([covariates], dtype=torch.float64)
        change = (network(q, p) - network(0 * q, 0 * p)).item()
    row = account(found["output_ig"])
    assert row["start"] == pytest.approx(change, abs=1e-5)
    assert row["difference"] == pytest.approx(change - row["total"], abs=1e-5)
    assert row["lost"] is None
    assert row["unexplained"] is None


def test_what_the_steps_miss_falls_with_their_number(scan):
    network = gated("flatten")
    composite = {"method": "integrated_gradients"}
    methods = {str(n): Method(composite=composite | {"steps": n}) for n in (5, 80)} | {
        "50": Method(composite=composite)
    }
    found = Scenarios(network, methods)(*scan)
    missed = {name: abs(account(found[name])["difference"]) for name in methods}
    assert missed["80"] < missed["5"] / 4
    fifty = Method(composite=composite | {"steps": 50})
    near(ScanExplainer(network, fifty)(*scan).maps, found["50"].maps)


def test_other_baselines_explain_each_weight_to_its_own_contrast(scan):
    network = gated("flatten")
    images, covariates, brain = scan
    found = ScanExplainer(network, Method(start="attention", composite="gradient_x_input"))(images, covariates, brain)
    near(found.maps, images * plain(network, images, covariates)[0], 1e-11)
    assert set(account(found).values()) == {None, account(found)["total"]}


def test_mean_over_folds_for_every_method(network, scan):
    found = Scenarios(network, TWELVE)(*scan)
    for name, one in found.items():
        mean = mean_maps([one, one])
        np.testing.assert_allclose(mean.maps, one.maps)
        assert account(mean) == pytest.approx(account(one))
        assert mean.ledger.shape == one.ledger.shape, name


def test_a_method_that_cannot_be(network):
    with pytest.raises(ValueError, match="needs a network with attention"):
        Scenarios(nn.Flatten(), {"a": Method(start="attention", composite="saliency")})
    with pytest.raises(ValueError, match="not known"):
        Scenarios(network, {"a": Method(composite="unknown")})


# ---------------------------------------------------------------------------------------------------------------- cost
def flops(call, *arguments):
    with FlopCounterMode(display=False) as counter:
        call(*arguments)
    return counter.get_total_flops()


def cost(network, methods, scan):
    made = Scenarios(network, methods)
    made(*scan)  # traced, weights prepared
    return flops(made, *scan)


def test_what_is_shared_is_computed_once(scan):
    """In multiplications, which are the same on every machine."""
    network = gated("flatten")
    images, covariates, _ = scan
    names = (*RULES, "attention_saliency", "output_saliency")
    one = {name: cost(network, {name: TWELVE[name]}, scan) for name in names}
    assert cost(network, RULES, scan) < 0.7 * sum(one[name] for name in RULES)
    # each weight's gradient to its own contrast costs what the output's gradient costs
    assert one["attention_saliency"] < 1.02 * one["output_saliency"]
    x = torch.tensor(images)[None].requires_grad_().view_as(torch.tensor(images)[None])
    unit = flops(lambda: torch.autograd.grad(network(x, torch.tensor([covariates], dtype=torch.float64)).sum(), x))
    # 7 places, forwards once and backwards twice, without the first convolution; saliency costs the way through it
    assert cost(network, GRADIENTS, scan) < 7 * 1.5 * unit
    assert cost(network, TWELVE, scan) <= 1.02 * (cost(network, RULES, scan) + cost(network, GRADIENTS, scan))
