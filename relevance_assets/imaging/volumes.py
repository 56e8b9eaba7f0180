"""NIfTI files to arrays and back, with every defect of a file told in one line.

Belongs here: reading an image completely (checksum, header, values) and writing one so that equal arrays give
equal bytes. Does not belong here: grids and interpolation (`grid.py`), what a study does with its images
(`recipe.py`).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from relevance_assets.files import atomic_path

__all__ = ["Image", "ScanError", "load_volume", "read_image", "save_volume"]

MILLIMETRES = 2  # code of the spatial unit in a NIfTI header; 0 means that nothing is said
UNITS = {1: "metre", 2: "mm", 3: "micrometre"}


class ScanError(ValueError):
    """What is wrong with one scan or image, in one line that names it and says what to do."""


@dataclass(frozen=True)
class Image:
    """One image in memory.

    Attributes
    ----------
    data : ndarray (x, y, z), float32
        Values with the file's scaling applied.
    affine : ndarray (4, 4), float64
        Voxel indices to RAS+ millimetres.
    """

    data: np.ndarray
    affine: np.ndarray


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what nibabel, gzip and the operating system raise into a ScanError that names the file."""
    try:
        yield
    except ScanError:
        raise
    except FileNotFoundError:
        hint = "a link whose target is missing: fetch its content" if path.is_symlink() else "no such file"
        raise ScanError(f"{path}: {hint}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanError(f"{path}: truncated or damaged ({error}); copy or export it again") from None
    except (OSError, ImageFileError, HeaderDataError, ValueError, MemoryError) as error:
        said = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise ScanError(f"{path}: cannot be read as NIfTI ({said}); copy or export it again") from None


def read_image(path: Path) -> Image:
    """Read a 3D NIfTI image completely; trailing axes of length 1 are dropped.

    Parameters
    ----------
    path : Path
        `.nii` or `.nii.gz`, NIfTI-1 or NIfTI-2.

    Raises
    ------
    ScanError
        Unreadable or truncated (the whole file is read, and a gzip's checksum checked), not 3D, empty, not
        real numbers, NaN or infinite values, a voxel size that is not positive, a unit other than mm, an
        affine that is singular or missing.
    """
    with _one_line(path):
        raw = path.read_bytes()
        if path.name.endswith(".gz"):
            raw = gzip.decompress(raw)
        kind = _image_class(path, raw)
        _check_header(path, kind.header_class(raw[: kind.header_class.sizeof_hdr], check=False))
        image = kind.from_bytes(raw)
        shape = _shape_3d(path, image.shape)
        if image.get_data_dtype().kind not in "iufb":
            raise ScanError(f"{path}: values are of type {image.get_data_dtype()}; real numbers are needed")
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
        affine = np.asarray(image.affine, dtype=np.float64)
    _check_affine(path, affine)
    if not np.isfinite(data).all():
        raise ScanError(f"{path}: {int((~np.isfinite(data)).sum())} voxels are NaN or infinite; repair the image")
    return Image(data, affine)


def _image_class(path: Path, raw: bytes) -> Any:
    if len(raw) < 348:
        raise ScanError(f"{path}: truncated: {len(raw)} bytes are less than a NIfTI header; copy it again")
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(raw):
            return kind
    raise ScanError(f"{path}: is not a NIfTI image")


def _check_header(path: Path, header: Any) -> None:
    """Checks on the header as written; nibabel mends some of these faults in silence when it loads."""
    sizes = np.asarray(header["pixdim"], dtype=np.float64)[1:4]
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ScanError(f"{path}: voxel sizes {sizes.tolist()} must be positive; correct the header")
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, MILLIMETRES):
        raise ScanError(f"{path}: voxel sizes are in {UNITS.get(unit, f'unit {unit}')}, not mm; convert the image")
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        raise ScanError(f"{path}: no orientation (sform and qform codes are 0); set the affine in the header")


def _shape_3d(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    trailing = shape[3:]
    if len(shape) < 3 or any(n != 1 for n in trailing):
        raise ScanError(f"{path}: has {len(shape)} axes {shape}; a 3D image is needed: choose one volume")
    if 0 in shape:
        raise ScanError(f"{path}: has no voxels, shape {shape}")
    return (int(shape[0]), int(shape[1]), int(shape[2]))


def _check_affine(path: Path, affine: np.ndarray) -> None:
    if not np.isfinite(affine).all():
        raise ScanError(f"{path}: the affine has values that are NaN or infinite; correct the header")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if (sizes <= 0).any() or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * float(np.prod(sizes)):
        raise ScanError(f"{path}: the affine is singular (voxel sizes {sizes.tolist()} mm); correct the header")


def load_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume: values (x, y, z) as float32 and the affine (4, 4); errors as `read_image`."""
    image = read_image(path)
    return image.data, image.affine


def save_volume(path: Path, array: np.ndarray, affine: np.ndarray, dtype: npt.DTypeLike = np.float32) -> None:
    """Write a 3D volume as `.nii.gz`, atomically; equal arrays give equal bytes.

    sform and qform have code 2 (aligned), the unit is mm, the gzip header has no time and no name.

    Parameters
    ----------
    array : ndarray (x, y, z)
    affine : ndarray (4, 4)
        Voxel indices to RAS+ millimetres; NIfTI keeps it as float32.
    dtype : dtype
        float32, or uint8 for masks and labels.

    Raises
    ------
    ValueError
        Not 3D, or values that are not finite or do not fit `dtype`.
    """
    given = np.asarray(array)
    if given.ndim != 3 or given.size == 0:
        raise ValueError(f"{path}: a volume has three axes, not shape {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError(f"{path}: values to be written are NaN or infinite")
    values = given.astype(dtype)
    if values.dtype.kind in "iu" and not np.array_equal(values, given):
        raise ValueError(f"{path}: values do not fit {values.dtype}")
    image = nib.Nifti1Image(values, None, dtype=values.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=2)
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))
