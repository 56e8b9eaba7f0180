"""Combined map and what is said of a map."""

import numpy as np
import pytest

from relevance_assets.relevance.engine import Explanation
from relevance_assets.relevance.maps import account, combined_map, mean_explanation, summary

BRAIN = np.array([True, True, True, False]).reshape(4, 1, 1)


def explanation(contrasts, start, covariates=()):
    return Explanation(
        maps=np.zeros((contrasts, 2, 2, 2)),
        start=np.array(start),
        covariates=np.array(covariates),
        output=0.0,
        attention=None,
        lost=np.zeros(len(start)),
    )


def test_combined_map_is_signed_and_empty_in_the_background():
    maps, images = np.array([[2.0, -1, 4], [1, 1, 3]]), np.array([[0.5, 1, 0], [1, 0.5, 0]], np.float32)
    result = combined_map(maps[..., None, None], images[..., None, None])
    assert result.ravel().tolist() == [2, -0.5, 0]
    with pytest.raises(ValueError, match="must both be"):
        combined_map(maps, images)


def test_summary():
    assert summary(np.array([3.0, -2, 0, 1]).reshape(4, 1, 1), BRAIN) == {
        "total": 2.0,
        "share_outside_brain": 0.25,
        "share_positive": 4 / 6,
    }
    empty = summary(np.zeros((4, 1, 1)), BRAIN)
    assert empty == {k: 0.0 if k == "total" else None for k in empty}
    with pytest.raises(ValueError, match="NaN"):
        summary(np.full((4, 1, 1), np.nan), BRAIN)
    with pytest.raises(ValueError, match="shape"):
        summary(np.zeros((3, 1, 1)), BRAIN)


def test_account_of_each_path_and_of_the_whole():
    given = explanation(3, [0.2, 0.3, 0.5], [0.25])
    for index, start in enumerate((0.2, 0.3, 0.5)):
        row = account(given, index)
        assert row["start"] == start
        assert row["difference"] == pytest.approx(start - given.maps[index].sum())
        assert row["unexplained"] == pytest.approx(row["difference"] - given.lost[index])
    whole = account(given)
    assert whole["start"] == pytest.approx(1.0)
    assert whole["total"] == pytest.approx(given.maps.sum() + 0.25)


def test_mean_explanation_keeps_the_account():
    one, two = explanation(1, [2.0], [0.5]), explanation(1, [4.0], [1.5])
    mean = account(mean_explanation([one, two]))
    for key, value in mean.items():
        assert value == pytest.approx((account(one)[key] + account(two)[key]) / 2)
