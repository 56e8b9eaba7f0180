"""Measures against scikit-learn and plain loops, intervals against resampling by copying."""

import numpy as np
import pytest
from sklearn import metrics

from relevance_assets.statistics.scores import METRICS, score


def values(*args: np.ndarray, **options) -> dict[str, float | None]:
    frame = score(*args, **{"bootstrap": 200, **options})
    return dict(frame.select("metric", "value").rows())


def predictions(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    target = (random.random(n) < 0.4).astype(float)
    return target, np.round(random.normal(size=n) + target, 1)


@pytest.mark.parametrize("seed", range(5))
def test_binary_measures_are_those_of_scikit_learn(seed: int) -> None:
    target, output = predictions(60, seed)
    called = output >= 0
    assert values(target, output, kind="binary") == pytest.approx(
        {
            "auc": metrics.roc_auc_score(target, output),
            "accuracy": metrics.accuracy_score(target, called),
            "balanced_accuracy": metrics.balanced_accuracy_score(target, called),
            "sensitivity": metrics.recall_score(target, called),
            "specificity": metrics.recall_score(1 - target, ~called),
        }
    )


def test_auc_counts_pairs_and_ties_half() -> None:
    target, output = predictions(40, 9)
    pairs = [
        (a > b) + 0.5 * (a == b) for a in output[target == 1] for b in output[target == 0]
    ]  # fmt: skip
    assert any(p == 0.5 for p in pairs)
    assert values(target, output, kind="binary")["auc"] == pytest.approx(np.mean(pairs), abs=1e-12)
    assert values(target, np.full(40, 0.3), kind="binary")["auc"] == 0.5


def test_regression_measures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    age = random.uniform(20, 80, 50)
    said = 0.7 * age + random.normal(size=50) * 8
    assert values(age, said, kind="regression") == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(age, said),
            "rmse": metrics.root_mean_squared_error(age, said),
            "r": np.corrcoef(age, said)[0, 1],
            "r2": metrics.r2_score(age, said),
        }
    )


def test_what_is_undefined_is_null() -> None:
    ones = score(np.ones(5), np.arange(5.0), kind="binary", bootstrap=100)
    assert ones.filter(ones["metric"] == "accuracy")["value"].item() == 1.0
    undefined = ones.filter(ones["value"].is_null())
    assert undefined["metric"].to_list() == ["auc", "balanced_accuracy", "specificity"]
    assert undefined["resamples"].to_list() == [0, 0, 0]
    assert undefined["ci_low"].null_count() == 3
    flat = values(np.array([50.1, 60.2, 70.3]), np.full(3, 60.2), kind="regression")
    assert flat["r"] is None
    assert flat["r2"] == pytest.approx(0)
    same = values(np.full(3, 50.1), np.array([1.0, 2, 3]), kind="regression")
    assert same["r"] is None
    assert same["r2"] is None
    nobody = score(np.array([]), np.array([]), kind="binary", bootstrap=100)
    assert nobody["value"].null_count() == 5
    assert nobody["n"].to_list() == [0] * 5


def test_resamples_without_both_classes_are_left_out_and_counted() -> None:
    target = np.array([1.0, 0, 0, 0])
    frame = score(target, np.arange(4.0), kind="binary", bootstrap=20_000)
    used = dict(frame.select("metric", "resamples").rows())
    without = 0.75**4 + 0.25**4
    assert used["auc"] == pytest.approx(20_000 * (1 - without), rel=0.03)
    assert used["sensitivity"] == pytest.approx(20_000 * (1 - 0.75**4), rel=0.03)
    assert used["accuracy"] == 20_000


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_the_interval_draws_people_with_all_their_scans(kind: str) -> None:
    random = np.random.default_rng(3)
    of_person = np.repeat(random.normal(size=15), 3)
    people = np.repeat(np.arange(15), 3)
    output = of_person + 0.1 * random.normal(size=45)
    truth = of_person + np.repeat(random.normal(size=15), 3)
    target = (truth > 0).astype(float) if kind == "binary" else truth
    frame = score(target, output, kind=kind, participants=people, bootstrap=4000, confidence=0.9)
    drawn: dict[str, list] = {name: [] for name in METRICS[kind]}
    for _ in range(800):
        rows = np.concatenate([np.flatnonzero(people == p) for p in random.integers(0, 15, 15)])
        t, o = target[rows], output[rows]
        if kind == "regression":
            drawn["mae"].append(metrics.mean_absolute_error(t, o))
            drawn["rmse"].append(metrics.root_mean_squared_error(t, o))
            drawn["r"].append(np.corrcoef(t, o)[0, 1])
            drawn["r2"].append(metrics.r2_score(t, o))
        elif 0 < t.mean() < 1:
            drawn["auc"].append(metrics.roc_auc_score(t, o))
            drawn["accuracy"].append(((o >= 0) == t).mean())
            drawn["sensitivity"].append((o[t == 1] >= 0).mean())
            drawn["specificity"].append((o[t == 0] < 0).mean())
            drawn["balanced_accuracy"].append((drawn["sensitivity"][-1] + drawn["specificity"][-1]) / 2)
    for row in frame.iter_rows(named=True):
        expected = np.quantile(drawn[row["metric"]], [0.05, 0.95])
        assert [row["ci_low"], row["ci_high"]] == pytest.approx(expected, abs=0.12), row["metric"]
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
    # as if scans were people, the interval would be too narrow
    naive = score(target, output, kind=kind, bootstrap=4000, confidence=0.9)
    assert (frame["ci_high"] - frame["ci_low"]).sum() > 1.2 * (naive["ci_high"] - naive["ci_low"]).sum()


def test_same_seed_same_bits() -> None:
    target, output = predictions(30, 1)
    a = score(target, output, kind="binary", seed=5)
    assert a.equals(score(target, output, kind="binary", seed=5))
    assert not a.equals(score(target, output, kind="binary", seed=6))


@pytest.mark.parametrize(
    ("target", "output", "kind", "words"),
    [
        ([0, 1, 2], [0, 0, 0], "binary", "must be 0 or 1"),
        ([0, 1], [0, 0, 0], "binary", "targets and"),
        ([0, 1], [0, np.nan], "binary", "not finite"),
        ([np.inf, 1], [0, 1], "regression", "not finite"),
    ],
)
def test_wrong_input_is_refused(target: list, output: list, kind: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score(np.array(target), np.array(output), kind=kind)
