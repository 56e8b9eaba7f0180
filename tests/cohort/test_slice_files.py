"""Each format gives the same upright slice, and each defect one line that names the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from matlab_slices import write_mat
from PIL import Image

from relevance_assets.cohort.slice_files import Header, read_header, read_mask, read_slice
from relevance_assets.imaging.volumes import ScanError

RNG = np.random.default_rng(3)
PICTURE = RNG.integers(0, 256, (5, 7), dtype=np.uint8)  # 5 rows, 7 columns
MASK = RNG.random((5, 7)) < 0.4


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    picture = Image.fromarray(values)
    (picture.convert(mode) if mode else picture).save(path)
    return path


def upright(picture: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel: x to the right, y upwards."""
    rows, columns = picture.shape
    result = np.zeros((columns, rows))
    for row in range(rows):
        for column in range(columns):
            result[column, rows - 1 - row] = picture[row, column]
    return result


def check(path: Path, expected: np.ndarray) -> None:
    image = read_slice(path)
    assert image.data.dtype == np.float32
    assert image.data.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(image.data[..., 0], upright(expected))
    np.testing.assert_array_equal(image.affine, np.eye(4))
    np.testing.assert_array_equal(np.rot90(image.data[..., 0]), expected)  # as the module's docstring says


@pytest.mark.parametrize("mode", [None, "RGB", "RGBA", "LA"])
def test_grey_png_in_any_dress(tmp_path: Path, mode: str | None) -> None:
    check(save(tmp_path / "1.png", PICTURE, mode), PICTURE)


def test_grey_palette(tmp_path: Path) -> None:
    picture = Image.fromarray(PICTURE).convert("P")
    picture.putpalette([value for value in range(255, -1, -1) for _ in range(3)])
    picture.save(tmp_path / "1.png")
    check(tmp_path / "1.png", 255 - PICTURE)


def test_16_bits_are_kept(tmp_path: Path) -> None:
    values = PICTURE.astype(np.uint16) * 257
    check(save(tmp_path / "1.png", values), values)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg(tmp_path: Path, mode: str) -> None:
    even = np.full((16, 24), 90, dtype=np.uint8)  # what JPEG keeps exactly
    even[:8] = 200
    Image.fromarray(even).convert(mode).save(tmp_path / "1.JPG", quality=100)
    check(tmp_path / "1.JPG", even)


@pytest.mark.parametrize("shape", [(512, 512), (256, 256), (5, 7)])
def test_matlab_is_turned_back(tmp_path: Path, shape: tuple[int, int]) -> None:
    picture = RNG.integers(0, 4000, shape).astype(np.int16)
    mask = RNG.random(shape) < 0.2
    write_mat(tmp_path / "1.mat", picture, mask, 3, "MR040241B")
    check(tmp_path / "1.mat", picture)
    np.testing.assert_array_equal(read_mask(tmp_path / "1.mat"), upright(mask))
    assert read_header(tmp_path / "1.mat") == Header(shape, shape, 3, "MR040241B")


@pytest.mark.parametrize(
    "values", [MASK, MASK.astype(np.uint8), MASK.astype(np.uint8) * 255, np.repeat(MASK[..., None], 3, 2) * 9]
)
def test_masks_of_two_values(tmp_path: Path, values: np.ndarray) -> None:
    path = save(tmp_path / "1.png", values.astype(np.uint8) if values.dtype != bool else values)
    mask = read_mask(path)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, upright(MASK))


@pytest.mark.parametrize("value", [0, 1])
def test_masks_of_one_value(tmp_path: Path, value: int) -> None:
    assert (read_mask(save(tmp_path / "1.png", np.full((4, 4), value, dtype=np.uint8))) == bool(value)).all()


def test_headers_of_pictures(tmp_path: Path) -> None:
    assert read_header(save(tmp_path / "1.png", PICTURE)) == Header((5, 7), (5, 7))


def colour(path: Path) -> None:
    save(path, RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8))


def transparent(path: Path) -> None:
    save(path, np.full((5, 7, 4), 9, dtype=np.uint8))


def cut_png(path: Path) -> None:
    save(path, RNG.integers(0, 256, (200, 200), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:20_000])


def cut_jpeg(path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (200, 200), dtype=np.uint8)).save(stream, "JPEG")
    path.write_bytes(stream.getvalue()[:9000])


