"""Voxel inversion: equal areas, masks against plain loops, and every image once."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import ndimage

from relevance_assets.evidence.inversion import _shares, plan_inversions, voxel_ranks
from relevance_assets.evidence.masks import quantile_mask

SHAPE = (3, 7, 6, 5)
PERCENTS = (10, 40, 70, 100)


def _scan(seed=0):
    random = np.random.default_rng(seed)
    brain = random.random(SHAPE[1:]) < 0.7
    images = np.where(brain, random.random(SHAPE), 0).astype(np.float32)
    maps = {
        "a": random.normal(size=SHAPE),
        "b": np.round(random.normal(size=SHAPE), 1).astype(np.float32),
        "c": random.random(SHAPE) * np.array([1, 1, -1])[:, None, None, None],
    }
    combined = {name: (one * images).sum(axis=0) for name, one in maps.items() if name != "c"}
    return maps, combined, images, brain, random.random(SHAPE[1:]) < 0.2


def _plan(seed=0, reference=("a", "combined"), draws=3, **options):
    maps, combined, images, brain, planted = _scan(seed)
    options = {"percents": PERCENTS, "planted": planted} | options
    random = np.random.default_rng([seed, 5])
    plan = plan_inversions(maps, combined, images, brain, reference=reference, draws=draws, random=random, **options)
    return plan, np.concatenate(list(plan.batches(7)))


def _inverted(image, images):
    """Which pairs differ from the scan; no value of the random images is 0.5."""
    return image != images


# ------------------------------------------------------------------------------------------------------------ voxels
def invert(images, masks, brain):
    """q <- 1 - q where mask and brain meet, value by value; one mask per image, or one for all."""
    masks, inverted = np.broadcast_to(masks, images.shape), images.copy()
    for index in np.ndindex(images.shape):
        if masks[index] and brain[index[1:]]:
            inverted[index] = 1 - images[index]
    return inverted


def top_voxels(relevance, brain, count):
    """`count` brain voxels by sorting pairs: the largest relevance first, of equal ones the lower flat index."""
    order = sorted((-float(relevance.flat[i]), i) for i in np.flatnonzero(brain))
    mask = np.zeros(brain.shape, bool)
    mask.flat[[i for _, i in order[:count]]] = True
    return mask


def test_ranks_by_sorting_pairs():
    maps, _, _, brain, _ = _scan()
    for relevance in (maps["a"][0], maps["b"][1], maps["c"][2], np.zeros(SHAPE[1:])):
        ranks = voxel_ranks(relevance, brain)
        for count in (0, 1, 17, int(brain.sum())):
            np.testing.assert_array_equal(ranks < count, top_voxels(relevance, brain, count)[brain])


def test_a_quantile_mask_is_the_top_voxels_of_its_size():
    maps, _, _, brain, _ = _scan()
    for relevance in (*maps["a"], *maps["b"], *maps["c"]):
        for percent in PERCENTS:
            mask, _ = quantile_mask(relevance, brain, percent)
            np.testing.assert_array_equal(voxel_ranks(relevance, brain) < mask.sum(), mask[brain])


def test_random_masks_are_exact_and_even():
    """Of every pair of voxels: as often together as chance has it."""
    brain = np.arange(12).reshape(1, 3, 4) != 5
    images, planted = np.full((1, 1, 3, 4), 0.25), np.arange(12).reshape(1, 3, 4) < 4
    plan = plan_inversions(
        {"a": images}, {}, images, brain, percents=[100], reference=("a", "individual"), draws=6000,
        random=np.random.default_rng(0), planted=planted, controls=["random_planted"],
    )  # fmt: skip
    predicted = np.concatenate(list(plan.batches(1000)))
    masks = np.stack([_inverted(predicted[row["prediction"]], images)[0] for row in plan.rows])
    assert len(masks) == 6000
    assert (masks.sum(axis=(1, 2, 3)) == 4).all()
    assert not masks[:, ~brain].any()
    # pairs of voxels: 4 * 3 / (11 * 10) each, five standard errors
    inside = masks[:, brain].astype(float)
    together = inside.T @ inside / len(masks)
    expected = np.where(np.eye(11, dtype=bool), 4 / 11, 12 / 110)
    assert (np.abs(together - expected) < 5 * np.sqrt(expected * (1 - expected) / len(masks))).all()


def test_voxel_errors():
    brain = np.ones(4, bool)
    with pytest.raises(ValueError, match="NaN"):
        voxel_ranks(np.array([1.0, np.nan, 0.0, 0.0]), brain)
    with pytest.raises(ValueError, match="shape"):
        voxel_ranks(np.ones(3), brain)


@pytest.mark.parametrize("seed", range(20))
def test_shares_by_hand(seed):
    """Without a limit that binds: no share is a whole pair away from its quota, the total is exact."""
    random = np.random.default_rng(seed)
    weights = random.integers(0, 50, 4).tolist()
    weights[seed % 4] += 1
    pairs = int(random.integers(0, 200))
    shares = _shares(pairs, weights, 10**6)
    assert sum(shares) == pairs
    rests = [pairs * Fraction(w, sum(weights)) - s for w, s in zip(weights, shares, strict=True)]
    assert all(abs(rest) < 1 for rest in rests)
    given, kept = [r for r in rests if r < 0], [r for r in rests if r >= 0]
    # who got one more had a remainder of at least that of any who did not
    assert not given or min(r + 1 for r in given) >= max(kept, default=Fraction(0))


def test_shares_with_a_limit():
    assert _shares(10, [1, 1, 1], 10) == [4, 3, 3]
    assert _shares(10, [8, 1, 1], 5) == [5, 3, 2]
    assert _shares(10, [9, 1, 0], 5) == [5, 5, 0]
    assert _shares(12, [9, 1, 0], 5) == [5, 5, 2]
    assert _shares(5, [0, 0], 10) == [3, 2]
    assert _shares(0, [0, 0], 10) == [0, 0]


# ------------------------------------------------------------------------------------------------ a scan's inversions
def test_own_masks_are_the_quantile_masks():
    maps, combined, images, brain, _ = _scan()
    plan, predicted = _plan()
    seen = 0
    for row in plan.rows:
        if row["control"] != "own" or not row["top_percent"]:
            continue
        relevance = maps[row["method"]] if row["map"] == "individual" else [combined[row["method"]]] * 3
        masks = np.stack([quantile_mask(one, brain, row["top_percent"])[0] for one in relevance])
        np.testing.assert_array_equal(predicted[row["prediction"]], invert(images, masks, brain))
        assert row["pairs"] == masks.sum()
        assert row["share_of_brain"] == masks.sum() / (3 * brain.sum())
        seen += 1
    assert seen == 5 * len(PERCENTS)


@pytest.mark.parametrize("reference", [("a", "combined"), ("a", "individual"), ("c", "individual")])
def test_matched_areas(reference):
    maps, combined, images, brain, _ = _scan()
    plan, predicted = _plan(reference=reference)
    own = [row for row in plan.rows if (row["method"], row["map"], row["control"]) == (*reference, "own")]
    area = {row["top_percent"]: row["pairs"] for row in own}
    matched = [row for row in plan.rows if row["control"] == "matched"]
    assert len(matched) == 5 * (1 + len(PERCENTS))
    for row in matched:
        less = area[row["top_percent"]] - row["pairs"]
        inverted = _inverted(predicted[row["prediction"]], images)
        assert inverted.sum() == row["pairs"]
        assert not inverted[:, ~brain].any()
        if row["map"] == "combined":
            assert 0 <= less < 3
            np.testing.assert_array_equal(
                inverted, np.stack([top_voxels(combined[row["method"]], brain, row["pairs"] // 3)] * 3)
            )
        else:
            assert less == 0
            for mask, relevance in zip(inverted, maps[row["method"]], strict=True):
                np.testing.assert_array_equal(mask, top_voxels(relevance, brain, int(mask.sum())))
    same = [row["prediction"] for row in matched if (row["method"], row["map"]) == reference]
    assert same == [row["prediction"] for row in own]


def test_matched_masks_keep_their_own_proportions():
    """c's third map is negative everywhere: it gets nothing while the other two have room."""
    images = _scan()[2]
    plan, predicted = _plan(reference=("a", "individual"))
    for row in plan.rows:
        if (row["method"], row["control"], row["top_percent"]) == ("c", "matched", 40):
            sizes = _inverted(predicted[row["prediction"]], images).sum(axis=(1, 2, 3))
            assert sizes[2] == 0
            assert abs(int(sizes[0]) - int(sizes[1])) <= 1


