"""MRInet: sizes, padding as TensorFlow's SAME, where the output begins."""

import numpy as np
import pytest
import torch

from relevance_assets.models.mrinet import MRINet, SamePool3d
from relevance_assets.models.registry import build


@pytest.mark.parametrize(
    ("shape", "count"),
    [((198,) * 3, 781_265), ((98,) * 3, 209_873), ((156, 166, 204), 508_881), ((91, 109, 91), 152_529)],
)
def test_parameters_as_published(shape, count):
    model = build("mrinet", shape=shape, contrasts=1, covariates=0, options={}, target_mean=58.0)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.output.bias.item() == 58.0
    assert model.attention is None


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 13])
def test_pool_is_same_padded(size):
    """TensorFlow: out = ceil(n / 2), total padding max((out - 1) * 2 + 3 - n, 0), the smaller half first."""
    values = -np.random.default_rng(size).random(size)  # negative: a padding of zeros would win
    out = -(-size // 2)
    before = max((out - 1) * 2 + 3 - size, 0) // 2
    starts = [2 * i - before for i in range(out)]
    expected = [values[max(s, 0) : s + 3].max() for s in starts]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[axis + 2] = size
        pooled = SamePool3d()(torch.from_numpy(values).reshape(shape))
        np.testing.assert_array_equal(pooled.flatten().numpy(), expected)


def test_output_begins_near_the_mean_target():
    torch.manual_seed(0)
    model = build("mrinet", shape=(20, 21, 22), contrasts=1, covariates=0, options={}, target_mean=50.0).eval()
    assert abs(model(torch.rand(4, 1, 20, 21, 22), torch.zeros(4, 0)) - 50).max() < 5


def test_covariates_join_before_the_last_layer():
    model = MRINet((8, 8, 8), 2, 3).eval()
    images = torch.rand(1, 2, 8, 8, 8)
    step = model(images, torch.ones(1, 3)) - model(images, torch.zeros(1, 3))
    torch.testing.assert_close(step, model.output.weight[:, -3:].sum(1))


def test_errors():
    with pytest.raises(ValueError, match="built for images"):
        MRINet((8, 8, 8))(torch.rand(1, 1, 8, 8, 9), torch.zeros(1, 0))
    with pytest.raises(ValueError, match="dropout"):
        MRINet((8, 8, 8), dropout=1.0)
    with pytest.raises(ValueError, match="at least 1"):
        MRINet((8, 8, 0))
    with pytest.raises(ValueError, match="model 'vgg' is not known; choose one of gated_attention"):
        build("vgg", shape=(8, 8, 8), contrasts=1, covariates=0, options={})
