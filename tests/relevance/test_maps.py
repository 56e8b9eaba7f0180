"""Combined map and what is said of a map."""

import numpy as np
import polars as pl
import pytest

from relevance_assets.relevance.maps import ScanMaps, account, combined_map, mean_maps, summary

BRAIN = np.array([True, True, True, False]).reshape(4, 1, 1)


def explanation(contrasts, start, covariates=(), lost=0.0):
    row = {"layer": "a", "kind": "linear", "rule": "zero", "relevance_in": start[0], "relevance_out": start[0] - lost}
    ledger = row | {"bias": lost, "stabiliser": 0.0, "dead": 0.0, "clamped": 0.0, "unexplained": 0.0}
    return ScanMaps(
        maps=np.zeros((contrasts, 2, 2, 2)),
        start=np.array(start),
        covariates=np.array(covariates),
        lost=np.full(len(start), lost),
        ledger=pl.DataFrame([ledger]),
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


def test_mean_maps_keeps_the_account():
    one, two = explanation(1, [2.0], [0.5], lost=0.25), explanation(1, [4.0], [1.5], lost=0.75)
    mean = account(mean_maps([one, two]))
    assert mean_maps([one, two]).ledger.row(0)[3:6] == (3.0, 2.5, 0.5)
    for key, value in mean.items():
        assert value == pytest.approx((account(one)[key] + account(two)[key]) / 2)
