"""Quality measures of a prepared image: rows of the table `volumes`.

Belongs here: numbers that tell whether a preparation is sound. Does not belong here: deciding what to do
about it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from relevance_assets.imaging.grid import Grid

AIR_VOXELS = 100  # at least, to know the noise from

__all__ = ["correlation", "dice", "grid_columns", "signal_to_noise", "variation", "volume_row"]


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


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """Overlap of two masks of one shape, 2 |a and b| / (|a| + |b|); None where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's, of two arrays of one shape; None where one of them is constant."""
    x, y = (np.asarray(values, np.float64) - np.mean(values, dtype=np.float64) for values in (a, b))
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm > 0 else None


def variation(values: np.ndarray) -> float | None:
    """Coefficient of variation, SD / mean; None of fewer than two values or where the mean is not positive."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean()) if values.size > 1 else 0.0
    return float(values.std()) / mean if mean > 0 else None


def signal_to_noise(image: np.ndarray, brain: np.ndarray) -> float | None:
    """Mean of the brain over the SD of the noise, which is estimated in air.

    Magnitude images have Rayleigh noise in air: its mean square is twice the variance of the noise of one channel
    (Gudbjartsson and Patz 1995). Air is the corners of the field of view, a fifth of each axis, outside the brain;
    None where there is no noise in it, as after skull stripping.
    """
    air = []
    for ends in np.ndindex(2, 2, 2):
        fifths = [max(1, n // 5) for n in image.shape]
        corner = tuple(slice(-n, None) if end else slice(n) for n, end in zip(fifths, ends, strict=True))
        air.append(image[corner][~brain[corner]])
    values = np.concatenate(air).astype(np.float64)
    values = values[values > 0]  # padding is exactly 0
    if not brain.any() or values.size < AIR_VOXELS or np.unique(values).size < 2:
        return None
    return float(image[brain].mean(dtype=np.float64) / np.sqrt((values**2).mean() / 2))
