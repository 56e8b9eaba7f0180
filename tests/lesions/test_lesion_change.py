"""Lesions of two visits: planted changes, and the published change mask of a real pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import ndimage

from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.transforms import pull, read_affine
from relevance_assets.imaging.volumes import read_image
from relevance_assets.lesions.change import CHANGES, STATES, changed_lesions, state_map

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "open-ms-longitudinal"
SHAPE = (60, 60, 30)


def ball(x: int, y: int, z: int, radius: float) -> np.ndarray:
    away = np.indices(SHAPE)
    return (away[0] - x) ** 2 + (away[1] - y) ** 2 + (away[2] - z) ** 2 <= radius**2


def union(*balls: tuple[int, int, int, float]) -> np.ndarray:
    return np.any([np.zeros(SHAPE, bool), *(ball(*one) for one in balls)], axis=0)


def test_every_planted_change_is_named() -> None:
    before = union(
        (10, 10, 10, 3),  # stays
        (30, 10, 10, 3),  # grows
        (50, 10, 10, 4),  # shrinks
        (10, 30, 10, 3),  # goes
        (28, 30, 10, 3), (37, 30, 10, 3),  # merge
        (50, 30, 10, 3), (50, 35, 10, 3),  # one that splits
        (10, 50, 10, 3),  # moves by a voxel
        (50, 50, 10, 1),  # one that doubles, but by few mm3
    )  # fmt: skip
    before[50, 30:36, 10] = True
    after = union(
        (10, 10, 10, 3),
        (30, 10, 10, 5),
        (50, 10, 10, 2),
        (28, 30, 10, 4), (37, 30, 10, 4),
        (50, 29, 10, 2), (50, 36, 10, 2),
        (11, 50, 10, 3),
        (30, 50, 10, 2),  # new
        (50, 50, 10, 1),
    )  # fmt: skip
    after[48:52, 50, 10] = True
    frame, groups = changed_lesions(before, after, np.eye(4))
    assert dict(frame.schema) == CHANGES
    expected = {
        (10, 10): ("stable", 1, 1), (30, 10): ("enlarging", 1, 1), (50, 10): ("shrinking", 1, 1),
        (10, 30): ("resolved", 1, 0), (32, 30): ("enlarging", 2, 1), (50, 30): ("shrinking", 1, 2),
        (10, 50): ("stable", 1, 1), (30, 50): ("new", 0, 1), (50, 50): ("stable", 1, 1),
    }  # fmt: skip
    assert frame.height == len(expected)
    codes = state_map(frame, groups)
    for (x, y), (state, lesions_before, lesions_after) in expected.items():
        number = int(groups[x, y, 10] or groups[x, y - 1, 10])
        row = frame.row(by_predicate=pl.col("group") == number, named=True)
        assert (row["state"], row["lesions_before"], row["lesions_after"]) == (state, lesions_before, lesions_after)
        here = ndimage.binary_dilation(groups == number, iterations=1)
        assert row["volume_before_mm3"] == (before & here).sum()
        assert row["volume_after_mm3"] == (after & here).sum()
        assert row["change_mm3"] == row["volume_after_mm3"] - row["volume_before_mm3"]
        assert row["overlap_mm3"] == (before & after & here).sum()
        assert set(np.unique(codes[groups == number])) == {1 + STATES.index(state)}
    assert ((groups > 0) == (before | after)).all()


@pytest.mark.parametrize(
    ("radius_mm3", "limits", "state"),
    [
        (60, {}, "enlarging"),
        (60, {"growth_mm3": 60.0}, "stable"),  # by 60, not by more
        (60, {"growth_share": 0.6}, "stable"),
        (60, {"growth_mm3": 59.0, "growth_share": 0.59}, "enlarging"),
        (-60, {}, "shrinking"),
        (-60, {"growth_share": 0.6}, "stable"),
    ],
)
def test_growth_must_exceed_both_limits(radius_mm3: int, limits: dict[str, float], state: str) -> None:
    before, after = np.zeros((2, 1, 200, 1), bool)
    before[0, :100] = True
    after[0, : 100 + radius_mm3] = True
    frame, _ = changed_lesions(before, after, np.eye(4), **limits)
    assert frame["state"].to_list() == [state]


@pytest.mark.parametrize(
    ("gap", "reach", "groups"),
    [(0, 0, 1), (1, 0, 2), (1, 0.8, 2), (1, 0.9, 1), (2, 1.7, 2), (2, 1.8, 1)],
)
def test_reach_is_in_mm_along_a_turned_axis(gap: int, reach: float, groups: int) -> None:
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.9, 1, 7])
    before, after = np.zeros((2, 9, 9, 9), bool)
    before[2, 4, 4] = after[2 + gap, 4, 4] = True
    frame, _ = changed_lesions(before, after, affine, reach_mm=reach)
    assert frame.height == groups
    assert frame["overlap_mm3"].sum() == pytest.approx(0 if gap else 0.9 * 7)


def test_many_to_many_is_one_group() -> None:
    """A bridges x and y, B bridges y and z: one group of two before and three after."""
    before, after = np.zeros((2, 30, 3, 3), bool)
    before[0:8, 1, 1] = before[12:20, 1, 1] = True
    after[0:2, 1, 1] = after[6:14, 1, 1] = after[18:22, 1, 1] = True
    frame, _ = changed_lesions(before, after, np.eye(4), reach_mm=0)
    assert frame.select("lesions_before", "lesions_after", "volume_before_mm3").row(0) == (2, 3, 16)


@pytest.mark.parametrize("reach", [0.0, 1.0, 2.3, 4.0])
def test_groups_are_those_of_all_pairs_of_lesions(reach: float) -> None:
    random = np.random.default_rng(11)
    affine = np.diag([0.9, 1.2, 3.0, 1.0])
    before, after = random.random((2, 14, 13, 8)) < 0.03
    parts = []
    for visit, mask in enumerate((before, after)):
        labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
        parts += [(visit, np.argwhere(labels == number)) for number in range(1, count + 1)]
    of = list(range(len(parts)))
    for i, (visit, a) in enumerate(parts):
        for j, (other, b) in enumerate(parts[:i]):
            apart = np.linalg.norm((a[:, None] - b) * [0.9, 1.2, 3.0], axis=2).min()
            if visit != other and apart <= reach + 1e-6:
                of = [of[j] if one == of[i] else one for one in of]
    _, groups = changed_lesions(before, after, affine, reach_mm=reach)
    numbers = [set(groups[tuple(voxels.T)]) for _, voxels in parts]
    assert all(len(one) == 1 for one in numbers)
    ours = [one.pop() for one in numbers]
    assert len(set(zip(ours, of, strict=True))) == len(set(ours)) == len(set(of))


def test_nothing_at_one_visit_or_both() -> None:
    nothing, one = np.zeros(SHAPE), union((10, 10, 10, 2))
    frame, groups = changed_lesions(nothing, nothing, np.eye(4))
    assert dict(frame.schema) == CHANGES
    assert frame.height == groups.max() == state_map(frame, groups).max() == 0
    assert changed_lesions(nothing, one, np.eye(4))[0]["state"].to_list() == ["new"]
    assert changed_lesions(one, nothing, np.eye(4))[0]["state"].to_list() == ["resolved"]
    assert changed_lesions(nothing, one, np.eye(4), minimum_mm3=1e3)[0].height == 0


def test_other_grids_and_negative_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="one grid"):
        changed_lesions(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), np.eye(4))
    with pytest.raises(ValueError, match="at least 0"):
        changed_lesions(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), np.eye(4), reach_mm=-1)


def test_a_published_change_mask_is_accounted_for() -> None:
    """A real pair has no lesion mask per visit, only one of what changed, in either direction.

    Its voxels brighter at the second visit are taken for lesion then, the others for lesion at the first. Brightness is
    FLAIR over its median in the brain, both visits moved to the mask's space by the published transforms.
    """
    if not DATA.is_dir():
        pytest.skip("no ../shared/data/open-ms-longitudinal")
    manual = DATA / "derivatives" / "manual" / "sub-12"
    published = read_image(manual / "anat" / "sub-12_space-common_label-lesionchange_mask.nii.gz")
    brain = read_image(manual / "anat" / "sub-12_space-common_desc-brain_mask.nii.gz").data > 0
    mask, grid = published.data > 0, Grid(published.data.shape, published.affine)
    visits = []
    for visit in (1, 2):
        flair = read_image(DATA / "sub-12" / f"ses-{visit}" / "anat" / f"sub-12_ses-{visit}_FLAIR.nii.gz")
        way = read_affine(manual / "transforms" / f"study{visit}_FLAIR_to_common_space.txt")
        values = pull(flair.data.astype(np.float32), Grid(flair.data.shape, flair.affine), grid, way)
        visits.append(values / np.median(values[brain]))
    brighter = visits[1] > visits[0]
    frame, groups = changed_lesions(mask & ~brighter, mask & brighter, grid.affine)
    unit = abs(np.linalg.det(grid.affine[:3, :3]))
    states = frame.group_by("state").agg(pl.len(), pl.col("volume_before_mm3").sum(), pl.col("volume_after_mm3").sum())
    print(f"published change {mask.sum() * unit:.0f} mm3 in {ndimage.label(mask, np.ones((3, 3, 3)))[1]} parts")
    print(states.sort("state"))
    assert ((groups > 0) == mask).all()
    assert frame["volume_before_mm3"].sum() == pytest.approx((mask & ~brighter).sum() * unit)
    assert frame["volume_after_mm3"].sum() == pytest.approx((mask & brighter).sum() * unit)
    assert frame["overlap_mm3"].sum() == 0
