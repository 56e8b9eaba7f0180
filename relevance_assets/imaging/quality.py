"""Quality measures of a prepared image: rows of the table `volumes`.

Belongs here: numbers that tell whether a preparation is sound. Does not belong here: deciding what to do
about it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from relevance_assets.imaging.grid import Grid

__all__ = ["grid_columns", "volume_row"]


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
