"""Displacement fields: the way there, the way back, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from relevance_assets.imaging.displacement import CLOSE_MM, Displacement, inverse, read_displacement
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
    found = read_displacement(save(tmp_path / "xfm.nii.gz", values), GRID)
    np.testing.assert_allclose(found.values, values[:, :, :, 0], atol=1e-5)
    np.testing.assert_array_equal(found.grid.affine, AFFINE)


def test_other_files_are_refused(tmp_path: Path) -> None:
    good = np.zeros((*GRID.shape, 1, 3))
    path = tmp_path / "xfm.nii.gz"
    with pytest.raises(ScanError, match=r"xfm\.nii\.gz: has shape"):
        read_displacement(save(path, good[:, :, :, 0]), GRID)
    with pytest.raises(ScanError, match="scan's own grid"):  # as ITK's, which leads from the template to the scan
        read_displacement(save(path, good, np.diag([2.0, 2, 2, 1])), GRID)
    with pytest.raises(ScanError, match="NaN"):
        read_displacement(save(path, good * np.nan), GRID)
    text = tmp_path / "xfm.txt"
    text.write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    with pytest.raises(ScanError, match=r"xfm\.txt: cannot be read as a displacement field"):
        read_displacement(text, GRID)
    path.write_bytes(b"half")
    with pytest.raises(ScanError, match="cannot be read"):
        read_displacement(path, GRID)
