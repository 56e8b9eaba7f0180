"""Measures of classes against scikit-learn, plain loops and the published confusion matrices."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy.special import softmax
from sklearn import metrics

from relevance_assets.statistics.class_scores import class_scores, confusion
from relevance_assets.statistics.scores import score

NAMES = ["meningioma", "glioma", "pituitary"]
# LRP-model-investigation, four regimes: rows are true classes; accuracy and recalls as printed there
PUBLISHED = [
    ([[92, 5, 2], [24, 200, 2], [3, 0, 132]], 0.9217, (0.93, 0.88, 0.98)),
    ([[97, 4, 1], [19, 208, 2], [5, 3, 121]], 0.9261, (0.95, 0.91, 0.94)),
    ([[81, 26, 3], [7, 188, 0], [1, 5, 149]], 0.9087, (0.74, 0.96, 0.96)),
    ([[107, 4, 7], [3, 204, 0], [0, 0, 135]], 0.9696, (0.91, 0.99, 1.00)),
]


def values(frame: pl.DataFrame) -> dict[tuple[str, str | None], float | None]:
    return {(metric, name): value for metric, name, value in frame.select("metric", "class", "value").rows()}


def predictions(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    target = random.choice(3, n, p=[0.2, 0.5, 0.3])
    return target, np.round(2 * random.normal(size=(n, 3)) + 2 * np.eye(3)[target], 1)


@pytest.mark.parametrize("seed", range(4))
def test_measures_are_those_of_scikit_learn(seed: int) -> None:
    target, output = predictions(80, seed)
    said, chances = output.argmax(axis=1), softmax(output, axis=1)
    expected: dict[tuple[str, str | None], float] = {
        ("accuracy", None): metrics.accuracy_score(target, said),
        ("balanced_accuracy", None): metrics.balanced_accuracy_score(target, said),
        ("macro_f1", None): metrics.f1_score(target, said, average="macro"),
        ("macro_auc", None): metrics.roc_auc_score(target, chances, multi_class="ovr"),
    }
    for place, name in enumerate(NAMES):
        of = {"labels": [place], "average": None}
        expected[("recall", name)] = metrics.recall_score(target, said, **of)[0]
        expected[("precision", name)] = metrics.precision_score(target, said, **of)[0]
        expected[("f1", name)] = metrics.f1_score(target, said, **of)[0]
        expected[("auc", name)] = metrics.roc_auc_score(target == place, chances[:, place])
    assert values(class_scores(target, output, NAMES, bootstrap=10)) == pytest.approx(expected, abs=1e-12)
    table = confusion(target, output, NAMES)
    np.testing.assert_array_equal(table["count"].to_numpy().reshape(3, 3), metrics.confusion_matrix(target, said))
    assert table["true"].to_list()[:3] == ["meningioma"] * 3
    assert table["predicted"].to_list()[:3] == NAMES


@pytest.mark.parametrize(("rows", "accuracy", "recalls"), PUBLISHED)
def test_published_confusion_matrices_give_the_published_accuracies(
    rows: list[list[int]], accuracy: float, recalls: tuple[float, ...]
) -> None:
    pairs = [(true, said) for true in range(3) for said in range(3) for _ in range(rows[true][said])]
    target, output = np.array([true for true, _ in pairs]), np.eye(3)[[said for _, said in pairs]]
    assert confusion(target, output, NAMES)["count"].to_list() == [count for row in rows for count in row]
    found = values(class_scores(target, output, NAMES, bootstrap=10))
    assert found["accuracy", None] == pytest.approx(accuracy, abs=5e-5)
    assert [found["recall", name] for name in NAMES] == pytest.approx(recalls, abs=0.005)
    assert found["balanced_accuracy", None] == pytest.approx(np.mean([r[i] / sum(r) for i, r in enumerate(rows)]))


def test_the_interval_is_that_of_copied_people() -> None:
    """Percentiles over resamples made by copying rows, with measures of scikit-learn; people bring all their images."""
    target, output = predictions(40, 5)
    people = [f"p{i // 2}" for i in range(40)]
    frame = class_scores(target, output, NAMES, participants=people, bootstrap=300, seed=3)
    drawn = np.random.default_rng(3).multinomial(20, np.full(20, 1 / 20), size=300)
    found = []
    for counts in drawn:
        rows = np.repeat(np.arange(40), np.repeat(counts, 2))
        if len(np.unique(target[rows])) == 3:
            found.append(metrics.balanced_accuracy_score(target[rows], output[rows].argmax(axis=1)))
    row = frame.row(by_predicate=pl.col("metric") == "balanced_accuracy", named=True)
    assert row["resamples"] == len(found)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(np.quantile(found, [0.025, 0.975]))


def test_two_classes_are_as_one_logit() -> None:
    random = np.random.default_rng(1)
    target, logit = random.integers(0, 2, 50), random.normal(size=50)
    output = np.stack([np.zeros(50), logit], axis=1)
    one = dict(score(target, logit, kind="binary", bootstrap=50).select("metric", "value").rows())
    two = values(class_scores(target, output, ["no", "yes"], bootstrap=50))
    assert two["auc", "yes"] == pytest.approx(one["auc"])
    assert two["recall", "yes"] == one["sensitivity"]
    assert two["recall", "no"] == one["specificity"]
    assert two["accuracy", None] == one["accuracy"]


def test_what_is_undefined_is_null() -> None:
    target = np.array([0, 0, 1, 1])
    output = np.eye(3)[[0, 1, 1, 1]]
    frame = class_scores(target, output, NAMES, bootstrap=100)
    found = values(frame)
    assert found["accuracy", None] == 0.75
    undefined = {key for key, value in found.items() if value is None}
    of_absent = {(metric, "pituitary") for metric in ("recall", "precision", "f1", "auc")}
    assert undefined == of_absent | {(metric, None) for metric in ("balanced_accuracy", "macro_f1", "macro_auc")}
    assert frame.filter(pl.col("value").is_null())["ci_low"].null_count() == 7
    assert frame.filter(pl.col("class") == "meningioma")["n"].to_list() == [2] * 4
    # drawn without a meningioma, its recall is undefined: those resamples do not count
    assert 0 < frame.row(by_predicate=(pl.col("metric") == "recall") & (pl.col("class") == "meningioma"))[-1] < 100
    never = values(class_scores(np.array([0, 1, 2]), np.eye(3)[[0, 0, 2]], NAMES, bootstrap=10))
    assert (never["precision", "glioma"], never["recall", "glioma"], never["f1", "glioma"]) == (None, 0, 0)
    nobody = class_scores(np.zeros(0), np.zeros((0, 3)), NAMES, bootstrap=10)
    assert nobody["value"].null_count() == nobody.height == 16
    assert confusion(np.zeros(0), np.zeros((0, 3)), NAMES)["count"].sum() == 0


def test_ties_go_to_the_first_class_and_count_half() -> None:
    found = values(class_scores(np.array([0, 1, 2]), np.zeros((3, 3)), NAMES, bootstrap=10))
    assert [found["recall", name] for name in NAMES] == [1, 0, 0]
    assert [found["auc", name] for name in NAMES] == [0.5] * 3


def test_certainty_does_not_round_off_the_order() -> None:
    """Two probabilities that are both 1 in float64 are still in order."""
    output = np.array([[100.0, 0, 0], [50, 0, 0], [60, 0, 0]])
    assert values(class_scores(np.array([0, 1, 2]), output, NAMES, bootstrap=10))["auc", "meningioma"] == 1


@pytest.mark.parametrize(
    ("target", "output", "message"),
    [
        ([0, 1], np.zeros((2, 2)), r"\(2,\) targets and \(2, 2\) outputs of 3 classes"),
        ([0, 3], np.zeros((2, 3)), "targets must be 0 to 2, not 3"),
        ([0, 0.5], np.zeros((2, 3)), "targets must be 0 to 2, not 0.5"),
        ([0, 1], np.full((2, 3), np.nan), "an output is not finite"),
    ],
)
def test_what_is_no_prediction_is_refused(target: list, output: np.ndarray, message: str) -> None:
    for measure in (class_scores, confusion):
        with pytest.raises(ValueError, match=message):
            measure(np.array(target), output, NAMES)
