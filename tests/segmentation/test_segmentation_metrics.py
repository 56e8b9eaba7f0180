"""Metrics against brute force over voxels, hand-made lesions, and the published relations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest

from relevance_assets.segmentation.metrics import COUNTS, METRICS, pooled, pooled_counts, scan_metrics

SIZE = (0.9, 1.2, 7.0)


def measured(predicted: np.ndarray, truth: np.ndarray, size: tuple = SIZE, **more: object) -> dict[str, float | None]:
    frame = scan_metrics(predicted, truth, size, **more)  # type: ignore[arg-type]
    return dict(frame.filter(**{"class": "wmh"}).select("metric", "value").rows())


def wmh(*voxels: tuple[int, int, int], shape: tuple[int, int, int] = (7, 6, 5)) -> np.ndarray:
    labels = np.zeros(shape, dtype=np.uint8)
    for voxel in voxels:
        labels[voxel] = 2
    return labels


def boundary(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels with at least one neighbour by a face that is not in the mask."""
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = voxel.copy()
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                found.append(tuple(int(n) for n in voxel))
                break
    return found


def distances(a: np.ndarray, b: np.ndarray, size: tuple[float, ...]) -> list[float]:
    return [
        min(
            math.sqrt(sum(((p - q) * s) ** 2 for p, q, s in zip(one, other, size, strict=True)))
            for other in boundary(b)
        )
        for one in boundary(a)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_overlap_and_distances_by_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = (2 * (random.random((7, 6, 5)) < p) for p in (0.5, 0.2))
    a[1:6, 1:5, 1:4] = 2  # an inside, which must not count as boundary
    found = measured(a, b)
    pred, true = a == 2, b == 2
    both = sum(p and t for p, t in zip(pred.flat, true.flat, strict=True))
    assert found["dice"] == pytest.approx(2 * both / (pred.sum() + true.sum()))
    assert found["iou"] == pytest.approx(found["dice"] / (2 - found["dice"]))
    assert found["precision"] == pytest.approx(both / pred.sum())
    assert found["recall"] == pytest.approx(both / true.sum())
    there, back = distances(pred, true, SIZE), distances(true, pred, SIZE)
    assert found["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found["assd_mm"] == pytest.approx((sum(there) + sum(back)) / (len(there) + len(back)))
    difference = (pred.sum() - true.sum()) * 0.9 * 1.2 * 7.0
    assert found["volume_difference_mm3"] == pytest.approx(difference)
    assert found["volume_difference_relative"] == pytest.approx(pred.sum() / true.sum() - 1)


def test_one_voxel_each_is_as_far_as_the_spacing_says() -> None:
    found = measured(wmh((1, 1, 1)), wmh((1, 1, 3)))
    assert found["hd95_mm"] == found["assd_mm"] == 14.0
    assert found["dice"] == found["iou"] == 0


def test_equal_masks_agree() -> None:
    labels = wmh((1, 1, 1), (1, 2, 1), (5, 5, 4))
    found = measured(labels, labels)
    ones = ("dice", "iou", "precision", "recall", "lesion_precision", "lesion_recall", "lesion_f1")
    assert [found[name] for name in ones] == [1.0] * len(ones)
    assert found["hd95_mm"] == found["assd_mm"] == found["volume_difference_mm3"] == 0


def test_empty_masks() -> None:
    nothing, something = wmh(), wmh((1, 1, 1))
    both = measured(nothing, nothing)
    assert {name for name, value in both.items() if value is not None} == {"volume_difference_mm3"}
    false = measured(something, nothing)
    assert false["dice"] == false["iou"] == false["precision"] == false["lesion_f1"] == false["lesion_precision"] == 0
    assert [false[n] for n in ("recall", "hd95_mm", "assd_mm", "volume_difference_relative", "lesion_recall")] == [
        None
    ] * 5
    missed = measured(nothing, something)
    assert missed["dice"] == missed["recall"] == missed["lesion_f1"] == 0
    assert missed["precision"] is None
    assert missed["hd95_mm"] is None
    assert missed["volume_difference_relative"] == -1


def test_lesions_are_counted_by_components() -> None:
    """True: a pair joined by an edge, and a single. Predicted: half of the pair, and two that meet nothing."""
    truth = wmh((0, 0, 0), (1, 1, 0), (4, 4, 2))
    predicted = wmh((1, 1, 0), (6, 0, 0), (6, 0, 4))
    found = measured(predicted, truth)
    assert found["lesion_precision"] == pytest.approx(1 / 3)
    assert found["lesion_recall"] == pytest.approx(1 / 2)
    assert found["lesion_f1"] == pytest.approx(0.4)
    faces = measured(predicted, truth, connectivity=6)  # the pair are two now
    assert faces["lesion_recall"] == pytest.approx(1 / 3)
    strict = measured(predicted, truth, least_iou=0.6)  # half of two is 0.5
    assert strict["lesion_recall"] == strict["lesion_precision"] == strict["lesion_f1"] == 0
    assert measured(predicted, truth, least_iou=0.5)["lesion_recall"] == pytest.approx(1 / 2)


def test_every_class_has_every_metric() -> None:
    frame = scan_metrics(wmh(), wmh((1, 1, 1)), SIZE)
    assert frame.columns == ["class", "metric", "value"]
    assert frame.select("class", "metric").rows() == [(c, m) for c in ("ventricle", "wmh") for m in METRICS]


def test_grids_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="two volumes of one shape"):
        scan_metrics(wmh(), wmh(shape=(3, 3, 3)), SIZE)
    with pytest.raises(ValueError, match="three positive sizes"):
        scan_metrics(wmh(), wmh(), (1, 0, 1))


def test_the_papers_form_pools_pixels_and_halves_them() -> None:
    """Slices: 1 agree on nothing, 2 one pixel off by two, 3 only predicted (left out), 4 and 5 both empty (0)."""
    truth = wmh((1, 1, 0), (1, 1, 1), (2, 1, 1))
    predicted = wmh((1, 3, 0), (1, 1, 1), (2, 1, 1), (5, 5, 2))
    frame = pooled(pooled_counts(predicted, truth))
    found = dict(frame.filter(**{"class": "wmh"}).select("metric", "value").rows())
    assert found["dice"] == pytest.approx(2 * 2 / 7, rel=1e-5)
    assert found["iou"] == pytest.approx(2 / 5, rel=1e-5)
    assert found["precision"] == pytest.approx(2 / 4, rel=1e-5)
    assert found["recall"] == pytest.approx(2 / 3, rel=1e-5)
    assert found["hd95_mm"] == pytest.approx(0.5 * np.mean([2, 0, 0, 0]))
    every = dict(frame.filter(**{"class": "all"}).select("metric", "value").rows())
    assert every["accuracy"] == pytest.approx(1 - 3 / truth.size)
    assert every["dice"] == pytest.approx((found["dice"] + 1) / 2)  # no ventricle anywhere: 1


@pytest.mark.parametrize(("dice", "iou"), [(0.8529, 0.7435), (0.6461, 0.4772)])
def test_published_iou_follows_from_published_dice(dice: float, iou: float) -> None:
    """Ten thousand pixels with that Dice; the published pair agree to the printed digit."""
    both = round(10_000 * dice)
    predicted, truth = np.zeros((20_000, 1, 1), int), np.zeros((20_000, 1, 1), int)
    predicted[:10_000], truth[10_000 - both : 20_000 - both] = 1, 1
    found = dict(
        pooled(pooled_counts(predicted, truth)).filter(**{"class": "ventricle"}).select("metric", "value").rows()
    )
    assert found["dice"] == pytest.approx(dice, abs=1e-6)
    assert found["iou"] == pytest.approx(iou, abs=6e-5)


def test_pooling_weighs_scans_by_their_pixels_and_needs_one() -> None:
    large, small = wmh(*[(x, y, 0) for x in range(5) for y in range(5)]), wmh((0, 0, 0))
    found = pooled(pl.concat([pooled_counts(large, large), pooled_counts(wmh((3, 3, 3)), small)])).filter(
        metric="dice", **{"class": "wmh"}
    )
    assert found["value"][0] == pytest.approx(50 / 52, rel=1e-6)
    with pytest.raises(ValueError, match="counts of at least one"):
        pooled(pl.DataFrame(schema=COUNTS))
