"""Explanations: what goes in comes out or is accounted for, and the network is left alone."""

import gc

import numpy as np
import pytest
import torch
from conftest import randomise, snapshot
from torch import nn

from relevance_assets.models.gated_attention import GatedAttentionNet
from relevance_assets.models.mrinet import MRINet
from relevance_assets.relevance.composites import COMPOSITES, build_composite, first_convolutions
from relevance_assets.relevance.engine import Explainer, explain
from relevance_assets.study import Method

ATTENTION = Method(start="attention", composite="disability")
OUTPUT = Method(start="output", composite="disability")
PRESET_A = Method(composite="preset_a")


def scan(shape=(16, 17, 16), contrasts=3, seed=0):
    images = np.random.default_rng(seed).random((contrasts, *shape))
    images[:, :3] = 0  # background
    return images


def brain_age(covariates=0):
    torch.manual_seed(0)
    return MRINet((12, 13, 12), 1, covariates, target_mean=55.0).double().eval()


def attention_balance(result):
    """What neither reached the voxels nor is accounted for, beside the rounding of what was added up."""
    np.testing.assert_array_equal(result.start, result.attention)
    assert result.start.sum() == pytest.approx(1, abs=1e-15)
    left = result.start - result.maps.sum(axis=(1, 2, 3)) - result.lost
    return np.abs(left / np.maximum(result.amplification, 1)).max()


@pytest.mark.parametrize("product", ["proposed", "all"])
def test_each_map_sums_to_its_attention_weight_less_what_is_accounted_for(network, product):
    """a_l = sum R_l + lost_l to rounding, however much is lost: here to constant channels and dead units."""
    with Explainer(network, Method(start="attention", composite="disability", product=product)) as explainer:
        for seed in range(3):
            result = explainer(scan(seed=seed), [0.46])
            assert attention_balance(result) < 1e-13
            assert result.lost.sum() == pytest.approx(sum(result.leaks.values()), abs=1e-15)
            assert not result.covariates.any()


@pytest.mark.parametrize("head", ["flatten", "gap"])
def test_only_the_stabiliser_loses_relevance_in_a_network_without_dead_units(head):
    """Convolutions, pools, products and thresholds hand on everything; dense layers all but epsilon / |z|."""
    torch.manual_seed(0)
    model = randomise(GatedAttentionNet((16, 17, 16), 3, 1, head=head), last_scale=0.5)
    result = explain(model, scan(), [0.46], ATTENTION)
    assert attention_balance(result) < 1e-13
    losing = {name for name, lost in result.leaks.items() if abs(lost) > 1e-14}
    assert {name.split(".")[-1].partition("[")[0] for name in losing} <= {"embed", "signal", "gate", "score"}
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2, 3)), result.start, rtol=1e-4)


def test_conservation_to_1e_8_where_epsilon_is_small_beside_what_it_stabilises():
    """Dense weights of one sign and large embeddings: |z| is large, and epsilon = 1e-8 absorbs less than that."""
    torch.manual_seed(0)
    model = randomise(GatedAttentionNet((16, 16, 16), 3, 1), last_scale=0.5)
    with torch.no_grad():
        for layer in (model.signal, model.gate, model.score, *(e.layers.embed for e in model.encoders)):
            layer.weight.abs_().mul_(4)
    result = explain(model, scan((16, 16, 16)), [0.46], ATTENTION)
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2, 3)), result.start, rtol=0, atol=1e-8)


@pytest.mark.parametrize("product", ["proposed", "all"])
def test_maps_and_covariates_sum_to_the_output(network, product):
    result = explain(network, scan(), [0.46], Method(start="output", composite="disability", product=product))
    expected = network(torch.tensor(scan())[None], torch.tensor([[0.46]], dtype=torch.float64)).item()
    assert result.output == pytest.approx(expected, rel=1e-12)
    assert result.start.tolist() == [result.output]
    size = np.abs(result.maps).sum()
    total = result.maps.sum() + result.covariates.sum() + result.lost[0]
    assert total == pytest.approx(result.output, abs=1e-13 * max(size, 1))
    assert result.lost[0] == pytest.approx(sum(result.leaks.values()))
    assert result.covariates.shape == (1,)
    assert result.covariates[0] != 0


def test_all_to_the_signal_leaves_the_attention_nothing(network):
    """LRP-all with start = output: the gate branch, and so the attention path, receives 0."""
    result = explain(network, scan(), [0.46], Method(start="output", composite="disability", product="all"))
    attention_layers = [v for name, v in result.leaks.items() if name.startswith(("score", "signal", "gate"))]
    assert attention_layers
    assert not any(attention_layers)


def test_dead_units_are_itemised():
    """All weights of a convolution <= 0 over inputs >= 0: its relevance has nowhere to go, and is reported there."""
    torch.manual_seed(0)
    model = randomise(GatedAttentionNet((16, 16, 16), 2, 0), last_scale=0.5)
    layer = model.encoders[1].layers.block4_layer2.layers
    with torch.no_grad():
        layer.norm2.weight.fill_(1)
        layer.norm2.bias.fill_(2)
        layer.norm2.running_mean.fill_(0)
        layer.norm2.running_var.fill_(1)
        layer.conv1.weight.zero_()  # T(x) of norm2 is 0 everywhere; ReLU(0 + 2) = 2 comes from the shift alone
    result = explain(model, scan((16, 16, 16), 2), [], ATTENTION)
    dead = result.leaks["encoders.1.layers.block4_layer2.layers.conv2"]
    assert abs(dead) > 1e-4
    assert result.lost[1] == pytest.approx(dead, abs=1e-4)
    totals = result.maps.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(totals + result.lost, result.start, rtol=1e-11)


