"""Masks on the template: against plain loops, known shifts and hand-counted frequencies."""

import itertools
import tracemalloc

import numpy as np
import pytest

from relevance_assets.evidence.heatmap import Frequency, MaskedScan, difference, group_frequencies, to_template
from relevance_assets.imaging.grid import Grid, resample

SHAPE = (9, 11, 8)
AFFINE = np.array([[2.0, 0, 0, -8], [0, 2, 0, -10], [0, 0, 2, -7], [0, 0, 0, 1]])


def random_mask(shape=SHAPE, seed=0, share=0.3):
    return np.random.default_rng(seed).random(shape) < share


def turned(degrees, sizes=(2.5, 3.0, 2.0), origin=(-9.1, -12.3, -7.7)):
    a = np.deg2rad(degrees)
    affine = np.eye(4)
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine[:3, :3] = rotation @ np.diag(sizes)
    affine[:3, 3] = origin
    return affine


def by_loop(mask, affine, shape, template_affine, warp=lambda point: point):
    """Voxel by voxel: its centre in mm, through the warp, to the nearest voxel of the scan."""
    out = np.zeros(shape, bool)
    for index in itertools.product(*map(range, shape)):
        point = template_affine[:3, :3] @ index + template_affine[:3, 3]
        place = np.linalg.solve(affine[:3, :3], warp(point) - affine[:3, 3])
        nearest = np.floor(place + 0.5 + 1e-6).astype(int)
        if (nearest >= 0).all() and (nearest < mask.shape).all():
            out[index] = mask[tuple(nearest)]
    return out


def test_same_grid_is_the_same_mask():
    mask = random_mask()
    np.testing.assert_array_equal(to_template(mask, AFFINE, SHAPE, AFFINE), mask)


def test_world_coordinates_alone_count():
    """A scan stored left-right flipped, with the affine that says so, gives the same mask."""
    mask = random_mask()
    flipped = AFFINE @ np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(to_template(mask[::-1], flipped, SHAPE, AFFINE), mask)


@pytest.mark.parametrize("degrees", [0, 17])
def test_nearest_neighbour_against_a_loop(degrees):
    mask = random_mask((8, 7, 9), 1, 0.5)
    expected = by_loop(mask, turned(degrees), SHAPE, AFFINE)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(to_template(mask, turned(degrees), SHAPE, AFFINE), expected)


def test_warps_as_matrix_and_as_function_agree_with_a_loop():
    mask = random_mask((8, 7, 9), 2, 0.5)
    matrix = turned(9, (1.05, 0.95, 1.1), (1.3, -2.1, 0.7))

    def move(points):
        return points @ matrix[:3, :3].T + matrix[:3, 3]

    expected = by_loop(mask, turned(5), SHAPE, AFFINE, lambda p: matrix[:3, :3] @ p + matrix[:3, 3])
    np.testing.assert_array_equal(to_template(mask, turned(5), SHAPE, AFFINE, matrix), expected)
    np.testing.assert_array_equal(to_template(mask, turned(5), SHAPE, AFFINE, move), expected)


def test_a_warp_that_is_not_affine_is_followed(monkeypatch):
    mask = random_mask((8, 7, 9), 3, 0.5)

    def move(points):
        return points + 1.5 * np.sin(points[..., ::-1] / 4)

    expected = by_loop(mask, turned(0), SHAPE, AFFINE, move)
    np.testing.assert_array_equal(to_template(mask, turned(0), SHAPE, AFFINE, move), expected)
    monkeypatch.setattr("relevance_assets.evidence.heatmap._POINTS", 200)  # several slabs
    np.testing.assert_array_equal(to_template(mask, turned(0), SHAPE, AFFINE, move), expected)


def test_a_warp_points_from_the_template_to_the_scan():
    mask = np.zeros(SHAPE, bool)
    mask[4, 5, 4] = True
    shift = np.eye(4)
    shift[0, 3] = 2.0  # what lies at x in the template lies at x + 2 mm in the scan
    assert np.argwhere(to_template(mask, AFFINE, SHAPE, AFFINE, shift)).tolist() == [[3, 5, 4]]


def test_identity_warps_change_nothing_where_voxels_tie():
    mask = random_mask((4, 5, 4), 4, 0.5)
    coarse = AFFINE @ np.diag([2.0, 2.0, 2.0, 1.0])
    plain = to_template(mask, coarse, SHAPE, AFFINE)
    np.testing.assert_array_equal(to_template(mask, coarse, SHAPE, AFFINE, lambda points: points), plain)
    np.testing.assert_array_equal(to_template(mask, coarse, SHAPE, AFFINE, np.eye(4)), plain)


