"""Where lesions and perivascular spaces lie, how large they are, and how they fill template voxels.

Belongs here: numbers, zones, places, shapes. Does not belong here: what they do to tissue (`signal.py`).

Zone shares by volume follow the means published with MS-DeepBrain-Study: periventricular 58,
paraventricular 21, juxtacortical 18 % of MS lesions; mostly periventricular in healthy people. The zones
follow its rule: periventricular within 7.5 mm (edge) or 15 mm (centre) of the lateral ventricles; else
juxtacortical when near the cortex and small (6 mm across); else paraventricular. Lesions are drawn well
inside their zone, in the mm of the template.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from relevance_assets.cohort.synthetic.people import Stream, Visit, stream
from relevance_assets.cohort.synthetic.template import Grid, Template

__all__ = ["Lesion", "Vessel", "ZONES", "draw_lesions", "draw_vessels", "render_lesions", "render_vessels"]

ZONES = ("periventricular", "paraventricular", "juxtacortical")
ZONE_VOLUME_SHARES = np.array([58.0, 21.0, 18.0]) / 97.0
HC_ZONE_SHARES = np.array([0.92, 0.05, 0.03])

# Log-normal volumes: median (mm3), SD of the logarithm, largest.
VOLUMES = {
    "periventricular": (100.0, 0.9, 3000.0),
    "paraventricular": (60.0, 0.8, 800.0),
    "juxtacortical": (45.0, 0.6, 110.0),
}
MS_LESIONS_MEAN, MS_LESIONS_SHAPE = 28.0, 1.6  # negative binomial: gamma-mixed Poisson
HC_LESIONS_MEAN = 0.8
NEW_LESIONS_MEAN = 2.0  # MS, in the two years between sessions
AGE_LESIONS_AT_82 = 14.0  # white-matter hyperintensities of age, in everybody
VESSELS_AT_82, VESSELS_AT_20 = 70.0, 12.0


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid in template mm. `axes` (3, 3): unit rows; `semi_axes_mm` (3,)."""

    zone: str
    centre_mm: np.ndarray
    axes: np.ndarray
    semi_axes_mm: np.ndarray

    @property
    def volume_mm3(self) -> float:
        return float(4 / 3 * np.pi * np.prod(self.semi_axes_mm))


@dataclass(frozen=True)
class Vessel:
    """A perivascular space: a thin straight tube in template mm."""

    start_mm: np.ndarray
    end_mm: np.ndarray
    radius_mm: float

    @property
    def volume_mm3(self) -> float:
        return float(np.pi * self.radius_mm**2 * np.linalg.norm(self.end_mm - self.start_mm))


def draw_lesions(template: Template, seed: int, visit: Visit) -> list[Lesion]:
    """All lesions of a person at a visit: those of MS, and the hyperintensities of age.

    Lesions of the first visit are there at the second too. Their number goes with group and age, not with EDSS.
    """
    rng = stream(seed, visit.person.subject, Stream.LESIONS)
    ms = visit.person.group == "MS"
    rate = rng.gamma(MS_LESIONS_SHAPE, MS_LESIONS_MEAN / MS_LESIONS_SHAPE) if ms else HC_LESIONS_MEAN
    first, new = int(rng.poisson(rate)), int(rng.poisson(NEW_LESIONS_MEAN)) if ms else 0
    # Drawn for the oldest age, each with the share of that rate at which it appears.
    of_age = rng.random(int(rng.poisson(AGE_LESIONS_AT_82)))
    appears = np.concatenate([np.zeros(first), np.full(new, 2.0), of_age])
    now = np.exp((visit.age - 82) / 12.0)
    found = []
    for number, when in enumerate(appears):
        shares = _count_shares(ZONE_VOLUME_SHARES) if ms and number < first + new else HC_ZONE_SHARES
        lesion = _draw_lesion(template, rng, str(rng.choice(ZONES, p=shares)))
        there = visit.session == 2 if when == 2.0 else when <= now
        if there:
            found.append(lesion)
    return found


