"""Scores of maps against a mask: by plain loops, by hand, chance by drawing, ceilings by trying, and the edges."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.evidence.localisation import localise, share_of_positive
from relevance_assets.evidence.mask_scores import (
    MAP_SCORES,
    MASK_SCORES,
    expected_iou,
    mask_overlap,
    published_mask,
    score_maps,
)

QUANTILES = (0.8, 0.85, 0.9, 0.95, 0.99)


def square(shape=(24, 20), at=(5, 6), side=5):
    truth = np.zeros(shape, bool)
    truth[at[0] : at[0] + side, at[1] : at[1] + side] = True
    return truth


def found(frame, score, column="value", quantile=None, number=0):
    rows = frame.filter(pl.col("score") == score, pl.col("map") == number)
    rows = rows.filter(pl.col("quantile").eq_missing(pl.lit(quantile, pl.Float64)))
    return rows[column].item()


def published(relevance, truth, quantile):
    """As the notebook does it, pixel by pixel."""
    clipped = [max(float(value), 0.0) for value in relevance.ravel()]
    threshold = np.quantile(np.array(clipped), quantile)
    tp = fp = fn = tn = 0
    for value, true in zip(clipped, truth.ravel(), strict=True):
        said = value > threshold
        tp, fp, fn, tn = (
            tp + (said and true),
            fp + (said and not true),
            fn + (not said and true),
            tn + (not said and not true),
        )
    precision = tp / (tp + fp) if tp + fp > 0 else 0
    recall = tp / (tp + fn) if tp + fn > 0 else 0
    return {
        "iou": tp / (tp + fp + fn) if tp + fp + fn > 0 else 0,
        "dice": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn > 0 else 0,
        "precision": precision,
        "recall": recall,
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "f1": 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0,
    }


def maps_of_all_kinds():
    random = np.random.default_rng(0)
    shape = square().shape
    smooth = random.normal(size=shape)
    return {
        "normal": smooth,
        "float32": smooth.astype(np.float32),
        "few positive": smooth - 2.2,
        "negative": -np.abs(smooth) - 0.1,
        "zero": np.zeros(shape),
        "constant": np.full(shape, 0.3),
        "tied": random.integers(-2, 3, shape).astype(float),
        "mostly zero": np.where(random.random(shape) < 0.02, 1.0, 0.0),
        "found": np.where(square(), 1.0, -1.0) + 0.01 * smooth,
    }


@pytest.mark.parametrize("kind", maps_of_all_kinds())
def test_masks_scores_as_published_pixel_by_pixel(kind):
    relevance = maps_of_all_kinds()[kind]
    frame = score_maps([relevance], square(), quantiles=QUANTILES)
    for quantile in QUANTILES:
        for score, value in published(relevance, square(), quantile).items():
            assert found(frame, score, quantile=quantile) == pytest.approx(value, abs=1e-12), (score, quantile)
        mask = published_mask(relevance, quantile)
        assert mask.sum() == found(frame, "iou", "mask_pixels", quantile)
        clipped = np.clip(relevance.astype(np.float64), 0, None)
        np.testing.assert_array_equal(mask, clipped > np.quantile(clipped, quantile))


@pytest.mark.parametrize("auc", [True, False])
@pytest.mark.parametrize("kind", maps_of_all_kinds())
def test_scores_of_the_map_by_plain_loops(kind, auc):
    relevance, truth = maps_of_all_kinds()[kind], square()
    frame = score_maps([relevance], truth, tolerance=2, auc=auc)
    values, inside = relevance.astype(np.float64).ravel().tolist(), truth.ravel().tolist()
    positive = sum(max(value, 0) for value in values)
    mass = sum(max(value, 0) for value, true in zip(values, inside, strict=True) if true)
    expected = {"relevance_mass_accuracy": mass / positive if positive else None}
    t, ranked = sum(inside), 0.0
    least = sorted(values)[-t]
    above = sum(value > least for value in values)
    for value, true in zip(values, inside, strict=True):
        ranked += true * (1 if value > least else (t - above) / values.count(least) if value == least else 0)
    expected["relevance_rank_accuracy"] = ranked / t
    points = np.argwhere(truth)
    near = [bool((((points - at) ** 2).sum(1) <= 4).any()) for at in np.argwhere(np.ones_like(truth))]
    tops = [close for value, close in zip(values, near, strict=True) if value == max(values)]
    expected["pointing_game"] = sum(tops) / len(tops)
    pairs = [
        (a > b) + (a == b) / 2
        for a, true in zip(values, inside, strict=True)
        if true
        for b, also in zip(values, inside, strict=True)
        if not also
    ]
    expected["auc"] = sum(pairs) / len(pairs)
    for score in MAP_SCORES if auc else MAP_SCORES[:-1]:
        value = found(frame, score)
        if expected[score] is None:
            assert value is None
        else:
            assert value == pytest.approx(expected[score], rel=1e-12), score
    assert found(frame, "pointing_game", "chance") == pytest.approx(sum(near) / len(near))
    assert frame["score"].n_unique() == 9 + auc


def test_without_ties_the_same_as_localisation():
    relevance, truth = maps_of_all_kinds()["normal"], square()
    frame, everywhere = score_maps([relevance], truth), np.ones_like(truth)
    rows = localise({0: relevance}, {"tumour": truth}, everywhere, shifts=0, random=np.random.default_rng(0))
    same = {"relevance_rank_accuracy", "pointing_game", "auc"}
    for row in rows:
        if row["metric"] in same:
            assert found(frame, row["metric"]) == pytest.approx(row["value"])
            assert found(frame, row["metric"], "chance") == pytest.approx(row["chance_even"])
    value, chance = share_of_positive(relevance, truth, everywhere)
    assert found(frame, "relevance_mass_accuracy") == pytest.approx(value)
    assert found(frame, "relevance_mass_accuracy", "chance") == pytest.approx(chance)


def hypergeometric(mask, truth, pixels):
    """The exact expectation as a fraction of whole numbers."""
    return sum(
        Fraction(comb(truth, h) * comb(pixels - truth, mask - h), comb(pixels, mask)) * Fraction(h, mask + truth - h)
        for h in range(max(0, mask + truth - pixels), min(mask, truth) + 1)
        if h
    )


@pytest.mark.parametrize(
    ("mask", "truth", "pixels"),
    [(1, 1, 1), (1, 1, 2), (3, 2, 10), (5, 5, 5), (9, 4, 10), (24, 25, 480), (0, 3, 9), (3, 0, 9), (400, 470, 480)],
)
def test_expected_iou_is_exact(mask, truth, pixels):
    assert expected_iou(mask, truth, pixels) == pytest.approx(float(hypergeometric(mask, truth, pixels)), rel=1e-12)
    assert expected_iou(truth, mask, pixels) == pytest.approx(expected_iou(mask, truth, pixels), rel=1e-12)


def test_expected_iou_in_a_published_image():
    """3277 of 65536 pixels, a tumour of 1100: close to pt / (p + t - pt) of the specification, and not below it."""
    p, t = 3277 / 65536, 1100 / 65536
    about = p * t / (p + t - p * t)
    exact = expected_iou(3277, 1100, 65536)
    assert exact == pytest.approx(about, rel=2e-2)
    assert exact > about
    h = np.arange(1101)
    assert exact == pytest.approx(stats.hypergeom.pmf(h, 65536, 1100, 3277) @ (h / (3277 + 1100 - h)), rel=1e-8)


def test_chance_of_masks_by_drawing():
    random = np.random.default_rng(1)
    truth, relevance = square(), maps_of_all_kinds()["normal"]
    frame = score_maps([relevance], truth, quantiles=(0.9,))
    drawn = [published(random.permuted(relevance.ravel()).reshape(truth.shape), truth, 0.9) for _ in range(800)]
    for score in MASK_SCORES:
        values = np.array([one[score] for one in drawn])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(found(frame, score, "chance", 0.9) - values.mean()) < 4 * error, score


def test_chance_of_maps_by_drawing():
    random = np.random.default_rng(2)
    truth, relevance = square(), maps_of_all_kinds()["tied"]
    shuffled = [random.permuted(relevance.ravel()).reshape(truth.shape) for _ in range(800)]
    frame = score_maps(shuffled, truth, tolerance=2)
    for score in MAP_SCORES:
        rows = frame.filter(pl.col("score") == score)
        assert rows["chance"].n_unique() == 1
        error = rows["value"].std() / np.sqrt(len(rows))
        assert abs(rows["chance"][0] - rows["value"].mean()) < 4 * error, score


def test_no_mask_of_its_size_beats_the_ceiling_and_one_reaches_it():
    truth = np.array([[True, True, False], [False, True, False]])
    for size in range(1, 6):
        scores = []
        for chosen in itertools.combinations(range(6), size):
            relevance = np.zeros(6)
            relevance[list(chosen)] = 1
            hits, mask = truth.ravel()[list(chosen)].sum(), size
            scores.append({name: float(value) for name, value in mask_overlap(hits, mask, 3, 6).items()})
        frame = score_maps([np.where(np.arange(6) < size, 1.0, -1.0).reshape(2, 3)], truth, quantiles=(0.01,))
        assert found(frame, "iou", "mask_pixels", 0.01) == (size if size < 6 else 0)
        for name in MASK_SCORES:
            assert found(frame, name, "ceiling", 0.01) == pytest.approx(max(one[name] for one in scores))
        assert found(frame, "iou", "ceiling", 0.01) == pytest.approx(min(size, 3) / max(size, 3))


def test_normalised_is_0_at_chance_and_1_at_the_ceiling():
    truth = square()
    frame = score_maps([np.where(truth, 1.0, -1.0)], truth, quantiles=(0.8,))
    assert frame["normalised"].to_list() == [1.0] * len(frame)
    assert (frame["value"] == frame["ceiling"]).all()
    worst = score_maps([np.where(truth, -1.0, 1.0)], truth, quantiles=(0.8,))
    for row in worst.drop_nulls("normalised").iter_rows(named=True):
        expected = (row["value"] - row["chance"]) / (row["ceiling"] - row["chance"])
        assert row["normalised"] == pytest.approx(expected)
        assert row["normalised"] < 0


def test_fewer_positive_pixels_than_asked_for_are_all_the_mask():
    relevance = np.full((10, 10), -1.0)
    relevance[2, 2:5] = [0.1, 5.0, 0.2]
    assert published_mask(relevance).sum() == 3
    frame = score_maps([relevance], relevance > 0)
    assert found(frame, "iou", quantile=0.95) == 1
    assert found(frame, "iou", "mask_pixels", 0.95) == 3


def test_an_empty_mask_scores_0_and_has_no_room():
    frame = score_maps([np.zeros((4, 4)), np.full((4, 4), -1.0)], square((4, 4), (1, 1), 2))
    for number in (0, 1):
        for score in ("iou", "dice", "precision", "recall", "f1"):
            row = [found(frame, score, column, 0.95, number) for column in ("value", "chance", "ceiling", "normalised")]
            assert row == [0, 0, 0, None]
        assert found(frame, "accuracy", quantile=0.95, number=number) == 12 / 16
        assert found(frame, "relevance_mass_accuracy", number=number) is None


@pytest.mark.parametrize("value", [-1.0, 0.0, 2.0])
def test_a_constant_map_is_at_chance(value):
    truth = square()
    frame = score_maps([np.full(truth.shape, value)], truth, tolerance=1.5)
    for score in MAP_SCORES[1:]:
        assert found(frame, score) == pytest.approx(found(frame, score, "chance"))
    if value > 0:
        assert found(frame, "relevance_mass_accuracy") == pytest.approx(25 / truth.size)
    assert found(frame, "iou", quantile=0.95) == 0


def test_empty_and_full_truth():
    relevance = maps_of_all_kinds()["normal"]
    empty = score_maps([relevance], np.zeros(relevance.shape, bool))
    for score in MAP_SCORES:
        assert [found(empty, score, column) for column in ("value", "chance", "ceiling", "normalised")] == [None] * 4
    assert found(empty, "iou", quantile=0.95) == found(empty, "recall", quantile=0.95) == 0
    assert empty["normalised"].null_count() == len(empty)
    full = score_maps([relevance], np.ones(relevance.shape, bool), tolerance=3)
    size = found(full, "iou", "mask_pixels", 0.95)
    assert found(full, "iou", quantile=0.95) == found(full, "iou", "chance", 0.95) == size / relevance.size
    assert found(full, "auc") is found(full, "auc", "chance") is found(full, "auc", "ceiling") is None
    assert found(full, "pointing_game") == found(full, "pointing_game", "chance") == 1
    assert full["normalised"].null_count() == len(full)


def test_one_pixel():
    frame = score_maps([np.array([[3.0]])], np.array([[True]]))
    assert found(frame, "iou", "mask_pixels", 0.95) == 0  # it ties with the threshold
    assert found(frame, "pointing_game") == 1


def test_no_map():
    frame = score_maps([], square())
    assert frame.is_empty()
    assert frame.columns == score_maps([np.ones((24, 20))], square()).columns


def test_maps_are_told_apart_and_their_order_kept():
    truth, kinds = square(), list(maps_of_all_kinds().values())
    together = score_maps(kinds, truth, quantiles=QUANTILES)
    for number, relevance in enumerate(kinds):
        alone = score_maps([relevance], truth, quantiles=QUANTILES)
        assert together.filter(pl.col("map") == number).drop("map").equals(alone.drop("map"))


def test_what_is_refused():
    truth, relevance = square(), np.ones((24, 20))
    broken = relevance.copy()
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match="map 1 is empty or holds NaN"):
        score_maps([relevance, broken], truth)
    with pytest.raises(ValueError, match="differ in shape"):
        score_maps([relevance.T], truth)
    with pytest.raises(ValueError, match="between 0 and 1"):
        score_maps([relevance], truth, quantiles=(0.9, 1.0))
    with pytest.raises(ValueError, match="tolerance"):
        score_maps([relevance], truth, tolerance=-1)
    with pytest.raises(ValueError, match="no pixels"):
        score_maps([], np.zeros((0, 4), bool))
    with pytest.raises(ValueError, match="NaN"):
        published_mask(broken)
    with pytest.raises(ValueError, match="from 0 to"):
        expected_iou(5, 1, 4)
