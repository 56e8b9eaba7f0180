"""Explanations: what goes in comes out or is accounted for, however they are asked for, and the network is left alone.

Belongs here: starts, masks, batches, precision, passes that are shared or run in segments. Does not belong here: values
of rules (`test_rules.py`), tracing (`test_graph.py`), other people's networks (`test_networks.py`).
"""

import gc
import pickle
import threading
from collections import Counter

import pytest
import torch
from hard_networks import account, randomise, snapshot
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from relevance_assets.models.gated_attention import GatedAttentionNet
from relevance_assets.models.mrinet import MRINet
from relevance_assets.relevance import COMPOSITES, Explainer, Inner, explain

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

EPSILON = [{"rule": "epsilon", "epsilon": 1e-9}]


def scan(shape=(16, 17, 16), contrasts=3, seed=0, samples=1):
    images = torch.rand(samples, contrasts, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    images[:, :, :3] = 0  # background
    return images


def covariates(*values):
    return torch.tensor([values], dtype=torch.float64)


AGE = covariates(0.46)


def each_attention(contrasts=3):
    return [Inner("softmax", index=contrast) for contrast in range(contrasts)]


def brain_age(inputs=0):
    torch.manual_seed(0)
    return MRINet((12, 13, 12), 1, inputs, target_mean=55.0).double().eval()


def with_product(rule):
    """`disability` with this rule for gates."""
    first = {"place": "first", "rule": "box", "stabiliser": 0.0}
    layers = [
        first,
        {"kind": "convolution", "rule": "z_plus", "stabiliser": 0.0},
        {"kind": "average", "rule": "z_plus"},
    ]
    layers += [{"kind": "product", "rule": rule}, {"rule": "epsilon", "epsilon": 1e-8}]
    return {"layers": layers, "bias": "drop", "fold": ["right", "left"]}


def small_net(seed=0):
    """Every kind of layer a CNN has, in a thousand multiplications; float64."""
    torch.manual_seed(seed)
    layers = [
        nn.Conv3d(2, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.BatchNorm3d(4),
        nn.ReLU(),
    ]
    layers += [nn.Conv3d(4, 5, 3, padding=1), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(5, 3)]
    return randomise(nn.Sequential(*layers), seed, last_scale=0.4)


SMALL = scan((4, 5, 4), 2, samples=3)


def same_ledgers(found, expected):
    assert found["layer"].to_list() == expected["layer"].to_list()
    for column in ("relevance_in", "relevance_out", "bias", "stabiliser", "dead", "clamped"):
        assert found[column].to_list() == pytest.approx(expected[column].to_list(), rel=1e-10, abs=1e-13)


# ------------------------------------------------------------------------------- the project's networks: conservation
@pytest.mark.parametrize("product", ["proposed", "all"])
def test_each_map_sums_to_its_attention_weight_less_what_is_accounted_for(network, product):
    """a_l = sum R_l + lost_l to rounding, however much is lost: here to constant channels and dead units."""
    explainer = Explainer(network, with_product(product))
    for seed in range(2):
        images = scan(seed=seed)
        for contrast, found in enumerate(explainer((images, AGE), each_attention())):
            image, others = found.relevance
            assert found.start.sum().item() == pytest.approx(network.attention(images)[0, contrast].item(), rel=1e-12)
            amplification = max(1.0, image.abs().sum().item() / found.start.sum().item())
            assert abs(found.start.sum().item() - image.sum().item() - account(found)) < 1e-13 * amplification
            assert image[:, contrast].any()
            assert not image[:, torch.arange(3) != contrast].any()
            assert not others.any()


def test_attention_weights_sum_to_one(network):
    found = explain(network, (scan(), AGE), "disability", Inner("softmax"))
    assert found.start.sum().item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("head", ["flatten", "gap"])
def test_only_the_stabiliser_loses_relevance_in_a_network_without_dead_units(head):
    """Convolutions, pools, products and thresholds hand on everything; dense layers all but epsilon / |z|."""
    torch.manual_seed(0)
    model = randomise(GatedAttentionNet((16, 17, 16), 3, 1, head=head), last_scale=0.5)
    for found in explain(model, (scan(), AGE), "disability", each_attention()):
        losing = found.ledger.filter((found.ledger["relevance_in"] - found.ledger["relevance_out"]).abs() > 1e-13)
        assert {name.rpartition(".")[2].partition("#")[0] for name in losing["layer"]} <= {
            "embed",
            "signal",
            "gate",
            "score",
        }
        assert not found.ledger.select("bias", "dead", "clamped").sum().sum_horizontal().item()
        assert found.total.item() == pytest.approx(found.start.sum().item(), rel=1e-4)


def test_conservation_to_1e_8_where_epsilon_is_small_beside_what_it_stabilises():
    """Dense weights of one sign and large embeddings: |z| is large, and epsilon = 1e-8 absorbs less than that."""
    torch.manual_seed(0)
    model = randomise(GatedAttentionNet((16, 16, 16), 3, 1), last_scale=0.5)
    with torch.no_grad():
        for layer in (model.signal, model.gate, model.score, *(e.layers.embed for e in model.encoders)):
            layer.weight.abs_().mul_(4)
    for found in explain(model, (scan((16, 16, 16)), AGE), "disability", each_attention()):
        assert found.total.item() == pytest.approx(found.start.sum().item(), rel=0, abs=1e-8)


@pytest.mark.parametrize("product", ["proposed", "all"])
def test_maps_and_covariates_sum_to_the_output(network, product):
    found = explain(network, (scan(), AGE), with_product(product))
    assert found.output.item() == pytest.approx(network(scan(), AGE).item(), rel=1e-12)
    assert found.start.tolist() == found.output.tolist()
    image, others = found.relevance
    size = max(image.abs().sum().item(), 1)
    assert image.sum().item() + others.sum().item() + account(found) == pytest.approx(
        found.output.item(), abs=1e-13 * size
    )
    assert (image.shape, others.shape) == ((1, 3, 16, 17, 16), (1, 1))
    assert others.item() != 0


def test_all_to_the_signal_leaves_the_attention_nothing(network):
    """LRP-all with start = output: the gate branch, and so the attention path, receives 0."""
    found = explain(network, (scan(), AGE), with_product("all"))
    ledger = found.ledger
    attention = ledger.filter(ledger["layer"].is_in(["score", "signal", "gate", "softmax", "gated", "gate_sigmoid"]))
    assert not attention.select("relevance_in", "relevance_out").sum().sum_horizontal().item()
    shared = explain(network, (scan(), AGE), with_product("proposed")).ledger
    assert set(shared["layer"]) >= {"score", "signal", "gate", "softmax", "gated", "gate_sigmoid"}


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
    found = explain(model, (scan((16, 16, 16), 2), covariates()), "disability", Inner("softmax", index=1))
    row = found.ledger.filter(layer="encoders.1.layers.block4_layer2.layers.conv2").row(0, named=True)
    assert abs(row["dead"]) > 1e-4
    assert row["relevance_out"] == 0
    assert account(found) == pytest.approx(row["dead"], abs=1e-4)
    assert found.total.item() + account(found) == pytest.approx(found.start.sum().item(), rel=1e-11)


def test_preset_a_output_layer():
    """sum R behind the output layer = (f - b) f / (f + 0.1): relevance tells the deviation from the bias."""
    model = brain_age()
    found = explain(model, (scan((12, 13, 12), 1), covariates()), "preset_a")
    f, b = found.output.item(), model.output.bias.item()
    assert found.start.item() == f
    row = found.ledger.filter(layer="output").row(0, named=True)
    assert row["relevance_out"] == pytest.approx((f - b) * f / (f + 0.1), rel=1e-12)
    assert row["bias"] == pytest.approx(b * f / (f + 0.1), rel=1e-12)
    assert found.total.item() + account(found) == pytest.approx(f, rel=1e-12)


def test_covariates_of_mrinet():
    found = explain(brain_age(2), (scan((12, 13, 12), 1), covariates(1.0, 0.0)), "preset_a")
    _, others = found.relevance
    assert others[0, 0] != 0
    assert others[0, 1] == 0
    assert found.total.item() + account(found) == pytest.approx(found.output.item(), rel=1e-12)


@pytest.mark.parametrize("name", sorted(COMPOSITES))
def test_every_composite_works_on_both_networks(name):
    torch.manual_seed(0)
    gated = randomise(GatedAttentionNet((15, 15, 15), 1, 0, init_features=4, growth=2))
    for model, shape in ((gated, (15, 15, 15)), (brain_age(), (12, 13, 12))):
        found = explain(model, (scan(shape, 1), covariates()), name)
        size = found.relevance[0].abs().sum().item()
        assert size > 0
        assert found.total.item() + account(found) == pytest.approx(found.output.item(), rel=1e-10, abs=1e-10 * size)


def test_hidden_channels_may_change_places(network):
    """A permutation of the first convolution's channels changes nothing."""
    expected = explain(network, (scan(), AGE), "disability", Inner("softmax")).relevance[0]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layers = network.encoders[0].layers
        layers.conv0.weight.copy_(layers.conv0.weight[order])
        for key in ("weight", "bias", "running_mean", "running_var"):
            getattr(layers.norm0, key).copy_(getattr(layers.norm0, key)[order])
        for block in (layers.block1_layer1, layers.block1_layer2):
            reorder(block.layers.norm1, block.layers.conv1, order)
        reorder(layers.transition1.norm, layers.transition1.conv, order)
    result = explain(network, (scan(), AGE), "disability", Inner("softmax")).relevance[0]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11 * expected.abs().max().item())


def reorder(norm, conv, order):
    places = torch.cat([order, torch.arange(len(order), norm.num_features)])
    for key in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, key).copy_(getattr(norm, key)[places])
    conv.weight.copy_(conv.weight[:, places])


