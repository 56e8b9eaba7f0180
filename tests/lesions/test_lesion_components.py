"""Components and their shapes, against a flood fill, closed forms and all pairs of points."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from relevance_assets.lesions.components import label_lesions, lesion_measures, voxel_mm3, world_mm


def oblique(sizes: tuple[float, float, float] = (0.9, 1.1, 6.5)) -> np.ndarray:
    """A grid turned by 20 and 15 degrees, its first axis to the left."""
    a, b = np.deg2rad([20, 15])
    turn = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    turn = turn @ np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-sizes[0], sizes[1], sizes[2]])
    affine[:3, 3] = 80, -110, -60
    return affine


def flood(mask: np.ndarray, connectivity: int) -> set[frozenset[tuple[int, ...]]]:
    most = {6: 1, 18: 2, 26: 3}[connectivity]
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, s)) <= most]
    left, found = {tuple(map(int, v)) for v in np.argwhere(mask)}, set()
    while left:
        todo = [left.pop()]
        part = set(todo)
        while todo:
            at = todo.pop()
            for step in steps:
                near = tuple(a + b for a, b in zip(at, step, strict=True))
                if near in left:
                    left.remove(near)
                    part.add(near)
                    todo.append(near)
        found.add(frozenset(part))
    return found


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_components_are_those_of_a_flood_fill(connectivity: int) -> None:
    mask = np.random.default_rng(1).random((9, 8, 7)) < 0.2
    labels = label_lesions(mask, np.eye(4), connectivity=connectivity)
    parts = {
        frozenset(tuple(map(int, v)) for v in np.argwhere(labels == number)) for number in range(1, labels.max() + 1)
    }
    assert parts == flood(mask, connectivity)
    firsts = [np.flatnonzero(labels == number)[0] for number in range(1, labels.max() + 1)]
    assert firsts == sorted(firsts)


def test_small_components_go_and_equal_ones_stay() -> None:
    mask = np.zeros((9, 3, 3))
    mask[0, 0, 0] = mask[2:4, 0, 0] = mask[5:8, 0, 0] = 0.1
    affine = np.diag([0.1, 1, 1, 1])
    assert np.unique(label_lesions(mask, affine, minimum_mm3=0.2)).tolist() == [0, 1, 2]
    labels = label_lesions(mask, affine, minimum_mm3=0.3)
    assert labels[5:8, 0, 0].tolist() == [1, 1, 1]
    assert labels.sum() == 3


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.ones((2, 2)), {}, "three axes"),
        (np.ones((2, 2, 2)), {"connectivity": 8}, "6, 18 or 26"),
        (np.full((2, 2, 2), np.nan), {}, "NaN"),
    ],
)
def test_what_is_no_mask_is_refused(mask: np.ndarray, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_lesions(mask, np.eye(4), **options)


def test_no_lesion_gives_no_row() -> None:
    labels = label_lesions(np.zeros((3, 3, 3)), np.eye(4))
    assert lesion_measures(labels, np.eye(4)).height == 0


def test_one_voxel_and_a_box_by_hand_on_an_oblique_grid() -> None:
    affine = oblique((1.0, 1.5, 4.0))
    labels = np.zeros((12, 12, 6), np.int32)
    labels[1, 2, 3] = 1
    labels[4:10, 3:7, 1:3] = 5  # 6 x 6 x 8 mm; numbers need not follow each other
    one, box = lesion_measures(labels, affine).to_dicts()
    assert (one["lesion"], one["voxels"], one["slices"]) == (1, 1, 1)
    assert one["volume_mm3"] == pytest.approx(6.0)
    assert one["diameter_mm"] == pytest.approx(4.0)
    assert one["elongation"] == pytest.approx(1.5 / 4)
    assert [one[f"centroid_{axis}_mm"] for axis in "xyz"] == pytest.approx((affine @ [1, 2, 3, 1])[:3])
    assert (box["lesion"], box["voxels"], box["slices"]) == (5, 48, 2)
    assert box["volume_mm3"] == pytest.approx(6 * 6 * 8)
    assert [box[f"centroid_{axis}_mm"] for axis in "xyz"] == pytest.approx((affine @ [6.5, 4.5, 1.5, 1])[:3])
    assert box["elongation"] == pytest.approx(6 / 8)
    # the corner voxels' centres are 5, 4.5 and 4 mm apart, and a face centre adds half a voxel on either side
    assert box["diameter_mm"] == pytest.approx(math.hypot(5, 4.5, 4 + 4))


@pytest.mark.parametrize("radius", [2, 5, 9])
def test_a_sphere_is_round_and_has_its_diameter(radius: int) -> None:
    away = np.indices((21, 21, 21)) - 10
    row = lesion_measures(((away**2).sum(axis=0) <= radius**2).astype(np.int32), np.eye(4)).to_dicts()[0]
    assert row["elongation"] == pytest.approx(1)
    assert row["diameter_mm"] == pytest.approx(2 * radius + 1, abs=0.5)
    assert row["volume_mm3"] == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.05)
    assert row["slices"] == 2 * radius + 1


@pytest.mark.parametrize("share", [0.02, 0.5])  # few points, and enough for the hull
def test_diameter_and_shape_are_those_of_all_pairs(share: float) -> None:
    affine = oblique()
    labels = (np.random.default_rng(3).random((8, 9, 5)) < share).astype(np.int32)
    row = lesion_measures(labels, affine).to_dicts()[0]
    centres = np.array([(affine @ [*voxel, 1])[:3] for voxel in np.argwhere(labels)])
    faces = np.concatenate([centres + sign * affine[:3, axis] / 2 for axis in range(3) for sign in (1, -1)])
    assert row["diameter_mm"] == pytest.approx(np.linalg.norm(faces[:, None] - faces, axis=2).max())
    # a solid voxel as 9 x 9 x 9 points, whose variance is (1 - 1/81) of a solid's
    fine = (np.indices((9, 9, 9)).reshape(3, -1).T - 4) / 9 / math.sqrt(1 - 1 / 81)
    points = (centres[:, None] + fine @ affine[:3, :3].T).reshape(-1, 3)
    spread = np.sort(np.linalg.eigvalsh(np.cov(points.T, ddof=0)))
    assert row["elongation"] == pytest.approx(math.sqrt(spread[1] / spread[2]))
    assert row["volume_mm3"] == pytest.approx(len(centres) * 0.9 * 1.1 * 6.5)


def test_volumes_and_points_of_a_turned_grid() -> None:
    affine = oblique()
    assert voxel_mm3(affine) == pytest.approx(0.9 * 1.1 * 6.5)
    assert world_mm(np.array([[1, 2, 3]]), affine)[0] == pytest.approx((affine @ [1, 2, 3, 1])[:3])
