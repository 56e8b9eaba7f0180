"""What a segmentation network makes small, by name.

Belongs here: losses of logits against labels. Does not belong here: metrics of finished masks (`metrics.py`).

All losses over regions rest on the same soft counts per class, pooled over the batch: TP = sum p t, FP = sum p (1 - t),
FN = sum (1 - p) t, with p the softmax. MONAI's losses are not used: its Tversky loss knows no class weights, its
unified focal loss two classes only, and its focal loss divides by the number of classes besides that of voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LOSSES", "loss"]

SMOOTH = 1e-6
FLOOR = 1e-7  # a root has no slope at 0, where nothing is left to learn: this keeps the gradient finite
Loss = Callable[[Tensor, Tensor], Tensor]


def loss(name: str, *, weights: Sequence[float] | None = None, **parameters: Any) -> Loss:
    """A function of logits (B, C, x, y[, z]) and labels (B, x, y[, z]) int64 from 0 to C - 1; it returns a scalar.

    Parameters
    ----------
    name
        - cross_entropy: mean of -log p of the true class.
        - dice: mean over classes of 1 - (2 TP + s) / (2 TP + FP + FN + s), s = 1e-6 as published.
        - dice_ce: `dice_share` (0.5) of dice, the rest cross_entropy.
        - focal: mean of -`alpha` (1 - p)^`gamma` log p of the true class, 0.25 and 2 (Lin et al. 2017).
        - tversky: mean over classes of 1 - (TP + s) / (TP + `alpha` FN + `beta` FP + s), 0.7 and 0.3 (Salehi et al.
          2017, where alpha and beta have changed places).
        - unified_focal: mean over classes of (1 - D)^`gamma` (1 - P R)^`delta`, 0.5 and 0.6, with D the Dice
          coefficient, P and R precision and recall from soft counts. This is what MS-DeepBrain-Study calls so; Yeung
          et al. (2022) define another.
    weights
        One number per class, 0 or more; means over voxels and over classes become weighted means.
    **parameters
        Those named above, and `background` (True) for the losses over classes: whether class 0 counts.

    A class that is in neither the labels nor the prediction has loss 0, one that is only predicted a loss near 1.

    Raises
    ------
    ValueError
        An unknown name or parameter, or weights that are negative or all 0.
    """
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is not known; choose one of {', '.join(sorted(LOSSES))}")
    function, defaults = LOSSES[name]
    if unknown := sorted(set(parameters) - set(defaults)):
        raise ValueError(f"loss {name}: unknown parameter {unknown[0]!r}; it has {', '.join(defaults) or 'none'}")
    if weights is not None and (min(weights) < 0 or sum(weights) <= 0):
        raise ValueError(f"loss {name}: class weights {list(weights)} must be 0 or more, and one above 0")
    return partial(function, weights=weights, **{**defaults, **parameters})


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Sequence[float] | None) -> Tensor:
    return functional.cross_entropy(logits, labels, _tensor(weights, logits))


def _focal(logits: Tensor, labels: Tensor, weights: Sequence[float] | None, alpha: float, gamma: float) -> Tensor:
    minus_log = functional.cross_entropy(logits, labels, reduction="none")
    values = alpha * (1 - torch.exp(-minus_log)).clamp_min(FLOOR) ** gamma * minus_log
    if weights is None:
        return values.mean()
    each = _tensor(weights, logits)[labels]
    return (each * values).sum() / each.sum().clamp_min(SMOOTH)


def _dice(logits: Tensor, labels: Tensor, weights: Sequence[float] | None, background: bool) -> Tensor:
    hits, false, missed = _counts(logits, labels)
    return _over_classes(1 - (2 * hits + SMOOTH) / (2 * hits + false + missed + SMOOTH), weights, background)


def _dice_ce(
    logits: Tensor, labels: Tensor, weights: Sequence[float] | None, dice_share: float, background: bool
) -> Tensor:
    dice = _dice(logits, labels, weights, background)
    return dice_share * dice + (1 - dice_share) * _cross_entropy(logits, labels, weights)


def _tversky(
    logits: Tensor, labels: Tensor, weights: Sequence[float] | None, alpha: float, beta: float, background: bool
) -> Tensor:
    hits, false, missed = _counts(logits, labels)
    values = 1 - (hits + SMOOTH) / (hits + alpha * missed + beta * false + SMOOTH)
    return _over_classes(values, weights, background)


def _unified_focal(
    logits: Tensor, labels: Tensor, weights: Sequence[float] | None, delta: float, gamma: float, background: bool
) -> Tensor:
    hits, false, missed = _counts(logits, labels)
    dice = (2 * hits + SMOOTH) / (2 * hits + false + missed + SMOOTH)
    precision, recall = ((hits + SMOOTH) / (hits + wrong + SMOOTH) for wrong in (false, missed))
    region, both = (1 - dice).clamp_min(FLOOR), (1 - precision * recall).clamp_min(FLOOR)
    return _over_classes(region**gamma * both**delta, weights, background)


def _counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft true positives, false positives and false negatives per class (C,), in float32 or better."""
    p = torch.softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(p.dtype)
    axes = [0, *range(2, logits.ndim)]
    hits = (p * truth).sum(axes)
    return hits, (p * (1 - truth)).sum(axes), ((1 - p) * truth).sum(axes)


def _over_classes(values: Tensor, weights: Sequence[float] | None, background: bool) -> Tensor:
    each = torch.ones_like(values) if weights is None else _tensor(weights, values)
    first = 0 if background else 1
    return (each * values)[first:].sum() / each[first:].sum()


def _tensor(weights: Sequence[float] | None, like: Tensor) -> Any:
    return None if weights is None else torch.tensor(weights, dtype=like.dtype, device=like.device)


LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "cross_entropy": (_cross_entropy, {}),
    "dice": (_dice, {"background": True}),
    "dice_ce": (_dice_ce, {"dice_share": 0.5, "background": True}),
    "focal": (_focal, {"alpha": 0.25, "gamma": 2.0}),
    "tversky": (_tversky, {"alpha": 0.7, "beta": 0.3, "background": True}),
    "unified_focal": (_unified_focal, {"delta": 0.6, "gamma": 0.5, "background": True}),
}
