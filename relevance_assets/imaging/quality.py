"""Quality measures of a prepared image: rows of the table `volumes`.

Belongs here: numbers that tell whether a preparation is sound. Does not belong here: deciding what to do
about it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.template import moved_by, template
from relevance_assets.imaging.volumes import Image

__all__ = [
    "brain_volume_mm3",
    "coefficient_of_variation",
    "dice",
    "grid_columns",
    "signal_to_noise",
    "volume_row",
    "white_matter",
]

WHITE = 0.9  # share of white matter in the template, above which a voxel counts as white matter
AIR_MM = 12.0  # nearer to the head than this is no air: scalp's ringing and interpolation
MOST_SQUARE = 0.49  # of noise in air, by the cut squared: above, nearly all of its distribution lies beyond the cut
FEWEST = 100  # voxels, for a number that is an average


def grid_columns(grid: Grid) -> dict[str, Any]:
    """Shape, voxel sizes (mm) and orientation of a grid, one column each."""
    shape = {f"shape_{axis}": int(n) for axis, n in zip("xyz", grid.shape, strict=True)}
    sizes = {f"voxel_{axis}_mm": round(size, 6) for axis, size in zip("xyz", grid.voxel_sizes_mm, strict=True)}
    return shape | sizes | {"orientation": grid.orientation}


def volume_row(
    name: str, values: np.ndarray, mask: np.ndarray, grid: Grid, *, resampled: bool, share_clipped: float
) -> dict[str, Any]:
    """One row of `volumes`, without study, scan, path and hash.

    Parameters
    ----------
    values : ndarray (x, y, z)
        The image on the prepared grid in its own unit, before scaling.
    mask : ndarray of bool (x, y, z)
        The brain; at least one voxel.
    resampled : bool
        Whether this contrast was interpolated.
    share_clipped : float
        Share of brain voxels that scaling cut off at 0 or 1.
    """
    brain = values[mask].astype(np.float64)
    voxel_mm3 = float(abs(np.linalg.det(grid.affine[:3, :3])))
    return {
        "image": name,
        **grid_columns(grid),
        "resampled": resampled,
        "brain_voxels": int(brain.size),
        "brain_volume_mm3": brain.size * voxel_mm3,
        "minimum": float(brain.min()),
        "maximum": float(brain.max()),
        "mean": float(brain.mean()),
        "standard_deviation": float(brain.std()),
        "share_clipped": share_clipped,
    }


def brain_volume_mm3(mask: np.ndarray, affine: np.ndarray) -> float:
    """Volume of a mask, mm3: its voxels times the affine's determinant."""
    return int(np.count_nonzero(mask)) * abs(float(np.linalg.det(affine[:3, :3])))


def dice(first: np.ndarray, second: np.ndarray) -> float | None:
    """2 |A and B| / (|A| + |B|) of two masks on one grid; None where both are empty.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"masks {first.shape} and {second.shape} differ in shape")
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2 * int(np.count_nonzero((first != 0) & (second != 0))) / total if total else None


def white_matter(mask: np.ndarray, affine: np.ndarray, from_template: np.ndarray) -> np.ndarray:
    """Deep white matter of a scan, by the template: its share of white matter > 0.9, moved by the affine.

    Where the result is eroded by one voxel (along the three axes; not along an axis with voxels over 4 mm) and lies
    in the brain mask.

    Parameters
    ----------
    mask : ndarray (x, y, z), bool
    affine : ndarray (4, 4)
        Of the scan's grid.
    from_template : ndarray (4, 4)
        Points of the template to points of the scan, mm (`MaskResult.from_template`).

    Returns
    -------
    ndarray (x, y, z), bool
    """
    space, grid = template(), Grid(mask.shape, affine)
    white = moved_by(space.white, space.grid, from_template, grid) > WHITE
    thin = [size <= 4 for size in grid.voxel_sizes_mm]
    if any(thin):
        neighbours = ndimage.generate_binary_structure(3, 1)
        for axis, keep in enumerate(thin):
            if not keep:
                neighbours = neighbours & (np.indices((3, 3, 3))[axis] == 1)
        white = ndimage.binary_erosion(white, neighbours)
    return white & mask


def coefficient_of_variation(values: np.ndarray, mask: np.ndarray) -> float | None:
    """Standard deviation over mean of the values in a mask; None with fewer than 100 voxels or a mean <= 0."""
    inside = values[mask].astype(np.float64)
    if inside.size < FEWEST or inside.mean() <= 0:
        return None
    return float(inside.std() / inside.mean())


def signal_to_noise(image: Image, mask: np.ndarray) -> float | None:
    """Mean of the brain over the standard deviation of the noise, seen in the air around the head.

    In air a magnitude image holds noise alone, which has a Rayleigh distribution. Air is what is darker than a tenth of
    the brain's mean, outside the head (the largest object that is brighter, filled) by 12 mm and more; the distribution
    is fitted as one that is cut off there, by maximum likelihood.

    Parameters
    ----------
    mask : ndarray (x, y, z), bool
        The brain; at least one voxel.

    Returns
    -------
    float, or None where there is no air with noise: fewer than 100 voxels, half of them with one value (a background
    that was set, a stripped image), no fall towards the cut. Below about 13 the noise hangs together with the head, and
    no air is left.

    Notes
    -----
    Dietrich et al., Journal of Magnetic Resonance Imaging 26:375 (2007), the measure for one receiver coil. Several
    coils, filters and interpolation change the noise's distribution: compare only scans of one protocol.

    With u = cut^2 / (2 SD^2), the mean of (value / cut)^2 is 1 / u - 1 / (exp(u) - 1); 1 / 2 where nothing falls.
    """
    mean = float(image.data[mask].astype(np.float64).mean())
    cut = 0.1 * mean
    bright = (image.data > cut) | mask
    labels, _ = ndimage.label(bright)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    head = ndimage.binary_fill_holes(labels == sizes.argmax())
    voxel_mm = Grid(image.data.shape, image.affine).voxel_sizes_mm
    away = ndimage.distance_transform_edt(~head, sampling=voxel_mm) > AIR_MM
    air = image.data[away & ~bright].astype(np.float64)
    if air.size < FEWEST or np.unique(air, return_counts=True)[1].max() > air.size / 2:
        return None
    square = float(np.mean(air**2)) / cut**2
    if not square < MOST_SQUARE:
        return None
    u = optimize.brentq(lambda u: 1 / u - 1 / math.expm1(u) - square, 1e-4, min(2 / square, 700.0))
    return mean / cut * math.sqrt(2 * u)
