"""Relevance in a region: toy values, sets and loops, Mann-Whitney, and chance by every translation."""

import itertools

import numpy as np
import pytest
from scipy import ndimage, stats

from relevance_assets.evidence.localisation import METRICS, localise, share_of_positive

BRAIN = np.array([True, True, True, True, False])
REGION = np.array([True, False, False, True, True])


def test_only_positive_relevance_in_the_brain_counts():
    assert share_of_positive(np.array([3.0, 1.0, -8.0, -2.0, 50.0]), REGION, BRAIN) == (0.75, 0.5)


def test_even_map_is_chance():
    value, chance = share_of_positive(np.full(5, 0.3), REGION, BRAIN)
    assert value == pytest.approx(chance)


def test_undefined_is_none():
    assert share_of_positive(-np.ones(5), REGION, BRAIN) == (None, 0.5)
    assert share_of_positive(np.ones(5), REGION, np.zeros(5, bool)) == (None, None)


def test_errors():
    with pytest.raises(ValueError, match="differ in shape"):
        share_of_positive(np.ones(4), REGION, BRAIN)
    with pytest.raises(ValueError, match="NaN"):
        share_of_positive(np.full(5, np.nan), REGION, BRAIN)


# ---------------------------------------------------------------------------------------------------------- localise
def _localise(relevance, region, brain, shifts=0, seed=0):
    rows = localise({"m": relevance}, {"r": region}, brain, shifts=shifts, random=np.random.default_rng(seed))
    assert [row["metric"] for row in rows] == list(METRICS)
    assert {(row["map"], row["region"]) for row in rows} == {("m", "r")}
    return {row["metric"]: (row["value"], row["chance"], row["chance_even"]) for row in rows}


def _by_sets(relevance, region, brain):
    """The metrics from their definitions, on sets of flat indices."""
    inside = [int(i) for i in np.flatnonzero(brain)]
    wanted = {i for i in inside if region.flat[i]}
    value = {i: float(relevance.flat[i]) for i in inside}
    order = sorted(inside, key=lambda i: (-value[i], i))
    top = set(order[: len(wanted)])
    others = [value[i] for i in inside if i not in wanted]
    in_region = [value[i] for i in wanted]
    found = {
        "share_of_positive": sum(max(v, 0) for v in in_region) / sum(max(v, 0) for v in value.values()),
        "relevance_rank_accuracy": len(top & wanted) / len(wanted),
        "iou": len(top & wanted) / len(top | wanted),
        "pointing_game": float(order[0] in wanted),
    }
    if others:
        found["auc"] = stats.mannwhitneyu(in_region, others).statistic / (len(in_region) * len(others))
    return found


def _moved(region, move):
    """A region moved by whole voxels, by loops; what leaves the grid is gone."""
    moved = np.zeros_like(region)
    for index in np.argwhere(region):
        to = tuple(index + move)
        if all(0 <= i < n for i, n in zip(to, region.shape, strict=True)):
            moved[to] = True
    return moved


def _translations(region, brain):
    """Every translation but none that keeps 90 % of the region's brain voxels, tried one by one."""
    region = region & brain
    found = []
    for move in itertools.product(*(range(-n + 1, n) for n in brain.shape)):
        moved = _moved(region, np.array(move)) & brain
        if any(move) and moved.sum() >= 0.9 * region.sum() - 1e-9:
            found.append(moved)
    return found


def _case(seed, levels=None):
    """Maps with ties for few levels; an uneven brain; a region that is partly outside."""
    random = np.random.default_rng(seed)
    shape = (5, 6, 4)
    brain = ndimage.binary_fill_holes(random.random(shape) < 0.9)
    relevance = random.normal(size=shape)
    if levels:
        relevance = np.round(relevance * levels) / levels
    region = np.zeros(shape, bool)
    region[1:3, 2:4, 1:3] = True
    region[0, 0, 0] = True
    return relevance, region, brain


def test_toy_values():
    """Top 2 of 4 brain voxels: one of them in the region, the largest is not."""
    relevance = np.array([3.0, 5.0, -1.0, 2.0, 9.0])
    found = _localise(relevance, REGION, BRAIN)
    assert found["share_of_positive"] == (0.5, None, 0.5)
    assert found["relevance_rank_accuracy"] == (0.5, None, 0.5)
    assert found["iou"] == (pytest.approx(1 / 3), None, pytest.approx(1 / 3))
    assert found["pointing_game"] == (0.0, None, 0.5)
    assert found["auc"] == (0.5, None, 0.5)


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("seed", range(8))
def test_metrics_and_chance_by_definition(seed, levels):
    relevance, region, brain = _case(seed, levels)
    found = _localise(relevance, region, brain, shifts=10**6)
    expected = _by_sets(relevance, region, brain)
    moved = _translations(region, brain)
    assert len(moved) > 3
    by_shift = [_by_sets(relevance, one, brain) for one in moved]
    for metric in METRICS:
        value, chance, _ = found[metric]
        assert value == pytest.approx(expected[metric], abs=1e-12)
        assert chance == pytest.approx(np.mean([one[metric] for one in by_shift]), abs=1e-12)
    assert found["share_of_positive"][::2] == pytest.approx(share_of_positive(relevance, region, brain))


