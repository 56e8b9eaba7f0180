"""Labels of other people: how they are dealt out, the null of an AUC, and verdicts that can fail."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from relevance_assets.evidence.permutation import auc, auc_null, permuted, permuted_auc, permuted_localisation
from relevance_assets.training.data import Samples

PEOPLE = ["a", "a", "b", "c", "c", "d", "e", "f", "f", "f", "g", "g"]


def labelled():
    n = len(PEOPLE)
    return Samples(
        tuple(f"sub-{i}" for i in range(n)),
        ((),) * n,
        np.arange(n)[:, None],
        np.array([1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1]),
        10 + np.arange(n),
    )


def dealt(samples, seed):
    found = permuted([samples], [PEOPLE], seed)
    assert found is not None
    return found


def test_people_exchange_labels_and_weights():
    samples = labelled()
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(720):
        (other,) = dealt(samples, seed)
        assert (other.scans, other.images) == (samples.scans, samples.images)
        np.testing.assert_array_equal(other.covariates, samples.covariates)
        origin = (other.weights - 10).astype(int)  # each weight tells whose it was
        np.testing.assert_array_equal(other.targets, samples.targets[origin])
        assert sorted(origin) == list(range(len(PEOPLE)))
        assert Counter(PEOPLE[i] for i in origin) == Counter(PEOPLE)
        for person in "acg":  # a whole person's labels, in order
            mine = [origin[i] for i, name in enumerate(PEOPLE) if name == person]
            assert len({PEOPLE[i] for i in mine}) == 1
            assert mine == sorted(mine)
        assert origin[7:10].tolist() == [7, 8, 9]  # nobody else has three scans
        seen[tuple(origin)] += 1
    assert len(seen) == 36  # 3! orders of those with two scans, 3! of those with one, each as often
    assert stats.chisquare(list(seen.values())).pvalue > 0.001
    np.testing.assert_array_equal(dealt(samples, 3)[0].weights, dealt(samples, 3)[0].weights)
    with pytest.raises(ValueError, match="1 people for 12 scans"):
        permuted([samples], [["a"]], 0)


def part(samples, rows):
    of = (samples.covariates, samples.targets, samples.weights)
    return Samples(tuple(samples.scans[row] for row in rows), ((),) * len(rows), *(values[rows] for values in of))


def test_sets_exchange_labels_with_each_other():
    """Person c lies in both sets: what is learnt of him in one is true in the other."""
    samples, rows = labelled(), ([0, 1, 2, 3, 5], [4, 6, 7, 8, 9, 10, 11])
    sets, people = [part(samples, each) for each in rows], [[PEOPLE[row] for row in each] for each in rows]
    place = np.concatenate(rows)
    crossed = 0
    for seed in range(50):
        found = permuted(sets, people, seed)
        assert found is not None
        assert [one.scans for one in found] == [one.scans for one in sets]
        assert all(len(np.unique(one.targets)) == 2 for one in found)
        origin = np.concatenate([one.weights - 10 for one in found]).astype(int)
        np.testing.assert_array_equal(np.concatenate([one.targets for one in found]), samples.targets[origin])
        assert sorted(origin) == list(range(len(PEOPLE)))
        block = [o for o, row in zip(origin, place, strict=True) if PEOPLE[row] == "c"]
        assert len({PEOPLE[o] for o in block}) == 1
        crossed += len(set(origin[:5]) - set(rows[0]))
    assert crossed > 0


def test_sets_that_cannot_have_both_classes():
    samples = labelled()
    assert permuted([part(samples, [0]), part(samples, [3, 2])], [["a"], ["c", "b"]], 0) is None


def test_auc_counts_pairs():
    random = np.random.default_rng(0)
    outputs, targets = random.normal(size=30).round(1), random.random(30) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(outputs[targets], outputs[~targets])]
    assert auc(outputs, targets) == pytest.approx(np.mean(pairs), abs=1e-15)
    for bad in (np.ones(30), np.arange(30)):
        with pytest.raises(ValueError, match="both must occur"):
            auc(outputs, bad)


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_null_is_mann_whitneys(shift):
    random = np.random.default_rng(1)
    outputs, targets = random.normal(size=24), np.arange(24) % 3 == 0
    outputs[targets] += shift
    low, high, p = auc_null(outputs, targets, draws=4000)
    exact = stats.mannwhitneyu(outputs[targets], outputs[~targets], method="exact")
    assert auc(outputs, targets) == exact.statistic / (8 * 16)
    assert p == pytest.approx(exact.pvalue, abs=4 * (exact.pvalue / 4000) ** 0.5 + 0.001)
    normal = 1.96 * ((8 + 16 + 1) / (12 * 8 * 16)) ** 0.5
    assert (low, high) == (pytest.approx(0.5 - normal, abs=0.03), pytest.approx(0.5 + normal, abs=0.03))


def test_null_is_wider_where_people_have_several_scans():
    random = np.random.default_rng(2)
    outputs, targets = np.repeat(random.normal(size=20), 5), np.repeat(np.arange(20) % 2, 5)
    alone, together = auc_null(outputs, targets), auc_null(outputs, targets, np.repeat(np.arange(20), 5).tolist())
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])  # sqrt(5) = 2.2


# ---------------------------------------------------------------------------------------- pipelines, many times
TRAIN, TEST = 60, 30


def trained(seed, *, noise, leak=False):
    """A linear network on people's features; labels dealt out anew. Returns it and the sets.

    Three features differ by 1.5 SD between the true classes, `noise` features do not. With more features than
    people the network learns its labels by heart. With `leak` it has also learnt the test scans.
    """
    random = np.random.default_rng(seed)
    truth = np.arange(TRAIN + TEST) % 2
    features = random.normal(size=(TRAIN + TEST, 3 + noise))
    features[:, :3] += 1.5 * truth[:, None]
    features -= features.mean(axis=0)
    rows = np.split(np.arange(TRAIN + TEST), [TRAIN])
    if leak:
        rows[0] = np.arange(TRAIN + TEST)
    sets = [
        Samples(tuple(map(str, each)), ((),) * len(each), features[each], truth[each], np.ones(len(each)))
        for each in rows
    ]
    found = permuted(sets, [one.scans for one in sets], seed)
    assert found is not None
    x, y = found[0].covariates.astype(float), found[0].targets - found[0].targets.mean()
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    return (lambda one: one.covariates @ weights), found, truth[rows[1]]


@pytest.mark.parametrize("noise", [0, 200])
def test_honest_pipelines_fail_as_often_as_they_may(noise):
    """Against the labels that were dealt out. Against the true ones, three good features fail many times as often."""
    trials, failed, failed_truth = (400 if noise == 0 else 200), 0, 0
    for seed in range(trials):
        network, (train, test), truth = trained(seed, noise=noise)
        learnt = auc(network(train), train.targets) if noise else 1.0  # three numbers cannot hold 60 labels
        failed += permuted_auc(network(test), test.targets, learnt, test.scans).passed is False
        failed_truth += auc_null(network(test), truth, test.scans, draws=500)[2] <= 0.05
    low, high = stats.binom.interval(0.999, trials, 0.05)
    assert low <= failed <= high
    if noise == 0:
        assert failed_truth > 0.3 * trials


def test_pipelines_that_have_seen_the_answers_fail():
    for seed in range(50):
        network, (train, test), _ = trained(seed, noise=200, leak=True)
        verdict = permuted_auc(network(test), test.targets, auc(network(train), train.targets), test.scans)
        assert (verdict.passed, verdict.passes_if, verdict.threshold) == (False, "above", 0.05)
        assert verdict.value == pytest.approx(1 / 2001)


# ------------------------------------------------------------------------------------------------------- verdicts
def test_a_network_that_knows_the_labels_fails():
    random, targets = np.random.default_rng(3), np.arange(40) % 2
    noise = random.normal(size=40)
    assert permuted_auc(noise, targets, 1.0).passed
    assert permuted_auc(noise + 2 * targets, targets, 1.0).passed is False
    assert permuted_auc(noise - 2 * targets, targets, 1.0).passed is False  # the wrong way round
    assert permuted_auc(noise + 2 * targets, targets, 0.5).passed is False


def test_where_no_leak_would_show_nothing_is_tested():
    noise, targets = np.random.default_rng(3).normal(size=40), np.arange(40) % 2
    verdict = permuted_auc(noise, targets, 0.89)  # has not learnt its own labels
    assert verdict.passed is None
    assert "a leak would not show" in verdict.note
    few = permuted_auc([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1], 1.0)  # of six orders two are as far from 0.5
    assert (few.passed, few.n) == (None, 4)
    assert "too few people" in few.note
    assert permuted_auc(noise, targets, 1.0, ["a"] * 40).passed is None


def test_maps_must_look_at_what_was_learnt():
    random = np.random.default_rng(4)
    same = 3 + random.normal(size=12)
    found = permuted_localisation(same + 1 + 0.3 * random.normal(size=12), same)
    assert (found.test, found.passed, found.n, found.passes_if) == ("permuted_localisation", True, 12, "above")
    assert found.value == pytest.approx(1, abs=0.3)
    assert permuted_localisation(same, same).passed is False  # finds the region in the image
    assert permuted_localisation(same, same + 1).passed is False
    assert permuted_localisation(same + random.normal(size=12), same).passed is False
    assert permuted_localisation([None] * 3, [1.0] * 3).passed is None
    assert permuted_localisation([2.0, 2.5], [1.0, 1.0], ["a", "a"]).passed is None
