"""Each loss against its formula, voxel by voxel in plain Python and numpy float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from relevance_assets.segmentation.losses import LOSSES, loss

S = 1e-6
RANDOM = np.random.default_rng(4)
LOGITS = RANDOM.normal(scale=2, size=(2, 3, 4, 5))
LABELS = RANDOM.integers(0, 3, size=(2, 4, 5))
NO_WMH = np.minimum(LABELS, 1)
WEIGHTS = [1.0, 3.5, 2.8]


def voxels(logits: np.ndarray, labels: np.ndarray) -> list[tuple[list[float], int]]:
    """(softmax, label) of every voxel, one after the other."""
    found = []
    for place in np.ndindex(*labels.shape):
        scores = logits[(place[0], slice(None), *place[1:])]
        powers = [math.exp(score - scores.max()) for score in scores]
        found.append(([power / sum(powers) for power in powers], int(labels[place])))
    return found


def per_class(logits: np.ndarray, labels: np.ndarray, formula: Callable[[float, float, float], float]) -> list[float]:
    values = []
    for one in range(3):
        hits = false = missed = 0.0
        for p, label in voxels(logits, labels):
            hits += p[one] if label == one else 0.0
            false += p[one] if label != one else 0.0
            missed += 1 - p[one] if label == one else 0.0
        values.append(formula(hits, false, missed))
    return values


def weighted(pairs: list[tuple[float, float]]) -> float:
    return sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)


def expected(name: str, logits: np.ndarray, labels: np.ndarray, w: list[float]) -> float:
    def classes(formula: Callable[[float, float, float], float]) -> float:
        return weighted(list(zip(w, per_class(logits, labels, formula), strict=True)))

    def dice(tp: float, fp: float, fn: float) -> float:
        return (2 * tp + S) / (2 * tp + fp + fn + S)

    entropy = weighted([(w[label], -math.log(p[label])) for p, label in voxels(logits, labels)])
    if name == "cross_entropy":
        return entropy
    if name == "focal":
        return weighted(
            [(w[label], -0.25 * (1 - p[label]) ** 2 * math.log(p[label])) for p, label in voxels(logits, labels)]
        )
    if name == "dice":
        return classes(lambda *counts: 1 - dice(*counts))
    if name == "dice_ce":
        return 0.5 * classes(lambda *counts: 1 - dice(*counts)) + 0.5 * entropy
    if name == "tversky":
        return classes(lambda tp, fp, fn: 1 - (tp + S) / (tp + 0.7 * fn + 0.3 * fp + S))
    return classes(
        lambda tp, fp, fn: (
            (1 - dice(tp, fp, fn)) ** 0.5 * (1 - (tp + S) / (tp + fp + S) * (tp + S) / (tp + fn + S)) ** 0.6
        )
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("labels", [LABELS, NO_WMH, np.zeros_like(LABELS)], ids=["all", "no wmh", "background"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_are_their_formulas(name: str, labels: np.ndarray, weights: list[float] | None) -> None:
    found = loss(name, weights=weights)(torch.from_numpy(LOGITS), torch.from_numpy(labels)).item()
    assert found == pytest.approx(expected(name, LOGITS, labels, weights or [1.0, 1.0, 1.0]), rel=1e-9)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("scale", [1e4, 30.0, 0.0])
def test_values_and_gradients_stay_finite_and_right_is_less_than_wrong(name: str, scale: float) -> None:
    labels = torch.from_numpy(NO_WMH)
    right = scale * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    values = []
    for logits in (right, -right):
        logits = logits.clone().requires_grad_()
        value = loss(name)(logits, labels)
        value.backward()
        assert torch.isfinite(value)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()
        values.append(value.item())
    assert scale == 0 or values[0] < min(values[1], 2e-3)


def test_a_root_of_nothing_left_to_learn_has_a_gradient() -> None:
    labels = torch.from_numpy(LABELS)
    logits = (1e4 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()).requires_grad_()
    loss("focal", gamma=0.5)(logits, labels).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_background_may_be_left_out() -> None:
    logits, labels = torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
    parts = per_class(LOGITS, LABELS, lambda tp, fp, fn: 1 - (2 * tp + S) / (2 * tp + fp + fn + S))
    assert loss("dice", background=False)(logits, labels).item() == pytest.approx(np.mean(parts[1:]), rel=1e-9)


def test_three_dimensions_are_voxels_too() -> None:
    flat = loss("tversky")(torch.from_numpy(LOGITS), torch.from_numpy(LABELS))
    deep = loss("tversky")(torch.from_numpy(LOGITS[..., None]), torch.from_numpy(LABELS[..., None]))
    assert deep.item() == pytest.approx(flat.item(), rel=1e-12)


def test_what_is_no_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="loss 'jaccard' is not known; choose one of cross_entropy, dice"):
        loss("jaccard")
    with pytest.raises(ValueError, match="unknown parameter 'beta'; it has alpha, gamma"):
        loss("focal", beta=1)
    with pytest.raises(ValueError, match="must be 0 or more"):
        loss("dice", weights=[0, 0, 0])