def test_few_shifts_are_some_of_all_and_the_same_for_all_maps():
    relevance, region, brain = _case(1)
    every = sorted(_by_sets(relevance, one, brain)["auc"] for one in _translations(region, brain))
    chances = {_localise(relevance, region, brain, shifts=1, seed=seed)["auc"][1] for seed in range(20)}
    assert len(chances) > 3
    assert all(min(abs(chance - one) for one in every) < 1e-12 for chance in chances)
    assert _localise(relevance, region, brain, 5) == _localise(relevance, region, brain, 5)
    maps, regions = {("a", 1): relevance, ("b", 2): relevance * 2, "c": -relevance}, {"r": region, "s": region[::-1]}
    rows = localise(maps, regions, brain, shifts=5, random=np.random.default_rng(0))
    assert [(row["map"], row["region"], row["metric"]) for row in rows] == list(
        itertools.product(maps, regions, METRICS)
    )
    by_map = [[(row["value"], row["chance"]) for row in rows if row["map"] == key] for key in maps]
    assert by_map[0] == by_map[1]
    aucs = [[row for row in rows if row["map"] == key and row["metric"] == "auc"] for key in maps]
    for up, down in zip(aucs[0], aucs[2], strict=True):
        assert up["value"] + down["value"] == pytest.approx(1)
        assert up["chance"] + down["chance"] == pytest.approx(1)


def test_undefined_is_none_by_metric():
    relevance, region, brain = _case(2)
    none = dict.fromkeys(METRICS, (None, None, None))
    assert _localise(relevance, np.zeros_like(brain), brain, 5) == none
    assert _localise(relevance, ~brain, brain, 5) == none
    assert _localise(relevance, region, np.zeros_like(brain), 5) == none

    negative = _localise(-np.abs(relevance) - 1, region, brain, 5)
    assert negative["share_of_positive"][:2] == (None, None)
    assert all(None not in negative[metric] for metric in METRICS[1:])

    flat = _localise(np.full(brain.shape, 0.3), region, brain, 5)
    assert [flat[metric][:2] for metric in METRICS[1:4]] == [(None, None)] * 3
    assert flat["auc"][:2] == (0.5, 0.5)
    assert flat["share_of_positive"][0] == pytest.approx(flat["share_of_positive"][2])


def test_a_region_that_fills_the_brain():
    brain = np.zeros((6, 6, 6), bool)
    brain[1:5, 1:5, 1:5] = True
    relevance = np.random.default_rng(0).normal(size=brain.shape)
    found = _localise(relevance, brain, brain, 5)
    # a step in any direction leaves 3/4
    assert found == dict.fromkeys(METRICS[:4], (1.0, None, 1.0)) | {"auc": (None, None, 0.5)}


def test_one_voxel():
    relevance, _, brain = _case(3)
    region = np.zeros_like(brain)
    region[tuple(np.argwhere(brain)[7])] = True
    found = _localise(relevance, region, brain, 10**6)
    rest = relevance[brain & ~region]
    assert found["auc"][0] == pytest.approx((rest < relevance[region]).mean())
    # its translations are all other voxels: the largest is one of them, or it
    hit = float(relevance[region].max() > rest.max())
    assert found["pointing_game"][:2] == (hit, pytest.approx((1 - hit) / len(rest)))
    only = _localise(relevance, region, region, 5)
    assert only["share_of_positive"][1:] == (None, 1.0)
    assert [only[metric][0] for metric in METRICS[1:]] == [None] * 4


def test_what_is_planted_is_found_and_noise_is_at_chance():
    """A smooth map raised in the region beats chance; smooth noise is at chance by shifts on average."""
    random = np.random.default_rng(0)
    brain = np.zeros((14, 14, 14), bool)
    brain[1:-1, 1:-1, 1:-1] = True
    region = np.zeros_like(brain)
    region[5:9, 5:9, 5:9] = True
    above = {metric: [] for metric in METRICS}
    for _ in range(60):
        noise = ndimage.gaussian_filter(random.normal(size=brain.shape), 2)
        rows = localise(
            {"noise": noise, "planted": noise + region * 5 * noise.std()},
            {"r": region},
            brain,
            shifts=20,
            random=random,
        )
        for row in rows:
            if row["map"] == "planted":
                assert row["value"] > row["chance"] or row["metric"] == "pointing_game"
            else:
                above[row["metric"]].append(row["value"] - row["chance"])
    for values in above.values():
        assert abs(np.mean(values)) < 3.5 * stats.sem(values)


def test_localise_errors():
    relevance, region, brain = _case(0)
    with pytest.raises(ValueError, match="region r"):
        _localise(relevance, region[1:], brain)
    with pytest.raises(ValueError, match="differ in shape"):
        _localise(relevance[1:], region, brain)
    with pytest.raises(ValueError, match="NaN"):
        _localise(np.where(brain, np.nan, 0), region, brain)
    _localise(np.where(brain, relevance, np.nan), region, brain)
