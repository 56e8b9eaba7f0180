"""Tables of lesions: one row each, how much lies in each zone, and how much thresholds matter.

Belongs here: frames made of labels, distances and zones. Does not belong here: how zones are found (`zones_2d.py`,
`zones_3d.py`), a study's or scan's name (whoever writes the table), change over time (`change.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from relevance_assets.lesions.components import lesion_measures, voxel_mm3
from relevance_assets.lesions.distances import Plane, lesion_distances, voxel_distances
from relevance_assets.lesions.zones_2d import ZONES, Zones2D
from relevance_assets.lesions.zones_3d import ZoneThresholds, confluent_zones, lesion_zones

__all__ = ["BURDEN", "LESION_RULE", "LESIONS", "PUBLISHED_RULE", "VOXEL_RULE", "Measured", "burden", "lesion_rows",
           "measure", "published_lesions", "sensitivity", "zone_maps"]  # fmt: skip

PUBLISHED_RULE, LESION_RULE, VOXEL_RULE = "published_2d", "lesion_3d", "voxel_3d"
LESIONS = {
    "rule": pl.String, "lesion": pl.Int64, "slice": pl.Int64, "zone": pl.String, "voxels": pl.Int64,
    "volume_mm3": pl.Float64, "area_mm2": pl.Float64, "ventricle_edge_mm": pl.Float64,
    "ventricle_centroid_mm": pl.Float64, "cortex_edge_mm": pl.Float64, "midplane_mm": pl.Float64,
    "centroid_x_mm": pl.Float64, "centroid_y_mm": pl.Float64, "centroid_z_mm": pl.Float64,
    "diameter_mm": pl.Float64, "elongation": pl.Float64,
}  # fmt: skip
BURDEN = {
    "rule": pl.String, "zone": pl.String, "voxels": pl.Int64, "volume_mm3": pl.Float64, "count": pl.Int64,
    "share": pl.Float64, "share_of_intracranial": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Measured:
    """What the rules in three dimensions need of a scan's lesions.

    Attributes
    ----------
    labels : (X, Y, Z) int32
    voxel_mm3 : float
    lesions : frame
        Of `distances.lesion_distances`.
    voxels : frame
        Of `distances.voxel_distances`.
    """

    labels: NDArray[np.int32]
    voxel_mm3: float
    lesions: pl.DataFrame
    voxels: pl.DataFrame

    @cached_property
    def _of_lesions(self) -> dict[str, NDArray[np.float64]]:
        names = ("ventricle_edge_mm", "ventricle_centroid_mm", "cortex_edge_mm", "volume_mm3")
        return {name: _floats(self.lesions, name) for name in names}

    @cached_property
    def _of_voxels(self) -> dict[str, NDArray[np.float64]]:
        return {name: _floats(self.voxels, name) for name in ("ventricle_mm", "cortex_mm")}

    @cached_property
    def lesion_of_voxel(self) -> NDArray[np.intp]:
        """The row of each voxel's lesion."""
        return np.searchsorted(self.lesions["lesion"].to_numpy(), self.voxels["lesion"].to_numpy())

    def lesion_codes(self, thresholds: ZoneThresholds) -> NDArray[np.uint8]:
        """Each lesion's zone by the rule of lesions."""
        return lesion_zones(**self._of_lesions, thresholds=thresholds)

    def voxel_codes(self, thresholds: ZoneThresholds) -> NDArray[np.uint8]:
        """Each voxel's zone by the rule of voxels."""
        return confluent_zones(**self._of_voxels, thresholds=thresholds)


def measure(
    labels: NDArray[np.int32],
    affine: NDArray[np.floating],
    *,
    ventricles: NDArray[np.bool_] | None,
    cortex: NDArray[np.bool_] | None,
    brain: NDArray[np.bool_] | None = None,
    plane: Plane | None = None,
) -> Measured:
    """Shape and distances of each lesion, and the distances of each voxel.

    Parameters
    ----------
    labels : (X, Y, Z)
        Of `components.label_lesions`.
    affine : (4, 4)
    ventricles, cortex, brain : (X, Y, Z) or None
        `cortex` may be fluid around the brain. Distances to what is None or empty are null. With `brain` there is the
        distance to what lies outside it too; what is beyond the grid is not seen.
    plane
        The mid-plane, as `distances.mid_plane` finds it.
    """
    targets = {"ventricle": ventricles, "cortex": cortex, "outside": None if brain is None else ~brain.astype(bool)}
    voxels = voxel_distances(labels, affine, targets)
    lesions = lesion_distances(lesion_measures(labels, affine), voxels, affine, targets, plane)
    return Measured(labels, voxel_mm3(affine), lesions, voxels)


def zone_maps(measured: Measured, thresholds: ZoneThresholds = ZoneThresholds()) -> dict[str, NDArray[np.uint8]]:  # noqa: B008
    """Zones by both rules in three dimensions: rule -> (X, Y, Z), codes as `zones_3d.lesion_zones`."""
    maps = {}
    for rule, codes in _codes(measured, thresholds).items():
        flat = np.zeros(measured.labels.size, np.uint8)
        flat[measured.voxels["voxel"].to_numpy()] = codes
        maps[rule] = flat.reshape(measured.labels.shape)
    return maps


def _codes(measured: Measured, thresholds: ZoneThresholds) -> dict[str, NDArray[np.uint8]]:
    """The zone of every lesion voxel by each rule."""
    return {
        LESION_RULE: measured.lesion_codes(thresholds)[measured.lesion_of_voxel],
        VOXEL_RULE: measured.voxel_codes(thresholds),
    }


