"""Distances against all pairs of voxels and closed forms; the mid-plane against planted ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from relevance_assets.lesions.components import label_lesions, lesion_measures
from relevance_assets.lesions.distances import Plane, distances_mm, lesion_distances, mid_plane, voxel_distances


def turned(sizes: tuple[float, float, float], degrees: tuple[float, float] = (0, 0)) -> np.ndarray:
    a, b = np.deg2rad(degrees)
    turn = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(sizes)
    return affine


def centres(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.array([(affine @ [*voxel, 1])[:3] for voxel in np.argwhere(mask)])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.95])
def test_distances_are_those_of_all_pairs(share: float) -> None:
    random = np.random.default_rng(7)
    affine = turned((-0.9, 1.3, 6.4), (25, 17))
    lesions, target = random.random((9, 10, 6)) < 0.1, random.random((9, 10, 6)) < share
    labels = label_lesions(lesions, affine)
    ours = voxel_distances(labels, affine, {"ventricle": target, "cortex": None})
    from_lesions = np.linalg.norm(centres(lesions, affine)[:, None] - centres(target, affine), axis=2).min(axis=1)
    assert ours["ventricle_mm"].to_numpy() == pytest.approx(from_lesions)
    assert ours["cortex_mm"].null_count() == ours.height
    assert ours["voxel"].to_list() == np.flatnonzero(lesions).tolist()
    assert ours["lesion"].to_list() == labels[lesions].tolist()

    points = random.uniform((0, 0, 0), (8, 9, 5), (200, 3))
    world = points @ affine[:3, :3].T + affine[:3, 3]
    expected = np.linalg.norm(world[:, None] - centres(target, affine), axis=2).min(axis=1)
    within = np.array([target[tuple(np.rint(point).astype(int))] for point in points])
    assert distances_mm(world, target, affine) == pytest.approx(np.where(within, 0, expected))


def test_spheres_at_known_distances() -> None:
    affine = turned((1.0, 1.0, 1.0), (30, 0))
    away = np.indices((61, 41, 41)).astype(float)

    def ball(x: int, radius: int) -> np.ndarray:
        return (away[0] - x) ** 2 + (away[1] - 20) ** 2 + (away[2] - 20) ** 2 <= radius**2

    lesion, ventricle, cortex = ball(20, 3), ball(50, 8), ball(6, 4)
    labels = label_lesions(lesion, affine)
    targets = {"ventricle": ventricle, "cortex": cortex, "outside": np.zeros_like(lesion)}
    voxels = voxel_distances(labels, affine, targets)
    normal = affine[:3, 0]
    row = lesion_distances(
        lesion_measures(labels, affine),
        voxels,
        affine,
        targets,
        Plane(normal, float(normal @ affine[:3, :3] @ [25, 20, 20])),
    ).to_dicts()[0]
    assert row["ventricle_edge_mm"] == pytest.approx(30 - 3 - 8)
    assert row["ventricle_centroid_mm"] == pytest.approx(30 - 8)
    assert row["cortex_edge_mm"] == pytest.approx(14 - 3 - 4)
    assert row["cortex_centroid_mm"] == pytest.approx(14 - 4)
    assert row["outside_edge_mm"] is None
    assert row["outside_centroid_mm"] is None
    assert row["midplane_mm"] == pytest.approx(-5)


def test_inside_a_target_is_0_and_touching_it_is_one_voxel() -> None:
    labels = np.zeros((8, 5, 5), np.int32)
    labels[1:3, 2, 2], labels[5, 2, 2] = 1, 2
    target = np.zeros(labels.shape, bool)
    target[3:8] = True
    targets = {"ventricle": target}
    affine = np.diag([2.0, 1, 1, 1])
    rows = lesion_distances(lesion_measures(labels, affine), voxel_distances(labels, affine, targets), affine, targets)
    assert rows["ventricle_edge_mm"].to_list() == [2.0, 0.0]
    assert rows["ventricle_centroid_mm"].to_list() == [3.0, 0.0]
    assert rows["midplane_mm"].null_count() == 2


@pytest.mark.parametrize("target", [None, np.zeros((4, 4, 4), bool)])
def test_without_a_target_there_is_no_distance(target: np.ndarray | None) -> None:
    assert np.isnan(distances_mm(np.zeros((2, 3)), target, np.eye(4))).all()


def test_a_target_that_fills_the_grid() -> None:
    target = np.ones((4, 4, 4), bool)
    assert distances_mm(np.array([[1.0, 1, 1], [-3, 0, 0], [-3, 1.4, 2]]), target, np.eye(4)) == pytest.approx(
        [0, 3, math.hypot(3, 0.4)]
    )
    assert voxel_distances(np.eye(4, dtype=np.int32)[None].repeat(4, 0), np.eye(4), {"a": target})["a_mm"].max() == 0


def test_no_lesion_gives_no_row() -> None:
    labels, targets = np.zeros((4, 4, 4), np.int32), {"ventricle": np.ones((4, 4, 4), bool)}
    voxels = voxel_distances(labels, np.eye(4), targets)
    assert voxels.height == 0
    assert lesion_distances(lesion_measures(labels, np.eye(4)), voxels, np.eye(4), targets).height == 0


def test_sheared_grids_and_other_shapes_are_refused() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.1
    with pytest.raises(ValueError, match="sheared"):
        distances_mm(np.zeros((1, 3)), np.ones((2, 2, 2), bool), affine)
    with pytest.raises(ValueError, match="different grids"):
        voxel_distances(np.ones((2, 2, 2), np.int32), np.eye(4), {"ventricle": np.ones((2, 2, 3), bool)})


@pytest.mark.parametrize("sizes", [(1.5, 1.5, 1.5), (-0.9, 0.9, 6.5)])
@pytest.mark.parametrize(("turn", "tilt", "side"), [(0, 0, 0), (3, -5, 0), (10, 8, 7), (-8, 2, 3), (12, -12, -5)])
def test_the_planted_mid_plane_is_found(
    sizes: tuple[float, float, float], turn: float, tilt: float, side: float
) -> None:
    """A head that is wider in front, turned and tilted, some mm beside the origin.

    A mask is only known to its voxels: 60 mm from its centre the plane may be off by a fifth of the largest.
    """
    a, b = np.deg2rad([turn, tilt])
    normal = np.array([math.cos(a) * math.cos(b), math.sin(a) * math.cos(b), math.sin(b)])
    front = np.array([-math.sin(a), math.cos(a), 0])
    up = np.cross(normal, front)
    affine = np.diag([*sizes, 1.0])
    shape = tuple(int(180 / abs(size)) for size in sizes)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    points = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = points @ normal - side, points @ front, points @ up
    brain = ((x / (65 + 0.1 * y)) ** 2 + (y / 80) ** 2 + ((z + 0.05 * y) / 60) ** 2 <= 1).reshape(shape)
    found = mid_plane(brain, affine)
    assert 60 * np.arccos(min(1, found.normal @ normal)) < max(map(abs, sizes)) / 5
    centre = points[brain.ravel()].mean(axis=0)
    assert found.signed_mm(centre[None])[0] == pytest.approx(centre @ normal - side, abs=0.3)
    assert found.signed_mm(centre[None] + 10 * normal)[0] > 0


def test_an_empty_brain_has_no_mid_plane() -> None:
    with pytest.raises(ValueError, match="empty"):
        mid_plane(np.zeros((3, 3, 3), bool), np.eye(4))
