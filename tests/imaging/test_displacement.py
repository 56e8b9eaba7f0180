"""Displacement fields: the way there, the way back, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from relevance_assets.imaging.displacement import (
    CLOSE_MM,
    STEP_MM,
    Displacement,
    inverse,
    jacobian,
    move,
    read_displacement,
    sampled,
    slabs,
    write_displacement,
)
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.volumes import ScanError

AFFINE = np.array([[-4.0, 0, 0, 38], [0, 4, 0, -40], [0, 0, 4, -36], [0, 0, 0, 1]])  # LAS, as the cohort's
GRID = Grid((20, 21, 19), AFFINE)


def centres(grid: Grid) -> np.ndarray:
    return np.indices(grid.shape).reshape(3, -1).T @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def field_of(move) -> Displacement:
    points = centres(GRID)
    return Displacement((move(points) - points).astype(np.float32).reshape(*GRID.shape, 3), GRID)


def turn_and_stretch(points: np.ndarray) -> np.ndarray:
    a = np.deg2rad(10)
    matrix = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.diag([1.4, 0.8, 1.0])
    return points @ matrix.T + (3.0, -5.0, 2.0)


def wave(points: np.ndarray) -> np.ndarray:
    return turn_and_stretch(points) + 3 * np.sin(points[:, [1, 2, 0]] / 12)


@pytest.mark.parametrize("move", [turn_and_stretch, wave])
def test_there_and_back(move) -> None:
    field = field_of(move)
    inner = Grid((9, 9, 9), np.array([[2.5, 0, 0, -9], [0, 2.5, 0, -11], [0, 0, 2.5, -8], [0, 0, 0, 1]]))
    back = inverse(field, inner)
    points = centres(inner)
    assert np.abs(back(points) - points).max() > 3, "it is not small"
    assert np.abs(field(back(points)) - points).max() < 2 * CLOSE_MM
    if move is turn_and_stretch:  # linear: between voxels it holds as well
        off = points[:50] * 0.9 + 0.7
        assert np.abs(turn_and_stretch(back(off)) - off).max() < 2 * CLOSE_MM


def test_vectors_are_along_world_axes_whatever_the_grids() -> None:
    """To the right by 5 mm, on a grid whose first axis runs to the left."""
    field = field_of(lambda points: points + np.array([5.0, 0, 0]))
    np.testing.assert_allclose(field(np.array([[1.0, 2.0, 3.0]])), [[6.0, 2.0, 3.0]], atol=1e-5)
    back = inverse(field, GRID)
    np.testing.assert_allclose(back(np.array([[6.0, 2.0, 3.0]])), [[1.0, 2.0, 3.0]], atol=CLOSE_MM)
    np.testing.assert_allclose(field(np.array([[500.0, 0, 0]])), [[505.0, 0, 0]], atol=1e-3)  # beyond the grid


def test_a_field_that_folds_has_no_way_back() -> None:
    field = field_of(lambda points: points + 30 * np.sin(points[:, [0, 1, 2]] / 5))
    with pytest.raises(ValueError, match="does it fold"):
        inverse(field, GRID)


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
    return path


def test_a_file_comes_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 3, (*GRID.shape, 1, 3))
    found = read_displacement(save(tmp_path / "xfm.nii.gz", values))
    np.testing.assert_allclose(found.values, values[:, :, :, 0] * (-1, -1, 1), atol=1e-5)
    np.testing.assert_array_equal(found.grid.affine, AFFINE)


def test_other_files_are_refused(tmp_path: Path) -> None:
    good = np.zeros((*GRID.shape, 1, 3))
    path = tmp_path / "xfm.nii.gz"
    with pytest.raises(ScanError, match=r"xfm\.nii\.gz: has shape"):
        read_displacement(save(path, good[:, :, :, 0]))
    with pytest.raises(ScanError, match="NaN"):
        read_displacement(save(path, good * np.nan))
    text = tmp_path / "xfm.txt"
    text.write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    with pytest.raises(ScanError, match=r"xfm\.txt: cannot be read as a displacement field"):
        read_displacement(text)
    path.write_bytes(b"half")
    with pytest.raises(ScanError, match="cannot be read"):
        read_displacement(path)


def test_a_field_is_written_and_read(tmp_path: Path, oblique) -> None:
    """On grids of any orientation; twice gives the same bytes; nothing is left beside it."""
    for codes in ("LAS", "PSR"):
        grid = Grid((6, 5, 4), oblique((1.0, 2.0, 7.0), 12.0, codes))
        field = Displacement(np.random.default_rng(0).normal(0, 5, (*grid.shape, 3)), grid)
        path = tmp_path / codes / "sub-1_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.nii.gz"
        write_displacement(path, field)
        found = read_displacement(path)
        np.testing.assert_allclose(found.values, field.values, atol=0.51 * STEP_MM)
        first = path.read_bytes()
        write_displacement(path, Displacement(field.values.copy(), grid))
        assert path.read_bytes() == first
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        header = nib.load(path).header
        assert header.get_intent()[0] == "vector"
        assert header.get_xyzt_units()[0] == "mm"
    with pytest.raises(ValueError, match="NaN"):
        write_displacement(tmp_path / "x.nii.gz", Displacement(field.values * np.nan, grid))


@pytest.mark.parametrize("intent", ["vector", "displacement vector"])
def test_itk_moves_points_along_a_file_as_we_do(tmp_path: Path, oblique, intent: str) -> None:
    """SimpleITK reads the file; points between the voxels of an oblique grid. What it writes is read by us."""
    import SimpleITK as sitk

    grid = Grid((9, 8, 7), oblique((2.0, 3.0, 5.0), 17.0, "LPS"))
    field = Displacement(np.random.default_rng(2).normal(0, 4, (*grid.shape, 3)), grid)
    path, theirs = tmp_path / "xfm.nii.gz", tmp_path / "theirs.nii.gz"
    if intent == "vector":
        write_displacement(path, field)
    else:
        image = nib.Nifti1Image(field.values[:, :, :, None].astype(np.float32), grid.affine)
        image.header.set_intent(intent)
        nib.save(image, path)
    read = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    moved_by = sitk.DisplacementFieldTransform(sitk.Image(read))
    inside = np.random.default_rng(3).uniform(0.5, np.array(grid.shape) - 1.5, (40, 3))
    points = inside @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    lps = np.array([-1.0, -1, 1])
    expected = np.array([moved_by.TransformPoint((lps * point).tolist()) for point in points]) * lps
    np.testing.assert_allclose(read_displacement(path)(points), expected, atol=1e-3)
    for key in read.GetMetaDataKeys():
        read.EraseMetaData(key)  # it cannot write the other intent
    sitk.WriteImage(read, str(theirs))
    np.testing.assert_allclose(read_displacement(theirs)(points), expected, atol=1e-3)


def test_slabs_are_the_voxel_centres_in_order() -> None:
    parts = list(slabs(GRID, voxels=1000))
    assert len(parts) > 3
    np.testing.assert_array_equal(np.concatenate([points for _, points in parts]), centres(GRID))
    assert [start for start, _ in parts] == list(range(0, 20, 1000 // (21 * 19)))
    field = sampled(wave, GRID)
    np.testing.assert_allclose(field(centres(GRID)), wave(centres(GRID)), atol=1e-4)


def test_jacobian_of_a_matrix_and_of_a_wave(oblique) -> None:
    matrix = np.array([[1.1, 0.2, 0, 4], [-0.1, 0.9, 0.1, 0], [0, 0.3, 1.3, -2], [0, 0, 0, 1]])
    for codes in ("RAS", "PSR"):
        grid = Grid((6, 5, 4), oblique((1.0, 2.0, 7.0), 12.0, codes))
        found = jacobian(sampled(lambda points: move(matrix, points), grid))
        np.testing.assert_allclose(found, np.linalg.det(matrix[:3, :3]), atol=1e-5)
    # by hand: x -> x + 3 sin(y / 12) and so on has the determinant 1 + a b c
    grid = Grid((30, 30, 30), np.diag([-1.0, 1, 1, 1]))
    points = centres(grid)
    a, b, c = (3 / 12 * np.cos(points[:, axis] / 12) for axis in range(3))
    found = jacobian(sampled(lambda points: points + 3 * np.sin(points[:, [1, 2, 0]] / 12), grid))
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(found[inner], (1 + a * b * c).reshape(grid.shape)[inner], atol=1e-4)


def test_jacobian_against_itk_and_where_a_field_folds() -> None:
    import SimpleITK as sitk

    grid = Grid(GRID.shape, np.diag([-4.0, -4.0, 4.0, 1.0]))  # along LPS: ITK's filter leaves directions out
    values = np.random.default_rng(1).normal(0, 1.5, (*grid.shape, 3)).astype(np.float32)
    image = sitk.GetImageFromArray((values * (-1, -1, 1)).transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing((4.0, 4.0, 4.0))
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image)).T
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(jacobian(Displacement(values, grid))[inner], theirs[inner], atol=1e-4)
    folding = field_of(lambda points: points + 30 * np.sin(points / 12))
    assert jacobian(folding).min() < 0
    one = Displacement(np.ones((1, 1, 1, 3)), Grid((1, 1, 1), np.eye(4)))
    assert jacobian(one).item() == 1.0
