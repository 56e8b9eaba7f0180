"""Where lesions lie by distances in millimetres, in three dimensions: each lesion as a whole, or voxel by voxel.

Belongs here: the thresholds, the two rules, how far rules agree, how much thresholds matter. Does not belong here:
the distances (`distances.py`), volumes by zone (`burden.py`), the published rule (`zones_2d.py`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Agreement", "ZoneThresholds", "agreement", "confluent_zones", "lesion_zones"]

Codes = NDArray[np.uint8]
EQUAL = 1e-5  # what is larger by less than this share equals a limit: voxel sizes come from float32
PERIVENTRICULAR, PARAVENTRICULAR, JUXTACORTICAL, UNKNOWN = 1, 2, 3, 0


@dataclass(frozen=True)
class ZoneThresholds:
    """Limits of both rules; what is equal to a limit is within it.

    The first four carry the published rule over to three dimensions: its area of a disc of 6 mm becomes the volume of a
    sphere of 6 mm. The last two are of the voxel-wise rule; 3 mm is about the cortex's thickness.

    Attributes
    ----------
    ventricle_edge_mm, ventricle_centroid_mm
        Periventricular if the lesion's nearest voxel or its centroid is as near.
    cortex_edge_mm, juxtacortical_mm3
        Else juxtacortical if the nearest voxel is as near to cortex or fluid, and the lesion as small.
    voxel_ventricle_mm, voxel_cortex_mm
        The same, of a voxel by itself.
    """

    ventricle_edge_mm: float = 7.5
    ventricle_centroid_mm: float = 15.0
    cortex_edge_mm: float = 6.0
    juxtacortical_mm3: float = math.pi * 6.0**3 / 6  # 113.10
    voxel_ventricle_mm: float = 7.5
    voxel_cortex_mm: float = 3.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"zone threshold {name} must be a number of at least 0, not {value}")


def lesion_zones(
    ventricle_edge_mm: ArrayLike,
    ventricle_centroid_mm: ArrayLike,
    cortex_edge_mm: ArrayLike,
    volume_mm3: ArrayLike,
    thresholds: ZoneThresholds = ZoneThresholds(),
) -> Codes:
    """One zone for each lesion: periventricular, else juxtacortical, else paraventricular.

    Parameters
    ----------
    ventricle_edge_mm, ventricle_centroid_mm, cortex_edge_mm, volume_mm3 : (n,)
        NaN where there is no such target.

    Returns
    -------
    (n,) uint8
        1 periventricular, 2 paraventricular, 3 juxtacortical; 0 where a missing distance leaves it open.
    """
    edge, centre, cortex, volume = (
        np.asarray(values, np.float64)
        for values in (ventricle_edge_mm, ventricle_centroid_mm, cortex_edge_mm, volume_mm3)
    )
    inner = _within(edge, thresholds.ventricle_edge_mm) | _within(centre, thresholds.ventricle_centroid_mm)
    small = _within(volume, thresholds.juxtacortical_mm3)
    outer = small & _within(cortex, thresholds.cortex_edge_mm)
    return _codes(inner, outer, np.isnan(edge) | np.isnan(centre), small & np.isnan(cortex))


def confluent_zones(
    ventricle_mm: ArrayLike,
    cortex_mm: ArrayLike,
    thresholds: ZoneThresholds = ZoneThresholds(),
) -> Codes:
    """A zone for each voxel by its own distances, so that confluent lesions are split; codes as `lesion_zones`.

    Near both, a voxel is periventricular.
    """
    ventricle, cortex = np.asarray(ventricle_mm, np.float64), np.asarray(cortex_mm, np.float64)
    inner, outer = _within(ventricle, thresholds.voxel_ventricle_mm), _within(cortex, thresholds.voxel_cortex_mm)
    return _codes(inner, outer, np.isnan(ventricle), np.isnan(cortex))


def _within(values: np.ndarray, limit: float) -> np.ndarray:
    return values <= limit * (1 + EQUAL)


def _codes(inner: NDArray, outer: NDArray, no_ventricle: NDArray, no_cortex: NDArray) -> Codes:
    found = np.where(outer, JUXTACORTICAL, PARAVENTRICULAR)
    found = np.where(no_ventricle | (no_cortex & ~outer), UNKNOWN, found)
    return np.where(inner, PERIVENTRICULAR, found).astype(np.uint8)


@dataclass(frozen=True)
class Agreement:
    """How two rules agree on the voxels to which both give a zone.

    Attributes
    ----------
    voxels
        How many have a zone by both.
    only_one
        How many have one by one rule only; these are left out.
    kappa
        Cohen's, of the three zones; None without voxels, or if both rules know one and the same zone only.
    equal
        Share of the volume with the same zone; None without voxels.
    """

    voxels: int
    only_one: int
    kappa: float | None
    equal: float | None


def agreement(first: NDArray[np.integer], second: NDArray[np.integer]) -> Agreement:
    """Agreement of two rules' zones, voxel by voxel.

    Parameters
    ----------
    first, second : one shape
        Codes 1 to 3 on one grid; 0 is no lesion, or no zone.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"zones of shapes {first.shape} and {second.shape} are not on one grid")
    both = (first > 0) & (second > 0)
    voxels, only = int(both.sum()), int(((first > 0) ^ (second > 0)).sum())
    if not voxels:
        return Agreement(0, only, None, None)
    pairs = np.bincount(4 * first[both].astype(np.int64) + second[both], minlength=16).reshape(4, 4) / voxels
    equal, chance = float(np.trace(pairs)), float(pairs.sum(axis=0) @ pairs.sum(axis=1))
    return Agreement(voxels, only, None if chance >= 1 - 1e-12 else (equal - chance) / (1 - chance), equal)
