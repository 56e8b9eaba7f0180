"""Quantile masks: the definition's toy values, ties, and masks with little in them."""

import itertools

import numpy as np
import pytest

from relevance_assets.evidence.masks import mask_measures, quantile_mask

ALL = np.ones(10, bool)


def test_toy_values_of_the_definition():
    values = np.arange(1.0, 11.0)
    mask, threshold = quantile_mask(values, ALL, 40)
    assert threshold == pytest.approx(6.4, abs=1e-14)
    assert values[mask].tolist() == [7, 8, 9, 10]


@pytest.mark.parametrize("size", [2, 7, 11, 101])
@pytest.mark.parametrize("percent", range(10, 101, 10))
def test_threshold_is_the_linear_quantile(size, percent):
    values = np.random.default_rng(size).normal(size=size * 2)
    mask, threshold = quantile_mask(values, np.ones(size * 2, bool), percent)
    positive = values[values > 0]
    assert threshold == pytest.approx(np.quantile(positive, 1 - percent / 100), rel=1e-12)
    np.testing.assert_array_equal(mask, (values > 0) & (values >= threshold))


def test_a_whole_rank_keeps_its_voxel():
    """11 positives, N = 70: rank 3 exactly; 1 - 70/100 is a little above 0.3."""
    values = np.arange(1.0, 12.0)
    for percent in range(10, 101, 10):
        mask, threshold = quantile_mask(values, np.ones(11, bool), percent)
        assert threshold == 11 - percent / 10
        assert mask.sum() == 1 + percent // 10


def test_only_positive_brain_voxels_count():
    values, brain = np.array([9.0, -1.0, 0.0, 1.0, 2.0]), np.array([False, True, True, True, True])
    mask, threshold = quantile_mask(values, brain, 100)
    assert threshold == 1
    assert mask.tolist() == [False, False, False, True, True]


def test_single_precision_maps_are_compared_in_double():
    values = np.float32([0.1, 0.2, 0.3, 0.4])
    mask, threshold = quantile_mask(values, np.ones(4, bool), 50)
    np.testing.assert_array_equal(mask, values.astype(float) >= threshold)


def test_ties_belong_together():
    mask, threshold = quantile_mask(np.array([1.0, 5.0, 5.0, 5.0]), np.ones(4, bool), 10)
    assert threshold == 5
    assert mask.sum() == 3


def test_one_voxel_and_none():
    mask, threshold = quantile_mask(np.array([0.0, 3.0]), np.ones(2, bool), 10)
    assert (mask.tolist(), threshold) == ([False, True], 3.0)
    mask, threshold = quantile_mask(np.array([-1.0, 0.0]), np.ones(2, bool), 10)
    assert (mask.any(), threshold) == (False, None)
    assert mask_measures(np.ones((2, 2)), mask) == [(None, None)] * 2


def test_masks_are_nested():
    values = np.random.default_rng(0).normal(size=(6, 7, 8))
    brain = values.copy() < 2
    masks = [quantile_mask(values, brain, percent)[0] for percent in range(10, 101, 10)]
    assert all((small <= large).all() for small, large in itertools.pairwise(masks))


def test_measures():
    images = np.array([[1.0, 2.0, 6.0, 9.0], [0.0, 0.0, 3.0, 9.0]])
    assert mask_measures(images, np.array([True, True, True, False])) == [(3.0, 2.0), (1.0, 0.0)]


def test_errors():
    values = np.ones(10)
    with pytest.raises(ValueError, match="NaN or infinite values inside the brain"):
        quantile_mask(np.where(np.arange(10) == 3, np.nan, 1.0), ALL, 40)
    quantile_mask(np.where(np.arange(10) == 3, np.nan, 1.0), np.arange(10) != 3, 40)
    for percent in (0, -1, 101):
        with pytest.raises(ValueError, match="top_percent"):
            quantile_mask(values, ALL, percent)
    with pytest.raises(ValueError, match="differ in shape"):
        quantile_mask(values, ALL[:9], 40)
    with pytest.raises(ValueError, match="do not fit"):
        mask_measures(np.ones((1, 9)), ALL)
    with pytest.raises(ValueError, match="inside the mask"):
        mask_measures(np.full((1, 10), np.inf), ALL)
