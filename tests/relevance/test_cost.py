"""Cost in passes: known for the gradient, sums for integrated gradients, less together than alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from relevance_assets.models.gated_attention import GatedAttentionNet
from relevance_assets.relevance.cost import TOGETHER, passes
from relevance_assets.study import Method

SHAPE = (16, 16, 16)


def test_cost_in_passes() -> None:
    torch.manual_seed(0)
    model = GatedAttentionNet(SHAPE, 2, 1, blocks=(2,))
    methods = {
        "gradient": Method(composite="saliency"),
        "ig": Method(composite={"method": "integrated_gradients", "steps": 6}),
        "lrp": Method(composite="epsilon"),
    }
    found = passes(model, methods, np.random.default_rng(0).random((2, *SHAPE)), [0.5])
    # the first convolution and its norm are affine: integrated gradients go through them once, not at every step
    assert 1 <= found["gradient"] < 1.5
    assert 3 < found["ig"] <= 6.5
    assert found["lrp"] == pytest.approx(1, abs=0.05)  # epsilon is gradient x input, layer by layer
    assert max(found["ig"], found["lrp"]) < found[TOGETHER] < found["gradient"] + found["ig"] + found["lrp"]
    # what all methods share is ready before any is counted, and makes none of them cheaper
    images = np.random.default_rng(0).random((2, *SHAPE))
    assert all(passes(model, {name: method}, images, [0.5])[name] == found[name] for name, method in methods.items())


def test_a_mask_costs() -> None:
    """Rules do more where a mask leaves something out; a mask of everything is none."""
    model = GatedAttentionNet(SHAPE, 2, 1, blocks=(2,))
    methods = {"lrp": Method(composite="epsilon")}
    random = np.random.default_rng(0)
    images, box = random.random((2, *SHAPE)), np.zeros(SHAPE, bool)
    box[3:12, 4:14, 2:13] = True
    costs = [
        passes(model, methods, images, [0.5], brain)["lrp"]
        for brain in (None, np.ones(SHAPE, bool), random.random(SHAPE) < 0.5, box)
    ]
    assert costs[0] == costs[1] < min(costs[2:])


def test_the_model_is_left_as_it_was() -> None:
    model = GatedAttentionNet(SHAPE, 1, 0, blocks=(1,)).train()
    passes(model, {"gradient": Method(composite="saliency")}, np.zeros((1, *SHAPE)), [])
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    assert all(each.requires_grad for each in model.parameters())
