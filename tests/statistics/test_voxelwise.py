"""The voxelwise test against scipy and permutation by plain loops, planted effects, and no effect."""

import itertools

import numpy as np
import pytest
from scipy import ndimage, stats

from relevance_assets.statistics.voxelwise import voxelwise_groups


def cohort(n=12, voxels=5, seed=0):
    random = np.random.default_rng(seed)
    group = np.arange(n) % 2 == 0
    return random.normal(size=(n, voxels)), group


def test_t_is_the_two_sample_t():
    values, group = cohort()
    found = voxelwise_groups(values, group, permutations=50, seed=0)
    np.testing.assert_allclose(found.t, stats.ttest_ind(values[group], values[~group]).statistic, rtol=1e-9)
    assert (found.n_group, found.n_other, found.voxels_tested) == (6, 6, 5)
    assert found.tfce is None
    assert found.logp_tfce is None


def test_p_against_all_permutations():
    """8 people, 70 ways to draw the group: the exact share of ways whose max |t| is as large."""
    values, _ = cohort(8, 4, 3)
    group = np.arange(8) < 4
    values[group, 0] += 2.5
    sizes = np.abs(stats.ttest_ind(values[group], values[~group]).statistic)
    greatest = []
    for drawn in itertools.combinations(range(8), 4):
        who = np.isin(np.arange(8), drawn)
        greatest.append(np.abs(stats.ttest_ind(values[who], values[~who]).statistic).max())
    exact = [(np.array(greatest) >= size - 1e-9).mean() for size in sizes]
    permutations = 4000
    found = 10 ** -voxelwise_groups(values, group, permutations=permutations, seed=0).logp
    for p, expected in zip(found, exact, strict=True):
        assert abs(p - expected) < 4 * np.sqrt(expected * (1 - expected) / permutations) + 1 / permutations


def test_masks_tie_and_ties_count():
    """One voxel, 4 of 8 people marked, all in the group: 2 of 70 ways are as extreme."""
    group = np.arange(8) < 4
    values = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0, 0]], bool).T
    p = 10 ** -voxelwise_groups(values[:, 1:], group, permutations=20000, seed=0).logp
    exact = (2 + 2 * 16) / 70  # |t| is the same for 3 + 1 and 1 + 3, larger for 4 + 0
    assert p[0] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20000))
    both = voxelwise_groups(values, group, permutations=200, seed=0)
    assert np.isposinf(both.t[0])
    assert np.isneginf(voxelwise_groups(~values, group, permutations=200, seed=0).t[0])


def test_complete_separation_is_the_most_significant():
    group = np.arange(30) < 12
    values = np.column_stack([group, np.random.default_rng(0).random((30, 40)) < 0.4])
    found = voxelwise_groups(values, group, permutations=500, seed=0)
    assert found.logp[0] == pytest.approx(np.log10(501))
    assert np.isposinf(found.t[0])


def test_voxels_without_variation_are_not_tested():
    values, group = cohort()
    with_constant = np.column_stack([values, np.zeros(12), np.ones(12)])
    plain = voxelwise_groups(values, group, permutations=100, seed=0)
    found = voxelwise_groups(with_constant, group, permutations=100, seed=0)
    np.testing.assert_array_equal(found.t, [*plain.t, 0, 0])
    np.testing.assert_array_equal(found.logp, [*plain.logp, 0, 0])
    assert found.voxels_tested == 5
    nothing = voxelwise_groups(np.zeros((12, 3), bool), group, permutations=100, seed=0)
    assert (nothing.t.tolist(), nothing.logp.tolist(), nothing.voxels_tested) == ([0] * 3, [0] * 3, 0)
    none = voxelwise_groups(np.zeros((12, 0)), group, permutations=100, seed=0)
    assert len(none.t) == 0


