"""Displacement fields: where a point of one space lies in another, and the way back.

Belongs here: reading and writing a field, following it, inverting it, its Jacobian. Does not belong here: how a field
is found (`registration.py`), where its file lies (`assets/heat_maps.py`), moving values (`transforms.py`) and masks
(`evidence/heatmap.py`) along it.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from relevance_assets.files import atomic_path
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.volumes import ScanError

__all__ = [
    "Displacement",
    "derivative",
    "inverse",
    "jacobian",
    "move",
    "read_displacement",
    "sampled",
    "slabs",
    "write_displacement",
]

CLOSE_MM = 0.05  # an inverse that leads back this close is one
STEPS = 100
LPS = np.array([-1.0, -1.0, 1.0], dtype=np.float32)  # to ITK's axes and back
RAS_INTENT = 1006  # NIfTI's "displacement vector"
STEP_MM = 2.0**-10  # of written displacements: noise below it would only make files large
DAMPING = 0.7  # undamped, the iteration would not end where a field stretches lengths by two or more


@dataclass(frozen=True, eq=False)
class Displacement:
    """A field of displacements; called with (n, 3) points in RAS+ mm it gives where they are moved to, (n, 3).

    Attributes
    ----------
    values : (x, y, z, 3)
        mm, along RAS+ whatever the axes of the grid. Linear between voxel centres, constant beyond the outermost.
    grid : Grid
    """

    values: np.ndarray
    grid: Grid

    def __call__(self, points: np.ndarray) -> np.ndarray:
        to_voxels = np.linalg.inv(self.grid.affine)
        place = to_voxels[:3, :3] @ points.T + to_voxels[:3, 3:]
        parts = [
            ndimage.map_coordinates(self.values[..., axis], place, output=np.float64, order=1, mode="nearest")
            for axis in range(3)
        ]
        return points + np.stack(parts, axis=1)


def move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, 3) through an affine matrix (4, 4)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def sampled(mapping: Callable[[np.ndarray], np.ndarray], grid: Grid) -> Displacement:
    """Any mapping of points as a field on a grid; between voxel centres it becomes linear. Values are float32."""
    values = np.empty((*grid.shape, 3), dtype=np.float32)
    for start, points in slabs(grid):
        part = values[start : start + len(points) // (grid.shape[1] * grid.shape[2])]
        part[...] = (mapping(points) - points).reshape(part.shape)
    return Displacement(values, grid)


def slabs(grid: Grid, voxels: int = 1 << 19) -> Iterator[tuple[int, np.ndarray]]:
    """The voxel centres in mm (n, 3), some layers of the first axis at a time, each with its first layer's index."""
    layers = max(1, voxels // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], layers):
        shape = (min(layers, grid.shape[0] - start), *grid.shape[1:])
        yield start, move(grid.affine, np.indices(shape).reshape(3, -1).T + np.array([start, 0, 0]))


def jacobian(field: Displacement) -> np.ndarray:
    """Determinants of the derivative of point -> field(point) at the voxel centres: the change of volume.

    Central differences, at the grid's faces one-sided; an axis of one voxel counts as unchanging.

    Returns
    -------
    (x, y, z) float64; not positive where the field folds
    """
    return np.linalg.det(derivative(field))


def derivative(field: Displacement) -> np.ndarray:
    """Matrices (x, y, z, 3, 3) of the derivative of point -> field(point), in mm per mm."""
    slopes = np.zeros((*field.grid.shape, 3, 3))
    for axis, n in enumerate(field.grid.shape):
        if n > 1:
            slopes[..., axis] = np.gradient(field.values.astype(np.float64), axis=axis)
    return np.eye(3) + slopes @ np.linalg.inv(field.grid.affine[:3, :3])


def read_displacement(path: Path) -> Displacement:
    """Read a field of displacements as ITK, ANTs and greedy write it (`from-<moving>_to-<fixed>_mode-image_xfm`).

    A vector per voxel, mm: the voxel's position in the fixed space plus this vector is its position in the moving one.
    Vectors run to left, posterior, superior; with NIfTI's intent "displacement vector", and there alone, to right,
    anterior, superior, which is how ITK reads them.

    Returns
    -------
    Displacement
        In RAS+.

    Raises
    ------
    ScanError
        Not a NIfTI, not five axes (x, y, z, 1, 3), values that are not finite.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        said = str(error).split("\n", 1)[0]
        raise ScanError(f"{path}: cannot be read as a displacement field in NIfTI ({said}); export it again") from None
    if values.ndim != 5 or values.shape[3:] != (1, 3):
        raise ScanError(f"{path}: has shape {values.shape}; a displacement field has (x, y, z, 1, 3)")
    grid = Grid((values.shape[0], values.shape[1], values.shape[2]), np.asarray(image.affine, dtype=np.float64))
    if not np.isfinite(values).all():
        raise ScanError(f"{path}: holds NaN or infinite displacements; register the scan again")
    is_ras = int(image.header["intent_code"]) == RAS_INTENT
    return Displacement(values[:, :, :, 0] * (np.float32(1) if is_ras else LPS), grid)


def write_displacement(path: Path, field: Displacement) -> None:
    """Write a field as ITK, ANTs and greedy read it, atomically; equal fields give equal bytes.

    To write another mapping or on another grid, take its field by `sampled` first. Displacements are rounded to
    1/1024 mm.

    Raises
    ------
    ValueError
        Displacements that are not finite.
    """
    if not np.isfinite(field.values).all():
        raise ValueError(f"{path}: displacements to be written are NaN or infinite")
    values = (np.rint(field.values * LPS / STEP_MM) * STEP_MM).astype(np.float32)
    image = nib.Nifti1Image(values[:, :, :, None] + np.float32(0), None)  # + 0: no negative zeros
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    image.set_sform(field.grid.affine, code=2)
    image.set_qform(field.grid.affine, code=2)
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))


def inverse(field: Displacement, grid: Grid) -> Displacement:
    """The way back, at the voxel centres of `grid`: `field(inverse(field, grid)(point))` is the point again.

    Raises
    ------
    ValueError
        The field folds, or is so steep that no way back is found.
    """
    indices = np.indices(grid.shape).reshape(3, -1).T
    wanted = indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    here = wanted.copy()
    for _ in range(STEPS):
        missing = wanted - field(here)
        here += DAMPING * missing
        if np.abs(missing).max() < CLOSE_MM:
            values = (here - wanted).astype(np.float32).reshape(*grid.shape, 3)
            return Displacement(values, grid)
    raise ValueError(f"a displacement field cannot be inverted: {np.abs(missing).max():.2g} mm are left; does it fold?")