def test_preset_a_output_layer():
    """sum R behind the output layer = (f - b) f / (f + 0.1): relevance tells the deviation from the bias."""
    model = brain_age()
    result = explain(model, scan((12, 13, 12), 1), [], PRESET_A)
    f, b = result.output, model.output.bias.item()
    assert result.start.tolist() == [f]
    assert f - result.leaks["output"] == pytest.approx((f - b) * f / (f + 0.1), rel=1e-12)
    assert result.maps.sum() + result.lost[0] == pytest.approx(f, rel=1e-12)
    assert result.attention is None


def test_covariates_of_mrinet():
    result = explain(brain_age(2), scan((12, 13, 12), 1), [1.0, 0.0], PRESET_A)
    assert result.covariates[0] != 0
    assert result.covariates[1] == 0
    assert result.maps.sum() + result.covariates.sum() + result.lost[0] == pytest.approx(result.output, rel=1e-12)


@pytest.mark.parametrize("name", sorted(COMPOSITES))
def test_every_composite_works_on_both_networks(name):
    torch.manual_seed(0)
    gated = randomise(GatedAttentionNet((15, 15, 15), 1, 0, init_features=4, growth=2))
    for model, shape in ((gated, (15, 15, 15)), (brain_age(), (12, 13, 12))):
        result = explain(model, scan(shape, 1), [], Method(composite=name))
        size = np.abs(result.maps).sum()
        assert size > 0
        assert result.maps.sum() + result.lost[0] == pytest.approx(result.output, rel=1e-10, abs=1e-10 * size)


def test_linear_in_what_is_started_and_the_same_every_time(network):
    with Explainer(network, OUTPUT) as explainer:
        first, second = explainer(scan(), [0.46]), explainer(scan(), [0.46])
    np.testing.assert_array_equal(first.maps, second.maps)
    assert first.leaks == second.leaks


def test_hidden_channels_may_change_places(network):
    """A permutation of the first convolution's channels changes nothing."""
    expected = explain(network, scan(), [0.46], ATTENTION).maps
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layers = network.encoders[0].layers
        layers.conv0.weight.copy_(layers.conv0.weight[order])
        for key in ("weight", "bias", "running_mean", "running_var"):
            getattr(layers.norm0, key).copy_(getattr(layers.norm0, key)[order])
        for block in (layers.block1_layer1, layers.block1_layer2):
            reorder(block.layers.norm1, block.layers.conv1, order)
        reorder(layers.transition1.norm, layers.transition1.conv, order)
    result = explain(network, scan(), [0.46], ATTENTION).maps
    np.testing.assert_allclose(result, expected, atol=1e-11 * np.abs(expected).max())


def reorder(norm, conv, order):
    places = torch.cat([order, torch.arange(len(order), norm.num_features)])
    for key in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, key).copy_(getattr(norm, key)[places])
    conv.weight.copy_(conv.weight[:, places])


def test_background_receives_relevance_by_the_box_rule(network):
    result = explain(network, scan(), [0.46], ATTENTION)
    assert np.abs(result.maps[:, :2]).sum() > 0


def test_single_precision_is_near(network):
    exact = explain(network, scan(), [0.46], ATTENTION)
    near = explain(network, scan(), [0.46], ATTENTION, dtype=torch.float32)
    assert near.maps.dtype == np.float64
    np.testing.assert_allclose(near.attention, exact.attention, rtol=1e-4)


def test_the_network_is_left_alone(network):
    network = network.float().train()  # also one that is still in training
    before = snapshot(network)
    with Explainer(network, ATTENTION) as explainer:
        explainer(scan(), [0.46])
        assert snapshot(network) == before
        for images, covariates in ((scan(contrasts=2), [0.46]), (scan(), []), (scan() * 2, [0.46])):
            with pytest.raises((ValueError, RuntimeError)):
                explainer(images, covariates)
        explainer(scan(), [0.46])  # an error does not spoil what follows
    assert snapshot(network) == before


def test_a_composite_used_in_place_restores_too(network):
    before = snapshot(network)
    composite = build_composite("disability", network)
    with composite.context(network):
        assert snapshot(network) != before
    assert snapshot(network) == before
    network.extra = nn.GELU()
    before = snapshot(network)
    with pytest.raises(ValueError, match="extra: no relevance rule for GELU"), composite.context(network):
        pass
    assert snapshot(network) == before


def test_memory_does_not_grow(network):
    counts = []
    with Explainer(network, ATTENTION) as explainer:
        for _ in range(3):
            explainer(scan(), [0.46])
            gc.collect()
            tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
            handles = sum(len(hook.tensor_handles) for hook in explainer.composite.hook_refs)
            counts.append((tensors, handles))
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][1] == 0


def test_first_convolutions_are_one_per_encoder(network):
    assert first_convolutions(network) == {f"encoders.{i}.layers.conv0" for i in range(3)}
    assert first_convolutions(brain_age()) == {"features.conv1"}


def test_errors(network):
    with pytest.raises(ValueError, match="MRINet has none; use start: output"):
        Explainer(brain_age(), Method(start="attention", composite="preset_a"))
    with pytest.raises(ValueError, match="composite 'lrp' is not known; choose one of disability"):
        Explainer(network, Method(composite="lrp"))
    explainer = Explainer(network, ATTENTION)
    with pytest.raises(ValueError, match=r"needs images in \[0, 1\]"):
        explainer(scan() - 0.1, [0.46])
    with pytest.raises(ValueError, match="images hold NaN"):
        explainer(np.where(scan() > 0.99, np.nan, scan()), [0.46])
    with pytest.raises(ValueError, match="covariates hold NaN"):
        explainer(scan(), [np.inf])
    explainer.close()
    with pytest.raises(ValueError, match="closed"):
        explainer(scan(), [0.46])
