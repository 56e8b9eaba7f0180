"""Boxes: which are drawn, what is in them, and how they change, against plain indexing and scipy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from squares import squares

from relevance_assets.imaging.volumes import save_volume
from relevance_assets.segmentation.data import LabelledScan, Loaded, Patches, check_people, cut, load, merge_masks
from relevance_assets.study import Augmentation
from relevance_assets.training.augment import Change
from relevance_assets.training.data import TrainingError

NOTHING = (Change(), 1.0, 0.0)


def loaded(number: int, **more: object) -> Loaded:
    return load(replace(squares(number), **more), "slice", 3)  # type: ignore[arg-type]


def test_slices_are_scaled_as_published() -> None:
    scan = squares(0)
    found = load(scan, "slice", 3)
    box, labels = Patches((20, 18, 1)).box(found, (0, 0, 2), 3)
    one = np.asarray(scan.image, dtype=np.float32)[:, :, 2].astype(np.float64)
    np.testing.assert_allclose(box[0].numpy(), (one - one.mean()) / (one.std() + 1e-7), atol=1e-5)
    assert np.array_equal(labels.numpy(), np.asarray(scan.labels)[:, :, 2])


def test_volumes_are_scaled_inside_the_brain() -> None:
    scan = squares(0)
    image = np.asarray(scan.image, dtype=np.float64)
    for brain, inside in ((None, image > 0), (np.asarray(scan.labels) > 0, np.asarray(scan.labels) > 0)):
        found = load(replace(scan, brain=brain), "volume", 3)
        box, _ = Patches((20, 18, 4), foreground_share=0.5).box(found, (0, 0, 0), 3)
        expected = (image - image[inside].mean()) / image[inside].std()
        np.testing.assert_allclose(box[0].numpy(), expected, atol=1e-5)


def test_a_constant_slice_is_zero_not_infinite() -> None:
    found = loaded(0, image=np.full((4, 4, 2), 7.0), labels=np.zeros((4, 4, 2), np.uint8))
    assert torch.equal(Patches((4, 4, 1)).box(found, (0, 0, 1), 3)[0], torch.zeros(1, 4, 4))


def test_boxes_reach_beyond_the_grid_with_background() -> None:
    volume = np.arange(1, 25).reshape(2, 3, 4)
    box = cut(volume, (-1, 1, 3), (3, 3, 2))
    expected = np.zeros((3, 3, 2), int)
    expected[1:, :2, 0] = volume[:, 1:, 3]
    assert np.array_equal(box, expected)
    assert not cut(volume, (5, 0, 0), (2, 2, 2)).any()


def test_every_slice_with_brain_is_seen_once_per_epoch() -> None:
    image = np.array(squares(1).image)
    image[:, :, 0] = 0
    scans = [loaded(0), loaded(1, image=image, labels=np.zeros_like(image, dtype=np.uint8))]
    patches = Patches((24, 18, 1))
    places = patches.places(scans, np.random.default_rng(0))
    assert sorted((place.scan, place.start[2]) for place in places) == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3),
    ]  # fmt: skip
    assert {place.start[:2] for place in places} == {(-2, 0)}
    assert places == patches.places(scans, np.random.default_rng(0)) != patches.places(scans, np.random.default_rng(1))


def test_foreground_is_drawn_by_class_as_often_as_asked() -> None:
    shape = (30, 30, 30)
    image, labels = np.ones(shape), np.zeros(shape, np.uint8)
    labels[2, 2, 2], labels[15:20, 15:20, 15:20] = 2, 1  # one lesion voxel, 125 of the ventricle
    scan = loaded(0, image=image, labels=labels)
    patches = Patches((3, 3, 3), foreground_share=0.8, per_epoch=3000)
    drawn = Counter()
    for place in patches.places([scan], np.random.default_rng(0)):
        box = cut(labels, place.start, patches.size)
        drawn["lesion" if (box == 2).any() else "ventricle" if box[1, 1, 1] == 1 else "other"] += 1
    assert drawn["lesion"] / 3000 == pytest.approx(0.4, abs=0.03)
    assert drawn["ventricle"] / 3000 == pytest.approx(0.4, abs=0.03)


def test_patches_stay_inside_and_a_small_scan_is_in_the_middle() -> None:
    patches = Patches((12, 12, 8), foreground_share=1.0, per_epoch=50)
    for place in patches.places([loaded(0)], np.random.default_rng(0)):
        x, y, z = place.start
        assert 0 <= x <= 8
        assert 0 <= y <= 6
        assert z == -2


@pytest.mark.parametrize("size", [(20, 18, 1), (7, 8, 3), (30, 30, 9)])
def test_tiles_cover_everything(size: tuple[int, int, int]) -> None:
    patches = Patches(size, foreground_share=0.5)
    seen = np.zeros((20, 18, 4), dtype=int)
    for place in patches.tiles([loaded(0)]):
        box = tuple(slice(max(0, first), max(0, first + n)) for first, n in zip(place.start, size, strict=True))
        seen[box] += 1
    assert seen.min() == 1


def test_image_and_labels_move_together() -> None:
    """A quarter of the square's way by scipy; labels by the largest of the maps, which halves make no new class."""
    patches = Patches((20, 18, 1))
    scan = loaded(3)
    angle = np.deg2rad(9)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    change = Change(flips=(0,), matrix=tuple(map(tuple, matrix)), shift=(1.5, -0.5, 0.0))
    image, labels = patches.box(scan, (0, 0, 1), 3, (change, 1.0, 0.0))
    back = np.linalg.inv(matrix)[:2, :2]
    middle = np.array([9.5, 8.5])
    offset = middle - back @ (middle + np.array([1.5, -0.5]))

    def moved(plane: np.ndarray) -> np.ndarray:
        return ndimage.affine_transform(plane[::-1].astype(float), back, offset, order=1, mode="grid-constant")

    raw = scan.image[:, :, 1]
    np.testing.assert_allclose(image[0].numpy(), (moved(raw) - scan.mean[1]) / scan.sd[1], atol=1e-4)
    maps = np.stack([moved(scan.labels[:, :, 1] == label) for label in range(3)])
    clear = np.sort(maps, axis=0)[-1] - np.sort(maps, axis=0)[-2] > 1e-4
    assert np.array_equal(labels.numpy()[clear], maps.argmax(axis=0)[clear])
    assert clear.mean() > 0.9