@pytest.mark.parametrize("reference", [("a", "combined"), ("b", "individual")])
def test_random_masks_have_the_reference_sizes(reference):
    _, _, images, brain, planted = _scan()
    plan, predicted = _plan(reference=reference, draws=4)
    rows = [row for row in plan.rows if (row["method"], row["map"]) == reference]
    own = {row["top_percent"]: predicted[row["prediction"]] for row in rows if row["control"] == "own"}
    random = [row for row in rows if row["control"] == "random"]
    assert [(row["draw"], row["top_percent"]) for row in random] == [(d, n) for d in range(4) for n in (0, *PERCENTS)]
    smaller = np.zeros_like(images, bool)
    for row in random:
        inverted = _inverted(predicted[row["prediction"]], images)
        expected = _inverted(own[row["top_percent"]], images).sum(axis=(1, 2, 3))
        np.testing.assert_array_equal(inverted.sum(axis=(1, 2, 3)), expected)
        assert not inverted[:, ~brain].any()
        if reference[1] == "combined":
            assert (inverted == inverted[0]).all()
        # nested within a draw, of which N = 0 is the first
        assert (smaller <= inverted).all() or row["top_percent"] == 0
        smaller = inverted
    truth = [row for row in plan.rows if row["control"] == "planted"]
    assert [(row["method"], row["map"], row["top_percent"]) for row in truth] == [("planted", "combined", 100)]
    np.testing.assert_array_equal(predicted[truth[0]["prediction"]], invert(images, planted, brain))
    like = [row for row in plan.rows if row["control"] == "random_planted"]
    assert [row["pairs"] for row in like] == [3 * int((planted & brain).sum())] * 4
    assert len({row["prediction"] for row in like}) == 4


