"""Weights stand for resamples: the same as copying the rows."""

import numpy as np
import pytest
from scipy import stats

from relevance_assets.statistics.resampling import draw_weights, percentile_interval, weighted_midranks


def test_weighted_midranks_are_the_ranks_of_the_copied_rows() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 6, 15).astype(float)
    weights = draw_weights(None, 15, 50, random)
    ranks = weighted_midranks(values, weights)
    for w, r in zip(weights.astype(int), ranks, strict=True):
        copied = np.repeat(values, w)
        assert np.array_equal(np.repeat(r, w), stats.rankdata(copied))


def test_people_are_drawn_with_all_their_rows() -> None:
    people = ["a", "b", "a", "c", "b", "a"]
    weights = draw_weights(people, 6, 4000, np.random.default_rng(1))
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert np.array_equal(weights[:, 0], weights[:, 5])
    assert np.array_equal(weights[:, 1], weights[:, 4])
    assert np.all(weights[:, [0, 1, 3]].sum(axis=1) == 3), "as many people as there are"
    # one of three people, three draws: mean 1, variance 3 * 1/3 * 2/3
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.05)
    assert weights[:, 0].var() == pytest.approx(2 / 3, abs=0.05)


def test_wrong_number_of_people_is_refused() -> None:
    with pytest.raises(ValueError, match="2 groups for 3 rows"):
        draw_weights(["a", "b"], 3, 1, np.random.default_rng(0))


def test_percentile_interval_leaves_out_what_is_undefined() -> None:
    draws = np.append(np.arange(101.0), [np.nan, np.inf])
    low, high, used = percentile_interval(draws, 0.9)
    assert (low, high, used) == (pytest.approx(5), pytest.approx(95), 101)
    assert percentile_interval(np.array([np.nan]), 0.9) == (None, None, 0)