def test_grids_with_the_same_axes_take_a_shorter_way_to_the_same_mask():
    """Against `resample`, with ties, flips, and fields of view that end within the template."""
    for affine in (turned(0), AFFINE @ np.diag([2.0, 2, 2, 1]), AFFINE @ np.diag([-1.5, 1, 0.5, 1])):
        affine = affine.copy()
        affine[:3, 3] = (1.0, -9.0, -6.0)
        mask = random_mask((8, 7, 9), 7, 0.5)
        expected = resample(mask.astype(np.uint8), Grid(mask.shape, affine), Grid(SHAPE, AFFINE), 0) > 0
        assert expected.any()
        np.testing.assert_array_equal(to_template(mask, affine, SHAPE, AFFINE), expected)


def test_outside_the_field_of_view_is_outside_the_mask():
    far = AFFINE.copy()
    far[:3, 3] += 1000
    for warp in (None, np.eye(4), lambda points: points):
        assert not to_template(np.ones(SHAPE, bool), far, SHAPE, AFFINE, warp).any()


def test_frequencies_by_hand():
    masks = [np.zeros((2, 1, 1), bool) for _ in range(4)]
    masks[0][0] = masks[1][0] = masks[1][1] = masks[3][1] = True
    groups = ["mild", "mild", "mild", "severe"]
    found = group_frequencies(
        (MaskedScan(g, m, np.eye(4)) for g, m in zip(groups, masks, strict=True)), (2, 1, 1), np.eye(4)
    )
    assert list(found) == ["mild", "severe"]
    assert (found["mild"].scans, found["severe"].scans) == (3, 1)
    np.testing.assert_allclose(found["mild"].values.ravel(), [2 / 3, 1 / 3], rtol=1e-7)
    np.testing.assert_allclose(difference(found).ravel(), [-2 / 3, 2 / 3], rtol=1e-6)


def test_each_scan_has_its_own_grid_and_warp():
    shift = np.eye(4)
    shift[1, 3] = -2.0
    scans = [
        MaskedScan("mild", random_mask((8, 7, 9), 5), turned(0)),
        MaskedScan("mild", random_mask(SHAPE, 6), AFFINE, shift),
    ]
    expected = np.mean([by_loop(scans[0].mask, turned(0), SHAPE, AFFINE), np.roll(scans[1].mask, 1, 1)], axis=0)
    expected[:, 0] = by_loop(scans[0].mask, turned(0), SHAPE, AFFINE)[:, 0] / 2  # nothing comes in from the edge
    np.testing.assert_allclose(group_frequencies(scans, SHAPE, AFFINE)["mild"].values, expected, atol=1e-7)


def test_empty_masks_count_as_scans_and_no_scans_as_none():
    empty, full = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    found = group_frequencies([MaskedScan("a", empty, AFFINE), MaskedScan("a", full, AFFINE)], SHAPE, AFFINE)
    assert (found["a"].values == 0.5).all()
    assert group_frequencies([], SHAPE, AFFINE) == {}


def test_memory_does_not_grow_with_the_number_of_scans():
    def peak(scans):
        tracemalloc.start()
        masks = (MaskedScan("mild", random_mask((20, 20, 20), n), AFFINE) for n in range(scans))
        group_frequencies(masks, (40, 40, 40), AFFINE)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(2)
    assert peak(60) < 1.1 * peak(6)


def test_errors():
    with pytest.raises(ValueError, match="must both be 3D"):
        to_template(np.ones((2, 2), bool), AFFINE, SHAPE, AFFINE)
    with pytest.raises(ValueError, match="invertible 4 x 4"):
        to_template(random_mask(), AFFINE, SHAPE, AFFINE, np.zeros((4, 4)))
    for bad in (lambda points: points[:, :2], lambda points: points * np.nan):
        with pytest.raises(ValueError, match="finite points"):
            to_template(random_mask(), AFFINE, SHAPE, AFFINE, bad)
    with pytest.raises(ValueError, match="no scan in group severe; there is mild"):
        difference({"mild": Frequency(np.zeros(SHAPE), 3)})


@pytest.mark.parametrize("warp", [None, np.eye(4), lambda points: points + 0.5])
def test_elsewhere_than_asked_nothing_is_found(warp):
    """And where it was asked, the same as without asking; a warp is not followed elsewhere."""
    mask, where = random_mask(), random_mask(seed=9)
    expected = to_template(mask, turned(7), SHAPE, AFFINE, warp) & where
    assert expected.any()
    np.testing.assert_array_equal(to_template(mask, turned(7), SHAPE, AFFINE, warp, where), expected)
    points = []
    to_template(mask, turned(7), SHAPE, AFFINE, lambda p: points.append(len(p)) or p, where)
    assert sum(points) == where.sum()
    with pytest.raises(ValueError, match="not on the template's grid"):
        to_template(mask, AFFINE, SHAPE, AFFINE, warp, where[1:])


def test_warped_scans_are_counted():
    masks = [("mild", None), ("mild", np.eye(4)), ("severe", None), ("mild", np.eye(4))]
    found = group_frequencies((MaskedScan(g, random_mask(), AFFINE, w) for g, w in masks), SHAPE, AFFINE)
    assert {name: (one.scans, one.warped) for name, one in found.items()} == {"mild": (3, 2), "severe": (1, 0)}
