"""Each step alone, then whole recipes: exact where nothing is interpolated, on awkward grids and on real scans."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from relevance_assets import study
from relevance_assets.imaging import recipe
from relevance_assets.imaging.geometry import Geometry, to_native, to_prepared_labels
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.intensity import scale
from relevance_assets.imaging.layers import Layers
from relevance_assets.imaging.steps import brain_mask, crop_or_pad, reorient
from relevance_assets.imaging.volumes import ScanError

Write = Callable[..., Path]
Affine = Callable[..., np.ndarray]
Steps = list[study.Step]
REORIENT, MASK, SCALE = study.Reorient(), study.BrainMask(), study.ScaleStep()


def contrast(name: str = "T1w", **scale: object) -> study.Contrast:
    return study.Contrast(name=name, suffix=name, scale=study.Scale(**scale))  # type: ignore[arg-type]


def brain(shape: tuple[int, ...] = (7, 8, 9), seed: int = 0) -> np.ndarray:
    """Positive values with a background of 0 and -3 around them."""
    array = np.random.default_rng(seed).uniform(0.2, 0.9, shape).astype(np.float32)
    array[0], array[:, -1], array[:, :, 0] = 0, -3, 0
    return array


def layers(*arrays: np.ndarray, affine: np.ndarray | None = None) -> Layers:
    affine = np.eye(4) if affine is None else affine
    grids, many = tuple(Grid(array.shape, affine) for array in arrays), len(arrays)
    paths, names = (Path("sub-1_T1w.nii.gz"),) * many, tuple("abc"[:many])
    return Layers(paths, names, arrays, grids, grids, (np.eye(4),) * many, (False,) * many)


# --------------------------------------------------------------------------------------------------- single steps
def test_reorient_turns_every_contrast(oblique: Affine) -> None:
    array = brain()
    turned, said = reorient(layers(array, array, affine=oblique((1, 2, 3), 5.0, "PSR")), REORIENT)
    assert said == "PSR to RAS+"
    assert [grid.orientation for grid in turned.grids] == ["RAS", "RAS"]
    assert turned.images[0].shape == (9, 7, 8)
    np.testing.assert_array_equal(np.sort(turned.images[1].ravel()), np.sort(array.ravel()))


def test_brain_is_where_some_contrast_is_positive() -> None:
    a, b = np.full((2, 2, 1), -1.0, np.float32), np.zeros((2, 2, 1), np.float32)
    a[0, 0], b[0, 0], b[1, 1] = 3, -7, 4
    masked, _ = brain_mask(layers(a, b), MASK)
    assert masked.mask is not None
    assert masked.mask[..., 0].tolist() == [[True, False], [False, True]]
    assert masked.images[0][..., 0].tolist() == [[3, 0], [0, -1]]  # -1 is brain by the other contrast
    assert masked.images[1][..., 0].tolist() == [[-7, 0], [0, 4]]


def test_no_brain_is_an_error_that_names_the_scan() -> None:
    with pytest.raises(ScanError, match=r"sub-1_T1w\.nii\.gz: no voxel is > 0"):
        brain_mask(layers(np.zeros((2, 2, 2), np.float32)), MASK)


def test_crop_says_how_much_brain_is_lost() -> None:
    masked, _ = brain_mask(layers(np.ones((4, 4, 4), np.float32)), MASK)
    cropped, _ = crop_or_pad(masked, study.CropOrPad(shape=(2, 4, 6)))
    assert cropped.images[0].shape == (2, 4, 6)
    assert cropped.measures["share_cropped"] == 0.5
    assert cropped.mask is not None
    assert not cropped.images[0][~cropped.mask].any()


def test_a_crop_without_brain_is_an_error() -> None:
    array = np.zeros((9, 9, 9), np.float32)
    array[0, 0, 0] = 1
    with pytest.raises(ScanError, match="no brain is left"):
        crop_or_pad(brain_mask(layers(array), MASK)[0], study.CropOrPad(shape=(3, 3, 3)))
    kept, _ = crop_or_pad(brain_mask(layers(array), MASK)[0], study.CropOrPad(shape=(3, 3, 3), centre="brain"))
    assert kept.measures["share_cropped"] == 0
    assert kept.images[0][1, 1, 1] == 1


def test_scale_by_range_clips_and_counts() -> None:
    image = np.array([[[-500, 0, 1250, 2500, 5000, 9999]]], np.float32)
    mask = np.array([[[True, True, True, True, True, False]]])
    rule = study.Scale(low=0, high=2500)
    scaled, clipped = scale(image, mask, rule, Path("a"))
    assert scaled.ravel().tolist() == [0, 0, 0.5, 1, 1, 0]
    assert clipped == pytest.approx(2 / 5)


def test_scale_by_range_with_an_offset_keeps_the_background_at_zero() -> None:
    image = np.array([[[0, 10, 20]]], np.float32)
    scaled, _ = scale(image, image > 0, study.Scale(low=-10, high=30), Path("a"))
    assert scaled.ravel().tolist() == [0, 0.5, 0.75]  # the background would be 0.25


def test_scale_by_percentile_of_the_brain() -> None:
    image = np.concatenate([np.zeros(50), np.arange(1, 102)]).astype(np.float32).reshape(151, 1, 1)
    scaled, clipped = scale(image, image > 0, study.Scale(rule="percentile", percentile=50), Path("a"))
    assert scaled[50 + 50, 0, 0] == 1.0  # 51 is the median of 1 … 101
    assert scaled[50, 0, 0] == pytest.approx(1 / 51)
    assert clipped == pytest.approx(50 / 101)
    with pytest.raises(ScanError, match="not positive"):
        scale(-image, image > 0, study.Scale(rule="percentile"), Path("a"))


# ---------------------------------------------------------------------------------------------------- whole recipes
@pytest.mark.parametrize("codes", ["LAS", "RAS", "PSR"])
@pytest.mark.parametrize("shape", [None, (5, 12, 9), (12, 4, 20)])
def test_without_resampling_the_way_back_is_exact(
    write: Write, oblique: Affine, codes: str, shape: tuple[int, int, int] | None
) -> None:
    array = brain()
    affine = oblique((1.0, 2.0, 3.0), 7.0, codes)
    steps: Steps = [REORIENT, MASK, *([study.CropOrPad(shape=shape)] if shape else []), SCALE]
    prepared = recipe.prepare([write(array, affine)], [contrast()], steps)
    assert prepared.images.dtype == np.float32
    assert not prepared.geometry.resampled
    back = to_native(prepared.images[0], prepared.geometry)
    kept = to_native(prepared.mask, prepared.geometry)
    assert back.dtype == np.float32
    assert kept.dtype == bool
    np.testing.assert_array_equal(back, np.where(kept, array, 0))  # values are in [0, 1], scaling is the identity
    if shape is None or all(m >= n for n, m in zip((7, 8, 9), shape, strict=True)):
        np.testing.assert_array_equal(kept, array > 0)


def test_a_voxel_size_that_is_there_already_means_no_interpolation(write: Write) -> None:
    array = brain()
    path = write(array, np.diag([-2.0, 2.0, 2.0005, 1.0]))
    steps: Steps = [MASK, study.Resample(voxel_size_mm=(2, 2, 2)), SCALE]
    prepared = recipe.prepare([path], [contrast()], steps)
    assert prepared.quality[0]["resampled"] is False
    assert prepared.quality[0]["orientation"] == "RAS"
    np.testing.assert_array_equal(to_native(prepared.images[0], prepared.geometry), np.where(array > 0, array, 0))


def test_the_first_contrast_decides_the_grid(write: Write) -> None:
    """The second is finer and shifted; its values are a ramp, so they are known on the first's grid."""
    first = np.full((6, 6, 6), 0.5, np.float32)
    fine = np.indices((16, 16, 16))[0].astype(np.float32)  # = x in mm + 2
    shifted = np.eye(4)
    shifted[:3, 3] = -2
    paths = [write(first, np.diag([2.0, 2.0, 2.0, 1.0]), "a.nii.gz"), write(fine, shifted, "b.nii.gz")]
    prepared = recipe.prepare(paths, [contrast("a"), contrast("b", low=0, high=20)], [MASK, SCALE])
    assert prepared.images.shape == (2, 6, 6, 6)
    assert [row["resampled"] for row in prepared.quality] == [False, True]
    assert [row["image"] for row in prepared.quality] == ["a", "b"]
    expected = (2 * np.arange(6) + 2) / 20
    np.testing.assert_allclose(prepared.images[1, 1:, 3, 3], expected[1:], atol=1e-6)