def damaged_png(path: Path) -> None:
    save(path, RNG.integers(0, 256, (200, 200), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[300:400] = bytes(100)
    path.write_bytes(content)


def other_format(path: Path) -> None:
    Image.fromarray(PICTURE).save(path, "GIF")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (colour, "in colour; save it as grey PNG"),
        (transparent, "transparent"),
        (cut_png, "copy or export it again"),
        (cut_jpeg, "copy or export it again"),
        (damaged_png, "copy or export it again"),
        (other_format, "cannot be read as JPEG or PNG"),
        (lambda path: path.write_bytes(b""), "cannot be read as JPEG or PNG"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: None, "no such file"),
    ],
)
def test_pictures_that_are_refused(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "7.png"
    make(path)
    one_line(path, says, read_slice)


def test_unknown_extension(tmp_path: Path) -> None:
    one_line(tmp_path / "7.tif", "convert it", read_slice)


def one_line(path: Path, says: str, read: Callable[[Path], object]) -> None:
    with pytest.raises(ScanError) as caught:
        read(path)
    text = str(caught.value)
    assert says in text
    assert text.startswith(f"{path}: ")
    assert "\n" not in text


def test_a_mask_is_not_guessed(tmp_path: Path) -> None:
    one_line(save(tmp_path / "7.png", PICTURE), "threshold it", read_mask)


def with_data(change: Callable[[h5py.Group], None]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_mat(path, PICTURE, MASK)
        with h5py.File(path, "r+") as file:
            change(file["cjdata"])

    return make


def replaced(name: str, **new: object) -> Callable[[Path], None]:
    def change(data: h5py.Group) -> None:
        del data[name]
        if new:
            data.create_dataset(name, **new)

    return with_data(change)


def cut_mat(share: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_mat(path, np.zeros((256, 256), dtype=np.int16), np.zeros((256, 256)))
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return make


def linked_away(path: Path) -> None:
    with h5py.File(path.with_name("secret.h5"), "w") as file:
        file["image"] = PICTURE

    def change(data: h5py.Group) -> None:
        del data["image"]
        data["image"] = h5py.ExternalLink("secret.h5", "/image")

    with_data(change)(path)


def stored_away(path: Path) -> None:
    secret = path.with_name("secret.raw")
    secret.write_bytes(bytes(PICTURE.size))
    external = [(str(secret), 0, PICTURE.size)]
    replaced("image", shape=PICTURE.shape, dtype=np.uint8, external=external)(path)


def without_struct(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["cvind"] = np.ones((1, 3))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (cut_mat(0.9), "truncated"),
        (cut_mat(0.1), "download it again|copy or export it again"),
        (cut_mat(0.0), "copy or export it again"),
        (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(256)), "-v7.3"),
        (lambda path: path.write_text("<html>not found</html>" * 40), "cannot be read as MATLAB 7.3"),
        (without_struct, "has no cjdata"),
        (replaced("image"), "has no cjdata/image"),
        (replaced("tumorMask"), "has no cjdata/tumorMask"),
        (replaced("label"), "has no cjdata/label"),
        (replaced("label", data=[[4.0]]), "label is 4"),
        (replaced("label", data=[[0.0]]), "label is 0"),
        (replaced("label", data=[[1.5]]), "label is 1.5"),
        (replaced("label", data=[[np.nan]]), "label is nan"),
        (replaced("label", data=[[1.0, 2.0]]), "label is nan"),
        (replaced("PID", data=[[1.0]]), "PID is no text"),
        (replaced("image", data=np.zeros((2, 3, 4))), "is no picture"),
        (replaced("image", data=np.zeros((0, 4))), "0 x 4 pixels"),
        (replaced("image", shape=(2**20, 2**20), dtype="i2", chunks=(64, 64)), "more than"),
        (linked_away, "has no cjdata/image"),
        (stored_away, "has no cjdata/image"),
    ],
)
def test_matlab_files_that_are_refused(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "7.mat"
    make(path)
    with pytest.raises(ScanError, match=says) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    if "label" not in says and "PID" not in says and "Mask" not in says:
        with pytest.raises(ScanError):
            read_slice(path)


def test_values_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "7.mat"
    replaced("image", data=np.array([[1.0, np.nan], [np.inf, 0.0]]))(path)
    one_line(path, "2 pixels are NaN or infinite", read_slice)


def test_a_file_without_patient(tmp_path: Path) -> None:
    write_mat(tmp_path / "7.mat", PICTURE, MASK, pid=None)
    assert read_header(tmp_path / "7.mat").patient is None


def test_what_may_pass_stays_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "7.png", PICTURE)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        read_slice(path)
    assert caught.value.errno == 5