# ------------------------------------------------------------------------------------------------- the network is left
def test_the_network_is_left_alone(network):
    network = network.float().train()  # also one that is still in training
    images, age = scan().float(), AGE.float()
    before = snapshot(network)
    explainer = Explainer(network, "disability")
    expected = explainer((images, age))
    assert snapshot(network) == before
    for bad in ((images[:, :2], age), (images, age[:, :0]), images, (images * 2, age), (images, age / 0)):
        with pytest.raises((ValueError, RuntimeError, TypeError)):
            explainer(bad)
    again = explainer((images, age))  # an error does not spoil what follows
    assert torch.equal(again.relevance[0], expected.relevance[0])
    assert snapshot(network) == before


def test_training_mode_is_explained_in_evaluation_mode(network):
    images = (scan(), AGE)
    expected = explain(network, images, "disability")
    found = explain(network.train(), images, "disability")
    assert network.training
    assert torch.equal(found.relevance[0], expected.relevance[0])


def test_an_explainer_keeps_the_network_it_was_given():
    """Training that goes on afterwards does not change it."""
    model = small_net()
    explainer = Explainer(model)
    expected = explainer(SMALL).relevance
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(explainer(SMALL).relevance, expected)


def test_nothing_global_is_left_changed():
    modes = global_modes()
    with pytest.raises(ValueError, match="cumsum"):
        explain(nn.Sequential(nn.Linear(2, 2), Broken()), torch.ones(1, 2))
    explain(nn.Linear(2, 2), torch.ones(1, 2))
    assert global_modes() == modes


