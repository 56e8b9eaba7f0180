"""Files: what is written comes back and is the same bytes; every defect is one line that names the file."""

from __future__ import annotations

import errno
import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from relevance_assets.imaging.volumes import ScanError, load_volume, read_image, save_volume

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


def volume() -> np.ndarray:
    return np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)


def header_of(path: Path) -> nib.Nifti1Header:
    return nib.load(path).header


def rewrite(path: Path, change: Callable[[nib.Nifti1Header], None]) -> Path:
    """Change a header as written, without nibabel's repairs."""
    raw = gzip.decompress(path.read_bytes())
    header = nib.Nifti1Header(raw[:348], check=False)
    change(header)
    path.write_bytes(gzip.compress(header.binaryblock + raw[348:]))
    return path


def refused(path: Path) -> str:
    with pytest.raises(ScanError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.nii.gz"
    save_volume(path, volume(), AFFINE)
    array, affine = load_volume(path)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, volume())
    np.testing.assert_array_equal(affine, AFFINE)
    header = header_of(path)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 2)
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-6)
    assert [p.name for p in path.parent.iterdir()] == ["a.nii.gz"]


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    save_volume(first, volume(), AFFINE)
    save_volume(second, np.asfortranarray(volume()).astype(np.float64), AFFINE.copy())
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == bytes(4)  # no time in the gzip header


def test_masks_are_bytes(tmp_path: Path) -> None:
    mask = volume() > 0.5
    save_volume(tmp_path / "m.nii.gz", mask, AFFINE, np.uint8)
    assert header_of(tmp_path / "m.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_array_equal(load_volume(tmp_path / "m.nii.gz")[0], mask)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.full((2, 2, 2), np.nan), np.float32),
        (np.zeros((2, 2)), np.float32),
        (np.full((2, 2, 2), 300), np.uint8),
        (np.full((2, 2, 2), 0.5), np.uint8),
        (np.zeros((0, 2, 2)), np.float32),
    ],
)
def test_what_a_volume_cannot_hold_is_refused(tmp_path: Path, array: np.ndarray, dtype: type) -> None:
    with pytest.raises(ValueError, match=r"a\.nii\.gz"):
        save_volume(tmp_path / "a.nii.gz", array, AFFINE, dtype)
    assert list(tmp_path.iterdir()) == []


def test_trailing_axes_of_one_are_dropped(write: Callable[..., Path]) -> None:
    path = write(volume()[..., None, None], AFFINE)
    assert read_image(path).data.shape == (4, 5, 6)


def test_scaling_of_integers_is_applied(write: Callable[..., Path]) -> None:
    def scaled(header: nib.Nifti1Header) -> None:
        header["scl_slope"], header["scl_inter"] = 0.5, -3.0

    path = rewrite(write(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE), scaled)
    np.testing.assert_array_equal(read_image(path).data.ravel(), np.arange(24) * 0.5 - 3)


