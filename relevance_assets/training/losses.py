"""What training makes small, what it watches, and how a scan's weight follows from its EDSS.

Belongs here: losses, the metrics that choose an epoch, sample weights. Does not belong here: the scores of a
study with their intervals (`statistics`).
"""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

__all__ = ["class_weights", "edss_weight", "loss", "metric", "rank"]

Kind = Literal["binary", "regression", "classes"]
Monitor = Literal["auc", "mae", "accuracy", "balanced_accuracy", "loss", "last"]
MONITORS: dict[Kind, tuple[Monitor, ...]] = {
    "binary": ("auc", "loss", "last"),
    "regression": ("mae", "loss", "last"),
    "classes": ("accuracy", "balanced_accuracy", "loss", "last"),
}
Edss = TypeVar("Edss", float, np.ndarray)


def edss_weight(edss: Edss) -> Edss:
    """Weight in the loss, 2 - |EDSS - 5| / 5: greatest where the classes meet (Lu et al. 2023).

    Examples
    --------
    >>> [edss_weight(edss) for edss in (0.0, 2.5, 5.0, 6.0, 10.0)]
    [1.0, 1.5, 2.0, 1.8, 1.0]
    """
    return 2 - abs(edss - 5) / 5


def class_weights(targets: np.ndarray) -> np.ndarray:
    """Weight of each class 0, 1, .. so that all weigh the same together and scans 1 on average: n / (classes x n_c).

    Examples
    --------
    >>> class_weights(np.array([0.0, 0, 0, 1])).round(3).tolist()
    [0.667, 2.0]
    """
    counts = np.bincount(targets.astype(int))
    return len(targets) / (len(counts) * counts)


def loss(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Mean over the scans of weight x cross-entropy of the logits, or weight x squared error.

    All of shape (batch,), but the outputs for classes, (batch, classes). The weights are not normalised to mean 1, as
    in the study.
    """
    if kind == "classes":
        each = functional.cross_entropy(outputs, targets.long(), reduction="none")
    elif kind == "binary":
        each = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    else:
        each = (outputs - targets) ** 2
    return (weights * each).mean()


def metric(outputs: np.ndarray, targets: np.ndarray, kind: Kind, monitor: Monitor = "loss") -> float:
    """Area under the ROC curve of a binary target, mean absolute error of a regression.

    Of classes the balanced accuracy (mean recall of the classes that are there), with `monitor` accuracy that. The
    class with the greatest output is called, of equal ones the first.
    """
    if kind == "classes":
        right = outputs.argmax(axis=1) == targets
        each = [right] if monitor == "accuracy" else [right[targets == found] for found in np.unique(targets)]
        return float(np.mean([part.mean() for part in each]))
    if kind == "binary":
        return float(roc_auc_score(targets > 0.5, outputs))
    return float(np.abs(outputs - targets).mean())


def rank(monitor: Monitor, validation_loss: float, validation_metric: float) -> tuple[float, float]:
    """Epochs compare by this: smaller is better; where it is equal, the earlier epoch wins. Not of `last`."""
    if monitor in ("auc", "accuracy", "balanced_accuracy"):
        return -validation_metric, validation_loss
    if monitor == "mae":
        return validation_metric, validation_loss
    return validation_loss, 0.0
