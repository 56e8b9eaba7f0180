"""Each person's anatomy: an affine and a smooth, invertible displacement, from subject to template.

Belongs here: drawing the warp, checking that it does not fold, and applying it to points. Does not belong
here: what is found at the points in the template.

The warp is the pull-back: a point x of the subject (mm) shows what the template has at y = z + D(z), with
z = A^-1 x. D is the sum of two random cubic B-spline fields and of a widening of the lateral ventricles.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.interpolate import BSpline
from scipy.sparse import csr_array

from relevance_assets.cohort.synthetic.people import Stream, Visit, stream
from relevance_assets.cohort.synthetic.template import Grid, Template, sample

__all__ = ["Warp", "draw_warp", "jacobian_determinants", "smooth_field", "to_template", "ventricle_widening_mm"]

COARSE_FIELD = (36.0, 2.6)  # spacing of control points, SD of their displacement (mm)
FINE_FIELD = (18.0, 0.9)
MINIMUM_JACOBIAN = 0.15
SHRINK, TRIES = 0.8, 20
CHECKED_AROUND_BRAIN_MM = 12.0


@dataclass(frozen=True)
class Warp:
    """`inverse` (4, 4): subject mm to z; `displacement` (voxels, 3) float32: D in mm on `grid`."""

    inverse: np.ndarray
    displacement: np.ndarray
    grid: Grid
    jacobian_minimum: float
    jacobian_maximum: float


def ventricle_widening_mm(visit: Visit) -> float:
    """How far the ventricles' walls have moved outwards since young adulthood."""
    grown = 2.2 * (max(visit.age - 20, 0) / 60) ** 1.5
    return float(np.clip(grown + visit.person.ventricle_scatter_mm, -0.8, 2.6))


def draw_warp(template: Template, seed: int, visit: Visit) -> Warp:
    """The warp of a person at a visit; only the ventricles change between visits.

    Where the field comes near to folding (a determinant below 0.15 near the brain) it is shrunk by a fifth,
    as often as needed, the same way each time.

    Raises
    ------
    ValueError
        The field folds even when shrunk 20 times.
    """
    rng = stream(seed, visit.person.subject, Stream.WARP)
    forward = _draw_affine(rng)
    grid = template.warp_grid
    random = smooth_field(grid, rng, *COARSE_FIELD) + smooth_field(grid, rng, *FINE_FIELD)
    widening = -ventricle_widening_mm(visit) * template.ventricle_push
    linear = 1.0 / float(np.linalg.det(forward[:3, :3]))
    near = template.to_brain_mm[:-1, :-1, :-1] < CHECKED_AROUND_BRAIN_MM
    for attempt in range(TRIES):
        field = (random + widening) * SHRINK**attempt
        determinants = linear * jacobian_determinants(field, grid.spacing_mm)[:, near]
        if determinants.min() > MINIMUM_JACOBIAN:
            return Warp(
                inverse=np.linalg.inv(forward),
                displacement=np.ascontiguousarray(field.reshape(3, -1).T, dtype=np.float32),
                grid=grid,
                jacobian_minimum=float(determinants.min()),
                jacobian_maximum=float(determinants.max()),
            )
    raise ValueError(f"{visit.scan}: the drawn anatomy folds; choose another seed")


def to_template(warp: Warp, points: np.ndarray) -> np.ndarray:
    """Subject coordinates (n, 3) in mm to template coordinates (n, 3) in mm."""
    straight = points @ warp.inverse[:3, :3].T + warp.inverse[:3, 3]
    return straight + sample(warp.grid, straight, warp.displacement)[0]


def jacobian_determinants(field: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Determinants of z + D(z) at the eight corners of every cell of the trilinear field D.

    Parameters
    ----------
    field : (3, x, y, z)
        Displacement in mm.

    Returns
    -------
    (8, x - 1, y - 1, z - 1)
    """
    steps = [np.diff(field, axis=axis + 1) / spacing_mm for axis in range(3)]
    determinants = []
    for corner in product((0, 1), repeat=3):
        rows = []
        for axis in range(3):
            window = [slice(None)]
            for other in range(3):
                size = field.shape[other + 1] - 1
                window.append(slice(None) if other == axis else slice(corner[other], corner[other] + size))
            rows.append(steps[axis][tuple(window)])
        (a, b, c), (d, e, f), (g, h, i) = rows
        a, e, i = a + 1, e + 1, i + 1
        determinants.append(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
    return np.stack(determinants)


def smooth_field(grid: Grid, rng: np.random.Generator, spacing_mm: float, sd: float, components: int = 3) -> np.ndarray:
    """A random cubic B-spline field, (components, x, y, z) float32.

    Parameters
    ----------
    spacing_mm : float
        Distance of the control points.
    sd : float
        Standard deviation of the control points' values.
    """
    bases = [_basis(n, grid.spacing_mm, spacing_mm) for n in grid.shape]
    field = rng.normal(0.0, sd, (components, *(basis.shape[1] for basis in bases)))
    for axis, basis in enumerate(bases):
        front = np.moveaxis(field, axis + 1, 0)
        spread = (basis @ front.reshape(len(front), -1)).reshape(-1, *front.shape[1:])
        field = np.moveaxis(spread, 0, axis + 1)
    return field.astype(np.float32)


def _basis(points: int, step_mm: float, spacing_mm: float) -> csr_array:
    """(points, control points) cubic B-spline basis; sparse, so that no product depends on threads."""
    pieces = max(1, int(np.ceil(points * step_mm / spacing_mm)))
    knots = np.arange(-3, pieces + 4) * spacing_mm
    return BSpline.design_matrix(np.arange(points) * step_mm, knots, 3)


def _draw_affine(rng: np.random.Generator) -> np.ndarray:
    """Template to subject: head position (some mm, degrees) and head size (some per cent)."""
    turn_x, turn_y, turn_z = np.radians(rng.normal(0.0, (3.0, 1.5, 2.0)))
    shift = np.clip(rng.normal(0.0, (1.5, 2.5, 2.5)), -6.0, 6.0)
    scale = np.clip(rng.normal(1.0, 0.02) + rng.normal(0.0, 0.02, 3), 0.92, 1.08)
    cx, sx, cy, sy, cz, sz = (g(t) for t in (turn_x, turn_y, turn_z) for g in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x @ np.diag(scale)
    affine[:3, 3] = shift
    return affine
