"""One scan: the person's anatomy on the scan's grid, the five images, and the truth.

Belongs here: putting template, warp, lesions and signal together, voxel by voxel. Does not belong here:
files and names (`bids.py`), or a constant of any kind.

Each voxel is cut into cubes of about 2 mm (1 mm for voxels below 2 mm); the template is sampled at their
centres and signals are averaged over them, so that partial volume comes out by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from relevance_assets.cohort.synthetic import lesions as focal
from relevance_assets.cohort.synthetic import signal
from relevance_assets.cohort.synthetic.people import Stream, Visit, stream
from relevance_assets.cohort.synthetic.template import CHANNELS, Grid, Template, load_template, sample
from relevance_assets.cohort.synthetic.warp import Warp, draw_warp, smooth_field, to_template

__all__ = ["IMAGES", "Scan", "make_scan", "scan_grid", "template_spacing_mm"]

#: The five images, by BIDS suffix.
IMAGES = ("T1w", "FLAIR", "T1map", "MWFmap", "dwimap")
FIELD_OF_VIEW_MM = (192.0, 224.0, 192.0)
CENTRE_MM = (0.0, -17.0, 6.0)
BLOCK_POINTS = 30_000  # fits the processor's cache
_TRUTH = ("brain", "ventricle", "cortex", "disability", "decoy", *focal.ZONES, "vessel")
_SUMS = (*_TRUTH, "T1w", "FLAIR", "r1", "mwf", "ndi")


@dataclass(frozen=True)
class Scan:
    """One scan's images and truth, on one RAS grid.

    Attributes
    ----------
    visit : Visit
    grid : Grid
    images : dict of (x, y, z) float64
        By suffix: T1w and FLAIR in arbitrary units, T1map in ms, MWFmap and dwimap (NDI) as fractions.
    fractions : dict of (x, y, z) float32
        Share of the voxel: brain, ventricle, cortex, disability, decoy, the three lesion zones, vessel.
    displacement_mm : (x, y, z, 3)
        Subject mm + displacement = template mm.
    lesions, vessels : list
        What was planted, in template space.
    warp : Warp
    """

    visit: Visit
    grid: Grid
    images: dict[str, np.ndarray]
    fractions: dict[str, np.ndarray]
    displacement_mm: np.ndarray
    lesions: list[focal.Lesion]
    vessels: list[focal.Vessel]
    warp: Warp


def template_spacing_mm(voxel_size_mm: float) -> int:
    """Resolution of the template (mm) used for a voxel size."""
    return 1 if voxel_size_mm < 2 else 2


def scan_grid(voxel_size_mm: float) -> Grid:
    """The scan's grid: 192 x 224 x 192 mm (rounded up to whole voxels) around the brain's middle."""
    shape = tuple(math.ceil(extent / voxel_size_mm - 1e-9) for extent in FIELD_OF_VIEW_MM)
    origin = np.array(CENTRE_MM) - voxel_size_mm * (np.array(shape) - 1) / 2
    return Grid(shape, origin, float(voxel_size_mm))  # type: ignore[arg-type]


def make_scan(visit: Visit, *, voxel_size_mm: float, seed: int, effect: float) -> Scan:
    """Everything about one scan; a function of its arguments alone.

    Parameters
    ----------
    visit : Visit
        From `people.draw_visits`, with the same seed.
    voxel_size_mm : float
    seed : int
    effect : float
        Multiplies the planted region's severity; the decoy keeps its own.
    """
    template = load_template(template_spacing_mm(voxel_size_mm))
    grid = scan_grid(voxel_size_mm)
    warp = draw_warp(template, seed, visit)
    lesions = focal.draw_lesions(template, seed, visit)
    vessels = focal.draw_vessels(template, seed, visit)
    planted = np.concatenate([focal.render_lesions(template, lesions), focal.render_vessels(template, vessels)], axis=1)
    sums, displacement = _average(template, planted, warp, grid, visit, effect)
    fractions = {name: sums[name] for name in _TRUTH}
    images = _images(sums, grid, stream(seed, visit.person.subject, Stream.SCANNER, visit.session))
    return Scan(visit, grid, images, fractions, displacement, lesions, vessels, warp)


def _average(
    template: Template, planted: np.ndarray, warp: Warp, grid: Grid, visit: Visit, effect: float
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Mean of `_SUMS` over each voxel's cubes, and the warp at the voxels' centres."""
    count = int(np.prod(grid.shape))
    displacement = np.empty((count, 3), dtype=np.float32)
    means = np.zeros((len(_SUMS), count), dtype=np.float32)
    cut = max(1, round(grid.spacing_mm / template.grid.spacing_mm))
    steps = ((np.arange(cut) + 0.5) / cut - 0.5) * grid.spacing_mm
    cubes = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    near = []
    for start in range(0, count, BLOCK_POINTS):
        voxels = np.arange(start, min(start + BLOCK_POINTS, count))
        points = grid.points(voxels)
        there = to_template(warp, points)
        displacement[voxels] = there - points
        near.append(voxels[_near_brain(template, there, grid.spacing_mm)])
    inside = np.concatenate(near)
    block = max(1, BLOCK_POINTS // len(cubes))
    for start in range(0, len(inside), block):
        voxels = inside[start : start + block]
        there = to_template(warp, (grid.points(voxels)[:, None] + cubes).reshape(-1, 3))
        values = _quantities(template, planted, there, visit, effect)
        means[:, voxels] = values.reshape(len(voxels), len(cubes), -1).mean(axis=1).T
    sums = {name: values.reshape(grid.shape) for name, values in zip(_SUMS, means, strict=True)}
    return sums, displacement.reshape(*grid.shape, 3)


def _near_brain(template: Template, points: np.ndarray, voxel_size_mm: float) -> np.ndarray:
    """Which template points may lie within a voxel of the brain."""
    place = np.rint((points - template.warp_grid.origin_mm) / template.warp_grid.spacing_mm).astype(int)
    place = np.clip(place, 0, np.array(template.warp_grid.shape) - 1)
    # Half a voxel's diagonal, stretched by the warp; and half a diagonal of the coarse grid.
    return template.to_brain_mm[tuple(place.T)] <= 1.3 * voxel_size_mm + 3.5


def _quantities(template: Template, planted: np.ndarray, where: np.ndarray, visit: Visit, effect: float) -> np.ndarray:
    """`_SUMS` at template points: (n, len(_SUMS)); everything is multiplied by the share of brain."""
    anatomy, focal_at = (values.T for values in sample(template.grid, where, template.table, planted))
    filled = np.flatnonzero(anatomy[0] > 0)
    at = dict(zip(CHANNELS, anatomy[:, filled], strict=True))
    zones, vessel = focal_at[:3, filled], focal_at[3, filled]
    brain, person = at["brain"], visit.person
    white, grey, deep = at["white"], at["grey"] - _thinning(at, visit), at["deep_grey"]
    contents = signal.Contents(
        white=white,
        grey=grey,
        deep_grey=deep,
        fluid=np.maximum(brain - white - grey - deep, 0.0),
        lesion=np.minimum(zones.sum(axis=0), 1.0),
        vessel=vessel,
        damage=at["disability"] * (visit.severity * effect) + at["decoy"] * person.decoy_severity,
    )
    tissue = signal.mix(contents, 1 + person.t1_scatter, 1 + person.mwf_scatter, 1 + person.ndi_scatter)
    measured = (signal.t1w(tissue), signal.flair(tissue), tissue.mean_r1, tissue.mwf, tissue.ndi)
    truth = (brain, at["ventricle"], grey, at["disability"], at["decoy"])
    values = np.zeros((len(where), len(_SUMS)), dtype=np.float32)
    for column, quantity in enumerate((*truth, *zones, vessel, *(brain * part for part in measured))):
        values[filled, column] = quantity
    return values


def _thinning(at: dict[str, np.ndarray], visit: Visit) -> np.ndarray:
    """Share of the point that age has turned from cortex into fluid, at the cortex's outer border only."""
    level = np.clip(0.45 * (max(visit.age - 20, 0) / 60) + visit.person.thinning_scatter, 0.0, 0.6)
    tissue = at["white"] + at["grey"] + at["deep_grey"]
    kept = np.clip((tissue - level) / (1.0 - level), 0.0, 1.0)
    return np.minimum(at["grey"], tissue - kept)


def _images(sums: dict[str, np.ndarray], grid: Grid, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The five images, 0 outside the brain: bias field and Rician noise on the weighted ones, fit noise on the maps."""
    brain = sums["brain"]
    inside = brain >= 0.5
    images = {}
    for name in ("T1w", "FLAIR"):
        field = np.exp(smooth_field(grid, rng, 90.0, signal.BIAS_SD, 1)[0])
        noisy = signal.add_rician_noise(sums[name] * field, signal.reference_noise(name), rng)
        images[name] = np.where(inside, noisy, 0.0)  # brain-extracted, as the templates are
    share = np.where(inside, brain, 1.0)
    exact = {"T1map": share / np.where(inside, sums["r1"], 1.0), "MWFmap": sums["mwf"] / share}
    exact["dwimap"] = sums["ndi"] / share
    limits = {"T1map": (100.0, 6000.0), "MWFmap": (0.0, 1.0), "dwimap": (0.0, 1.0)}
    for name, values in exact.items():
        error = 1 + smooth_field(grid, rng, 60.0, signal.FIT_SMOOTH_ERROR[name], 1)[0]
        noise = signal.FIT_NOISE[name] * rng.standard_normal(grid.shape)
        noisy = values * error * (1 + noise) if name == "T1map" else values * error + noise
        images[name] = np.where(inside, np.clip(noisy, *limits[name]), 0.0)
    return images
