"""The networks people use, at small size, under every named composite: nothing of their relevance is unexplained.

Belongs here: MONAI's 3D networks and torchvision's VGG16, what the ledger says of them, and that they are left as
they were. Does not belong here: values of maps (`tests/oracles/`), speed.
"""

from __future__ import annotations

import warnings
from functools import cache

import polars as pl
import pytest
import torch
import torchvision
from monai.networks.nets import (
    AttentionUnet,
    BasicUNet,
    DenseNet121,
    EfficientNetBN,
    ResNet,
    SEResNet50,
    ViT,
)
from torch import nn

from relevance_assets.relevance import COMPOSITES, Explainer, check_model, explain

LOSSES = ["bias", "stabiliser", "dead", "clamped"]


def small_vgg16():
    """For 32 x 32, its dense layers narrowed from 4096 units to 32: the same operations, a hundredth of the memory."""
    model = torchvision.models.vgg16(weights=None, num_classes=3)
    model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 32), nn.Linear(32, 32)
    model.classifier[6] = nn.Linear(32, 3)
    return model


class FirstOutput(nn.Module):
    """MONAI's ViT gives its hidden states too."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[0]


NETWORKS = {
    "DenseNet121": (lambda: DenseNet121(3, 1, 3), (1, 1, 32, 32, 32)),
    # ResNet18 at a quarter of its width
    "ResNet18": (
        lambda: ResNet("basic", [2, 2, 2, 2], [16, 32, 64, 128], n_input_channels=1, num_classes=3),
        (1, 1, 32, 32, 32),
    ),
    "SEResNet50": (lambda: SEResNet50(spatial_dims=3, in_channels=1, num_classes=3), (1, 1, 32, 32, 32)),
    "EfficientNet-B0": (
        lambda: EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=3, in_channels=1, num_classes=3),
        (1, 1, 32, 32, 32),
    ),
    "BasicUNet": (lambda: BasicUNet(3, 1, 2, features=(4, 4, 8, 8, 16, 4)), (1, 1, 32, 32, 32)),
    "AttentionUnet": (lambda: AttentionUnet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2)), (1, 1, 16, 16, 16)),
    "ViT": (
        lambda: FirstOutput(
            ViT(
                *(1, (16, 16, 16), (8, 8, 8)),
                hidden_size=24,
                mlp_dim=48,
                num_layers=2,
                num_heads=3,
                classification=True,
                num_classes=3,
            )
        ),
        (1, 1, 16, 16, 16),
    ),
    "VGG16": (small_vgg16, (1, 3, 32, 32)),
}
SEGMENTERS = ("BasicUNet", "AttentionUnet")


@cache
def network(name, dtype=torch.float64):
    """Default weights; batch norms' statistics and scales moderately random. Images in [0, 1]."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    x = torch.rand(shape)
    return model.to(dtype).eval(), x.to(dtype)


