"""NIfTI files to arrays and back, with every defect of a file told in one line.

Belongs here: reading an image completely (checksum, header, values) and writing one so that equal arrays give
equal bytes. Does not belong here: grids and interpolation (`grid.py`), what a study does with its images
(`recipe.py`).
"""

from __future__ import annotations

import errno
import gzip
import itertools
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from relevance_assets.files import atomic_path

__all__ = ["Image", "ScanError", "load_volume", "read_image", "save_volume"]

MILLIMETRES = 2  # code of the spatial unit in a NIfTI header; 0 means that nothing is said
LAST_CODE = 5  # NIFTI_XFORM_TEMPLATE_OTHER
UNITS = {1: "metre", 2: "mm", 3: "micrometre"}
GZIP = b"\x1f\x8b"
DEFLATE_AT_MOST = 1033  # bytes that one byte of a gzip can hold (zlib's manual: 1032 to 1)
MAX_VOXELS = 2**29  # 880 x 880 x 640, a whole head at 0.25 mm, are 5.0e8
MAX_OFFSET = 2**26  # header and extensions
LEAST_VOXEL_MM, LARGEST_VOXEL_MM = 0.05, 30.0  # beyond these the unit is wrong: no scanner makes such an image
SAME_SIZE_SHARE = 0.01  # ITK takes voxel sizes from pixdim, nibabel from the affine: they must be the same
SHEAR_AT_MOST = 1e-3  # cosine of the angle between two axes: 0.26 mm over 256 mm. ITK's grids cannot be sheared
SAME_PLACE_MM = 0.5  # a qform's float32 quaternion is off by up to 0.01 mm in real scans


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
    """Turn what nibabel, gzip and the operating system raise into one line that names the file.

    A fault of the file is a ScanError. What may pass (no permission, a disk or network that fails, too little
    memory) stays an OSError: the same file can succeed another time.
    """
    try:
        yield
    except ScanError:
        raise
    except FileNotFoundError:
        hint = "a link whose target is missing: fetch its content" if path.is_symlink() else "no such file"
        raise ScanError(f"{path}: {hint}") from None
    except PermissionError:
        raise PermissionError(f"{path}: may not be read; give the user of this program the right to") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanError(f"{path}: truncated or damaged ({error}); copy or export it again") from None
    except MemoryError:
        raise OSError(errno.ENOMEM, "too little memory to read the image", str(path)) from None
    except (ImageFileError, HeaderDataError, ValueError, OverflowError) as error:
        said = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise ScanError(f"{path}: cannot be read as NIfTI ({said}); copy or export it again") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ScanError(f"{path}: a link that leads back to itself; replace it by the image") from None
        raise type(error)(error.errno, error.strerror, str(path)) from None


def read_image(path: Path) -> Image:
    """Read a 3D NIfTI image completely; trailing axes of length 1 are dropped.

    Whether it is compressed is told by the content, not by the name. The affine is the sform where its code is
    > 0, else the qform (NIfTI-1 standard, methods 3 and 2). Slope 0 or NaN means no scaling. All checks of the
    header come before the values are read, so that what a header claims never costs memory.

    Parameters
    ----------
    path : Path
        `.nii` or `.nii.gz`, NIfTI-1 or NIfTI-2.

    Raises
    ------
    ScanError
        No regular file; unreadable, truncated or longer than the header says (the whole file is read, and a
        gzip's checksum checked); not 3D, empty, or more than 2^29 voxels; not real numbers; NaN or infinite
        values; voxel sizes that are not between 0.05 and 30 mm, or other in the affine; a unit other than mm; an
        affine that is singular, sheared or missing; sform and qform that have the same code and differ by more
        than 0.5 mm at a corner.
    OSError
        It may not be read, or the disk failed.
    """
    with _one_line(path), np.errstate(all="ignore"):  # what overflows is told below, with the file's name
        kind, raw, affine = _content(path)
        image = kind.from_bytes(raw)
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(_shape_3d(path, image.shape))
    if not np.isfinite(data).all():
        raise ScanError(
            f"{path}: {int((~np.isfinite(data)).sum())} voxels are NaN or infinite as scaled; repair the image"
        )
    return Image(data, affine)


def _content(path: Path) -> tuple[Any, bytes, np.ndarray]:
    """The class of the image, the bytes of a file whose header has been checked, and the affine as written there."""
    _check_kind_of_file(path)
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        stream: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
        head = stream.read(540)
        kind = _image_class(path, head)
        header = kind.header_class(head[: kind.header_class.sizeof_hdr], check=False)
        affine = _check_header(path, header)
        length = _length(path, header)
        if length > size * (DEFLATE_AT_MOST if packed else 1):
            raise ScanError(f"{path}: truncated: the header needs {length} bytes, more than it can hold; copy it again")
        stream.seek(0)
        raw = stream.read(length + 1)  # to the end: only there the checksum is compared
    if len(raw) < length:
        raise ScanError(f"{path}: truncated: {len(raw)} of {length} bytes; copy or export it again")
    if len(raw) > length:
        raise ScanError(f"{path}: holds more than the {length} bytes that its header says; export it again")
    return kind, raw, affine


