"""Whole scans through a network: slice by slice, flipped, in windows; on grids of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from relevance_assets.segmentation import weights
from relevance_assets.segmentation.networks import AttentionUNet
from relevance_assets.segmentation.predict import Segmenter
from relevance_assets.training.data import TrainingError

NAMES = ("background", "ventricle", "wmh")
FLAT = weights.Description(NAMES, {"widths": [2, 4]}, "slice", (8, 8, 1), 0)
DEEP = weights.Description(NAMES, {"widths": [2, 4], "dims": 3}, "volume", (8, 8, 4), 0)
IMAGE = np.random.default_rng(0).random((13, 11, 6))


class PerVoxel(nn.Module):
    """Logits that depend on the voxel alone: windows and flips must then change nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([0 * images, images - 0.3, 2 * images - 1.5], dim=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


@pytest.mark.parametrize("description", [FLAT, DEEP], ids=["2D", "3D"])
@pytest.mark.parametrize("shape", [(13, 11, 6), (5, 9, 1)])
def test_a_network_of_single_voxels_gives_its_formula(description: weights.Description, shape: tuple) -> None:
    image = IMAGE[: shape[0], : shape[1], : shape[2]].astype(np.float32).astype(np.float64)
    axes = (0, 1) if description.dims == 2 else None
    scaled = (image - image.mean(axis=axes, keepdims=True)) / (image.std(axis=axes, keepdims=True) + 1e-7)
    expected = softmax(np.stack([0 * scaled, scaled - 0.3, 2 * scaled - 1.5]))
    found = Segmenter((description, PerVoxel()))(image)
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-5)
    assert found.labels.dtype == np.uint8
    assert (found.labels == expected.argmax(axis=0)).mean() > 0.999


def test_slices_do_not_depend_on_each_other_or_on_the_batch() -> None:
    torch.manual_seed(0)
    model = (FLAT, AttentionUNet(1, 3, widths=[2, 4]))
    whole = Segmenter(model, batch_size=4)(IMAGE)
    single = Segmenter(model)(IMAGE[:, :, 3:4])
    np.testing.assert_allclose(whole.probabilities[..., 3:4], single.probabilities, atol=1e-6)


@pytest.mark.parametrize("description", [FLAT, DEEP], ids=["2D", "3D"])
def test_flips_make_the_prediction_of_a_mirror_image_its_mirror_image(description: weights.Description) -> None:
    torch.manual_seed(0)
    model = (description, AttentionUNet(1, 3, **description.network))
    one, other = (Segmenter(model)(image).probabilities for image in (IMAGE, IMAGE[::-1]))
    np.testing.assert_allclose(one, other[:, ::-1], atol=1e-5)
    alone = Segmenter(model, flips=False)
    first, second = alone(IMAGE).probabilities, alone(IMAGE[::-1]).probabilities[:, ::-1]
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_allclose(one, (first + second) / 2, atol=1e-5)


def test_a_saved_network_predicts_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = AttentionUNet(1, 3, widths=[2, 4])
    weights.save(tmp_path / "segmentation.pt", FLAT, network.state_dict())
    loaded = Segmenter(tmp_path / "segmentation.pt")
    assert loaded.description == weights.load(tmp_path / "segmentation.pt")[0]
    np.testing.assert_array_equal(loaded(IMAGE).probabilities, Segmenter((FLAT, network))(IMAGE).probabilities)


def test_probabilities_sum_to_one() -> None:
    torch.manual_seed(0)
    found = Segmenter((DEEP, AttentionUNet(1, 3, **DEEP.network)), overlap=0.25)(IMAGE)
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize("image", [np.zeros((3, 3)), np.full((3, 3, 3), np.nan)])
def test_images_that_are_none_are_refused(image: np.ndarray) -> None:
    with pytest.raises(TrainingError, match="sub-1: a finite image with three axes is needed"):
        Segmenter((FLAT, PerVoxel()))(image, name="sub-1")