def test_nifti_2_and_uncompressed(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(volume(), AFFINE), tmp_path / "two.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "two.nii").data, volume())


def test_a_file_that_is_cut_off(tmp_path: Path, write: Callable[..., Path]) -> None:
    whole = write(volume(), AFFINE).read_bytes()
    path = tmp_path / "cut.nii.gz"
    for keep in (len(whole) // 2, len(whole) - 4, 20, 0):  # in the data, in the checksum, in the header, all
        path.write_bytes(whole[:keep])
        refused(path)
    plain = tmp_path / "cut.nii"
    plain.write_bytes(gzip.decompress(whole)[:-10])
    refused(plain)


def test_a_damaged_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    save_volume(path, volume(), AFFINE)
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 0xFF
    path.write_bytes(raw)
    assert "damaged" in refused(path)


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("a page that says: not found" * 40)
    refused(path)
    path.write_bytes(gzip.compress(b"x" * 400))
    assert "not a NIfTI" in refused(path)
    path.unlink()
    assert "no such file" in refused(path)
    path.symlink_to(tmp_path / "annex")
    assert "fetch" in refused(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(write: Callable[..., Path], value: float) -> None:
    array = volume()
    array[1, 2, 3] = value
    assert "1 voxels are NaN or infinite" in refused(write(array, AFFINE))


@pytest.mark.parametrize("size", [0.0, -2.0, np.nan])
def test_voxel_sizes_that_are_not_positive(write: Callable[..., Path], size: float) -> None:
    def change(header: nib.Nifti1Header) -> None:
        header["pixdim"][2] = size

    assert "must be positive" in refused(rewrite(write(volume(), AFFINE), change))


def test_a_singular_affine(write: Callable[..., Path]) -> None:
    def change(header: nib.Nifti1Header) -> None:
        header["srow_z"] = 0

    assert "singular" in refused(rewrite(write(volume(), AFFINE), change))


def test_no_orientation_and_foreign_units(write: Callable[..., Path]) -> None:
    assert "no orientation" in refused(write(volume(), None))  # nibabel writes code 0

    def micrometres(header: nib.Nifti1Header) -> None:
        header["xyzt_units"] = 3

    assert "micrometre" in refused(rewrite(write(volume(), AFFINE), micrometres))


def test_four_axes_two_axes_and_complex_numbers(write: Callable[..., Path]) -> None:
    assert "3D image is needed" in refused(write(np.zeros((3, 3, 3, 2), np.float32), AFFINE))
    assert "3D image is needed" in refused(write(np.zeros((3, 3), np.float32), AFFINE))
    assert "real numbers" in refused(write(np.zeros((3, 3, 3), np.complex64), AFFINE))


def test_a_header_with_any_bytes_is_refused_or_read_as_it_says(tmp_path: Path) -> None:
    """Oracle of what is read: `struct`, at the places of the NIfTI-1 standard."""
    rng, path, messages = np.random.default_rng(0), tmp_path / "a.nii", list[str]()
    raw = nib.Nifti1Image(volume(), AFFINE).to_bytes()
    for _ in range(400):
        changed = bytearray(raw)
        for place in rng.integers(0, 348, rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            found = read_image(path)
        except ScanError as error:
            messages.append(str(error))
            continue
        shape = struct.unpack_from("<3h", changed, 42)
        sform_code, rows = struct.unpack_from("<h", changed, 254)[0], struct.unpack_from("<12f", changed, 280)
        assert found.data.shape == shape
        assert np.isfinite(found.data).all()
        if sform_code > 0:
            np.testing.assert_array_equal(found.affine[:3].ravel(), np.array(rows))
    assert all(message.startswith(str(path)) and "\n" not in message for message in messages)
    assert 10 < len(messages) < 300


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, OSError), (errno.EACCES, PermissionError)])
def test_what_may_pass_is_not_the_file_s_fault(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, number: int, kind: type[OSError]
) -> None:
    """A disk that fails, or no permission, is an OSError that names the file: it is tried again."""
    path = write(volume(), AFFINE)

    def fails(*_: object) -> None:
        raise OSError(number, "said by the system")

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(kind, match=r"image\.nii\.gz"):
        read_image(path)


def test_limits_are_where_they_are_said_to_be(write: Callable[..., Path]) -> None:
    """At each limit: just inside is read, just outside is not."""

    def forms(shift: float) -> Callable[[nib.Nifti1Header], None]:
        def change(header: nib.Nifti1Header) -> None:
            qform = AFFINE.copy()
            qform[0, 3] += shift
            header.set_sform(AFFINE, code=1)
            header.set_qform(qform, code=1)

        return change

    def sheared(cosine: float) -> Callable[[nib.Nifti1Header], None]:
        def change(header: nib.Nifti1Header) -> None:
            affine = AFFINE.copy()
            affine[:3, 1] = 2 * np.array([-cosine, np.sqrt(1 - cosine**2), 0])
            header.set_sform(affine, code=2)

        return change

    for change in (forms(0.49), sheared(0.9e-3)):
        read_image(rewrite(write(volume(), AFFINE), change))
    assert "apart" in refused(rewrite(write(volume(), AFFINE), forms(0.51)))
    assert "sheared" in refused(rewrite(write(volume(), AFFINE), sheared(1.1e-3)))
    for size, said in ((0.051, None), (0.049, "unit"), (29.9, None), (30.1, "unit")):
        path = write(volume(), np.diag([size, size, size, 1]))
        assert read_image(path) if said is None else said in refused(path)
