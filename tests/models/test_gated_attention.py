"""The gated-attention network: sizes, shapes, and what its attention means."""

import pytest
import torch

from relevance_assets.models.gated_attention import GatedAttentionNet
from relevance_assets.models.registry import build


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("head", "count"), [("flatten", 464_463), ("gap", 54_831)])
def test_parameters_as_published_architecture_implies(head, count):
    model = build("gated_attention", shape=(96, 96, 112), contrasts=3, covariates=1, options={"head": head})
    assert parameters(model) == count


@pytest.mark.parametrize("head", ["flatten", "gap"])
@pytest.mark.parametrize(("contrasts", "covariates"), [(1, 0), (2, 0), (3, 2)])
def test_forward_and_attention(head, contrasts, covariates):
    torch.manual_seed(0)
    model = GatedAttentionNet((16, 17, 15), contrasts, covariates, head=head).eval()
    images, numbers = torch.rand(2, contrasts, 16, 17, 15), torch.rand(2, covariates)
    output, attention = model(images, numbers), model.attention(images)
    assert output.shape == (2,)
    assert attention.shape == (2, contrasts)
    torch.testing.assert_close(attention.sum(1), torch.ones(2))
    # the formula of the paper, from the model's parts
    m = model.embed(images)
    e = (torch.tanh(model.signal(m)) * torch.sigmoid(model.gate(m))) @ model.score.weight[0] + model.score.bias
    a = torch.softmax(e, 1)
    n = torch.einsum("bc,bck->bk", a, m)
    torch.testing.assert_close(output, model.classifier(torch.cat([n, numbers], 1))[:, 0])
    torch.testing.assert_close(attention, a)


def test_channels_last_gives_the_same():
    torch.manual_seed(0)
    model = GatedAttentionNet((16, 16, 16), 2).double().eval()
    images, numbers = torch.rand(2, 2, 16, 16, 16).double(), torch.zeros(2, 0).double()
    expected = model(images, numbers)
    model = model.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last_3d), numbers), expected)


def test_too_small_a_grid_is_named():
    with pytest.raises(ValueError, match=r"\(14, 16, 16\) is too small.*at least 15"):
        GatedAttentionNet((14, 16, 16), 3)
    GatedAttentionNet((15, 15, 15), 3)


def test_wrong_images_are_named():
    model = GatedAttentionNet((16, 16, 16), 2)
    with pytest.raises(ValueError, match="built for shape"):
        model(torch.rand(1, 2, 16, 16, 18), torch.zeros(1, 0))
    with pytest.raises(ValueError, match=r"must be \(batch, 2"):
        model(torch.rand(1, 3, 16, 16, 16), torch.zeros(1, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mean"}, "head must be"),
        ({"growth": 0}, "at least 1"),
        ({"compression": 0.0}, "compression"),
        ({"size": 3}, "unknown option 'size'; it has blocks"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        build("gated_attention", shape=(16, 16, 16), contrasts=1, covariates=0, options=options)


def test_equal_seeds_equal_weights():
    first, second = (torch.manual_seed(3) and GatedAttentionNet((16, 16, 16), 1).state_dict() for _ in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
