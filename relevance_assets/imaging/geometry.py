"""The way between a scan's native grid and its prepared grid, as something that a sidecar can hold.

Belongs here: `Geometry`, maps back to the native grid, native labels onto the prepared grid. Does not belong
here: how the prepared grid came about (`recipe.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from relevance_assets.imaging.grid import Grid, copy_between, resample
from relevance_assets.imaging.volumes import ScanError, read_image

__all__ = ["Geometry", "to_native", "to_prepared_labels"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a prepared volume lies, and where it came from.

    Attributes
    ----------
    native, prepared : Grid
        Grid of the first contrast's file, and of the prepared volumes.
    resampled : bool
        Whether the first contrast was interpolated. If not, both grids share their voxels.
    """

    native: Grid
    prepared: Grid
    resampled: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` gives back the same numbers."""
        return {
            "NativeShape": list(self.native.shape),
            "NativeAffine": self.native.affine.tolist(),
            "PreparedShape": list(self.prepared.shape),
            "PreparedAffine": self.prepared.affine.tolist(),
            "Resampled": self.resampled,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Geometry:
        """From `to_dict`'s result, or a sidecar read from JSON; ValueError names a key that is missing."""
        try:
            native = _grid(content["NativeShape"], content["NativeAffine"])
            prepared = _grid(content["PreparedShape"], content["PreparedAffine"])
            return cls(native, prepared, bool(content["Resampled"]))
        except KeyError as error:
            raise ValueError(f"the geometry has no {error}; prepare the scan again") from None


def _grid(shape: list[int], affine: list[list[float]]) -> Grid:
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), np.array(affine, dtype=np.float64))


def to_native(volume: np.ndarray, geometry: Geometry, order: Literal[0, 1, 3] = 1) -> np.ndarray:
    """A prepared volume on the native grid of the first contrast; 0 outside the prepared field of view.

    Where nothing was resampled this undoes reorientation, cropping and padding exactly: same values, same
    bits. Otherwise it interpolates (values at the native voxel centres, no smoothing, sums are not
    conserved).

    Parameters
    ----------
    volume : ndarray (x, y, z), `geometry.prepared.shape`
    order : 0, 1 or 3
        Interpolation where it is needed: 1 for maps, 0 for labels and masks.

    Returns
    -------
    ndarray, `geometry.native.shape`; the type of `volume`, but float32 when it was interpolated linearly
    """
    if volume.shape != geometry.prepared.shape:
        raise ValueError(f"a volume of shape {volume.shape} is not on the prepared grid {geometry.prepared.shape}")
    if not geometry.resampled:
        return copy_between(volume, geometry.prepared, geometry.native)
    return resample(volume, geometry.prepared, geometry.native, order, smooth=False)


def to_prepared_labels(path: Path, geometry: Geometry) -> np.ndarray:
    """A label image or mask, wherever its own affine puts it, by nearest neighbour on the prepared grid.

    Returns
    -------
    ndarray, `geometry.prepared.shape`, int32; 0 outside the label image

    Raises
    ------
    ScanError
        As `read_image`, values that are not whole numbers, or a label image that lies beside the scan.
    """
    image = read_image(path)
    labels = np.rint(image.data).astype(np.int32)
    if not np.array_equal(labels, image.data):
        raise ScanError(f"{path}: labels must be whole numbers; a probability map needs a threshold first")
    grid = Grid(labels.shape, image.affine)
    if not resample(np.ones(labels.shape, np.uint8), grid, geometry.prepared, 0).any():
        raise ScanError(
            f"{path}: lies beside the scan, its affine leads to another place; take the labels of this scan"
        )
    return resample(labels, grid, geometry.prepared, 0)
