"""VGG16 on slices against torchvision's, its weights from a file, and how relevance sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import VGG, make_layers

from relevance_assets.models.registry import build
from relevance_assets.models.vgg16 import VGG16
from relevance_assets.relevance import check_model, explain

NARROW = {"width": 1 / 32}  # 2, 4, 8, 16, 16 channels and 128 units
SHAPE = (32, 40, 1)


def narrow(**options: Any) -> nn.Module:
    return build("vgg16", shape=SHAPE, contrasts=1, covariates=0, options=NARROW | options, classes=3)


def torchvisions() -> VGG:
    """torchvision's class with the same few channels; it draws its weights in its own code."""
    plan = [2, 2, "M", 4, 4, "M", 8, 8, 8, "M", 16, 16, 16, "M", 16, 16, 16, "M"]
    network = VGG(make_layers(plan), num_classes=3, init_weights=False)  # type: ignore[arg-type]
    network.classifier[0], network.classifier[3] = nn.Linear(16 * 49, 128), nn.Linear(128, 128)
    network.classifier[6] = nn.Linear(128, 3)
    return network


def test_at_full_width_it_is_torchvisions() -> None:
    with torch.device("meta"):
        own = VGG16((256, 256, 1), classes=3)
        theirs = torchvision.models.vgg16(weights=None, num_classes=3)
    assert [(name, value.shape) for name, value in own.state_dict().items()] == [
        (name, value.shape) for name, value in theirs.state_dict().items()
    ]
    assert sum(value.numel() for value in own.parameters()) == 134_272_835  # 138 357 544 with 1000 classes


def test_outputs_are_torchvisions_for_three_equal_channels() -> None:
    theirs, own = torchvisions().eval(), narrow().eval()
    own.load_state_dict(theirs.state_dict())
    images = torch.rand(4, 1, *SHAPE)
    with torch.no_grad():
        found, expected = own(images, torch.zeros(4, 0)), theirs(images[..., 0].repeat(1, 3, 1, 1))
    assert found.shape == (4, 3)
    torch.testing.assert_close(found, expected)
    assert expected.std() > 0


def test_weights_are_drawn_as_torchvision_draws_them() -> None:
    torch.manual_seed(0)
    own = build("vgg16", shape=SHAPE, contrasts=1, covariates=0, options={"width": 1 / 4}, classes=3)
    for name, value in own.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        else:
            fan_out = value.shape[0] * 9
            expected = (2 / fan_out) ** 0.5 if value.ndim == 4 else 0.01 * 2  # a quarter of the inputs
            assert value.std().item() == pytest.approx(expected, rel=0.1 if value.numel() > 1000 else 0.3)


def test_relevance_of_the_image_is_the_sum_over_the_channels() -> None:
    """Against the same network given the three channels as its input, by whose own relevance the repetition sums."""
    torch.manual_seed(1)
    theirs, own = torchvisions().double().eval(), narrow().double().eval()
    own.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 1, *SHAPE, dtype=torch.float64)
    given = (images, torch.zeros(2, 0, dtype=torch.float64))
    report = check_model(own, given)
    assert report["rule"].null_count() == 0
    assert report["note"].unique().to_list() == [""]
    assert report.filter(report["layer"] == ":expand")["kind"].to_list() == ["move"]

    found = explain(own, given, "epsilon_plus", start=1)
    channels = explain(theirs, images[..., 0].repeat(1, 3, 1, 1), "epsilon_plus", start=1)
    relevance = found.relevance[0]
    assert relevance.shape == images.shape
    scale = channels.relevance.abs().max()
    assert scale > 0
    torch.testing.assert_close(relevance[:, 0, ..., 0] / scale, channels.relevance.sum(dim=1) / scale)
    assert float(found.ledger["unexplained"].abs().max()) < 1e-12 * float(found.start.abs().max())
    assert len(found.ledger.filter(found.ledger["layer"] == "features.0")) == 2


def test_weights_come_from_a_file_and_the_last_layer_is_drawn_for_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "vgg16.pth"
    theirs = torchvisions()
    theirs.classifier[6] = nn.Linear(128, 1000)
    torch.save(theirs.state_dict(), path)
    torch.manual_seed(0)
    found = narrow(weights=str(path)).state_dict()
    torch.manual_seed(0)
    drawn = narrow().state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(found[name], drawn[name] if name.startswith("classifier.6.") else value), name

    same = torchvisions()
    torch.save(same.state_dict(), path)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in narrow(weights=path).state_dict().items())


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vgg16.pth"
    with pytest.raises(ValueError, match=r"vgg16\.pth: no such file"):
        narrow(weights=path)
    torch.save(torchvisions().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"vgg16\.pth: damaged"):
        narrow(weights=path)
    torch.save(torchvisions(), path)  # a pickled network would run code
    with pytest.raises(ValueError, match=r"vgg16\.pth: damaged, or more than a state dict"):
        narrow(weights=path)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(ValueError, match=r"vgg16\.pth: no state dict"):
        narrow(weights=path)
    torch.save(build("mrinet", shape=(8, 8, 8), contrasts=1, covariates=0, options={}).state_dict(), path)
    with pytest.raises(ValueError, match=r"vgg16\.pth: not the weights of a VGG16 \(classifier.0.bias is not in it"):
        narrow(weights=path)
    torch.save(narrow(width=1 / 64).state_dict(), path)
    with pytest.raises(ValueError, match=r"vgg16\.pth: features.0.weight has shape \(1, 3, 3, 3\), this network \(2,"):
        narrow(weights=path)


def test_what_has_no_meaning_is_refused() -> None:
    given: dict[str, Any] = {"shape": SHAPE, "contrasts": 1, "covariates": 0, "options": NARROW, "classes": 3}
    for change, message in [
        ({"shape": (32, 32, 32)}, "needs slices .* not 32x32x32"),
        ({"shape": (31, 64, 1)}, "at least 32x32 pixels, not 31x64x1"),
        ({"contrasts": 2}, "one contrast and no covariates, not 2 and 0"),
        ({"covariates": 1}, "one contrast and no covariates"),
        ({"classes": 1}, "at least 2 classes"),
        ({"options": {"dropout": 1.0}}, "dropout"),
        ({"options": {"width": 0}}, "width"),
        ({"options": {"classes": 4}}, "unknown option 'classes'; it has dropout, weights, width"),
        ({"options": {"embedding": 4}}, "unknown option 'embedding'"),
        ({"classes": 0}, "vgg16: is for a target of classes, not of one number; take gated_attention or mrinet"),
    ]:
        with pytest.raises(ValueError, match=message):
            build("vgg16", **given | change)
    with pytest.raises(ValueError, match="mrinet: is for a target of one number, not of classes; take vgg16"):
        build("mrinet", shape=(8, 8, 8), contrasts=1, covariates=0, options={}, classes=3)
    with pytest.raises(ValueError, match=r"images must be \(batch, 1, x, y, 1\), not \(1, 3, 32, 40, 1\)"):
        narrow()(torch.rand(1, 3, *SHAPE), torch.zeros(1, 0))