def draw_vessels(template: Template, seed: int, visit: Visit) -> list[Vessel]:
    """The perivascular spaces of a person at a visit; more with age, in basal ganglia and white matter."""
    rng = stream(seed, visit.person.subject, Stream.VESSELS)
    person_rate = rng.gamma(8.0, 1 / 8.0)
    of_age = rng.random(int(rng.poisson(VESSELS_AT_82 * person_rate)))
    now = (VESSELS_AT_20 + (VESSELS_AT_82 - VESSELS_AT_20) * (max(visit.age - 20, 0) / 62) ** 2) / VESSELS_AT_82
    ganglia, white = _vessel_places(template)
    found = []
    for when in of_age:
        in_ganglia = rng.random() < 0.35
        centre = _pick(template.grid, rng, ganglia if in_ganglia else white)
        # Upwards in the basal ganglia, along the way to the ventricle's roof in the white matter.
        along = np.array([0.0, 0.2, 1.0]) if in_ganglia else np.array([0.0, -15.0, 15.0]) - centre
        along = along / np.linalg.norm(along) + rng.normal(0.0, 0.15, 3)
        along *= rng.uniform(2.5, 6.0) / np.linalg.norm(along)
        vessel = Vessel(centre - along, centre + along, float(rng.uniform(0.6, 1.1)))
        if when <= now:
            found.append(vessel)
    return found


def render_lesions(template: Template, lesions: list[Lesion]) -> np.ndarray:
    """Fraction of each template voxel that is lesion, by zone: (voxels, 3) float32.

    Lesions keep out of fluid, and fill grey matter only half.
    """
    filled = np.zeros((int(np.prod(template.grid.shape)), len(ZONES)), dtype=np.float32)
    allowed = template.channel("white") + 0.5 * (template.channel("grey") + template.channel("deep_grey"))
    spacing = template.grid.spacing_mm
    for lesion in lesions:
        reach = lesion.semi_axes_mm.max() + spacing
        index, points = _around(template.grid, lesion.centre_mm, lesion.centre_mm, reach)
        scaled = (points - lesion.centre_mm) @ lesion.axes.T / lesion.semi_axes_mm
        depth = (1.0 - np.linalg.norm(scaled, axis=1)) * np.prod(lesion.semi_axes_mm) ** (1 / 3)
        share = np.clip(depth / spacing + 0.5, 0.0, 1.0) * allowed[index]
        column = filled[:, ZONES.index(lesion.zone)]
        column[index] = np.maximum(column[index], share)
    return filled


def render_vessels(template: Template, vessels: list[Vessel]) -> np.ndarray:
    """Fraction of each template voxel that is perivascular space: (voxels, 1) float32.

    A tube thinner than a voxel is spread over the nearest ones so that its volume stays right.
    """
    filled = np.zeros((int(np.prod(template.grid.shape)), 1), dtype=np.float32)
    spacing = template.grid.spacing_mm
    for vessel in vessels:
        index, points = _around(template.grid, vessel.start_mm, vessel.end_mm, vessel.radius_mm + spacing)
        along = vessel.end_mm - vessel.start_mm
        share = np.clip((points - vessel.start_mm) @ along / (along @ along), 0.0, 1.0)
        distance = np.linalg.norm(points - vessel.start_mm - share[:, None] * along, axis=1)
        weight = np.clip((vessel.radius_mm + spacing - distance) / spacing, 0.0, 1.0)
        total = weight.sum() * spacing**3
        if total > 0:
            fraction = np.minimum(weight * vessel.volume_mm3 / total, 1.0)
            filled[index, 0] = np.maximum(filled[index, 0], fraction)
    return filled


def _count_shares(volume_shares: np.ndarray) -> np.ndarray:
    """Shares of the number of lesions that give these shares of their volume."""
    means = np.array([VOLUMES[zone][0] * np.exp(VOLUMES[zone][1] ** 2 / 2) for zone in ZONES])
    counts = volume_shares / means
    return counts / counts.sum()