def global_modes():
    """torch itself raises here where cuDNN's switches differ from each other."""
    backends = torch.backends
    precisions = [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.conv.fp32_precision]
    return torch.is_grad_enabled(), backends.mha.get_fastpath_enabled(), *precisions


class Broken(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


# -------------------------------------------------------------------------------------------------------------- starts
def test_without_a_start_the_predicted_class_of_each_sample():
    model = small_net()
    with torch.no_grad():
        output = model(SMALL)
        model[10].bias -= output.mean(0)
        output = model(SMALL)
    found = explain(model, SMALL)
    assert len(set(output.argmax(1).tolist())) > 1
    expected = torch.zeros_like(output).scatter(1, output.argmax(1, keepdim=True), output.amax(1, keepdim=True))
    torch.testing.assert_close(found.start, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.output, output, rtol=1e-12, atol=0)


@pytest.mark.parametrize("start", [0, 2, -1])
def test_a_class_as_start(start):
    model = small_net()
    found = explain(model, SMALL, start=start)
    put_in = torch.zeros_like(found.output)
    put_in[:, start] = found.output[:, start]
    assert torch.equal(found.start, put_in)
    assert torch.equal(found.relevance, explain(model, SMALL, start=put_in).relevance)


def test_a_tensor_as_start_is_the_relevance():
    start = torch.randn(3, 3).double()
    found = explain(small_net(), SMALL, start=start)
    assert torch.equal(found.start, start)


def test_a_list_of_starts_gives_a_list():
    model = small_net()
    starts = [0, 1, None, torch.ones(3, 3).double(), Inner("6")]
    found = explain(model, SMALL, start=starts)
    assert isinstance(found, list)
    for one, start in zip(found, starts, strict=True):
        alone = explain(model, SMALL, start=start)
        torch.testing.assert_close(one.relevance, alone.relevance, rtol=1e-12, atol=1e-14)
        same_ledgers(one.ledger, alone.ledger)
        assert torch.equal(one.start, alone.start)


def test_inner_starts():
    """At an inner operation its own output is relevance; what comes behind has no row."""
    model = small_net()
    with torch.no_grad():
        inner = model[:7](SMALL)
    found = explain(model, SMALL, start=Inner("6"))
    torch.testing.assert_close(found.start, inner, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.output, model(SMALL).detach(), rtol=1e-12, atol=1e-14)
    assert not set(found.ledger["layer"]) & {"7", "8", "10"}
    part = explain(model[:7], SMALL, start=inner)
    torch.testing.assert_close(found.relevance, part.relevance, rtol=1e-10, atol=1e-12)


def test_inner_starts_with_values_and_channels():
    model = small_net()
    values = torch.randn(3, 5, 2, 2, 2).double()
    given = explain(model, SMALL, start=Inner("6", values=values))
    assert torch.equal(given.start, values)
    channel = explain(model, SMALL, start=Inner("6", index=2))
    whole = explain(model, SMALL, start=Inner("6"))
    assert torch.equal(channel.start[:, 2], whole.start[:, 2])
    assert not channel.start[:, [0, 1, 3, 4]].any()


@pytest.mark.parametrize("composite", ["epsilon", "gamma", "epsilon_plus"])
def test_an_inner_start_before_a_relu_has_the_operations_own_denominators(composite):
    """Relevance on outputs that the ReLU behind them switches off."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3).double()
    assert bool((model[0](x) < 0).any())
    found = explain(model, x, composite, Inner("0"))
    alone = explain(model[:1], x, composite, model[0](x).detach())
    torch.testing.assert_close(found.relevance, alone.relevance, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (3, r"start=3: the output has shape \(3, 3\)"),
        (-4, "start=-4"),
        (torch.ones(3, 2), r"start has shape \(3, 2\), the output \(3, 3\)"),
        (Inner("66"), "no operation is called '66'; near names: 6"),
        (Inner("6", values=torch.ones(3, 3)), "start has shape"),
        (Inner("6", index=9), "start=9"),
    ],
)
def test_starts_that_do_not_fit(start, message):
    with pytest.raises(ValueError, match=message):
        explain(small_net(), SMALL, start=start)


def test_an_image_as_output_needs_a_start():
    model = nn.Conv3d(2, 3, 3, padding=1).double()
    with pytest.raises(
        ValueError, match=r"the output has shape \(3, 3, 4, 5, 4\): say what to explain, start=CLASS or a tensor"
    ):
        explain(model, SMALL)
    found = explain(model, SMALL, EPSILON, start=1)
    assert torch.equal(found.start[:, 1], found.output[:, 1])


def test_single_outputs_need_no_start():
    """(B,) and (B, 1) are one number per sample, whatever its sign."""
    model = nn.Linear(2, 1).double()
    squeezed = nn.Sequential(model, nn.Flatten(0))
    x = torch.tensor([[1.0, 2], [-5, 3]]).double()
    for network in (model, squeezed):
        for start in (None, 0):
            found = explain(network, x, EPSILON, start)
            assert torch.equal(found.start, found.output)
            assert (found.start < 0).any()
            torch.testing.assert_close(found.relevance, x * model.weight, rtol=1e-6, atol=0)


def test_no_relevance_gives_no_relevance():
    found = explain(small_net(), SMALL, start=torch.zeros(3, 3).double())
    assert not found.relevance.any()


# ------------------------------------------------------------------------------------------------------ several outputs
class Two(nn.Module):
    def __init__(self, named):
        super().__init__()
        self.a, self.b, self.named = nn.Linear(2, 3), nn.Linear(2, 1), named

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return {"class": a, "age": b} if self.named else (a, [b, b])


def test_one_of_several_outputs():
    x = torch.rand(2, 2).double()
    for named, keys in ((False, (0, 1)), (True, ("class", "age"))):
        model = Two(named).double()
        with pytest.raises(ValueError, match=r"returned . tensors; say which: output=0"):
            explain(model, x)
        found = explain(model, x, EPSILON, output=keys[0])
        assert found.output.shape == (2, 3)
        assert torch.equal(found.relevance, explain(model.a, x, EPSILON).relevance)
        with pytest.raises(ValueError, match="no part 'other'"):
            explain(model, x, output="other")
    assert torch.equal(explain(model, x, EPSILON, output="age").relevance, explain(model.b, x, EPSILON).relevance)


# --------------------------------------------------------------------------------------------------------------- inputs
def test_relevance_has_the_structure_of_the_inputs(network):
    model = nn.Linear(2, 1).double()
    x = torch.ones(1, 2).double()
    assert isinstance(explain(model, x).relevance, torch.Tensor)
    for given in ((x,), [x]):
        found = explain(model, given)
        assert isinstance(found.relevance, tuple)
        assert [part.shape for part in found.relevance] == [x.shape]


def test_an_input_without_a_part_has_no_relevance():
    class Ignores(nn.Module):
        def forward(self, x, y):
            return x.sum(1)

    found = explain(Ignores(), (torch.ones(2, 3).double(), torch.ones(2, 4).double()), dtype=torch.float64)
    assert not found.relevance[1].any()
    assert found.relevance[1].shape == (2, 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.ones(1, 2, dtype=torch.int64), "input 0 holds torch.int64"),
        (torch.ones(1, 2, dtype=torch.bool), "input 0 holds torch.bool"),
        (torch.tensor([[1.0, float("nan")]]), "input 0 holds NaN or infinite values"),
        (torch.tensor([[1.0, float("inf")]]), "input 0 holds NaN or infinite values"),
        ((), "a tensor or a sequence of tensors"),
        ([[1.0, 2.0]], "a tensor or a sequence of tensors"),
        ((torch.ones(1, 2), torch.ones(2, 2)), r"one batch size, not \[1, 2\]"),
    ],
)
def test_inputs_that_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        explain(nn.Linear(2, 1), inputs)


# ------------------------------------------------------------------------------------------------------------ precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_refused(dtype):
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"float16 is not offered.*dtype=torch.float32"):
        explain(model, torch.ones(1, 2), dtype=dtype)
    with pytest.raises(ValueError, match="is not offered"):
        explain(model.to(dtype), torch.ones(1, 2, dtype=dtype))
    found = explain(model, torch.ones(1, 2, dtype=dtype), dtype=torch.float32)  # a network kept so, explained in full
    assert found.relevance.dtype == torch.float32


def test_autocast_is_refused():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        explain(nn.Linear(2, 1), torch.ones(1, 2))


def test_inputs_are_computed_in_the_networks_precision():
    model = small_net()
    assert explain(model, SMALL.float()).relevance.dtype == torch.float64
    assert explain(model, SMALL, dtype=torch.float32).relevance.dtype == torch.float32
    assert model[0].weight.dtype == torch.float64


def test_a_network_without_parameters_has_its_inputs_precision():
    found = explain(nn.Flatten(), SMALL, start=0)
    assert found.relevance.dtype == torch.float64


def test_single_precision_is_near():
    model = small_net()
    exact = explain(model, SMALL, "epsilon_plus").relevance
    near = explain(model, SMALL, "epsilon_plus", dtype=torch.float32).relevance
    torch.testing.assert_close(near.double(), exact, rtol=0, atol=1e-4 * exact.abs().max().item())


# ------------------------------------------------------------------------------------------ passes, shared and in parts
class Convolutions(TorchDispatchMode):
    """How often convolutions run forwards and backwards."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


def convolutions(call):
    with Convolutions() as counter:
        call()
    return counter.calls["convolution"], counter.calls["convolution_backward"]


def test_starts_and_composites_share_one_forward_pass():
    layers = [nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 5, 3, padding=1), nn.ReLU()]
    explainer = Explainer(nn.Sequential(*layers, nn.AvgPool3d(2), nn.Flatten(), nn.Linear(5, 3)).double(), EPSILON)
    pairs = [(EPSILON, 0), (EPSILON, 1), ("epsilon", None), (EPSILON, Inner("4"))]
    explainer(SMALL)
    explainer.several(SMALL, pairs)  # traced, weights prepared
    assert convolutions(lambda: explainer(SMALL)) == (2, 2)
    assert convolutions(lambda: explainer(SMALL, [0, 1, 2])) == (2, 2)  # starts go back side by side
    assert convolutions(lambda: explainer.several(SMALL, pairs)) == (2, 6)