def _check_kind_of_file(path: Path) -> None:
    """A folder, or a pipe, which would wait for ever."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ScanError(f"{path}: is a folder, not an image; if the image lies in it, put it in its place")
    if not stat.S_ISREG(mode):
        raise ScanError(f"{path}: is a pipe, socket or device, not a file; replace it by the image")


def _image_class(path: Path, head: bytes) -> Any:
    if len(head) < 348:
        raise ScanError(f"{path}: truncated: {len(head)} bytes are less than a NIfTI header; copy it again")
    if head[344:348] == b"n+1\0":
        return nib.Nifti1Image
    if head[4:8] == b"n+2\0":
        return nib.Nifti2Image
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        raise ScanError(f"{path}: only the header of a pair .hdr and .img; convert both to one .nii.gz")
    if 348 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
        raise ScanError(f"{path}: is Analyze 7.5, which does not tell left from right; convert the original to NIfTI")
    raise ScanError(f"{path}: is not a NIfTI image; copy or export it again")


def _length(path: Path, header: Any) -> int:
    """Bytes of a whole file with this header; nothing is allocated."""
    shape = _shape_3d(path, header.get_data_shape())
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise ScanError(f"{path}: {shape} are more than {MAX_VOXELS} voxels; correct the header or resample the image")
    start = float(header["vox_offset"])
    if not int(header["sizeof_hdr"]) + 4 <= start <= MAX_OFFSET:
        raise ScanError(f"{path}: values cannot begin at byte {start:g} (vox_offset); correct the header")
    return int(start) + voxels * int(header.get_data_dtype().itemsize)


def _check_header(path: Path, header: Any) -> np.ndarray:
    """The affine of a header that passes; nibabel mends some of these faults in silence when it loads."""
    code = int(header["datatype"])
    kind = header.get_data_dtype().kind if code in nib.nifti1.data_type_codes.dtype else "?"
    if kind not in "iufb":
        name = nib.nifti1.data_type_codes.niistring[code].removeprefix("NIFTI_TYPE_") if kind != "?" else ""
        raise ScanError(f"{path}: values are of type {name or code}, not real numbers; export the image as such")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope) or (slope and not math.isnan(slope) and not math.isfinite(inter)):
        raise ScanError(f"{path}: scaling by slope {slope:g} and intercept {inter:g} is none; correct the header")
    sizes = np.asarray(header["pixdim"], dtype=np.float64)[1:4]
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ScanError(f"{path}: voxel sizes {sizes.tolist()} must be positive; correct the header")
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, MILLIMETRES):
        raise ScanError(f"{path}: voxel sizes are in {UNITS.get(unit, f'unit {unit}')}, not mm; convert the image")
    codes = [int(header["sform_code"]), int(header["qform_code"])]
    if max(codes) > LAST_CODE or min(codes) < 0:
        raise ScanError(f"{path}: sform and qform codes {codes} are not from 0 to {LAST_CODE}; correct the header")
    if codes == [0, 0]:
        raise ScanError(f"{path}: no orientation (sform and qform codes are 0); set the affine in the header")
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    _check_affine(path, affine, sizes)
    _check_agreement(path, header)
    return affine


def _shape_3d(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    trailing = shape[3:]
    if len(shape) < 3 or any(n != 1 for n in trailing):
        raise ScanError(f"{path}: has {len(shape)} axes {shape}; a 3D image is needed: choose one volume")
    if min(shape) <= 0:
        raise ScanError(f"{path}: has no voxels, shape {shape}; correct the header or export it again")
    return (int(shape[0]), int(shape[1]), int(shape[2]))


def _check_affine(path: Path, affine: np.ndarray, header_sizes: np.ndarray) -> None:
    if not np.isfinite(affine).all():
        raise ScanError(f"{path}: the affine has values that are NaN or infinite; correct the header")
    axes = affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    if (sizes <= 0).any() or abs(np.linalg.det(axes)) < 1e-6 * float(np.prod(sizes)):
        raise ScanError(f"{path}: the affine is singular (voxel sizes {sizes.tolist()} mm); correct the header")
    said = " x ".join(f"{size:g}" for size in sizes)
    if (sizes < LEAST_VOXEL_MM).any() or (sizes > LARGEST_VOXEL_MM).any():
        raise ScanError(
            f"{path}: voxels of {said} mm are not between {LEAST_VOXEL_MM:g} and {LARGEST_VOXEL_MM:g}; "
            "is the unit wrong? Correct the header"
        )
    if (np.abs(sizes - header_sizes) > SAME_SIZE_SHARE * sizes).any():
        raise ScanError(
            f"{path}: voxel sizes are {said} mm in the affine and {' x '.join(f'{size:g}' for size in header_sizes)} "
            "in pixdim; correct the header"
        )
    cosines = np.abs(np.triu((axes / sizes).T @ (axes / sizes), 1))
    if cosines.max() > SHEAR_AT_MOST:
        degrees = 90 - math.degrees(math.acos(min(1.0, float(cosines.max()))))
        raise ScanError(
            f"{path}: the affine is sheared, its axes are {degrees:.2g} degrees off the right angle; "
            "resample the image onto a grid with right angles"
        )


def _check_agreement(path: Path, header: Any) -> None:
    """sform and qform of one code claim the same space; of different codes (aligned, scanner) they may differ."""
    code = int(header["sform_code"])
    if code <= 0 or code != int(header["qform_code"]):
        return
    ends = [(-0.5, n - 0.5) for n in _shape_3d(path, header.get_data_shape())]
    corners = np.array(list(itertools.product(*ends, [1.0])))
    apart = float(np.linalg.norm(corners @ (header.get_sform() - header.get_qform()).T, axis=1).max())
    if not apart <= SAME_PLACE_MM:  # also where it is NaN
        raise ScanError(
            f"{path}: sform and qform both have code {code} and lie {apart:.3g} mm apart; "
            "find out which is right and set both to it"
        )


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
