"""Agreement of folds: overlap against counting, chance by closed form and by shifting, verdicts that can fail."""

import itertools

import numpy as np
import polars as pl
import pytest
from scipy import ndimage

from relevance_assets.evidence.agreement import agreement_verdicts, chance_dice, dice, pair_agreement, shifted_dice

SHAPE = (5, 6, 7)
ALL = np.ones(SHAPE, bool)


def smooth(seed, shape=(12, 12, 12)):
    """Clumps that are as frequent at the rim as in the middle: a reflected filter would make all rims alike."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5, mode="wrap")


def test_dice_counts():
    first, second = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 1], bool)
    assert dice(first, second) == 2 * 1 / 5
    assert dice(first, first) == 1
    assert dice(first, ~first) == 0
    assert dice(first, np.zeros(4, bool)) == 0
    assert dice(np.zeros(4, bool), np.zeros(4, bool)) is None
    with pytest.raises(ValueError, match="differ in shape"):
        dice(first, second[:3])


@pytest.mark.parametrize(("a", "b", "n"), [(2, 3, 6), (1, 1, 4), (5, 2, 5), (0, 2, 4)])
def test_chance_is_the_mean_over_all_sets(a, b, n):
    fixed = set(range(a))
    found = [2 * len(fixed & set(other)) / (a + b) for other in itertools.combinations(range(n), b)]
    assert chance_dice(a, b, n) == pytest.approx(np.mean(found), abs=1e-15)


def test_chance_of_nothing():
    assert chance_dice(0, 0, 5) is None
    with pytest.raises(ValueError, match="do not fit"):
        chance_dice(6, 1, 5)


def loop_shifted(first, second, brain):
    places = {name: set(map(tuple, np.argwhere(mask & brain).tolist())) for name, mask in (("a", first), ("b", second))}
    whole = set(map(tuple, np.argwhere(brain).tolist()))
    found = []
    for x, y, z in itertools.product(*(range(-n + 1, n) for n in brain.shape)):
        shared = whole & {(i + x, j + y, k + z) for i, j, k in whole}
        one, other = places["a"] & shared, {(i + x, j + y, k + z) for i, j, k in places["b"]} & shared
        if (x, y, z) != (0, 0, 0) and 2 * len(shared) >= len(whole) and one | other:
            found.append(2 * len(one & other) / (len(one) + len(other)))
    return np.mean(found) if found else None


@pytest.mark.parametrize("seed", range(3))
def test_shifts_by_moving_every_voxel(seed):
    random = np.random.default_rng(seed)
    first, second, brain = (random.random(SHAPE) < share for share in (0.2, 0.3, 0.8))
    assert shifted_dice(first, second, brain) == pytest.approx(loop_shifted(first, second, brain), rel=1e-12)


def test_shifts_of_little():
    one = np.zeros(SHAPE, bool)
    one[2, 2, 2] = True
    assert shifted_dice(one, one, ALL) == 0  # anywhere but there
    assert shifted_dice(one, one & False, ALL) is None
    assert shifted_dice(one, one, one) is None  # no other place in the brain
    assert shifted_dice(one, one, ALL & False) is None
    assert shifted_dice(ALL, ALL, ALL) == 1  # no place is chosen, none is found again
    with pytest.raises(ValueError, match="differ in shape"):
        shifted_dice(one, one[1:], ALL)


def test_pairs():
    random = np.random.default_rng(0)
    base = random.normal(size=SHAPE)
    frame = pair_agreement({"0": base, "1": 2 * base + 0.0, "2": -base}, ALL)
    assert frame.select("fold_a", "fold_b").rows() == [("0", "1"), ("0", "2"), ("1", "2")]
    assert frame["spearman"].to_list() == pytest.approx([1, -1, -1])
    assert frame["dice"].to_list() == [1, 0, 0]
    positive = int((base > 0).sum())
    top = sum(base[base > 0] >= np.quantile(base[base > 0], 0.6))
    assert 0 < top < positive
    assert frame["dice_chance"][0] == pytest.approx(top / base.size)


def test_only_the_brain_counts():
    random = np.random.default_rng(0)
    first, brain = random.normal(size=SHAPE), random.random(SHAPE) < 0.5
    second = np.where(brain, first, 100.0)
    row = pair_agreement({"a": first, "b": second}, brain).row(0, named=True)
    assert (row["spearman"], row["dice"]) == (pytest.approx(1), 1)


def test_maps_with_nothing_in_them():
    random = np.random.default_rng(0).normal(size=SHAPE)
    row = pair_agreement({"a": np.zeros(SHAPE), "b": random}, ALL).row(0, named=True)
    assert (row["spearman"], row["dice"], row["dice_chance"], row["dice_shifted"]) == (None, 0, 0, None)
    row = pair_agreement({"a": -np.abs(random), "b": np.zeros(SHAPE)}, ALL).row(0, named=True)
    assert (row["spearman"], row["dice"], row["dice_chance"], row["dice_shifted"]) == (None,) * 4
    row = pair_agreement({"a": random, "b": random}, ALL & False).row(0, named=True)
    assert row["spearman"] is None
    alone = pair_agreement({"a": random}, ALL)
    assert alone.height == 0
    assert alone.columns == ["fold_a", "fold_b", "spearman", "dice", "dice_chance", "dice_shifted"]
    with pytest.raises(ValueError, match="NaN or infinite"):
        pair_agreement({"a": random, "b": random * np.nan}, ALL)


def pairs_of(maps_of, scans=12, folds=3):
    brain = np.ones((12, 12, 12), bool)
    frames = [
        pair_agreement({str(fold): maps_of(scan, fold) for fold in range(folds)}, brain).with_columns(
            scan=pl.lit(f"sub-{scan}")
        )
        for scan in range(scans)
    ]
    return pl.concat(frames)


def test_folds_that_see_the_same_pass():
    verdicts = agreement_verdicts(pairs_of(lambda scan, fold: smooth(scan) + 0.5 * smooth(1000 + 10 * scan + fold)))
    assert [verdict.test for verdict in verdicts] == ["agreement_spearman", "agreement_dice"]
    assert all(verdict.passed and verdict.n == 12 for verdict in verdicts)


def test_folds_that_see_nothing_in_common_fail():
    verdicts = agreement_verdicts(pairs_of(lambda scan, fold: smooth(10 * scan + fold)))
    assert not any(verdict.passed for verdict in verdicts)


def test_constant_maps_fail():
    verdicts = agreement_verdicts(pairs_of(lambda scan, fold: np.ones((12, 12, 12))))
    assert [verdict.passed for verdict in verdicts] == [None, False]
    assert (verdicts[0].value, verdicts[1].value) == (None, 0)
    assert "not defined for 12 of 12 scans" in verdicts[0].note


def test_opposite_maps_fail():
    verdicts = agreement_verdicts(pairs_of(lambda scan, fold: smooth(scan) * (-1) ** fold, folds=2))
    assert not any(verdict.passed for verdict in verdicts)
    assert verdicts[0].value == pytest.approx(-1)


def test_one_fold_says_nothing():
    empty = pair_agreement({"0": smooth(0)}, np.ones((12, 12, 12), bool)).with_columns(scan=pl.lit("sub-0"))
    verdicts = agreement_verdicts(empty)
    assert [(verdict.passed, verdict.value, verdict.n) for verdict in verdicts] == [(None, None, 0)] * 2


def test_maps_that_are_constant_for_half_of_the_scans_fail():
    verdicts = agreement_verdicts(pairs_of(lambda scan, fold: smooth(scan) if scan % 2 else np.ones((12, 12, 12))))
    assert verdicts[0].value == pytest.approx(1)
    assert verdicts[0].passed is False


def test_contrasts_are_averaged():
    """Two contrasts, one below the other: each scan's value is the mean over both."""
    one, other = pairs_of(lambda scan, fold: smooth(scan)), pairs_of(lambda scan, fold: smooth(scan) * (-1) ** fold)
    both = agreement_verdicts(pl.concat([one, other]))[0]
    assert both.value == pytest.approx((1 - 1 / 3) / 2)  # of the other's three pairs two are opposite
    assert both.n == 12


def test_people():
    pairs = pairs_of(lambda scan, fold: smooth(scan), scans=4)
    people = {f"sub-{scan}": scan // 2 for scan in range(4)}
    assert agreement_verdicts(pairs, people)[0].passed
    assert agreement_verdicts(pairs, dict.fromkeys(people, 0))[0].passed is None
    with pytest.raises(ValueError, match="no person for scan sub-3"):
        agreement_verdicts(pairs, {name: 0 for name in people if name != "sub-3"})