def test_several_gives_what_singles_give():
    model = small_net()
    pairs = [(name, start) for name in sorted(COMPOSITES) for start in (0, None)]
    explainer = Explainer(model)
    for (name, start), found in zip(pairs, explainer.several(SMALL, pairs), strict=True):
        alone = explain(model, SMALL, name, start)
        torch.testing.assert_close(found.relevance, alone.relevance, rtol=1e-12, atol=1e-13)
        same_ledgers(found.ledger, alone.ledger)


@pytest.mark.parametrize("name", sorted(COMPOSITES))
def test_a_batch_gives_what_singles_give(name):
    model = small_net()
    batch = explain(model, SMALL, name)
    for sample in range(3):
        alone = explain(model, SMALL[sample : sample + 1], name)
        torch.testing.assert_close(batch.relevance[sample], alone.relevance[0], rtol=1e-11, atol=1e-13)
        same_ledgers(batch.ledger.filter(sample=sample), alone.ledger)


@pytest.mark.parametrize("first", [True, False], ids=["batch first", "sequence first"])
@pytest.mark.parametrize("name", ["epsilon", "attention", "z_plus"])
def test_networks_that_put_the_batch_elsewhere(name, first):
    """torch's attention has sequences first inside, whatever it is given."""
    torch.manual_seed(0)
    inner, last = nn.TransformerEncoderLayer(8, 2, 16, batch_first=first), nn.Linear(8, 1)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = inner, last

        def forward(self, x):
            return self.last(self.inner(x).mean(1)) if first else self.last(self.inner(x.transpose(0, 1)).mean(0))

    model, x = Tokens().double().eval(), torch.randn(2, 3, 8).double()
    batch = explain(model, x, name)
    for sample in range(2):
        alone = explain(model, x[sample : sample + 1], name)
        torch.testing.assert_close(batch.relevance[sample], alone.relevance[0], rtol=1e-10, atol=1e-12)
        assert batch.ledger.filter(sample=sample)["unexplained"].abs().max() < 1e-12


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0),
        lambda x: x.softmax(0),
        lambda x: x / x.sum(),
        lambda x: x.flip(0),
        lambda x: x @ (x.t() @ x),
        lambda x: x - x[:1],
    ],
    ids=["mean", "softmax", "sum", "flip", "matrix", "reference"],
)
def test_networks_whose_samples_know_each_other_are_refused(mix):
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 1)

        def forward(self, x):
            return self.last(mix(x))

    with pytest.raises(ValueError, match="samples"):
        explain(Mixes().double(), torch.rand(3, 4).double(), EPSILON)


