"""Losses and metrics against their formulas written out in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight

from relevance_assets.training import losses


@pytest.mark.parametrize(("edss", "weight"), [(0, 1), (2.5, 1.5), (5, 2), (6, 1.8), (10, 1)])
def test_edss_weight_is_the_studys(edss: float, weight: float) -> None:
    assert losses.edss_weight(edss) == pytest.approx(weight)
    assert losses.edss_weight(np.array([edss]))[0] == pytest.approx(weight)


def test_binary_loss_is_weighted_cross_entropy() -> None:
    logits, targets, weights = (
        np.array([-2.0, 0.5, 3.0]),
        np.array([0.0, 1.0, 0.0]),
        np.array([1.0, 2.0, 0.5]),
    )
    p = 1 / (1 + np.exp(-logits))
    expected = np.mean(weights * -(targets * np.log(p) + (1 - targets) * np.log(1 - p)))
    found = losses.loss(*map(torch.from_numpy, (logits, targets, weights)), "binary")
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_regression_loss_is_weighted_squared_error() -> None:
    outputs, targets, weights = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.5])
    assert losses.loss(outputs, targets, weights, "regression").item() == pytest.approx((1 + 4.5) / 2)


def test_loss_does_not_overflow() -> None:
    extreme = losses.loss(torch.tensor([1e4]), torch.tensor([0.0]), torch.ones(1), "binary")
    assert extreme.item() == pytest.approx(1e4)


def test_auc_counts_pairs_and_halves_ties() -> None:
    random = np.random.default_rng(0)
    outputs, targets = random.integers(0, 6, 30).astype(float), random.integers(0, 2, 30)
    pairs = itertools.product(outputs[targets == 1], outputs[targets == 0])
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
    assert losses.metric(outputs, targets, "binary") == pytest.approx(np.mean(wins))


def test_mae() -> None:
    assert losses.metric(np.array([1.0, 4.0]), np.array([2.0, 2.0]), "regression") == 1.5


def test_ranks_prefer_higher_auc_lower_error_and_break_ties_by_loss() -> None:
    assert losses.rank("auc", 9.0, 0.8) < losses.rank("auc", 0.1, 0.7)
    assert losses.rank("auc", 0.1, 0.8) < losses.rank("auc", 0.2, 0.8)
    assert losses.rank("mae", 9.0, 3.0) < losses.rank("mae", 1.0, 4.0)
    assert losses.rank("loss", 1.0, 9.0) < losses.rank("loss", 2.0, 1.0)


def test_loss_of_classes_is_weighted_cross_entropy() -> None:
    random = np.random.default_rng(0)
    logits, targets, weights = random.normal(size=(5, 3)), np.array([0.0, 2, 1, 2, 0]), random.random(5)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.mean([-weights[i] * np.log(p[i, int(targets[i])]) for i in range(5)])
    found = losses.loss(*map(torch.from_numpy, (logits, targets, weights)), "classes")
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_class_weights_are_scikit_learns() -> None:
    targets = np.array([0.0, 1, 1, 1, 2, 2, 0, 1])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(losses.class_weights(targets), expected)
    assert losses.class_weights(targets)[targets.astype(int)].mean() == pytest.approx(1)


def test_accuracy_and_balanced_accuracy_are_scikit_learns() -> None:
    random = np.random.default_rng(0)
    outputs, targets = random.normal(size=(30, 3)), random.choice(3, 30, p=[0.6, 0.3, 0.1]).astype(np.float32)
    said = outputs.argmax(axis=1)
    balanced = metrics.balanced_accuracy_score(targets, said)
    for monitor in ("balanced_accuracy", "loss", "last"):
        assert losses.metric(outputs, targets, "classes", monitor) == pytest.approx(balanced)
    assert losses.metric(outputs, targets, "classes", "accuracy") == pytest.approx(
        metrics.accuracy_score(targets, said)
    )
    two = targets != 2  # a class that is not there has no part in the mean
    assert losses.metric(outputs[two], targets[two], "classes") == pytest.approx(
        np.mean([(said[targets == k] == k).mean() for k in range(2)])
    )
    assert losses.rank("accuracy", 9.0, 0.8) < losses.rank("accuracy", 0.1, 0.7)
    assert losses.rank("balanced_accuracy", 0.1, 0.8) < losses.rank("balanced_accuracy", 0.2, 0.8)
