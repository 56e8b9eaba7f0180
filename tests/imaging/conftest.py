"""Small images on awkward grids, shared by the tests of `relevance_assets.imaging`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def data() -> Path:
    """Real scans, where this checkout lies beside them."""
    if not DATA.is_dir():
        pytest.skip("real scans are not here")
    return DATA


@pytest.fixture
def oblique() -> Callable[..., np.ndarray]:
    """An affine with these voxel sizes (mm), turned about x and z by degrees, axes in the given order."""

    def make(sizes: tuple[float, float, float], turn: float = 12.0, codes: str = "RAS") -> np.ndarray:
        a, b = np.deg2rad(turn), np.deg2rad(turn / 2)
        about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
        columns = np.zeros((3, 3))
        for axis, code in enumerate(codes):
            columns["RAS".find(code) if code in "RAS" else "LPI".find(code), axis] = 1 if code in "RAS" else -1
        affine = np.eye(4)
        affine[:3, :3] = about_x @ about_z @ columns @ np.diag(sizes)
        affine[:3, 3] = (-11.0, 7.5, 3.25)
        return affine

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write an array as NIfTI by nibabel alone."""

    def make(array: np.ndarray, affine: np.ndarray, name: str = "image.nii.gz") -> Path:
        path = tmp_path / name
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    return make