def test_a_ramp_in_world_coordinates_survives_resampling(write: Write, oblique: Affine) -> None:
    affine = oblique((1.0, 1.0, 4.0), 15.0, "LPS")
    index = np.stack([*np.indices((24, 24, 8)), np.ones((24, 24, 8))])
    world = np.einsum("ij,jxyz->ixyz", affine, index)
    path = write((0.5 + 0.004 * (world[0] + 2 * world[1] - world[2])).astype(np.float32), affine)
    steps: Steps = [REORIENT, MASK, study.Resample(voxel_size_mm=(2, 2, 2)), SCALE]
    prepared = recipe.prepare([path], [contrast()], steps)
    assert prepared.quality[0]["orientation"] == "RAS"
    inside = 0
    for voxel in np.argwhere(prepared.mask):
        place = (prepared.affine @ [*voxel, 1.0])[:3]
        x = np.linalg.solve(affine, [*place, 1.0])[:3]
        if np.all(x >= [4, 4, 1]) and np.all(x <= [19, 19, 6]):
            expected = 0.5 + 0.004 * (place[0] + 2 * place[1] - place[2])
            assert prepared.images[0][tuple(voxel)] == pytest.approx(expected, abs=1e-5)
            inside += 1
    assert inside > 100


def test_background_is_exactly_zero_and_values_are_in_range(write: Write) -> None:
    path = write(brain((20, 20, 20)), np.diag([1.0, 1.0, 1.0, 1.0]))
    for interpolation in ("nearest", "linear", "cubic"):
        steps: Steps = [
            MASK,
            study.Resample(voxel_size_mm=(1.7, 1.7, 1.7), interpolation=interpolation),
            study.CropOrPad(shape=(16, 10, 12)),
            SCALE,
        ]
        prepared = recipe.prepare([path], [contrast(rule="percentile", percentile=90)], steps)
        assert prepared.images.shape == (1, 16, 10, 12)
        assert not prepared.images[0][~prepared.mask].any()
        assert prepared.images.min() >= 0
        assert prepared.images.max() == 1
        assert 0 < prepared.quality[0]["share_cropped"] < 1


