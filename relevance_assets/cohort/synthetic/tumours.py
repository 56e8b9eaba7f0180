"""Tumours of three kinds, in template mm: where they lie, their shape, how they look on T1 with contrast agent.

Belongs here: drawing a tumour, and its depth and brightness at points. Does not belong here: the brain around it, the
picture (`slices.py`). Shapes and brightness are stylised: what tells the kinds apart is meant, not their biology.

Meningiomas sit on the rim of the brain, are round, smooth and evenly bright. Gliomas lie within a hemisphere, are
irregular, with a bright ring around a dark middle, and oedema around both. Pituitary tumours are small, bright and at
the midline of the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from relevance_assets.cohort.synthetic.template import Template

__all__ = ["KINDS", "Tumour", "brightness", "depth", "draw_tumour"]

KINDS = ("meningioma", "glioma", "pituitary")
RADIUS_MM = {"meningioma": (12.0, 21.0), "glioma": (15.0, 24.0), "pituitary": (7.0, 11.0)}
ROUGHNESS = {"meningioma": 0.04, "glioma": 0.22, "pituitary": 0.05}  # of the radius
WAVE_MM = (14.0, 36.0)  # wavelengths of the surface and of the texture
WAVES = 10
MIDDLE_MM = np.array([0.0, -17.0, 12.0])  # about the middle of the cerebrum
SELLA_MM = np.array([0.0, 4.0, -24.0])  # just below the hypothalamus
RING_FROM = 0.62  # of the radius
OEDEMA_TO = 1.45
# Brightness as a multiple of white matter's.
SOLID = {"meningioma": 1.5, "pituitary": 1.4}
CORE, RING, OEDEMA = 0.4, 1.45, 0.7


@dataclass(frozen=True)
class Tumour:
    """An ellipsoid with a rough surface, in template mm.

    Attributes
    ----------
    kind : str
    centre_mm : (3,)
    semi_axes_mm : (3,)
        Along x, y, z.
    waves : (2, WAVES, 4)
        Wave vectors (rad/mm) and phases of the surface and of the texture.
    """

    kind: str
    centre_mm: np.ndarray
    semi_axes_mm: np.ndarray
    waves: np.ndarray


def draw_tumour(template: Template, rng: np.random.Generator, kind: str) -> Tumour:
    """A tumour of this kind at a random place where such tumours lie."""
    radius = rng.uniform(*RADIUS_MM[kind])
    stretch = rng.uniform(0.85, 1.15, 3) if kind != "glioma" else rng.uniform(0.75, 1.3, 3)
    semi_axes = radius * stretch / np.prod(stretch) ** (1 / 3)
    if kind == "pituitary":
        centre = SELLA_MM + rng.normal(0.0, 1.0, 3) - [0.0, 0.0, 0.5 * (radius - 7.0)]
    else:
        places = _places(template)[kind]
        voxel = int(rng.choice(places))
        centre = template.grid.points(np.array([voxel]))[0]
        if kind == "meningioma":
            inward = MIDDLE_MM - centre
            centre = centre + inward / np.linalg.norm(inward) * 0.5 * radius
    directions = rng.normal(0.0, 1.0, (2, WAVES, 3))
    lengths = rng.uniform(*WAVE_MM, (2, WAVES, 1))
    vectors = directions / np.linalg.norm(directions, axis=-1, keepdims=True) * (2 * np.pi / lengths)
    phases = rng.uniform(0.0, 2 * np.pi, (2, WAVES, 1))
    return Tumour(kind, centre, semi_axes, np.concatenate([vectors, phases], axis=-1))


def depth(tumour: Tumour, points: np.ndarray) -> np.ndarray:
    """Relative radius at template points (n, 3), (n,): 0 in the middle, 1 at the rough surface."""
    scaled = (points - tumour.centre_mm) / tumour.semi_axes_mm
    return np.linalg.norm(scaled, axis=1) + ROUGHNESS[tumour.kind] * _noise(tumour.waves[0], points)


def brightness(tumour: Tumour, points: np.ndarray, radius: np.ndarray, around: np.ndarray) -> np.ndarray:
    """What is seen at template points, (n,), as multiples of white matter's brightness.

    Parameters
    ----------
    points : (n, 3)
    radius : (n,)
        `depth` at the points.
    around : (n,)
        Brightness without the tumour.
    """
    texture = _noise(tumour.waves[1], points)
    if tumour.kind != "glioma":
        inside, solid = _ramp((1.0 - radius) / 0.12), SOLID[tumour.kind] * (1 + 0.04 * texture)
        return around + inside * (solid - around)
    swollen = around * (1 - (1 - OEDEMA) * _ramp((OEDEMA_TO - radius) / 0.3))
    ring = RING * (1 + 0.12 * texture)  # gliomas take up contrast agent unevenly
    within = CORE * (1 + 0.15 * texture) + _ramp((radius - RING_FROM) / 0.12) * (ring - CORE)
    return swollen + _ramp((1.0 - radius) / 0.12) * (within - swollen)


def _ramp(value: np.ndarray) -> np.ndarray:
    """0 below -1/2, 1 above 1/2, linear between."""
    return np.clip(value + 0.5, 0.0, 1.0)


def _noise(waves: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A smooth random function with variance 1, (n,): a sum of plane waves."""
    return np.cos(points @ waves[:, :3].T + waves[:, 3]).sum(axis=1) * np.sqrt(2 / len(waves))


@lru_cache(maxsize=2)
def _places(template: Template) -> dict[str, np.ndarray]:
    """Template voxels (flat indices): the rim of the cerebrum, and the white matter within its hemispheres."""
    grid = template.grid
    brain = template.channel("brain").reshape(grid.shape) > 0.5
    from_rim = ndimage.distance_transform_edt(brain, sampling=grid.spacing_mm)
    white = template.channel("white").reshape(grid.shape)
    x, y, z = grid.axes()
    # The cerebrum above the ears; not the cleft between the hemispheres, where the rim is inside the head.
    rim = brain & (from_rim <= grid.spacing_mm) & (z > 5) & ((np.abs(x) > 25) | (z > 60) | (y > 55) | (y < -90))
    within = (white > 0.6) & (from_rim > 16) & (np.abs(x) > 20) & (z > -8) & (z < 45)
    return {"meningioma": np.flatnonzero(rim), "glioma": np.flatnonzero(within)}
