"""Where lesions lie by the rule that MS-DeepBrain-Study published: slice by slice, objects by their outlines.

Belongs here: that rule exactly, faults included. Does not belong here: the images it looks at
(`published_images.py`), the rule in three dimensions (`zones_3d.py`).

Its faults: pixels of 0.9 mm whatever the scan's; distances within a slice, so that a slice without ventricles has no
periventricular lesion; dark pixels in the place of the cortex; one zone for a confluent lesion; holes are filled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

__all__ = ["NO_VENTRICLE_MM", "PIXEL_MM", "ZONES", "Zones2D", "published_zones"]

ZONES = ("periventricular", "paraventricular", "juxtacortical")  # codes 1, 2, 3, as published
PIXEL_MM = 0.9
VENTRICLE_EDGE_MM, VENTRICLE_CENTROID_MM = 7.5, 15.0
CSF_EDGE_MM, CSF_AREA_MM2 = 6.0, np.pi * 6.0**2 / 4
NO_VENTRICLE_MM = 1000.0  # the study's distance to what is not in the slice
OBJECTS = {
    "lesion": pl.Int64, "slice": pl.Int64, "zone": pl.String, "pixels": pl.Int64, "area_mm2": pl.Float64,
    "ventricle_edge_mm": pl.Float64, "ventricle_centroid_mm": pl.Float64, "cortex_edge_mm": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Zones2D:
    """Objects of the published rule.

    Attributes
    ----------
    labels : (X, Y, slices) int32
        Each object's number, its holes filled; 0 elsewhere.
    zones : (X, Y, slices) uint8
        1 periventricular, 2 paraventricular, 3 juxtacortical, 0 elsewhere.
    objects : frame
        lesion, slice, zone, pixels, area_mm2 (by the rule's pixels), ventricle_edge_mm, ventricle_centroid_mm,
        cortex_edge_mm (to dark pixels); distances within the slice, null where it has no ventricle or no dark pixel.
    """

    labels: NDArray[np.int32]
    zones: NDArray[np.uint8]
    objects: pl.DataFrame


def published_zones(
    lesions: np.ndarray,
    ventricles: np.ndarray,
    csf: np.ndarray,
    *,
    pixel_mm: float = PIXEL_MM,
) -> Zones2D:
    """Zone of each lesion object of each slice.

    An object is an outer outline (8 neighbours) with all that it surrounds. Its edge is the vertices of the outline,
    its centroid the outline's, cut down to whole pixels; the ventricles' and the fluid's edges are all outline pixels.
    In this order:

    1. periventricular: edge to ventricle at most 7.5 mm, or centroid to ventricle at most 15 mm;
    2. juxtacortical: edge to fluid at most 6 mm and area at most pi 6^2 / 4 = 28.27 mm2;
    3. paraventricular.

    Distances and areas are rounded to 0.001, as published.

    Parameters
    ----------
    lesions, ventricles : (X, Y, slices)
        Above 0 is inside.
    csf : (X, Y, slices)
        The study's fluid is `published_images.csf_candidates`.
    pixel_mm
        Side of a pixel; the study says 0.9 for every scan.

    Raises
    ------
    ValueError
        If shapes differ or are no volumes.
    """
    import cv2

    if lesions.ndim != 3 or not lesions.shape == ventricles.shape == csf.shape:
        shapes = f"{lesions.shape}, {ventricles.shape} and {csf.shape}"
        raise ValueError(f"lesions, ventricles and fluid must be volumes on one grid, not {shapes}")
    labels, zones = np.zeros(lesions.shape, np.int32), np.zeros(lesions.shape, np.uint8)
    rows: list[tuple[object, ...]] = []
    for index in range(lesions.shape[2]):
        inside = np.ascontiguousarray(lesions[:, :, index] > 0, np.uint8)
        if not inside.any():
            continue
        ventricle, fluid = (_outline(mask[:, :, index] > 0) for mask in (ventricles, csf))
        for outline in cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            filled = np.zeros(inside.shape, np.uint8)
            cv2.drawContours(filled, [outline], -1, 1, -1)
            pixels, vertices = int(filled.sum()), outline[:, 0]
            area = float(np.round(pixels * pixel_mm * pixel_mm, 3))
            edge = _least_mm(vertices, ventricle, pixel_mm)
            centre = _least_mm(_centroid(outline), ventricle, pixel_mm)
            near = _least_mm(vertices, fluid, pixel_mm)
            code = _code(edge, centre, near, area)
            labels[:, :, index][filled > 0] = len(rows) + 1
            zones[:, :, index][filled > 0] = code
            rows.append((len(rows) + 1, index, ZONES[code - 1], pixels, area, edge, centre, near))
    distances = [name for name in OBJECTS if name.startswith(("ventricle", "cortex"))]
    objects = pl.DataFrame(rows, OBJECTS, orient="row")
    return Zones2D(labels, zones, objects.with_columns(pl.col(distances).replace(NO_VENTRICLE_MM, None)))


def _code(edge_mm: float, centroid_mm: float, fluid_mm: float, area_mm2: float) -> int:
    if edge_mm <= VENTRICLE_EDGE_MM or centroid_mm <= VENTRICLE_CENTROID_MM:
        return 1
    return 3 if fluid_mm <= CSF_EDGE_MM and area_mm2 <= CSF_AREA_MM2 else 2


def _outline(mask: np.ndarray) -> np.ndarray:
    """All pixels of the outlines of a slice's mask, holes included: (n, 2)."""
    import cv2

    found = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    return np.concatenate([np.empty((0, 2), np.int32), *(outline[:, 0] for outline in found)])


def _centroid(outline: np.ndarray) -> np.ndarray:
    """Centroid of the polygon in whole pixels (1, 2); the first vertex where it has no area."""
    import cv2

    moments = cv2.moments(outline)
    if not moments["m00"]:
        return outline[:1, 0].astype(np.int64)
    return np.array([[int(moments["m10"] / moments["m00"]), int(moments["m01"] / moments["m00"])]])


def _least_mm(points: np.ndarray, others: np.ndarray, pixel_mm: float) -> float:
    if not len(others):
        return NO_VENTRICLE_MM
    return float(np.round(cdist(points, others).min() * pixel_mm, 3))