def _draw_lesion(template: Template, rng: np.random.Generator, zone: str) -> Lesion:
    median, spread, largest = VOLUMES[zone]
    volume = min(median * np.exp(spread * rng.standard_normal()), largest)
    centre = _pick(template.grid, rng, _places(template)[zone])
    radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
    stretch = rng.uniform(1.2, 1.9) if zone == "periventricular" else rng.uniform(1.0, 1.4)
    # Periventricular lesions point to the ventricle (Dawson's fingers), others anywhere.
    wanted = np.array([np.sign(centre[0]) * 20.0, 0.0, 6.0]) if zone == "periventricular" else rng.normal(0, 1, 3)
    wanted = wanted + rng.normal(0.0, 2.0, 3) if zone == "periventricular" else wanted
    first, second = wanted / np.linalg.norm(wanted), rng.normal(0.0, 1.0, 3)
    second -= first * (first @ second)
    second /= np.linalg.norm(second)
    semi_axes = radius * np.array([stretch, 1.0, 1.0]) / stretch ** (1 / 3)
    return Lesion(zone, centre, np.stack([first, second, np.cross(first, second)]), semi_axes)


@lru_cache(maxsize=2)
def _places(template: Template) -> dict[str, np.ndarray]:
    """Template voxels (flat indices) where the centre of a lesion of each zone may lie."""
    shape = template.grid.shape
    parts = (template.channel("white"), template.to_ventricle_mm, template.to_cortex_mm)
    white, ventricle, cortex = (part.reshape(shape) for part in parts)
    _, y, z = template.grid.axes()
    cerebrum = (white > 0.6) & (z > -12) & (y > -95) & ((z > 8) | (y > 10) | (y < -40) | (ventricle < 10))
    return {
        "periventricular": np.flatnonzero(cerebrum & (ventricle >= 1.5) & (ventricle <= 5.5)),
        "paraventricular": np.flatnonzero(cerebrum & (ventricle >= 17.0) & (cortex >= 5.0)),
        "juxtacortical": np.flatnonzero(cerebrum & (ventricle >= 17.0) & (cortex <= 3.5)),
    }


@lru_cache(maxsize=2)
def _vessel_places(template: Template) -> tuple[np.ndarray, np.ndarray]:
    """Template voxels where a perivascular space may be centred: basal ganglia, white matter."""
    parts = (template.channel("white"), template.channel("deep_grey"), template.to_ventricle_mm)
    white, deep, ventricle = (part.reshape(template.grid.shape) for part in parts)
    x, y, z = template.grid.axes()
    ganglia = (deep > 0.5) & (np.abs(x) > 15) & (np.abs(z) < 8) & (y > -12)
    centrum = (white > 0.8) & (z > 18) & (ventricle > 6) & (np.abs(x) > 12)
    return np.flatnonzero(ganglia), np.flatnonzero(centrum)


def _pick(grid: Grid, rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    """A random point (mm) in one of the voxels with these flat indices."""
    voxel = np.array(np.unravel_index(int(rng.choice(places)), grid.shape))
    return grid.origin_mm + (voxel + rng.uniform(-0.5, 0.5, 3)) * grid.spacing_mm


def _around(grid: Grid, one_mm: np.ndarray, other_mm: np.ndarray, reach_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in the box around two points: flat indices (n,) and coordinates (n, 3) in mm."""
    low = (np.minimum(one_mm, other_mm) - reach_mm - grid.origin_mm) / grid.spacing_mm
    high = (np.maximum(one_mm, other_mm) + reach_mm - grid.origin_mm) / grid.spacing_mm
    limits = np.array(grid.shape) - 1
    first, last = np.clip(np.floor(low), 0, limits), np.clip(np.ceil(high), 0, limits)
    axes = [np.arange(a, b + 1) for a, b in zip(first.astype(int), last.astype(int), strict=True)]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.ravel_multi_index(tuple(voxels.T), grid.shape), grid.origin_mm + voxels * grid.spacing_mm