def test_one_voxel_and_nothing(write: Write) -> None:
    one = recipe.prepare(
        [write(np.full((1, 1, 1), 0.5, np.float32), np.eye(4))],
        [contrast()],
        [MASK, study.Resample(voxel_size_mm=(3, 3, 3)), study.CropOrPad(shape=(2, 2, 2)), SCALE],
    )
    assert one.images[one.images > 0].tolist() == [0.5]
    with pytest.raises(ScanError, match="no brain"):
        recipe.prepare([write(np.zeros((3, 3, 3), np.float32), np.eye(4))], [contrast()], [MASK, SCALE])
    speck = np.zeros((30, 30, 30), np.float32)
    speck[3, 3, 3] = 1
    with pytest.raises(ScanError, match="smaller voxels"):
        recipe.prepare(
            [write(speck, np.eye(4))], [contrast()], [MASK, study.Resample(voxel_size_mm=(10, 10, 10)), SCALE]
        )


def test_steps_and_files_must_fit(write: Write) -> None:
    path = write(brain(), np.eye(4))
    with pytest.raises(ValueError, match="brain_mask and scale"):
        recipe.prepare([path], [contrast()], [MASK])
    with pytest.raises(ValueError, match="1 files for 2 contrasts"):
        recipe.prepare([path], [contrast("a"), contrast("b")], [MASK, SCALE])