def test_matched_planted_is_every_scenarios_top_voxels_of_the_planted_size():
    maps, combined, images, brain, planted = _scan()
    plan, predicted = _plan()
    voxels = int((planted & brain).sum())
    rows = {(row["method"], row["map"]): row for row in plan.rows if row["control"] == "matched_planted"}
    assert len(rows) == 5
    for (method, use), row in rows.items():
        assert (row["top_percent"], row["draw"], row["pairs"]) == (100, 0, 3 * voxels)
        if use == "combined":
            sizes, found = [voxels] * 3, [combined[method]] * 3
        else:
            found = maps[method]
            positive = [int((one[brain] > 0).sum()) for one in found]  # the sizes of its own masks at N = 100
            quotas = [Fraction(3 * voxels * one, sum(positive)) for one in positive]
            assert max(quotas) < brain.sum(), "no limit binds in this scan"
            sizes = [int(quota) for quota in quotas]
            for i in sorted(range(3), key=lambda i: sizes[i] - quotas[i])[: 3 * voxels - sum(sizes)]:
                sizes[i] += 1
        masks = np.stack([top_voxels(one, brain, size) for one, size in zip(found, sizes, strict=True)])
        np.testing.assert_array_equal(predicted[row["prediction"]], invert(images, masks, brain))
    plan, _ = _plan(planted=None)
    assert {row["control"] for row in plan.rows} == {"own", "matched", "random"}
    # also where N = 100 is not among the percents
    few, images_of_few = _plan(percents=(10,), controls=("matched_planted",))
    for row in few.rows:
        same = rows[row["method"], row["map"]]["prediction"]
        np.testing.assert_array_equal(images_of_few[row["prediction"]], predicted[same])


def test_every_image_is_predicted_once():
    plan, predicted = _plan()
    _, _, images, _, _ = _scan()
    np.testing.assert_array_equal(predicted[0], images)
    assert len(predicted) == plan.predictions == len({one.tobytes() for one in predicted})
    assert {row["prediction"] for row in plan.rows} == set(range(plan.predictions))
    assert all((row["prediction"] == 0) == (row["pairs"] == 0) for row in plan.rows)
    assert plan.predictions < len(plan.rows)
    keys = [tuple(row[key] for key in ("method", "map", "control", "top_percent", "draw")) for row in plan.rows]
    assert len(set(keys)) == len(keys)