@pytest.mark.parametrize("segments", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("name", ["epsilon", "gamma_box", "alpha_beta", "disability"])
def test_checkpoints_change_no_bit(name, segments):
    model = small_net()
    starts = [None, 1]
    whole = explain(model, SMALL, name, starts)
    parts = explain(model, SMALL, name, starts, checkpoint=segments)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.relevance, other.relevance)
        assert torch.equal(one.output, other.output)
        assert one.ledger.equals(other.ledger)


def test_checkpoints_keep_what_an_earlier_segment_reads_without_saving_it():
    """An activation passes relevance and saves nothing; a later layer reads the same tensor and saves it."""

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.a(x)
            z = torch.tanh(torch.tanh(x))
            return (self.b(x) + z).sum(1)

    model, x = Skip().double(), torch.rand(1, 3).double()
    assert torch.equal(explain(model, x, "z_plus", checkpoint=5).relevance, explain(model, x, "z_plus").relevance)


def test_checkpoints_of_several_composites():
    model = small_net()
    pairs = [("gamma_box", 0), ("epsilon", Inner("7")), ("alpha_beta", None)]
    whole = Explainer(model).several(SMALL, pairs)
    parts = Explainer(model, checkpoint=3).several(SMALL, pairs)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.relevance, other.relevance)