def test_preparing_twice_gives_the_same_bits(write: Write) -> None:
    path = write(brain((12, 12, 12)), np.eye(4))
    steps: Steps = [REORIENT, MASK, study.Resample(voxel_size_mm=(2, 2, 2)), SCALE]
    first, second = (recipe.prepare([path], [contrast()], steps) for _ in range(2))
    assert first.images.tobytes() == second.images.tobytes()
    assert first.quality == second.quality


def test_quality_in_the_image_s_own_unit(write: Write) -> None:
    array = np.zeros((4, 4, 4), np.float32)
    array[1, 1, 1:3] = 1000, 3000
    prepared = recipe.prepare(
        [write(array, np.diag([1.0, 2.0, 3.0, 1.0]))], [contrast("qT1", low=0, high=2500)], [MASK, SCALE]
    )
    row = prepared.quality[0]
    assert (row["minimum"], row["maximum"], row["mean"]) == (1000, 3000, 2000)
    assert row["standard_deviation"] == 1000
    assert (row["brain_voxels"], row["brain_volume_mm3"], row["share_clipped"]) == (2, 12.0, 0.5)
    assert [row[f"shape_{a}"] for a in "xyz"] == [4, 4, 4]
    assert [row[f"voxel_{a}_mm"] for a in "xyz"] == [1, 2, 3]


# --------------------------------------------------------------------------------------------------- real scans
def test_a_real_scan_to_4_mm_and_back(data: Path) -> None:
    path = sorted((data / "oasis1").glob("sub-*/ses-1/anat/*_T1w.nii.gz"))[0]
    steps: Steps = [REORIENT, MASK, study.Resample(voxel_size_mm=(4, 4, 4)), SCALE]
    start = time.perf_counter()
    prepared = recipe.prepare([path], [contrast(rule="percentile")], steps)
    assert time.perf_counter() - start < 2
    assert prepared.images.shape == (1, 46, 55, 46)
    raw = nib.load(path).get_fdata()
    assert prepared.quality[0]["brain_volume_mm3"] == pytest.approx((raw > 0).sum() * 8, rel=0.02)
    back = to_native(prepared.images[0], prepared.geometry)
    assert back.shape == raw.shape
    assert np.corrcoef(back[raw > 0], raw[raw > 0])[0, 1] > 0.8


def test_real_oblique_labels_meet_their_image(data: Path) -> None:
    folder = data / "ms-deepbrain"
    path = folder / "sub-105911" / "anat" / "sub-105911_FLAIR.nii.gz"
    label = folder / "derivatives" / "manual" / "sub-105911" / "anat" / "sub-105911_label-ventricles_mask.nii.gz"
    native = recipe.prepare([path], [contrast(rule="percentile")], [REORIENT, MASK, SCALE])
    on_native = to_prepared_labels(label, native.geometry)
    truth = nib.load(label).get_fdata()
    assert (on_native > 0).sum() == (truth > 0).sum()
    np.testing.assert_array_equal(to_native(on_native, native.geometry), truth)
    # image and label by the same interpolation: linear would mix the ventricles with the slices above and below
    steps: Steps = [REORIENT, MASK, study.Resample(voxel_size_mm=(2, 2, 2), interpolation="nearest"), SCALE]
    prepared = recipe.prepare([path], [contrast(rule="percentile")], steps)
    moved = to_prepared_labels(label, prepared.geometry)
    voxel_mm3 = float(np.prod(nib.load(label).header.get_zooms()))
    assert (moved > 0).sum() * 8 == pytest.approx((truth > 0).sum() * voxel_mm3, rel=0.05)  # by nearest neighbour
    ventricles = prepared.images[0][moved > 0].mean()  # dark in FLAIR, in both grids alike
    assert ventricles == pytest.approx(native.images[0][on_native > 0].mean(), rel=0.03)
    read = Geometry.from_dict(json.loads(json.dumps(prepared.geometry.to_dict())))
    np.testing.assert_array_equal(to_prepared_labels(label, read), moved)
