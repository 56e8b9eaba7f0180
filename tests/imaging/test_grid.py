"""Interpolation against plain loops in world coordinates and against ramps, whose values are known anywhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relevance_assets.imaging.grid import (
    Grid,
    axis_aligned,
    canonical,
    centre_start,
    copy_between,
    moved,
    resample,
    same_grid,
    same_voxel_size,
    smoothing_sigma,
    uncanonical,
)


def linear_by_loops(array: np.ndarray, affine: np.ndarray, shape: tuple, target: np.ndarray) -> np.ndarray:
    """Trilinear interpolation, one point at a time: 8 neighbours, edge values held to the voxel's edge, 0 beyond."""
    result = np.zeros(shape)
    for index in np.ndindex(*shape):
        x = np.linalg.solve(affine, target @ [*index, 1.0])[:3]
        if any(p < -0.5 - 1e-9 or p > n - 0.5 + 1e-9 for p, n in zip(x, array.shape, strict=True)):
            continue
        low = np.floor(x).astype(int)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod([f if c else 1 - f for f, c in zip(x - low, corner, strict=True)])
            where = [min(max(0, i + c), n - 1) for i, c, n in zip(low, corner, array.shape, strict=True)]
            result[index] += weight * array[tuple(where)]
    return result


def ramp(grid: Grid, slope: np.ndarray, at_origin: float) -> np.ndarray:
    """A linear function of world coordinates at each voxel centre."""
    result = np.zeros(grid.shape)
    for index in np.ndindex(*grid.shape):
        result[index] = at_origin + slope @ (grid.affine @ [*index, 1.0])[:3]
    return result


@pytest.mark.parametrize("shape", [(5, 6, 4), (1, 6, 4), (1, 1, 1), (2, 1, 7)])
@pytest.mark.parametrize("turn", [0.0, 12.0, 40.0])
def test_linear_against_loops(oblique: Callable[..., np.ndarray], shape: tuple, turn: float) -> None:
    array = np.random.default_rng(1).random(shape)
    source = Grid(shape, oblique((1.0, 1.5, 4.0), turn, "LAS"))
    target = axis_aligned(source, (1.3, 1.1, 2.2))
    ours = resample(array, source, target)
    np.testing.assert_allclose(ours, linear_by_loops(array, source.affine, target.shape, target.affine), atol=1e-5)


def test_nearest_against_the_closest_centre(oblique: Callable[..., np.ndarray]) -> None:
    source = Grid((5, 6, 4), oblique((1.0, 1.5, 4.0), 20.0))
    array = np.arange(120, dtype=np.int32).reshape(source.shape) + 1
    target = axis_aligned(source, (1.3, 1.1, 2.2))
    ours = resample(array, source, target, 0)
    assert ours.dtype == np.int32
    for index in np.ndindex(*target.shape):
        x = np.linalg.solve(source.affine, target.affine @ [*index, 1.0])[:3]
        if np.all(np.abs(x - np.round(x)) < 0.499):
            inside = all(0 <= i < n for i, n in zip(np.round(x), source.shape, strict=True))
            assert ours[index] == (array[tuple(np.round(x).astype(int))] if inside else 0)


def test_a_tie_goes_to_the_higher_index() -> None:
    source = Grid((8, 1, 1), np.eye(4))
    target = axis_aligned(source, (2.0, 1.0, 1.0))  # its centres lie midway between two voxels
    assert resample(np.arange(8).reshape(8, 1, 1), source, target, 0).ravel().tolist() == [1, 3, 5, 7]


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(*[st.floats(0.5, 3.0)] * 3),
    new=st.tuples(*[st.floats(0.5, 6.0)] * 3),
    turn=st.floats(0, 30),
    slope=st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_a_ramp_survives(sizes: tuple, new: tuple, turn: float, slope: tuple) -> None:
    """A symmetric kernel keeps a linear function, smoothed or not, as long as it sees no edge."""
    a = np.deg2rad(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) * sizes
    source = Grid((12, 13, 14), affine)
    target = axis_aligned(source, new)
    ours = resample(ramp(source, np.array(slope), 5.0), source, target)
    margin = np.ceil(4 * smoothing_sigma(source, target)) + 1
    truth = ramp(target, np.array(slope), 5.0)
    for index in np.ndindex(*target.shape):
        x = np.linalg.solve(source.affine, target.affine @ [*index, 1.0])[:3]
        if np.all(x >= margin) and np.all(x <= np.array(source.shape) - 1 - margin):
            assert abs(ours[index] - truth[index]) < 1e-3


def test_reduction_is_smoothed_against_aliasing() -> None:
    """A checkerboard of single voxels must not come out as all 0 or all 1."""
    source = Grid((24, 24, 24), np.eye(4))
    board = np.indices(source.shape).sum(axis=0) % 2
    target = axis_aligned(source, (3.0, 3.0, 3.0))
    np.testing.assert_allclose(resample(board, source, target)[2:-2, 2:-2, 2:-2], 0.5, atol=0.01)
    assert set(np.unique(resample(board, source, target, smooth=False))) == {0.0, 1.0}


