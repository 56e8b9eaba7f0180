"""Whole networks against explicit matrices: outputs and relevance maps in float64."""

import dense_lrp
import numpy as np
import pytest
import torch

from relevance_assets.models.gated_attention import GatedAttentionNet
from relevance_assets.models.mrinet import MRINet
from relevance_assets.relevance.maps import ScanExplainer
from relevance_assets.study import Method


def randomise(model, seed):
    """Batch norms as after training, and worse: negative scales, one scale of 0; biases everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, mean, sd):
        tensor.copy_(mean + sd * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                normal(module.running_mean, 0, 0.3)
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
                normal(module.weight, 0.4, 0.7)
                normal(module.bias, 0, 0.3)
                module.weight[-1] = 0
            elif getattr(module, "bias", None) is not None:
                normal(module.bias, 0, 0.1)
    return model.double().eval()


def arrays(model):
    return {key: value.numpy() for key, value in model.state_dict().items()}


def close(ours, theirs, tolerance=1e-10):
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("head", ["flatten", "gap"])
@pytest.mark.parametrize("start", ["attention", "output"])
@pytest.mark.parametrize("product", ["proposed", "all"])
def test_gated_attention(head, start, product):
    blocks, images = (2, 1), np.random.default_rng(1).random((3, 6, 7, 5))
    images[:, :1] = 0  # background; one plane, as a wider one makes ties in the pool that rounding decides
    covariates = np.array([0.46])
    torch.manual_seed(1)
    small = {"init_features": 4, "growth": 2, "bottleneck": 2, "embedding": 6, "gate": 4}
    model = randomise(GatedAttentionNet((6, 7, 5), 3, 1, head=head, blocks=blocks, **small), 2)
    maps, r_covariates, output, attention = dense_lrp.gated_attention(
        arrays(model), images, covariates, blocks, head, start, product
    )
    ours = ScanExplainer(model, Method(start=start, composite="disability", product=product))(images, covariates)
    np.testing.assert_allclose(ours.start, attention if start == "attention" else [output], rtol=1e-12)
    close(ours.maps, maps)
    if start == "output":
        close(ours.covariates, r_covariates)


@pytest.mark.parametrize("covariates", [0, 2])
def test_mrinet(covariates):
    torch.manual_seed(0)
    shape, channels = (7, 6, 5), (3, 4, 3)
    model = MRINet(shape, 2, covariates, channels=channels, dense=5, target_mean=3.0)
    model = randomise(model, 4)
    images, numbers = np.random.default_rng(2).random((2, *shape)), np.linspace(0.2, 0.7, covariates)
    maps, r_covariates, output = dense_lrp.mrinet_preset_a(arrays(model), images, numbers, len(channels))
    ours = ScanExplainer(model, Method(composite="preset_a"))(images, numbers)
    assert ours.start[0] == pytest.approx(output, rel=1e-12)
    close(ours.maps, maps)
    np.testing.assert_allclose(ours.covariates, r_covariates, rtol=1e-10)
