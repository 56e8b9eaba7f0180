"""Two groups compared voxel by voxel, corrected over all voxels by permutation.

Belongs here: the test. Does not belong here: how masks come onto one grid (`evidence/heatmap.py`), regions
(`imaging/atlas.py`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["VoxelwiseResult", "voxelwise_groups"]

# A permutation that gives the same statistic must count as one, whatever the order of summation.
_TIE = 1e-9


@dataclass(frozen=True, eq=False)
class VoxelwiseResult:
    """What the test gives, per voxel; in the order of the voxels given.

    Attributes
    ----------
    t : (voxels,) float64
        Positive where the group has more; infinite where a voxel separates the groups completely; 0 where
        the voxel is the same in everybody.
    logp : (voxels,) float64
        -log10 of the two-sided p, corrected over all voxels by the maximum of |t|; 1.3 is p = 0.05.
    tfce, logp_tfce : (voxels,) float64 or None
        Threshold-free cluster enhancement of t, and -log10 of its p, corrected by its own maximum.
    n_group, n_other : int
        People compared.
    voxels_tested : int
        Voxels that vary between people; the others cannot differ and are not in the family.
    """

    t: np.ndarray
    logp: np.ndarray
    tfce: np.ndarray | None
    logp_tfce: np.ndarray | None
    n_group: int
    n_other: int
    voxels_tested: int


def voxelwise_groups(
    values: np.ndarray,
    group: np.ndarray,
    *,
    permutations: int,
    seed: int,
    tfce: bool = False,
    brain: np.ndarray | None = None,
) -> VoxelwiseResult:
    """Does a voxel's value differ between two groups? Family-wise corrected over voxels.

    Two-sample t of every voxel; people are permuted by nilearn's `permuted_ols`, and |t| is compared with the greatest
    |t| of each permutation (Westfall & Young 1993); p = (b + 1) / (B + 1). Two scans of a person are not exchangeable:
    give one row per person (`cohort/visits.py`).

    A voxel that separates the groups completely has an infinite t. nilearn may lose permutations that do so by
    chance, about 2 of n! / (a! b!) per voxel for groups of a and b people: of no account from 20 people on, but
    p is too small for a handful.

    Parameters
    ----------
    values : (n, voxels)
        Masks or maps on one grid, a row per person. Memory is five times these in float64, so take the
        brain of a coarse grid.
    group : (n,) bool
        True for the group that a positive t means more in (severe).
    permutations, seed
        Same seed, same result.
    tfce : bool
        Smith & Nichols (2009), as nilearn has it (6 neighbours, 100 steps, E = 0.5, H = 2). Takes about a hundred
        times as long, and needs values of which none separates the groups completely: smooth masks first.
    brain : (x, y, z) bool, needed for `tfce`
        Where the voxels lie: its True voxels in C order.

    Raises
    ------
    ValueError
        Shapes that do not match, values that are not finite, fewer than two people in a group, or TFCE of an
        infinite t.
    """
    values, group = np.asarray(values), np.asarray(group)
    if values.ndim != 2 or values.shape[0] != len(group) or group.ndim != 1:
        raise ValueError(f"voxelwise: values are {values.shape}, group is {group.shape}; give one row per person")
    if tfce and (brain is None or int(np.count_nonzero(brain)) != values.shape[1]):
        raise ValueError(f"voxelwise: TFCE needs the brain mask whose {values.shape[1]} voxels the values are of")
    values, group = values.astype(np.float64), group.astype(bool)
    if not np.isfinite(values).all():
        raise ValueError("voxelwise: values hold NaN or infinite numbers; leave those scans or voxels out")
    n = int(group.sum())
    if min(n, len(group) - n) < 2:
        raise ValueError(f"voxelwise: groups of {n} and {len(group) - n} people; each needs at least 2")
    varies = np.ptp(values, axis=0) > 0
    t, logp = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    enhanced, logp_enhanced = (np.zeros(values.shape[1]), np.zeros(values.shape[1])) if tfce else (None, None)
    if varies.any():
        tested, free = values[:, varies], len(group) - 2
        if tfce:
            plain = _permuted_ols(tested, group, 0, seed, None)["t"][0]
            if (np.abs(_correlation(plain, tested, group, free)) == 1).any():
                raise ValueError(
                    "voxelwise: a voxel separates the groups completely, so TFCE has no end; smooth the maps"
                )
        found = _permuted_ols(tested, group, permutations, seed, _masker(brain, varies, tfce))
        correlation = _correlation(found["t"][0], tested, group, free)
        t[varies] = _t(correlation, free)
        logp[varies] = _logp(np.abs(correlation), _correlation_of_t(found["h0_max_t"][0], free))
        if enhanced is not None and logp_enhanced is not None:
            enhanced[varies] = found["tfce"][0]
            logp_enhanced[varies] = _logp(np.abs(enhanced[varies]), found["h0_max_tfce"][0])
    return VoxelwiseResult(t, logp, enhanced, logp_enhanced, n, len(group) - n, int(varies.sum()))


def _masker(brain: np.ndarray | None, varies: np.ndarray, tfce: bool) -> Any:
    """Where the varying voxels lie, as nilearn wants it; millimetres do not matter."""
    if not tfce or brain is None:
        return None
    import nibabel as nib
    from nilearn.maskers import NiftiMasker

    where = np.zeros(brain.shape, dtype=np.uint8)
    where[brain.astype(bool)] = varies
    return NiftiMasker(nib.Nifti1Image(where, np.eye(4)), standardize=None).fit()


def _permuted_ols(
    values: np.ndarray, group: np.ndarray, permutations: int, seed: int, masker: Any
) -> dict[str, np.ndarray]:
    from nilearn.mass_univariate import permuted_ols

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # about contiguous arrays, and about a t that is not finite
        return permuted_ols(
            group[:, None].astype(np.float64),
            values,
            n_perm=permutations,
            random_state=seed,
            n_jobs=1,
            masker=masker,
            tfce=masker is not None,
        )


def _correlation(t: np.ndarray, values: np.ndarray, group: np.ndarray, free: int) -> np.ndarray:
    """Correlation of each voxel with the group, from its t; ±1 where rounding left no t."""
    found = _correlation_of_t(t, free)
    lost = ~np.isfinite(found) | (np.abs(found) > 1 - _TIE)
    more = values[group].mean(axis=0) > values[~group].mean(axis=0)
    return np.where(lost, np.where(np.isfinite(t), np.sign(t), np.where(more, 1.0, -1.0)), found)


def _correlation_of_t(t: np.ndarray, free: int) -> np.ndarray:
    """Same order as t, but finite: r = t / sqrt(t² + degrees of freedom)."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(t), np.sign(t), t / np.sqrt(t**2 + free))


def _t(correlation: np.ndarray, free: int) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return correlation * np.sqrt(free / ((1 - correlation) * (1 + correlation)))


def _logp(size: np.ndarray, greatest: np.ndarray) -> np.ndarray:
    """-log10 of (b + 1) / (B + 1), b the permutations whose greatest value is at least as large, ties included."""
    ordered = np.sort(greatest)
    at_least = len(ordered) - np.searchsorted(ordered, size * (1 - _TIE), side="left")
    return -np.log10((at_least + 1) / (len(ordered) + 1))