def test_batches_in_order():
    plan, predicted = _plan()
    for size in (1, 5, 1000):
        batches = list(plan.batches(size))
        assert max(len(batch) for batch in batches) <= size
        assert all(batch.dtype == np.float32 for batch in batches)
        np.testing.assert_array_equal(np.concatenate(batches), predicted)
        assert len(batches[0]) == 1, "the scan as it is has no neighbours"


def test_chance_comes_from_the_generator_alone():
    first, second = _plan()[1], _plan()[1]
    np.testing.assert_array_equal(first, second)
    few, images = _plan(controls=("random_planted",))
    last = few.rows[-1]
    plan, predicted = _plan()
    same = next(r for r in plan.rows if (r["control"], r["draw"]) == (last["control"], last["draw"]))
    np.testing.assert_array_equal(images[last["prediction"]], predicted[same["prediction"]])


def test_maps_without_positive_voxels_and_without_brain():
    maps, combined, images, brain, planted = _scan()
    maps["a"], combined["a"] = -np.abs(maps["a"]), -np.abs(combined["a"])
    options = {"percents": PERCENTS, "reference": ("a", "combined"), "draws": 2, "planted": planted}
    plan = plan_inversions(maps, combined, images, brain, random=np.random.default_rng(0), **options)
    assert {row["pairs"] for row in plan.rows if row["control"] in ("matched", "random")} == {0}
    options["reference"] = ("b", "combined")
    plan = plan_inversions(maps, combined, images, brain, random=np.random.default_rng(0), **options)
    area = {row["pairs"] for row in plan.rows if row["method"] == "b" and row["control"] == "matched"}
    assert {row["pairs"] for row in plan.rows if row["method"] == "a" and row["control"] == "matched"} <= area
    plan = plan_inversions(maps, combined, images, np.zeros_like(brain), random=np.random.default_rng(0), **options)
    assert plan.predictions == 1
    assert {row["share_of_brain"] for row in plan.rows} == {None}


def test_plan_errors():
    for wrong, message in (
        ({"reference": ("z", "combined")}, "not among the scenarios"),
        ({"controls": ("own", "owl")}, r"unknown controls \['owl'\]"),
        ({"percents": (0, 10)}, "top_percent"),
        ({"planted": np.ones(3, bool)}, "planted region"),
    ):
        with pytest.raises(ValueError, match=message):
            _plan(**wrong)
    maps, combined, images, brain, _ = _scan()
    maps["a"] = maps["a"][:2]
    options = {"percents": PERCENTS, "reference": ("b", "combined"), "draws": 2}
    with pytest.raises(ValueError, match="maps of a"):
        plan_inversions(maps, combined, images, brain, random=np.random.default_rng(0), **options)
    maps = _scan()[0]
    for wrong in (images + 0.5, -images, np.where(brain, images, np.nan)):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            plan_inversions(maps, combined, wrong, brain, random=np.random.default_rng(0), **options)
    with pytest.raises(ValueError, match="do not fit"):
        plan_inversions(maps, combined, images, brain[1:], random=np.random.default_rng(0), **options)


def test_a_smooth_scan_has_fewer_images_than_rows():
    """Not a benchmark: that matched masks of the reference and empty masks cost nothing."""
    random = np.random.default_rng(3)
    maps = {name: ndimage.gaussian_filter(random.normal(size=(3, 9, 9, 9)), (0, 2, 2, 2)) for name in "ab"}
    images, brain = random.random((3, 9, 9, 9)), np.ones((9, 9, 9), bool)
    combined = {name: one.sum(axis=0) for name, one in maps.items()}
    options = {"percents": range(10, 101, 10), "reference": ("a", "combined"), "draws": 2}
    plan = plan_inversions(maps, combined, images, brain, random=np.random.default_rng(0), **options)
    assert len(plan.rows) == 4 * 2 * 11 + 2 * 11
    assert plan.predictions <= 1 + 4 * 10 + 3 * 10 + 2 * 10
