"""One slice's picture and tumour mask, out of a JPEG, a PNG or a MATLAB 7.3 file, with every defect told in one line.

In memory a slice stands as volumes do: `data[x, y, 0]`, x from the left to the right of the picture, y from its bottom
to its top, so `numpy.rot90(data[..., 0])` is the picture, upright, its rows from the top. The affine is the identity:
what left, top and a pixel are in the head differs between planes and is not written in these files.

Belongs here: the content of one file. Does not belong here: which slices there are (`slices.py`).
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from relevance_assets.cohort.text import one_line
from relevance_assets.imaging.volumes import Image, ScanError

__all__ = ["CLASSES", "Header", "read_header", "read_mask", "read_slice"]

#: By the number in `cjdata/label`.
CLASSES = {1: "meningioma", 2: "glioma", 3: "pituitary"}
PICTURES = (".jpg", ".jpeg", ".png")
MATLAB = ".mat"
MAX_PIXELS = 2**24  # 4096 x 4096; a slice has 512 x 512
GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N")
#: Errors of the operating system that the file or its path is to blame for; libraries raise some without a number.
FAULTS = (None, errno.EINVAL, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
COLOUR = ("P", "PA", "LA", "La", "RGB", "RGBA", "RGBX")


class Header(NamedTuple):
    """What a file says without its pixels: shapes (rows, columns) of the picture as it is looked at.

    A JPEG or PNG is picture or mask, so `image` and `mask` are the same and `label` and `patient` are None.
    """

    image: tuple[int, ...]
    mask: tuple[int, ...]
    label: int | None = None
    patient: str | None = None


def read_slice(path: Path) -> Image:
    """The picture of a slice.

    Grey values of 1, 8 or 16 bits are kept as they are. A palette or RGB picture is taken where its three channels are
    the same everywhere and nothing is transparent; one in colour is refused. No EXIF rotation is applied, as masks
    have none. MATLAB keeps arrays column by column, so what h5py reads of them is turned back.

    Parameters
    ----------
    path : Path
        `.jpg`, `.jpeg`, `.png`, or `.mat` (HDF5, MATLAB 7.3) with `cjdata/image`.

    Returns
    -------
    Image
        data (x, y, 1) float32, affine diag(1, 1, 1, 1).

    Raises
    ------
    ScanError
        No such file, no such format, truncated or damaged, in colour, NaN or infinite, empty, or more than 2^24 pixels.
    OSError
        It may not be read, or the disk failed.
    """
    values = _pixels(path, "image").astype(np.float32)
    if not np.isfinite(values).all():
        raise ScanError(f"{path}: {int((~np.isfinite(values)).sum())} pixels are NaN or infinite; export it again")
    return Image(np.ascontiguousarray(np.rot90(values, -1))[..., None], np.eye(4))


def read_mask(path: Path) -> np.ndarray:
    """The tumour mask of a slice, (x, y) bool, placed as `read_slice` places pictures.

    Parameters
    ----------
    path : Path
        As in `read_slice`; of a `.mat` it is `cjdata/tumorMask`.

    Raises
    ------
    ScanError
        As `read_slice`; or other values than 0 and one positive number, as JPEG and resampling make: where the tumour
        ends is not guessed.
    OSError
        As `read_slice`.
    """
    values = _pixels(path, "tumorMask")
    levels = np.unique(values)
    if (levels != 0).sum() > 1 or not (levels >= 0).all():
        raise ScanError(
            f"{path}: a mask has 0 and one positive value, not {len(levels)} values from {levels[0]:g} to "
            f"{levels[-1]:g}; threshold it and save it as PNG"
        )
    return np.ascontiguousarray(np.rot90(values > 0, -1))


def read_header(path: Path) -> Header:
    """Shapes, label and patient of a file; pixels are not read, so damage among them is not seen.

    Raises
    ------
    ScanError, OSError
        As `read_slice`; of a `.mat` also where image, label, tumorMask or PID is missing or not as published. A file
        in which only PID is missing has patient None.
    """
    if path.suffix.lower() == MATLAB:
        with _matlab(path) as slice_data:
            image, mask = _dataset(path, slice_data, "image"), _dataset(path, slice_data, "tumorMask")
            label, patient = _label(path, slice_data), _patient(path, slice_data)
            return Header(image.shape[::-1], mask.shape[::-1], label, patient)
    with _picture(path) as picture:
        return Header(picture.size[::-1], picture.size[::-1])


def _pixels(path: Path, name: str) -> np.ndarray:
    """(rows, columns) of the picture, from the top."""
    if path.suffix.lower() == MATLAB:
        with _matlab(path) as slice_data:
            return np.asarray(_dataset(path, slice_data, name)[()]).T
    with _picture(path) as picture:
        if picture.mode in GREY:
            return np.asarray(picture)
        if picture.mode not in COLOUR:
            raise ScanError(f"{path}: pixels of kind {picture.mode} are not known; save it as grey PNG")
        channels = np.asarray(picture.convert("RGBA"))
    if (channels[..., 3] != 255).any():
        raise ScanError(f"{path}: has transparent pixels; save it as grey PNG without them")
    if (channels[..., :3] != channels[..., :1]).any():
        raise ScanError(f"{path}: is in colour; save it as grey PNG")
    return channels[..., 0]


@contextmanager
def _reading(path: Path, what: str) -> Iterator[io.BufferedReader]:
    """The open file. What its reader then raises is a fault of the file, told in one line.

    A disk that fails, or a file that may not be read, stays an OSError with its number: it may pass.
    """
    try:
        if path.is_dir():
            raise ScanError(f"{path}: is a folder, not a {what}; put the file in its place")
        if path.exists() and not path.is_file():
            raise ScanError(f"{path}: is a pipe, socket or device, not a file; replace it by the {what}")
        with path.open("rb") as file:
            yield file
    except ScanError:
        raise
    except FileNotFoundError:
        raise ScanError(f"{path}: no such file; put it there or take the slice out") from None
    except PermissionError:
        raise PermissionError(f"{path}: may not be read; give the user of this program the right to") from None
    except MemoryError:
        raise OSError(errno.ENOMEM, "too little memory to read the slice", str(path)) from None
    except Exception as error:  # libraries raise many kinds for a damaged file: OSError without a number, SyntaxError
        if isinstance(error, OSError) and error.errno not in FAULTS:
            raise
        said = one_line(str(error).split("\n", 1)[0]) or type(error).__name__
        raise ScanError(f"{path}: cannot be read as {what} ({said}); copy or export it again") from None


@contextmanager
def _picture(path: Path) -> Iterator[Any]:
    """A JPEG or PNG, opened, its size checked; pixels come when they are asked for."""
    from PIL import Image as Pictures

    if path.suffix.lower() not in PICTURES:
        raise ScanError(f"{path}: a slice is {', '.join((*PICTURES, MATLAB))}, not {path.suffix or 'this'}; convert it")
    with _reading(path, "JPEG or PNG") as file, Pictures.open(file, formats=("JPEG", "PNG")) as picture:
        _check_size(path, picture.size)
        yield picture


@contextmanager
def _matlab(path: Path) -> Iterator[Any]:
    """The group `cjdata` of a MATLAB 7.3 file."""
    import h5py

    with _reading(path, "MATLAB 7.3 (HDF5)") as file:
        if file.read(19) == b"MATLAB 5.0 MAT-file":
            raise ScanError(f"{path}: is a MATLAB 5 file; load it in MATLAB and save it with -v7.3")
        with h5py.File(file, "r") as content:
            if not isinstance(content.get("cjdata", getlink=True), h5py.HardLink):
                raise ScanError(f"{path}: has no cjdata; is it a slice? Take it out or download it again")
            yield content["cjdata"]


def _dataset(path: Path, slice_data: Any, name: str) -> Any:
    """A picture in a `.mat`, not read. Links to other files are refused: they may lead anywhere."""
    found = _array(path, slice_data, name)
    if found.ndim != 2 or found.dtype.kind not in "buif":
        raise ScanError(f"{path}: cjdata/{name} is no picture (shape {found.shape}, {found.dtype}); download it again")
    _check_size(path, found.shape)
    return found


def _array(path: Path, slice_data: Any, name: str) -> Any:
    import h5py

    link = slice_data.get(name, getlink=True) if isinstance(slice_data, h5py.Group) else None
    found = slice_data[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ScanError(f"{path}: has no cjdata/{name}; download it again")
    return found


def _label(path: Path, slice_data: Any) -> int:
    found = _array(path, slice_data, "label")
    value = float(found[()].ravel()[0]) if found.size == 1 and found.dtype.kind in "uif" else float("nan")
    if value not in CLASSES:
        raise ScanError(f"{path}: cjdata/label is {value:g}, not one of {CLASSES}; correct it or take the slice out")
    return int(value)


def _patient(path: Path, slice_data: Any) -> str | None:
    """PID, kept as UTF-16 numbers of its characters; None where there is none."""
    if slice_data.get("PID", getlink=True) is None:
        return None
    found = _array(path, slice_data, "PID")
    if found.dtype != np.uint16 or not 0 < found.size <= 64:
        raise ScanError(f"{path}: cjdata/PID is no text of 1 to 64 characters; correct it or take the slice out")
    return "".join(map(chr, found[()].ravel())).strip()


def _check_size(path: Path, shape: tuple[int, ...]) -> None:
    if min(shape) < 1 or int(np.prod(shape, dtype=object)) > MAX_PIXELS:
        raise ScanError(f"{path}: {' x '.join(map(str, shape))} pixels are none or more than {MAX_PIXELS}; resample it")
