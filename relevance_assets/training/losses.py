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

__all__ = ["edss_weight", "loss", "metric", "rank"]

Kind = Literal["binary", "regression"]
Monitor = Literal["auc", "mae", "loss"]
Edss = TypeVar("Edss", float, np.ndarray)


def edss_weight(edss: Edss) -> Edss:
    """Weight in the loss, 2 - |EDSS - 5| / 5: greatest where the classes meet (Lu et al. 2023).

    Examples
    --------
    >>> [edss_weight(edss) for edss in (0.0, 2.5, 5.0, 6.0, 10.0)]
    [1.0, 1.5, 2.0, 1.8, 1.0]
    """
    return 2 - abs(edss - 5) / 5


def loss(outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Mean over the scans of weight x cross-entropy of the logit, or weight x squared error.

    All of shape (batch,). The weights are not normalised to mean 1, as in the study.
    """
    if kind == "binary":
        each = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    else:
        each = (outputs - targets) ** 2
    return (weights * each).mean()


def metric(outputs: np.ndarray, targets: np.ndarray, kind: Kind) -> float:
    """Area under the ROC curve of a binary target, mean absolute error of a regression."""
    if kind == "binary":
        return float(roc_auc_score(targets > 0.5, outputs))
    return float(np.abs(outputs - targets).mean())


def rank(monitor: Monitor, validation_loss: float, validation_metric: float) -> tuple[float, float]:
    """Epochs compare by this: smaller is better; where it is equal, the earlier epoch wins."""
    if monitor == "auc":
        return -validation_metric, validation_loss
    if monitor == "mae":
        return validation_metric, validation_loss
    return validation_loss, 0.0