def _floats(frame: pl.DataFrame, name: str) -> NDArray[np.float64]:
    return frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def published_lesions(found: Zones2D, affine: NDArray[np.floating], plane: Plane | None = None) -> pl.DataFrame:
    """Objects of the published rule as rows of the table `lesions` (`LESIONS`).

    Voxels and volume have the holes filled. Volume, centroid, diameter and elongation are those of the object as one
    slice in space, by the scan's own voxels; distances and area are the rule's, within the slice, by its pixels.
    """
    shapes = lesion_measures(found.labels, affine).drop("slices")
    centres = shapes.select("centroid_x_mm", "centroid_y_mm", "centroid_z_mm").to_numpy()
    sides = plane.signed_mm(centres) if plane else np.full(len(centres), np.nan)
    rows = found.objects.drop("pixels").join(shapes, on="lesion", how="left", maintain_order="left")
    rows = rows.with_columns(pl.Series("midplane_mm", sides).fill_nan(None), rule=pl.lit(PUBLISHED_RULE))
    return rows.select(pl.col(name).cast(kind) for name, kind in LESIONS.items())


def lesion_rows(measured: Measured, thresholds: ZoneThresholds = ZoneThresholds()) -> pl.DataFrame:  # noqa: B008
    """Lesions in three dimensions as rows of the table `lesions` (`LESIONS`), by both rules; slice and area are null.

    By the voxel-wise rule a lesion's zone is the one with most of its voxels, of equal ones the first of `ZONES`; null
    where most are of none.
    """
    lesions = measured.lesions
    counts = np.zeros((lesions.height, len(ZONES) + 1), np.int64)
    np.add.at(counts, (measured.lesion_of_voxel, measured.voxel_codes(thresholds)), 1)
    largest = np.where(counts[:, 0] > counts[:, 1:].max(axis=1), 0, 1 + counts[:, 1:].argmax(axis=1))
    parts = []
    for rule, codes in ((LESION_RULE, measured.lesion_codes(thresholds)), (VOXEL_RULE, largest)):
        names = pl.Series("zone", [ZONES[code - 1] if code else None for code in codes], pl.String)
        nothing = (pl.lit(None).alias(name) for name in ("slice", "area_mm2"))
        parts.append(lesions.with_columns(names, *nothing, rule=pl.lit(rule)))
    return pl.concat(parts).select(pl.col(name).cast(kind) for name, kind in LESIONS.items())


def burden(
    rule: str,
    zones: NDArray[np.integer],
    labels: NDArray[np.integer],
    voxel_mm3: float,
    intracranial_mm3: float | None = None,
) -> pl.DataFrame:
    """Volume and count of lesions, all and by zone (`BURDEN`).

    Parameters
    ----------
    rule
        Name in the table.
    zones, labels : one shape
        A zone's code and a lesion's number for each voxel; where the number is 0 there is no lesion. Where a voxel has
        a number but no zone (no ventricles to measure from), nothing is known of any zone.
    voxel_mm3
    intracranial_mm3
        Volume inside the skull, for its share; None if unknown.

    Returns
    -------
    Four rows: all, periventricular, paraventricular, juxtacortical.

    - voxels, volume, count and shares of the zones: null where a lesion's zone is not known
    - count: lesions with a voxel there; a lesion that is split counts in each of its zones
    - share: of the lesion volume; null, not 0, where there is no lesion
    - share_of_intracranial: of the volume inside the skull, null where that is unknown

    Without a lesion volume and count are 0, and so is the share of the intracranial volume.
    """
    if zones.shape != labels.shape:
        raise ValueError(f"zones {zones.shape} and lesions {labels.shape} differ in shape")
    if intracranial_mm3 is not None and not intracranial_mm3 > 0:
        raise ValueError(f"the intracranial volume must be above 0, not {intracranial_mm3}")
    inside = labels > 0
    codes, numbers = zones[inside], labels[inside]
    unknown = bool((codes == 0).any())
    rows: list[tuple[str | float | None, ...]] = []
    for name, here in (("all", np.ones(len(codes), bool)), *((n, codes == c) for c, n in enumerate(ZONES, 1))):
        if unknown and name != "all":
            rows.append((rule, name, *(None for _ in range(len(BURDEN) - 2))))
            continue
        voxels = int(here.sum())
        volume = voxels * voxel_mm3
        share = voxels / len(codes) if len(codes) else None
        rows.append((rule, name, voxels, volume, len(np.unique(numbers[here])), share,
                     None if intracranial_mm3 is None else volume / intracranial_mm3))  # fmt: skip
    return pl.DataFrame(rows, BURDEN, orient="row")


def sensitivity(
    measured: Measured,
    thresholds: ZoneThresholds = ZoneThresholds(),  # noqa: B008
    factors: Sequence[float] = (0.75, 1.0, 1.25),
) -> pl.DataFrame:
    """Burden by zone with each threshold in turn multiplied by each factor, the others as given.

    Returns
    -------
    rule, threshold, factor, value, zone, volume_mm3, count; only the rule that a threshold belongs to.
    """
    labels = measured.voxels["lesion"].to_numpy()
    parts = []
    for name, given in dataclasses.asdict(thresholds).items():
        rule = VOXEL_RULE if name.startswith("voxel_") else LESION_RULE
        for factor in factors:
            changed = dataclasses.replace(thresholds, **{name: given * factor})
            rows = burden(rule, _codes(measured, changed)[rule], labels, measured.voxel_mm3)
            values = {"threshold": name, "factor": float(factor), "value": given * factor}
            parts.append(rows.with_columns(pl.lit(value).alias(column) for column, value in values.items()))
    columns = "rule", "threshold", "factor", "value", "zone", "volume_mm3", "count"
    return pl.concat(parts).select(columns)