def test_smoothing_begins_above_one_and_a_half() -> None:
    source = Grid((8, 8, 8), np.diag([1.0, 2.0, 7.0, 1.0]))
    target = axis_aligned(source, (1.5, 4.0, 2.0))
    np.testing.assert_allclose(smoothing_sigma(source, target), [0.0, 0.5, 0.0])


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSR", "IPL", "AIL"])
def test_canonical_keeps_every_voxel_at_its_place(oblique: Callable[..., np.ndarray], codes: str) -> None:
    array = np.random.default_rng(2).random((3, 4, 5))
    before = Grid(array.shape, oblique((1.0, 2.0, 3.0), 10.0, codes))
    assert before.orientation == codes
    turned, affine = canonical(array, before.affine)
    after = Grid(turned.shape, affine)
    assert after.orientation == "RAS"
    places = {tuple(np.round((before.affine @ [*i, 1])[:3], 6)): array[i] for i in np.ndindex(*array.shape)}
    assert places == {tuple(np.round((affine @ [*i, 1])[:3], 6)): turned[i] for i in np.ndindex(*turned.shape)}


def test_the_field_of_view_and_its_centre_are_kept() -> None:
    source = Grid((91, 109, 91), np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]))
    target = axis_aligned(source, (4.0, 4.0, 4.0))
    assert target.shape == (46, 55, 46)
    np.testing.assert_allclose(target.corners_mm().mean(axis=0), source.corners_mm().mean(axis=0))
    assert (target.corners_mm().min(axis=0) <= source.corners_mm().min(axis=0)).all()
    assert same_grid(axis_aligned(source, (2.0, 2.0, 2.0)), source)


def test_an_oblique_field_of_view_is_boxed(oblique: Callable[..., np.ndarray]) -> None:
    source = Grid((20, 20, 6), oblique((1.0, 1.0, 7.0), 15.0))
    target = axis_aligned(source, (2.0, 2.0, 2.0))
    assert np.count_nonzero(target.affine[:3, :3]) == 3
    corners = target.corners_mm()
    assert (corners.min(axis=0) <= source.corners_mm().min(axis=0) + 1e-6).all()
    assert (corners.max(axis=0) >= source.corners_mm().max(axis=0) - 1e-6).all()


def test_same_grid_and_same_size() -> None:
    grid = Grid((4, 4, 4), np.diag([1.0, 1.0, 7.2, 1.0]))
    near = grid.affine.copy()
    near[0, 3] += 5e-4
    far = grid.affine.copy()
    far[0, 3] += 5e-3
    assert same_grid(grid, Grid((4, 4, 4), near))
    assert not same_grid(grid, Grid((4, 4, 4), far))
    assert not same_grid(grid, Grid((4, 4, 5), grid.affine))
    assert same_voxel_size(grid, (1.0, 1.0005, 7.2))
    assert not same_voxel_size(grid, (1.0, 1.01, 7.2))


@pytest.mark.parametrize(
    ("n", "m", "start"), [(5, 5, 0), (5, 3, 1), (5, 4, 0), (4, 6, -1), (4, 5, -1), (4, 7, -2), (1, 4, -2)]
)
def test_where_a_centred_crop_begins(n: int, m: int, start: int) -> None:
    assert centre_start((n, 7, 7), (m, 7, 7)) == (start, 0, 0)


def test_a_crop_around_the_brain() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[6:10, 0:2, 3] = True
    assert centre_start(mask.shape, (4, 4, 3), mask) == (6, -1, 2)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    wanted=st.tuples(*[st.integers(1, 9)] * 3),
    codes=st.sampled_from(["RAS", "LAS", "PSR", "SLA", "IPL"]),
    seed=st.integers(0, 99),
)
def test_copying_there_and_back_changes_no_bit(shape: tuple, wanted: tuple, codes: str, seed: int) -> None:
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    affine = np.zeros((4, 4))
    affine[:, 3] = (3.7, -2.1, 9.3, 1)
    for axis, code in enumerate(codes):
        row, sign = ("RAS".find(code), 1) if code in "RAS" else ("LPI".find(code), -1)
        affine[row, axis] = sign * (0.7, 1.1, 3.3)[axis]
    source = Grid(array.shape, affine)
    turned, turned_affine = canonical(array, affine)
    canonical_grid = Grid(turned.shape, turned_affine)
    np.testing.assert_array_equal(copy_between(array, source, canonical_grid), turned)
    np.testing.assert_array_equal(uncanonical(turned, affine), array)
    target = moved(canonical_grid, centre_start(turned.shape, wanted), wanted)
    there = copy_between(array, source, target)
    back = copy_between(there, target, source)
    kept = copy_between(copy_between(np.ones(shape, np.uint8), source, target), target, source).astype(bool)
    np.testing.assert_array_equal(back, np.where(kept, array, 0))
    assert kept.sum() == np.prod([min(n, m) for n, m in zip(turned.shape, wanted, strict=True)])


def test_an_array_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="not on a grid"):
        resample(np.zeros((3, 3, 2)), Grid((3, 3, 3), np.eye(4)), Grid((3, 3, 3), np.eye(4)))


def test_grids_apart_give_zeros_and_shifted_ones_an_error() -> None:
    grid = Grid((3, 3, 3), np.eye(4))
    assert not copy_between(np.ones((3, 3, 3)), grid, moved(grid, (9, -9, 0), (2, 2, 2))).any()
    half = np.eye(4)
    half[0, 3] = 0.5
    with pytest.raises(ValueError, match="do not share"):
        copy_between(np.ones((3, 3, 3)), grid, Grid((3, 3, 3), half))
