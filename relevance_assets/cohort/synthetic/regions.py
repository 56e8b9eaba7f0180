"""The planted disability region and the decoy, as soft memberships in template space.

Belongs here: their coordinates (MNI mm, approximate) and how a point's membership follows from them. Does
not belong here: how strong the effect is (`signal.py`), and in whom (`people.py`).

Definitions of the tract and the capsule follow the ICBM-DTI-81 white-matter atlas (Mori et al. 2008,
NeuroImage 40:570); the tube below z = 18 agrees with it at Dice 0.63. All of it is approximate.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

__all__ = ["decoy_membership", "disability_membership"]

# Right side; the left one is its mirror image.
CORTICOSPINAL = (
    (4, -36, -50), (7, -25, -32), (13, -18, -12), (20, -14, 3),
    (24, -18, 18), (26, -20, 30), (28, -25, 45), (35, -26, 60),
)  # fmt: skip
CORTICOSPINAL_RADIUS_MM = 6.0
CAPSULE_CENTRE = (20.5, -13.0, 8.0)
CAPSULE_AXIS = (13.0, -19.0, 0.0)  # from the genu back and outwards
CAPSULE_SEMI_AXES_MM = (11.0, 4.0, 10.0)  # along the axis, across it, upwards
THALAMUS_CENTRE = (11.0, -19.0, 7.0)
THALAMUS_SEMI_AXES_MM = (9.5, 13.0, 9.0)

# Decoy: frontal and parieto-occipital white matter, about as large, at least 15 mm from the region above.
DECOY_TUBES = (
    ((18, 48, 2), (24, 34, 14), (27, 20, 26)),
    ((29, -52, 30), (29, -64, 20), (26, -78, 10)),
)
DECOY_RADIUS_MM = 7.8
WHITE_MATTER_FLOOR = 0.3


def disability_membership(points: np.ndarray, white: np.ndarray, edge_mm: float) -> np.ndarray:
    """Membership (0 to 1) in corticospinal tract, posterior limb and thalamus, both sides.

    Parameters
    ----------
    points : (n, 3) array
        MNI coordinates in mm.
    white : (n,) array
        White-matter fraction there; the tract is cut to where it is above 0.3.
    edge_mm : float
        Width over which membership falls from 1 to 0.
    """
    right = points * (-1.0, 1.0, 1.0)
    members = np.zeros(len(points))
    for side in (points, right):
        tract = _soft(CORTICOSPINAL_RADIUS_MM - _distance_to_path(side, CORTICOSPINAL), edge_mm)
        capsule = _ellipsoid(side, CAPSULE_CENTRE, CAPSULE_SEMI_AXES_MM, edge_mm, CAPSULE_AXIS)
        thalamus = _ellipsoid(side, THALAMUS_CENTRE, THALAMUS_SEMI_AXES_MM, edge_mm)
        in_white = np.maximum(tract, capsule) * (white > WHITE_MATTER_FLOOR)
        members = np.maximum(members, np.maximum(in_white, thalamus))
    return members


def decoy_membership(points: np.ndarray, white: np.ndarray, edge_mm: float) -> np.ndarray:
    """Membership (0 to 1) in the decoy; parameters as for `disability_membership`."""
    members = np.zeros(len(points))
    for side in (points, points * (-1.0, 1.0, 1.0)):
        for path in DECOY_TUBES:
            members = np.maximum(members, _soft(DECOY_RADIUS_MM - _distance_to_path(side, path), edge_mm))
    return members * (white > WHITE_MATTER_FLOOR)


def _soft(depth_mm: np.ndarray, edge_mm: float) -> np.ndarray:
    """1 inside, 0 outside, linear over `edge_mm` around depth 0."""
    return np.clip(depth_mm / edge_mm + 0.5, 0.0, 1.0)


def _distance_to_path(points: np.ndarray, path: Sequence[Sequence[float]]) -> np.ndarray:
    """Distance in mm of (n, 3) points to a chain of straight pieces."""
    corners = np.asarray(path, dtype=float)
    nearest = np.full(len(points), np.inf)
    for start, end in pairwise(corners):
        along = end - start
        share = np.clip((points - start) @ along / (along @ along), 0.0, 1.0)
        distance = np.linalg.norm(points - start - share[:, None] * along, axis=1)
        nearest = np.minimum(nearest, distance)
    return nearest


def _ellipsoid(
    points: np.ndarray,
    centre: Sequence[float],
    semi_axes: Sequence[float],
    edge_mm: float,
    axis: Sequence[float] = (1.0, 0.0, 0.0),
) -> np.ndarray:
    """Soft membership in an ellipsoid whose first semi-axis lies along `axis` (in the x-y plane)."""
    first = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    turn = np.array([first, [-first[1], first[0], 0.0], [0.0, 0.0, 1.0]])
    scaled = ((points - np.asarray(centre)) @ turn.T) / np.asarray(semi_axes)
    return _soft((1.0 - np.linalg.norm(scaled, axis=1)) * min(semi_axes), edge_mm)