def start_of(name, model, x):
    """The predicted class; of a segmentation the second class's logits in the middle of the volume."""
    if name not in SEGMENTERS:
        return None
    with torch.no_grad():
        output = model(x)
    start = torch.zeros_like(output)
    middle = [slice(n // 4, -n // 4) for n in x.shape[2:]]
    start[:, 1, *middle] = output[:, 1, *middle]
    return start


def everything(model):
    """All of a model that must be as it was: bits, identities, flags, modes, hooks."""
    parts = {}
    for name, module in model.named_modules():
        hooks = [len(getattr(module, key)) for key in vars(module) if key.endswith("_hooks")]
        plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and isinstance(v, int | float | str)}
        parts[name] = (id(module), module.training, hooks, list(module._modules), plain)
        for key, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None:
                bits = tensor.detach().numpy().tobytes()
                parts[f"{name}.{key}"] = (id(tensor), tensor.requires_grad, tensor.grad, tensor._version, bits)
    return parts


def account(explanation):
    """What is left of each operation's account, of their sum, and of start less total; all relative to the start."""
    ledger, start = explanation.ledger, float(explanation.start.double().sum())
    total = float(explanation.relevance.double().sum())
    lost = ledger.select(LOSSES).sum().sum_horizontal().item()
    rest = (ledger["unexplained"].abs().max(), ledger["unexplained"].sum(), start - total - lost)
    return [abs(value / start) for value in rest]


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_of_relevance_is_accounted_for(name, composite):
    model, x = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        explanation = explain(model, x, composite, start_of(name, model, x))
    assert torch.isfinite(explanation.relevance).all()
    assert explanation.relevance.shape == x.shape
    assert max(account(explanation)) < 1e-10


# Here relevance of both signs grows to 5 to 200 times the start on its way, and 1e-4 of the start is below float32.
CANCELLING = {
    ("SEResNet50", "disability"),
    *(("ViT", name) for name in ("alpha_beta", "disability", "epsilon_plus", "epsilon_plus_flat", "gamma_box")),
    *(("ViT", name) for name in ("epsilon_alpha1_beta0", "epsilon_alpha2_beta1")),
}


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_of_relevance_is_accounted_for_in_float32(name, composite):
    model, x = network(name, torch.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        explanation = explain(model, x, composite, start_of(name, model, x))
    said = [str(warning.message) for warning in caught if "unexplained" in str(warning.message)]
    rest = account(explanation)
    if (name, composite) not in CANCELLING:
        assert max(rest) < 1e-4
        assert not said
    elif max(rest) >= 1e-4:
        assert len(said) == 1
        assert any(layer in said[0] for layer in explanation.ledger["layer"])
        largest = explanation.ledger["relevance_in"].abs().max() / float(explanation.start.abs().sum())
        assert max(rest) < 1e-4 * largest


@pytest.mark.parametrize("name", NETWORKS)
def test_output_is_the_models_own(name):
    model, x = network(name)
    with torch.no_grad():
        expected = model(x)
    assert (explain(model, x, "epsilon_plus", start_of(name, model, x)).output - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_model_is_left_as_it_was(name, training):
    model, x = network(name)
    start = start_of(name, model, x)
    model.train(training)
    try:
        before = everything(model)
        explain(model, x, "epsilon_plus", start)
        assert everything(model) == before
    finally:
        model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_model_is_left_as_it_was_after_a_failure(name):
    """A layer without rule, a wrong shape, and a start that fits no output."""
    model, x = network(name)
    broken = nn.Sequential(model, Cumulative()).eval()
    before = everything(broken)
    with pytest.raises(ValueError, match="cumsum"):
        explain(broken, x, "epsilon_plus")
    with pytest.raises((RuntimeError, ValueError)):
        explain(model, torch.cat([x, x], 1), "epsilon_plus")
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        explain(model, x, "epsilon_plus", torch.ones(7, 7, dtype=x.dtype))
    assert everything(broken) == before


class Cumulative(nn.Module):
    """An operation without a rule."""

    def forward(self, x):
        return x.cumsum(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_check_model_lists_every_operation_with_its_rule(name):
    model, x = network(name)
    table = check_model(model, x)
    assert table.columns == ["place", "layer", "operation", "kind", "rule", "note"]
    assert table["kind"].null_count() == 0
    ruleless = table.filter(pl.col("rule").is_null())
    assert set(ruleless["note"]) <= {"no relevance comes here"}  # gates: the product's other operand takes all
    assert table.height > 2 * ruleless.height
    weighted = {
        key.removeprefix("model.")
        for key, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    }
    used = used_modules(model, x, nn.modules.conv._ConvNd | nn.Linear)
    assert len(used) > 3
    assert {layer.removeprefix("model.") for layer in table["layer"]} >= used & weighted


def used_modules(model, x, types):
    """Names of the modules that a forward pass calls."""
    used, hooks = set(), []
    for name, module in model.named_modules():
        if isinstance(module, types):
            hooks.append(module.register_forward_hook(lambda *_, name=name: used.add(name.removeprefix("model."))))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return used


@pytest.mark.parametrize("name", ["DenseNet121", "ResNet18", "AttentionUnet", "ViT"])
def test_an_explainer_says_what_explain_says(name):
    model, x = network(name)
    start = start_of(name, model, x)
    explainer = Explainer(model, "epsilon_plus")
    first, second = explainer(x, start), explainer(x, start)
    assert torch.equal(first.relevance, second.relevance)
    assert torch.equal(first.relevance, explain(model, x, "epsilon_plus", start).relevance)
    several = explainer.several(x, [("epsilon_plus", start), ("gamma", start)])
    assert torch.equal(several[0].relevance, first.relevance)
    assert torch.equal(several[1].relevance, explain(model, x, "gamma", start).relevance)


def test_a_residual_network_without_shifts_keeps_all_relevance():
    """No biases and shifts, epsilon small: what comes out is what was put in, to the stabiliser."""
    torch.manual_seed(0)
    model = ResNet("basic", [1, 1, 1, 1], [4, 6, 8, 10], n_input_channels=1, num_classes=2).double().eval()
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    x = torch.rand(1, 1, 24, 24, 24, dtype=torch.float64)
    explanation = explain(model, x, [{"kind": kind, "rule": "epsilon", "epsilon": 1e-12} for kind in KINDS])
    start = explanation.start.sum()
    assert abs(explanation.relevance.sum() - start) < 1e-4 * abs(start)


KINDS = ("convolution", "linear", "average", "add")
