"""The way between a scan's native grid and its prepared grid, as something that a sidecar can hold.

Belongs here: `Alignment` (scan and template), `Geometry` (native and prepared), maps back to the native grid, native
labels onto the prepared grid. Does not belong here: how the prepared grid came about (`steps.py`), how an alignment is
found (`registration.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from relevance_assets.imaging.displacement import Displacement, move, read_displacement
from relevance_assets.imaging.grid import Grid, copy_between, resample
from relevance_assets.imaging.transforms import pull
from relevance_assets.imaging.volumes import ScanError, read_image

__all__ = ["Alignment", "Geometry", "to_native", "to_prepared_labels"]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where points of a scan lie in the template, and the way back; all in RAS+ mm.

    Attributes
    ----------
    matrix : ndarray (4, 4)
        The affine way from the scan to the template; all of it where there are no fields.
    forward, back : Displacement or None
        Scan to template and template to scan, the affine included; both or none.
    jacobian : (float, float)
        Least and greatest local change of volume from the template to the scan.
    """

    matrix: np.ndarray
    forward: Displacement | None = None
    back: Displacement | None = None
    jacobian: tuple[float, float] | None = None

    def to_template(self, points: np.ndarray) -> np.ndarray:
        """Points of the scan, (n, 3), in the template."""
        return self.forward(points) if self.forward else move(self.matrix, points)

    def to_scan(self, points: np.ndarray) -> np.ndarray:
        """Points of the template, (n, 3), in the scan."""
        return self.back(points) if self.back else move(np.linalg.inv(self.matrix), points)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a prepared volume lies, and where it came from.

    Attributes
    ----------
    native, prepared : Grid
        Grid of the first contrast's file, and of the prepared volumes.
    resampled : bool
        Whether the first contrast was interpolated. If not, both grids share their voxels.
    moved : ndarray (4, 4)
        From the file's millimetres to those of the prepared space.
    alignment : Alignment or None
        From the file's millimetres to the template, where that is the prepared space and the way is not affine.
    in_template : bool
        Whether the prepared space is the template's.
    """

    native: Grid
    prepared: Grid
    resampled: bool
    moved: np.ndarray = field(default_factory=lambda: np.eye(4))
    alignment: Alignment | None = None
    in_template: bool = False

    @property
    def placed(self) -> Grid:
        """The native grid where the scan was moved to."""
        return self.placed_grid(self.native)

    def placed_grid(self, grid: Grid) -> Grid:
        """Any grid of the native space where the scan was moved to."""
        return Grid(grid.shape, self.moved @ grid.affine)

    def to_dict(self, forward: str = "", back: str = "") -> dict[str, Any]:
        """As JSON can hold it; `from_dict` gives back the same numbers.

        Parameters
        ----------
        forward, back
            Names of the files, beside the JSON's own, that hold the fields of `alignment`.
        """
        content: dict[str, Any] = {
            "NativeShape": list(self.native.shape),
            "NativeAffine": self.native.affine.tolist(),
            "PreparedShape": list(self.prepared.shape),
            "PreparedAffine": self.prepared.affine.tolist(),
            "Resampled": self.resampled,
            "Moved": self.moved.tolist(),
            "InTemplate": self.in_template,
        }
        if self.alignment:
            content |= {"Affine": self.alignment.matrix.tolist(), "Forward": forward, "Back": back}
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], folder: Path | None = None) -> Geometry:
        """From `to_dict`'s result, or a sidecar read from JSON that lies in `folder`.

        Raises
        ------
        ValueError
            Names a key that is missing.
        ScanError
            A field that cannot be read.
        """
        try:
            native = _grid(content["NativeShape"], content["NativeAffine"])
            prepared = _grid(content["PreparedShape"], content["PreparedAffine"])
            moved = np.array(content.get("Moved", np.eye(4)), dtype=np.float64)  # older sidecars have no such key
            alignment = None
            if "Affine" in content:
                forward, back = (read_displacement((folder or Path()) / content[key]) for key in ("Forward", "Back"))
                alignment = Alignment(np.array(content["Affine"], dtype=np.float64), forward, back)
            there = bool(content.get("InTemplate", False))
            return cls(native, prepared, bool(content["Resampled"]), moved, alignment, there)
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
    if geometry.alignment:
        return pull(volume, geometry.prepared, geometry.placed, geometry.alignment.to_template, order, smooth=False)
    return resample(volume, geometry.prepared, geometry.placed, order, smooth=False)


def to_prepared_labels(path: Path, geometry: Geometry) -> np.ndarray:
    """A label image or mask, wherever its affine puts it in native space, by nearest neighbour on the prepared grid.

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
    placed = geometry.placed_grid(Grid(labels.shape, image.affine))

    def onto_prepared(values: np.ndarray) -> np.ndarray:
        if geometry.alignment:
            return pull(values, placed, geometry.prepared, geometry.alignment.to_scan, 0)
        return resample(values, placed, geometry.prepared, 0)

    if not onto_prepared(np.ones(labels.shape, np.uint8)).any():
        raise ScanError(
            f"{path}: lies beside the scan, its affine leads to another place; take the labels of this scan"
        )
    return onto_prepared(labels)