def test_same_seed_same_result():
    values, group = cohort()
    a, b, c = (voxelwise_groups(values, group, permutations=200, seed=seed).logp for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def planted(random, n, effect):
    """Masks of 400 voxels; the first 20 are marked more often in the group."""
    group = np.arange(n) < n // 3
    rate = np.full((n, 400), 0.3)
    rate[group, :20] += effect
    return random.random((n, 400)) < rate, group


def test_a_planted_difference_is_found():
    values, group = planted(np.random.default_rng(0), 90, 0.6)
    found = voxelwise_groups(values, group, permutations=500, seed=0)
    significant = found.logp > -np.log10(0.05)
    assert significant[:20].mean() > 0.8
    assert significant[20:].sum() <= 2
    assert (found.t[:20] > 0).all()


def test_family_wise_error_without_effect():
    """200 cohorts, alpha 0.1: the number with any finding lies in the binomial 99 % interval."""
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values, group = planted(random, 30, 0.0)
        found = voxelwise_groups(values[:, :50], group, permutations=99, seed=seed)
        hits += bool((10**-found.logp <= 0.1 + 1e-12).any())
    low, high = stats.binom.interval(0.99, 200, 0.1)
    assert low <= hits <= high


def tfce_by_loop(t):
    """Extent and height of the cluster around every voxel, summed over 100 heights, for each sign."""
    out = np.zeros(t.shape)
    for sign in (1, -1):
        for height in np.linspace(0, np.abs(t).max(), 101)[1:]:
            labels, count = ndimage.label(sign * t >= height)
            for label in range(1, count + 1):
                out[labels == label] += sign * (labels == label).sum() ** 0.5 * height**2
    return out


def test_tfce_by_loop():
    random = np.random.default_rng(0)
    brain = random.random((5, 6, 4)) < 0.7
    group = np.arange(16) < 8
    values = random.normal(size=(16, int(brain.sum())))
    values[:, 3] = 1.0  # does not vary, so it joins no cluster
    found = voxelwise_groups(values, group, permutations=20, seed=0, tfce=True, brain=brain)
    volume = np.zeros(brain.shape)
    volume[brain] = found.t
    np.testing.assert_allclose(found.tfce, tfce_by_loop(volume)[brain], rtol=1e-9, atol=1e-9)
    assert found.logp_tfce.max() <= np.log10(21) + 1e-9
    assert found.logp_tfce[3] == found.tfce[3] == 0


def test_tfce_finds_a_wide_weak_effect():
    random = np.random.default_rng(2)
    brain = np.ones((8, 8, 8), bool)
    group = np.arange(24) < 12
    values = ndimage.gaussian_filter(random.normal(size=(24, 8, 8, 8)), (0, 1, 1, 1))
    values[group, :4] += 0.6 * values.std()
    found = voxelwise_groups(values.reshape(24, -1), group, permutations=60, seed=0, tfce=True, brain=brain)
    volume = found.logp_tfce.reshape(brain.shape)
    assert (volume[:4] > -np.log10(0.05)).mean() > (found.logp.reshape(brain.shape)[:4] > -np.log10(0.05)).mean()
    assert (volume[:4] > -np.log10(0.05)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros((11, 5))}, "one row per person"),
        ({"values": np.full((12, 5), np.nan)}, "values hold NaN"),
        ({"group": np.arange(12) == 0}, "groups of 1 and 11 people"),
        ({"group": np.zeros(12, bool)}, "groups of 0 and 12 people"),
        ({"tfce": True}, "TFCE needs the brain mask"),
        ({"tfce": True, "brain": np.ones((3, 2, 1), bool)}, "TFCE needs the brain mask whose 5 voxels"),
    ],
)
def test_errors(change, message):
    values, group = cohort()
    given = {"values": values, "group": group, "permutations": 10, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        voxelwise_groups(given.pop("values"), given.pop("group"), **given)


def test_tfce_refuses_an_infinite_t():
    group = np.arange(12) < 6
    with pytest.raises(ValueError, match="separates the groups completely"):
        voxelwise_groups(
            np.column_stack([group, ~group]), group, permutations=5, seed=0, tfce=True, brain=np.ones((2, 1, 1), bool)
        )