def test_intensities_change_after_scaling_and_noise_is_replayable() -> None:
    patches, scan = Patches((20, 18, 1)), loaded(2)
    plain, _ = patches.box(scan, (0, 0, 1), 3, NOTHING)
    assert torch.equal(plain, patches.box(scan, (0, 0, 1), 3)[0])
    bright, _ = patches.box(scan, (0, 0, 1), 3, (Change(), 1.2, -0.3))
    np.testing.assert_allclose(bright.numpy(), 1.2 * plain.numpy() - 0.3, rtol=1e-6, atol=1e-6)
    noisy, again = (patches.box(scan, (0, 0, 1), 3, (Change(noise_sd=0.5, noise_seed=3), 1.0, 0.0))[0] for _ in "12")
    assert torch.equal(noisy, again)
    assert (noisy - plain).std().item() == pytest.approx(0.5, rel=0.15)


def test_drawn_changes_stay_in_the_slice_and_within_bounds() -> None:
    settings = Augmentation(affine_probability=1, rotate_degrees=20, scale_share=0.1, translate_voxels=3)
    patches = Patches((8, 8, 1), augmentation=settings, intensity_scale=0.2, intensity_shift=0.1)
    random = np.random.default_rng(0)
    angles, scales = [], []
    for _ in range(300):
        change, factor, shift = patches.draw_change(random)
        matrix = np.array(change.matrix)
        assert np.array_equal(matrix[2], [0, 0, 1])
        assert np.array_equal(matrix[:, 2], [0, 0, 1])
        assert change.shift[2] == 0
        assert abs(factor - 1) <= 0.2
        assert abs(shift) <= 0.1
        scales.append(np.sqrt(np.linalg.det(matrix)))
        angles.append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    assert 18 < max(angles) <= 20
    assert -20 <= min(angles) < -18
    assert 0.9 <= min(scales) < 0.91
    assert 1.09 < max(scales) <= 1.1


