"""What a network has to beat: the training mean, and ridge regression on coarse voxels.

Belongs here: the two baselines and the coarsening of images for them. Does not belong here: reading images,
who is in which set.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["RidgeModel", "coarsen", "fit_mean", "fit_ridge"]


def coarsen(volume: np.ndarray, factor: int | Sequence[int]) -> np.ndarray:
    """Block means over the last three axes, as float32.

    Blocks at the far end that stick out of the volume are means of the voxels that they have.

    Parameters
    ----------
    volume : (..., x, y, z).
    factor : voxels per block, one number or one per axis; a 2 mm grid with factor 2 becomes 4 mm.

    Returns
    -------
    (..., ceil(x / factor), ceil(y / factor), ceil(z / factor)).
    """
    factors = (factor,) * 3 if isinstance(factor, int) else tuple(factor)
    if len(factors) != 3 or min(factors) < 1 or volume.ndim < 3:
        raise ValueError(f"coarsen: factor {factor} and {volume.ndim} axes; give 1 or more for each of three axes")
    result = np.asarray(volume, dtype=np.float64)
    for axis, step in zip((-3, -2, -1), factors, strict=True):
        size = result.shape[axis]
        starts = np.arange(0, size, step)
        counts = np.diff(np.append(starts, size))
        shape = [1] * result.ndim
        shape[axis] = len(counts)
        result = np.add.reduceat(result, starts, axis=axis) / counts.reshape(shape)
    return result.astype(np.float32)


def fit_mean(targets: np.ndarray, kind: Literal["binary", "regression"]) -> float:
    """The output that says the same of everybody: the training mean, or the log odds of the training share.

    Where training has one class only, its share is taken as half a person short of certain.
    """
    targets = np.asarray(targets, dtype=np.float64)
    if kind == "regression":
        return float(targets.mean())
    edge = 1 / (2 * len(targets))
    share = np.clip(targets.mean(), edge, 1 - edge)
    return float(np.log(share / (1 - share)))


@dataclass(frozen=True)
class RidgeModel:
    """A fitted ridge regression on voxels that were standardised by the training images."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: float
    penalty: float

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Outputs (n,) for images (n, ...) of the shape of the training images."""
        flat = np.asarray(images, dtype=np.float64).reshape(len(images), -1)
        if flat.shape[1] != len(self.mean):
            raise ValueError(f"ridge: images of {flat.shape[1]} voxels, trained on {len(self.mean)}")
        return ((flat - self.mean) / self.scale) @ self.weights + self.intercept


def fit_ridge(
    images: np.ndarray,
    targets: np.ndarray,
    *,
    kind: Literal["binary", "regression"] = "regression",
    participants: Sequence[Hashable] | None = None,
    penalties: Sequence[float] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> RidgeModel:
    """Ridge regression of `targets` on all voxels of `images`, in its dual form.

    The penalty is the one with the least mean squared error in cross-validation inside the training data;
    all scans of a person are in one inner fold, folds are alike in their targets, and voxels are standardised
    by each inner training part only. A binary target is fitted as -1 and 1, so that 0 parts the classes.

    Parameters
    ----------
    images : (n, ...) any shape; voxels that do not vary in training have no weight.
    targets : (n,) numbers, or 0 and 1.
    participants : (n,) who; each row its own if not given.
    penalties : candidates for lambda in |y - Zw|² + lambda |w|²; by default 10^-3 ... 10^3 times the number
        of voxels that vary (the mean square length of a standardised image).
    folds : inner folds, at most as many as people.

    Raises
    ------
    ValueError
        Lengths that differ, fewer than two people, values that are not finite, no voxel that varies.
    """
    flat = np.asarray(images, dtype=np.float64).reshape(len(images), -1)
    targets = np.asarray(targets, dtype=np.float64)
    who: list[Hashable] = list(range(len(targets))) if participants is None else list(participants)
    if not len(flat) == len(targets) == len(who):
        raise ValueError(f"ridge: {len(flat)} images, {len(targets)} targets, {len(who)} participants")
    if len(set(who)) < 2:
        raise ValueError("ridge: needs at least two people")
    if not (np.isfinite(flat).all() and np.isfinite(targets).all()):
        raise ValueError("ridge: an image or a target is not finite")
    if kind == "binary":
        if not np.isin(targets, (0, 1)).all():
            raise ValueError("ridge: a binary target must be 0 or 1")
        targets = 2 * targets - 1
    varying = int((np.ptp(flat, axis=0) > 0).sum())
    if not varying:
        raise ValueError("ridge: no voxel varies over the training images")
    grid = np.asarray(penalties if penalties is not None else varying * np.logspace(-3, 3, 13), dtype=float)
    fold = _inner_folds(who, targets, folds, seed)
    loss = np.zeros(len(grid))
    for k in range(fold.max() + 1):
        kept, held = fold != k, fold == k
        outputs = _solve(flat[kept], targets[kept], grid, flat[held])
        loss += ((outputs - targets[held]) ** 2).sum(axis=1)
    best = float(grid[np.argmin(loss)])
    mean, scale = _standard(flat)
    standardised = (flat - mean) / scale
    dual = _dual(standardised, targets, np.array([best]))[0]
    return RidgeModel(mean, scale, standardised.T @ dual, float(targets.mean()), best)


def _standard(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each voxel; infinity where it does not vary: it counts nothing."""
    return flat.mean(axis=0), np.where(np.ptp(flat, axis=0) > 0, flat.std(axis=0), np.inf)


def _dual(standardised: np.ndarray, targets: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(K + lambda I)^-1 (y - mean y) for each lambda, (len(grid), n); K = ZZ' is decomposed once."""
    values, vectors = np.linalg.eigh(standardised @ standardised.T)
    along = vectors.T @ (targets - targets.mean())
    return (along / (np.maximum(values, 0) + grid[:, None])) @ vectors.T


def _solve(train: np.ndarray, targets: np.ndarray, grid: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions for `test` with each penalty, (len(grid), len(test))."""
    mean, scale = _standard(train)
    standardised = (train - mean) / scale
    cross = standardised @ ((test - mean) / scale).T
    return _dual(standardised, targets, grid) @ cross + targets.mean()


def _inner_folds(who: list[Hashable], targets: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each row: people in order of their mean target, equal ones at random, dealt out in turn."""
    rows: dict[Hashable, list[int]] = {}
    for row, person in enumerate(who):
        rows.setdefault(person, []).append(row)
    chance = np.random.default_rng(seed).random(len(rows))
    ordered = np.lexsort((chance, [targets[index].mean() for index in rows.values()]))
    fold = np.empty(len(who), dtype=int)
    for place, person in enumerate(ordered):
        fold[list(rows.values())[person]] = place % min(folds, len(rows))
    return fold
