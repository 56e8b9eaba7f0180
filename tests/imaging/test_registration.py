"""Registration against planted transforms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from relevance_assets.imaging.registration import affine, rigid
from relevance_assets.imaging.volumes import Image


def turned(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    a, b, c = np.deg2rad(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = z @ y @ x, shift
    return matrix


@pytest.fixture(scope="module")
def template() -> Image:
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=4)
    return Image(np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64))


def seen_from(image: Image, to_moving: np.ndarray, shape: tuple[int, int, int], grid: np.ndarray) -> Image:
    """What `image` shows after its points were moved by `to_moving`, on another grid."""
    to_voxels = np.linalg.inv(image.affine) @ np.linalg.inv(to_moving) @ grid
    values = ndimage.affine_transform(image.data, to_voxels[:3, :3], to_voxels[:3, 3], output_shape=shape, order=1)
    return Image(values.astype(np.float32), grid)


def brain_points(image: Image) -> np.ndarray:
    return np.argwhere(image.data > 0.3) @ image.affine[:3, :3].T + image.affine[:3, 3]


def apart(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> float:
    """Greatest distance in mm between the images of the points."""
    difference = points @ (a - b)[:3, :3].T + (a - b)[:3, 3]
    return float(np.linalg.norm(difference, axis=1).max())


GRIDS = {
    "LAS": ((50, 60, 50), (4.0, 4.0, 4.0)),
    "PSR": ((60, 50, 50), (4.0, 4.0, 4.0)),
    "RAS": ((52, 64, 30), (4, 4, 7)),
}


def grid_around(points: np.ndarray, shape: tuple, axes: np.ndarray) -> np.ndarray:
    """The affine with these axes whose middle is the points' middle."""
    grid = axes.copy()
    grid[:3, 3] = points.mean(axis=0) - axes[:3, :3] @ ((np.array(shape) - 1) / 2)
    return grid


@pytest.mark.parametrize("codes", list(GRIDS))
def test_a_planted_rigid_transform_is_found(template: Image, oblique: Callable[..., np.ndarray], codes: str) -> None:
    """On oblique grids of other orientations, and with thick slices; the contrast is turned round as well."""
    shape, sizes = GRIDS[codes]
    truth = turned((6, -4, 8), (6, -5, 4))
    points = brain_points(template)
    grid = grid_around(points + truth[:3, 3], shape, oblique(sizes, 8.0, codes))
    moving = seen_from(template, truth, shape, grid)
    inverted = Image(np.where(moving.data > 0.05, 1.2 - moving.data, 0).astype(np.float32), grid)
    found = rigid(template, inverted, start=np.eye(4))
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(found[3], [0, 0, 0, 1])
    assert apart(np.eye(4), truth, points) > 10
    assert apart(found, truth, points) < 1.0


def test_a_planted_affine_transform_is_found_and_twice_the_same(template: Image) -> None:
    truth = turned((6, -4, 8), (6, -5, 4)) @ np.diag([1.05, 0.95, 1.03, 1])
    moving = seen_from(template, truth, template.data.shape, template.affine)
    found = affine(template, moving, fixed_mask=template.data > 0.1)
    assert apart(found, truth, brain_points(template)) < 1.0
    again = affine(template, moving, fixed_mask=template.data > 0.1)
    assert found.tobytes() == again.tobytes()


def test_nothing_is_printed(template: Image, capfd: pytest.CaptureFixture) -> None:
    print("before")
    affine(template, template, start=turned((0, 0, 1), (1, 1, 1)), iterations="5x0x0")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data * np.nan, "NaN"),
        (lambda data: np.zeros_like(data), "constant"),
        (lambda data: data[:, :, :3], "8 voxels"),
    ],
)
def test_images_that_cannot_be_registered(template: Image, spoil, message: str) -> None:
    bad = Image(spoil(template.data), template.affine)
    with pytest.raises(ValueError, match=f"fixed image.*{message}"):
        rigid(bad, template)
    with pytest.raises(ValueError, match=f"moving image.*{message}"):
        affine(template, bad)


def test_masks_and_starts_that_cannot_be(template: Image) -> None:
    with pytest.raises(ValueError, match="is empty"):
        rigid(template, template, fixed_mask=np.zeros(template.data.shape, bool))
    with pytest.raises(ValueError, match="not on the grid"):
        rigid(template, template, fixed_mask=np.ones((3, 3, 3), bool))
    with pytest.raises(ValueError, match="regular"):
        rigid(template, template, start=np.zeros((4, 4)))
    with pytest.raises(ValueError, match="unknown metric 'SAD'"):
        rigid(template, template, metric="SAD")
    with pytest.raises(ValueError, match="greedy failed"):
        rigid(template, template, iterations="ten")
