"""The way back to the native grid, and native labels on the prepared one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from relevance_assets.imaging.geometry import Geometry, to_native, to_prepared_labels
from relevance_assets.imaging.grid import Grid, axis_aligned
from relevance_assets.imaging.volumes import ScanError

Affine = Callable[..., np.ndarray]


@pytest.fixture
def geometry(oblique: Affine) -> Geometry:
    native = Grid((10, 9, 5), oblique((1.0, 1.2, 4.0), 14.0, "LPS"))
    return Geometry(native, axis_aligned(native, (2.0, 1.5, 2.5)), True)


def test_json_keeps_every_digit(geometry: Geometry) -> None:
    read = Geometry.from_dict(json.loads(json.dumps(geometry.to_dict())))
    assert (read.native.shape, read.prepared.shape, read.resampled) == ((10, 9, 5), geometry.prepared.shape, True)
    np.testing.assert_array_equal(read.native.affine, geometry.native.affine)
    np.testing.assert_array_equal(read.prepared.affine, geometry.prepared.affine)


def test_a_sidecar_without_geometry_says_so() -> None:
    with pytest.raises(ValueError, match="NativeShape"):
        Geometry.from_dict({"Type": "Brain"})


def test_maps_are_interpolated_linearly_at_native_centres(geometry: Geometry) -> None:
    volume = np.random.default_rng(3).random(geometry.prepared.shape)
    points = np.zeros((3, *geometry.native.shape))
    for index in np.ndindex(*geometry.native.shape):
        world = geometry.native.affine @ [*index, 1.0]
        points[(slice(None), *index)] = np.linalg.solve(geometry.prepared.affine, world)[:3]
    expected = ndimage.map_coordinates(volume, points, order=1, mode="nearest")
    np.testing.assert_allclose(to_native(volume, geometry), expected, atol=1e-6)


def test_outside_the_prepared_field_of_view_is_zero(geometry: Geometry) -> None:
    small = Grid((2, 2, 2), geometry.prepared.affine)
    back = to_native(np.ones((2, 2, 2)), Geometry(geometry.native, small, True))
    for index in np.ndindex(*geometry.native.shape):
        x = np.linalg.solve(small.affine, geometry.native.affine @ [*index, 1.0])[:3]
        assert back[index] == pytest.approx(float(np.all((x >= -0.5) & (x <= 1.5))))


def test_masks_go_back_by_nearest_neighbour(geometry: Geometry) -> None:
    mask = np.random.default_rng(4).integers(0, 3, geometry.prepared.shape)
    back = to_native(mask, geometry, order=0)
    assert back.dtype == mask.dtype
    assert set(np.unique(back)) <= {0, 1, 2}


def test_a_volume_of_another_shape_is_refused(geometry: Geometry) -> None:
    with pytest.raises(ValueError, match="not on the prepared grid"):
        to_native(np.zeros((1, 2, 3)), geometry)


def test_labels_come_from_wherever_their_affine_puts_them(geometry: Geometry, write: Callable[..., Path]) -> None:
    """A label image on a grid of its own: one bright box, known in millimetres."""
    centre = geometry.prepared.corners_mm().mean(axis=0)
    affine = np.diag([-0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = centre + np.array([4.75, -4.75, -4.75])
    box = np.full((20, 20, 20), 7, np.int16)  # 10 mm around the centre
    labels = to_prepared_labels(write(box, affine), geometry)
    assert labels.dtype == np.int32
    for index in np.ndindex(*geometry.prepared.shape):
        off = np.abs((geometry.prepared.affine @ [*index, 1.0])[:3] - centre).max()
        if abs(off - 5) > 1e-3:
            assert labels[index] == (7 if off < 5 else 0)


def test_a_probability_map_is_no_label(geometry: Geometry, write: Callable[..., Path]) -> None:
    path = write(np.full((3, 3, 3), 0.5, np.float32), np.eye(4))
    with pytest.raises(ScanError, match="whole numbers"):
        to_prepared_labels(path, geometry)