def test_one_explainer_serves_shapes_composites_and_masks():
    """What is kept for one call is right for the next."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(2, 3, 3, padding=1), nn.ReLU(), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 3, padding=1), nn.ReLU()]
    model = randomise(nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten()), last_scale=0.4)
    explainer = Explainer(model)
    small, large = scan((4, 5, 4), 2), scan((6, 4, 5), 2, seed=1)
    tensors = {"low": torch.zeros(2, 1, 1, 1), "high": torch.ones(2, 1, 1, 1)}
    wide = {"low": torch.full((2, 1, 1, 1), -1.0), "high": torch.full((2, 1, 1, 1), 2.0)}
    composites = [
        "gamma_box",
        "epsilon_plus_flat",
        [{"rule": "w_square"}],
        [{"place": "first", "rule": "box", "high": 3}],
    ]
    composites += [[{"place": "first", "rule": "box", **bounds}] for bounds in (tensors, wide)]
    for _ in range(2):
        for x in (small, large):
            half = torch.zeros(x.shape[2:], dtype=torch.bool)
            half[2:] = True
            for composite in composites:
                for mask in (None, half, ~half):
                    found = explainer.several(x, [(composite, 0)], mask)[0]
                    fresh = explain(model, x, composite, 0, mask)
                    torch.testing.assert_close(found.relevance, fresh.relevance, rtol=1e-12, atol=1e-14)


def test_the_same_bits_every_time():
    model = small_net()
    first, second = explain(model, SMALL), explain(model, SMALL)
    explainer = Explainer(model)
    explainer(1 - SMALL)
    third = explainer(SMALL)
    for other in (second, third):
        assert torch.equal(first.relevance, other.relevance)
        assert first.ledger.equals(other.ledger)


def test_explainers_in_threads_do_not_disturb_each_other():
    models = [small_net(seed) for seed in range(3)]
    expected = [explain(model, SMALL).relevance for model in models]
    found = {}
    threads = [
        threading.Thread(
            target=lambda i=i: found.__setitem__(i, [explain(models[i], SMALL).relevance for _ in range(4)])
        )
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, relevance in enumerate(expected):
        assert all(torch.equal(relevance, one) for one in found[i])


def test_memory_does_not_grow():
    explainer = Explainer(small_net())
    composites = ["epsilon_plus", "gamma_box", [{"place": "first", "rule": "box", "low": torch.zeros(2, 1, 1, 1)}]]
    mask = torch.ones(4, 5, 4, dtype=torch.bool)
    mask[0] = False
    counts = []
    for seed in range(3):
        explainer.several(scan((4, 5, 4), 2, seed), [(composite, 0) for composite in composites], mask)
        explainer.several(scan((4, 5, 4), 2, seed), [(composite, 0) for composite in composites])
        gc.collect()
        counts.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
    assert counts[1] == counts[2]


def test_explanations_can_be_sent_to_other_processes():
    found = explain(small_net(), SMALL)
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again.relevance, found.relevance)
    assert again.ledger.equals(found.ledger)


# ------------------------------------------------------------------------------------------------------- reused modules
class Reuses(nn.Module):
    def __init__(self, separate):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3) if separate else self.a
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.b(self.act(self.a(x)))).sum(1)


def test_a_module_called_twice_is_two_operations():
    torch.manual_seed(0)
    shared, apart = Reuses(False).double(), Reuses(True).double()
    with torch.no_grad():
        for layer in (shared.a, apart.a, apart.b):
            layer.weight.copy_(torch.tensor([[1.0, 2, -1], [0.5, 1, 1], [2, -1, 1]]))
            layer.bias.fill_(0.3)
    x = torch.rand(2, 3).double()
    for composite in ("epsilon", "gamma", "alpha_beta", "z_plus"):
        found, expected = explain(shared, x, composite), explain(apart, x, composite)
        assert torch.equal(found.relevance, expected.relevance)
        assert found.ledger["layer"].head(4).to_list() == ["a", "act", "a#2", "act#2"]


def test_one_layer_on_two_branches_collects_both():
    layer = nn.Linear(2, 2, bias=False).double()

    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, y):
            return (self.layer(x) + self.layer(y)).sum(1)

    x, y = torch.rand(2, 2).double(), torch.rand(2, 2).double()
    found = explain(Twins(), (x, y), [{"rule": "epsilon", "epsilon": 1e-12}])
    weight = layer.weight.sum(0).detach()
    torch.testing.assert_close(found.relevance[0], x * weight, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.relevance[1], y * weight, rtol=1e-8, atol=1e-9)


def test_relevance_at_both_halves_of_a_rectified_tensor():
    """One half goes through a rule that needs no relevance where the ReLU is off, the other does not."""

    class Halves(nn.Module):
        def __init__(self, relu):
            super().__init__()
            self.relu, self.a, self.b, self.gate = relu, nn.Linear(3, 6), nn.Linear(3, 2), nn.Linear(3, 3)

        def forward(self, x):
            u, v = self.relu(self.a(x)).chunk(2, 1)
            return self.b(u).sum(1) + (v * torch.sigmoid(self.gate(x))).sum(1)

    torch.manual_seed(0)
    rules = [{"kind": "sum", "rule": "flat"}, {"kind": "product", "rule": "all"}, *EPSILON]
    model = Halves(torch.relu).double()
    other = Halves(lambda x: F.leaky_relu(x, 0.0)).double()  # the same function, of which less is known
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3).double()
    torch.testing.assert_close(
        explain(model, x, rules).relevance, explain(other, x, rules).relevance, rtol=1e-9, atol=1e-9
    )
