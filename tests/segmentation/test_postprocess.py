"""Morphology by hand: what must go, what must stay, on anisotropic voxels and at the edge."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from relevance_assets.segmentation.postprocess import as_published, ball, disk, in_millimetres, remove_small


def opened(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Union of all places of the element that fit into the mask; beyond the grid everything fits."""
    half = [n // 2 for n in element.shape]
    offsets = np.argwhere(element) - half
    kept = np.zeros_like(mask)
    for place in itertools.product(*(range(-2, n + 2) for n in mask.shape)):
        voxels = [tuple(np.array(place) + offset) for offset in offsets]
        inside = [v for v in voxels if all(0 <= i < n for i, n in zip(v, mask.shape, strict=True))]
        own = all(0 <= i < n for i, n in zip(place, mask.shape, strict=True))
        if own and all(mask[v] for v in inside):
            for voxel in inside:
                kept[voxel] = True
    return kept


def test_disks_are_those_of_scikit_image() -> None:
    assert disk(0).tolist() == [[True]]
    assert disk(1).astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert disk(2).sum() == 13
    assert disk(2)[:, 0].tolist() == [False, False, True, False, False]


def test_balls_follow_the_voxels() -> None:
    assert ball(1.0, (1, 1, 7)).shape == (3, 3, 1)
    assert ball(7.0, (7, 7, 7)).sum() == 7
    assert ball(0.4, (1, 1, 1)).sum() == 1


@pytest.mark.parametrize("seed", range(3))
def test_as_published_removes_objects_below_five_then_opens(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.zeros((15, 14, 2), dtype=np.uint8)
    labels[random.random(labels.shape) < 0.1] = 2
    labels[2:9, 3:9, 0], labels[6:13, 0:5, 1] = 1, 2
    found = as_published(labels)
    expected = np.zeros_like(labels)
    for label, z in itertools.product((1, 2), range(2)):
        mask = labels[:, :, z] == label
        expected[:, :, z][opened(remove_small(mask, 5, 4), disk(2))] = label
    assert np.array_equal(found, expected)
    assert found.any()


def test_five_pixels_stay_and_four_and_diagonals_go() -> None:
    labels = np.zeros((12, 12, 1), dtype=np.uint8)
    labels[0, :5, 0] = 1
    labels[3, :4, 0] = 1
    labels[[6, 7, 8, 9, 10], [0, 1, 2, 3, 4], 0] = 1
    kept = as_published(labels, radii={})
    assert kept[0, :5, 0].all()
    assert kept.sum() == 5


def test_only_named_classes_are_opened() -> None:
    labels = np.zeros((12, 12, 1), dtype=np.uint8)
    labels[1, 1:9, 0], labels[5, 1:9, 0] = 1, 2  # threads
    found = as_published(labels, radii={2: 1})
    assert (found == 1).sum() == 8
    assert (found == 2).sum() == 0


def test_volumes_are_in_millimetres_and_neighbours_in_three_dimensions() -> None:
    labels = np.zeros((9, 9, 4), dtype=np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 2  # two voxels that meet at a corner: 2 x 7 mm3
    labels[6, 6, 0] = 2
    size = (1.0, 1.0, 7.0)
    kept = in_millimetres(labels, size, minimum_mm3={2: 14.0})
    assert np.argwhere(kept).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert not in_millimetres(labels, size, minimum_mm3={2: 14.0}, connectivity=6).any()
    assert np.array_equal(in_millimetres(labels, size), labels)


def test_a_ball_opens_a_volume() -> None:
    labels = np.zeros((9, 8, 5), dtype=np.uint8)
    labels[1:6, 1:6, 1:4] = 1
    labels[3, 6:, 2] = 1  # a thread
    found = in_millimetres(labels, (1, 1, 2), radii_mm={1: 2.0})
    assert np.array_equal(found == 1, opened(labels == 1, ball(2.0, (1, 1, 2))))
    assert found[3, 6:, 2].tolist() == [1, 0]  # the ball's tip reaches into its beginning


def test_nothing_stays_nothing_and_shapes_are_checked() -> None:
    empty = np.zeros((3, 3, 2), dtype=np.uint8)
    assert not as_published(empty).any()
    assert not in_millimetres(empty, (1, 1, 1), minimum_mm3={2: 5}).any()
    with pytest.raises(ValueError, match="three axes"):
        as_published(empty[0])
    with pytest.raises(ValueError, match="choose 6, 18 or 26"):
        in_millimetres(empty, (1, 1, 1), connectivity=8)
