"""What became of each lesion between two visits.

Belongs here: matching and naming lesions of two masks on one grid. Does not belong here: bringing two visits onto one
grid (`imaging.steps.halfway`), lesions of one visit (`components.py`).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from relevance_assets.lesions.components import label_lesions, voxel_mm3

__all__ = ["CHANGES", "STATES", "changed_lesions", "state_map"]

STATES = ("new", "enlarging", "stable", "shrinking", "resolved")
CHANGES = {
    "group": pl.Int64, "state": pl.String, "lesions_before": pl.Int64, "lesions_after": pl.Int64,
    "volume_before_mm3": pl.Float64, "volume_after_mm3": pl.Float64, "change_mm3": pl.Float64,
    "overlap_mm3": pl.Float64,
}  # fmt: skip


def changed_lesions(
    before: np.ndarray,
    after: np.ndarray,
    affine: NDArray[np.floating],
    *,
    reach_mm: float = 2.0,
    growth_mm3: float = 10.0,
    growth_share: float = 0.25,
    connectivity: int = 26,
    minimum_mm3: float = 0.0,
) -> tuple[pl.DataFrame, NDArray[np.int32]]:
    """Lesions of two visits, matched, and whether each is new, enlarging, stable, shrinking or resolved.

    A lesion of one visit belongs to one of the other if voxel centres of both lie within `reach_mm`: each mask dilated
    by half of it would overlap. What belongs together, over however many lesions, is one group, so that two that merge,
    or one that splits, are compared by their sum. A new lesion that close to an old one therefore counts as its growth.

    A group only seen after is new, only before resolved. Else it is enlarging if it grew by more than `growth_mm3` and
    by more than `growth_share` of what it was, shrinking if it lost as much of both kinds, stable otherwise. The limits
    are conventions, not published ones.

    Parameters
    ----------
    before, after : (X, Y, Z)
        Masks on one grid, above 0 is lesion; in half-way space, so that both are interpolated alike.
    affine : (4, 4)
    reach_mm
        At least 0; 0 asks for a voxel in common.
    growth_mm3, growth_share
    connectivity, minimum_mm3
        Of `components.label_lesions`, for both visits.

    Returns
    -------
    frame, groups
        One row per group (`CHANGES`), and each voxel's group in either mask, 0 elsewhere: (X, Y, Z) int32.

    Raises
    ------
    ValueError
        If shapes differ, a limit is negative, or what `label_lesions` refuses.
    """
    if before.shape != after.shape:
        raise ValueError(f"visits of shapes {before.shape} and {after.shape} are not on one grid; resample one")
    if min(reach_mm, growth_mm3, growth_share) < 0:
        raise ValueError("reach_mm, growth_mm3 and growth_share must be at least 0")
    first, second = (
        label_lesions(mask, affine, connectivity=connectivity, minimum_mm3=minimum_mm3) for mask in (before, after)
    )
    one, two = int(first.max(initial=0)), int(second.max(initial=0))
    pairs = _pairs(first, second, _offsets(affine, reach_mm))
    links = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0] - 1, one + pairs[:, 1] - 1)), (one + two, one + two))
    count, of = sparse.csgraph.connected_components(links, directed=False)
    of_first, of_second = (np.append(0, part + 1).astype(np.int32) for part in (of[:one], of[one:]))
    groups = np.where(second > 0, of_second[second], of_first[first])

    unit = voxel_mm3(affine)
    volumes = [
        np.bincount(part[part > 0], minlength=count + 1)[1:] * unit for part in (of_first[first], of_second[second])
    ]
    shared = np.bincount(of_second[second[(first > 0) & (second > 0)]], minlength=count + 1)[1:] * unit
    lesions = [np.bincount(part, minlength=count) for part in (of[:one], of[one:])]
    growth = volumes[1] - volumes[0]
    enough = (np.abs(growth) > growth_mm3) & (np.abs(growth) > growth_share * volumes[0])
    states = np.select(
        [lesions[0] == 0, lesions[1] == 0, enough & (growth > 0), enough & (growth < 0)],
        ["new", "resolved", "enlarging", "shrinking"],
        "stable",
    )
    columns = np.arange(1, count + 1), states.tolist(), *lesions, *volumes, growth, shared
    rows = pl.DataFrame(dict(zip(CHANGES, columns, strict=True)))
    return rows.select(pl.col(name).cast(kind) for name, kind in CHANGES.items()), groups


def state_map(frame: pl.DataFrame, groups: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The state of each voxel's group: 1 + its place in `STATES`, 0 where there is no lesion at either visit."""
    codes = np.zeros(frame.height + 1, np.uint8)
    codes[frame["group"].to_numpy()] = [1 + STATES.index(state) for state in frame["state"]]
    return codes[groups]


def _offsets(affine: NDArray[np.floating], reach_mm: float) -> NDArray[np.intp]:
    """Steps in voxels, (n, 3), that are no longer than the reach."""
    axes = np.asarray(affine, np.float64)[:3, :3]
    # how far an index can change within a ball, also on a grid that is oblique or sheared
    most = np.floor(reach_mm * np.linalg.norm(np.linalg.inv(axes), axis=1) + 1e-6).astype(int)
    steps = np.indices(2 * most + 1).reshape(3, -1).T - most
    return steps[np.linalg.norm(steps @ axes.T, axis=1) <= reach_mm + 1e-6]


def _pairs(first: NDArray[np.int32], second: NDArray[np.int32], offsets: NDArray[np.intp]) -> NDArray[np.int64]:
    """Numbers (n, 2) of lesions of which some voxels are one of the offsets apart."""
    voxels = np.argwhere(first)
    own = first[tuple(voxels.T)]
    found = [np.empty((0, 2), np.int64)]
    for offset in offsets:
        there = voxels + offset
        inside = ((there >= 0) & (there < second.shape)).all(axis=1)
        other = second[tuple(there[inside].T)]
        found.append(np.unique(np.stack([own[inside], other], axis=1)[other > 0], axis=0))
    return np.unique(np.concatenate(found), axis=0)