def test_masks_mix_numbers_and_the_last_one_wins() -> None:
    ventricle, wmh = np.array([[[255, 1, 0, 1]]]), np.array([[[0, 0, 1, 1]]])
    assert merge_masks([ventricle, wmh]).tolist() == [[[1, 1, 2, 2]]]


def test_files_are_read_and_must_lie_on_one_grid(tmp_path: Path) -> None:
    scan = squares(0)
    affine = np.diag([1.0, 1.0, 7.0, 1.0])
    save_volume(tmp_path / "flair.nii.gz", np.asarray(scan.image), affine)
    for label in (1, 2):
        save_volume(tmp_path / f"{label}.nii.gz", np.asarray(scan.labels) == label, affine, np.uint8)
    save_volume(tmp_path / "moved.nii.gz", np.asarray(scan.labels), np.diag([1.0, 1.0, 6.0, 1.0]), np.uint8)
    given = LabelledScan("a", "a", tmp_path / "flair.nii.gz", (tmp_path / "1.nii.gz", tmp_path / "2.nii.gz"))
    assert np.array_equal(load(given, "slice", 3).labels, scan.labels)
    with pytest.raises(TrainingError, match=r"moved\.nii\.gz: labels lie elsewhere"):
        load(replace(given, labels=tmp_path / "moved.nii.gz"), "slice", 3)


def test_what_does_not_fit_is_told_in_one_line() -> None:
    with pytest.raises(TrainingError, match="sub-00: labels of shape"):
        loaded(0, labels=np.zeros((2, 2, 2)))
    with pytest.raises(TrainingError, match="whole numbers from 0 to 2"):
        loaded(0, labels=np.full((20, 18, 4), 3))
    with pytest.raises(TrainingError, match="no voxel of the brain to scale by"):
        load(replace(squares(0), image=np.zeros((20, 18, 4))), "volume", 3)
    with pytest.raises(TrainingError, match="patches of several slices need one"):
        Patches((8, 8, 8))
    random, nothing = np.random.default_rng(0), np.zeros((20, 18, 4), np.uint8)
    unlabelled, empty = loaded(0, labels=nothing), loaded(0, image=nothing, labels=nothing)
    with pytest.raises(TrainingError, match="no training scan has a label"):
        Patches((8, 8, 8), foreground_share=0.5).places([unlabelled], random)
    with pytest.raises(TrainingError, match="no slice of the training scans has brain"):
        Patches((20, 18, 1)).places([empty], random)


def test_two_visits_of_one_person_are_not_shared_out() -> None:
    first, second = replace(squares(0), name="sub-00_ses-1"), replace(squares(0), name="sub-00_ses-2")
    with pytest.raises(TrainingError, match="sub-00 is in the training and in the validation set"):
        check_people([first], [second])
    check_people([first, second], [squares(1)])


REAL = Path(__file__).resolve().parents[2] / "../shared/data/ms-deepbrain"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real scans are not here")
@pytest.mark.parametrize(("person", "ventricle", "wmh"), [("sub-105465", 8077, 1977), ("sub-105911", 3638, 469)])
def test_real_masks_have_the_pixels_that_were_counted(person: str, ventricle: int, wmh: int) -> None:
    """`lesion_profile.md` §2: ventricle masks mix 1 and 255, none overlaps the lesions."""
    masks = REAL / "derivatives/manual" / person / "anat"
    labels = tuple(masks / f"{person}_label-{label}_mask.nii.gz" for label in ("ventricles", "WMH"))
    found = load(LabelledScan(person, person, REAL / person / f"anat/{person}_FLAIR.nii.gz", labels), "slice", 3)
    assert np.bincount(found.labels.ravel()).tolist()[1:] == [ventricle, wmh]
    box, _ = Patches((256, 256, 1)).box(found, (0, 0, 9), 3)
    assert abs(box.double().mean().item()) < 1e-5
    assert box.double().std(correction=0).item() == pytest.approx(1, abs=1e-4)
