"""Changes: what is drawn, and what it does to a volume, against scipy and plain indexing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage

from relevance_assets.study import Augmentation
from relevance_assets.training.augment import Change, apply, check, draw

FULL = Augmentation(
    flip_axes=[0, 2],
    rotate90=True,
    rotate_degrees=30,
    scale_share=0.1,
    translate_voxels=2,
    noise_sd=0.2,
    flip_probability=0.5,
)


def ball(shape: tuple[int, int, int] = (12, 10, 14)) -> torch.Tensor:
    """Smooth blobs well inside the grid, another one per contrast."""
    random = np.random.default_rng(0)
    images = np.zeros((2, *shape))
    images[:, 3:-3, 3:-3, 3:-3] = random.random((2, *(size - 6 for size in shape)))
    return torch.from_numpy(np.stack([ndimage.gaussian_filter(image, 1) for image in images]))


def test_drawing_is_replayable_and_the_change_too() -> None:
    first, again = (draw(FULL, np.random.default_rng(3)) for _ in range(2))
    assert first == again
    image = torch.rand(2, 8, 8, 8)
    assert torch.equal(apply(first, image), apply(again, image))


def test_nothing_is_drawn_from_nothing() -> None:
    random = np.random.default_rng(0)
    assert all(draw(Augmentation(), random).nothing for _ in range(20))
    image = torch.rand(1, 4, 4, 4)
    assert torch.equal(apply(Change(), image), image)


def test_probabilities_are_kept() -> None:
    random = np.random.default_rng(0)
    settings = Augmentation(
        flip_axes=[1],
        flip_probability=0.2,
        rotate90=True,
        rotate90_probability=0.9,
        rotate_degrees=10,
        affine_probability=0.4,
        noise_sd=0.1,
        noise_probability=0.7,
    )
    changes = [draw(settings, random) for _ in range(2000)]
    shares = [
        np.mean([bool(change.flips) for change in changes]),
        np.mean([change.quarter_turns > 0 for change in changes]),
        np.mean([change.matrix is not None for change in changes]),
        np.mean([change.noise_sd > 0 for change in changes]),
    ]
    np.testing.assert_allclose(shares, [0.2, 0.9, 0.4, 0.7], atol=0.04)
    assert {change.quarter_turns for change in changes} == {0, 1, 2, 3}


def test_drawn_matrices_are_rotations_times_a_scale_within_bounds() -> None:
    random = np.random.default_rng(0)
    angles, scales, shifts = [], [], []
    for _ in range(300):
        change = draw(FULL.model_copy(update={"affine_probability": 1.0}), random)
        matrix = np.array(change.matrix)
        scale = np.cbrt(np.linalg.det(matrix))
        np.testing.assert_allclose(matrix @ matrix.T, scale**2 * np.eye(3), atol=1e-12)
        angles.append(np.degrees(np.arccos(np.clip((np.trace(matrix / scale) - 1) / 2, -1, 1))))
        scales.append(scale)
        shifts.append(change.shift)
    assert 25 < max(angles) <= 30
    assert 0.9 <= min(scales) < 0.92
    assert 1.08 < max(scales) <= 1.1
    assert 1.8 < np.abs(shifts).max() <= 2


def test_flips_and_quarter_turns_are_exact() -> None:
    image = torch.rand(2, 5, 5, 3)
    assert torch.equal(apply(Change(flips=(0, 2)), image), torch.from_numpy(image.numpy()[:, ::-1, :, ::-1].copy()))
    turned = torch.from_numpy(np.rot90(image.numpy(), 3, (1, 2)).copy())
    assert torch.equal(apply(Change(quarter_turns=3), image), turned)


def test_a_whole_voxel_shift_moves_the_content_there() -> None:
    image = ball()
    moved = apply(Change(matrix=tuple(map(tuple, np.eye(3))), shift=(2.0, -1.0, 0.0)), image)
    expected = np.roll(image.numpy(), (2, -1), (1, 2))
    np.testing.assert_allclose(moved.numpy()[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-9)


def test_affine_agrees_with_scipy_for_every_contrast() -> None:
    random = np.random.default_rng(5)
    change = draw(Augmentation(affine_probability=1, rotate_degrees=25, scale_share=0.1, translate_voxels=1.5), random)
    image = ball()
    back = np.linalg.inv(np.array(change.matrix))
    middle = (np.array(image.shape[1:]) - 1) / 2
    offset = middle - back @ (middle + np.array(change.shift))
    for found, contrast in zip(apply(change, image).numpy(), image.numpy(), strict=True):
        expected = ndimage.affine_transform(contrast, back, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_noise_is_unclipped_differs_by_contrast_and_leaves_the_background_at_zero() -> None:
    image = torch.zeros(2, 20, 20, 20)
    image[0, 5:] = 0.01  # the second contrast is 0 in the brain: still noise there
    noisy = apply(Change(noise_sd=0.2, noise_seed=7), image)
    assert torch.equal(noisy[:, :5], torch.zeros(2, 5, 20, 20))
    assert noisy.min() < 0
    added = (noisy - image)[:, 5:]
    assert added.std().item() == pytest.approx(0.2, rel=0.05)
    assert not torch.equal(added[0], added[1])


def test_the_given_image_is_left_alone() -> None:
    image = torch.rand(1, 6, 6, 6)
    before = image.clone()
    random = np.random.default_rng(1)
    for _ in range(10):
        apply(draw(FULL, random), image)
    assert torch.equal(image, before)


def test_quarter_turns_need_a_square() -> None:
    check(FULL, (8, 8, 4))
    with pytest.raises(ValueError, match=r"rotate90 needs .* not 8x9x8; set rotate90: false"):
        check(FULL, (8, 9, 8))


def test_slices_flip_left_right_and_up_down_each_by_half() -> None:
    """As RandomHorizontalFlip(0.5), then RandomVerticalFlip(0.5): all four images, each as often."""
    random = np.random.default_rng(0)
    image = torch.arange(12.0).reshape(1, 4, 3, 1)
    plain = image[0, ..., 0].numpy()
    wanted = [plain, plain[::-1], plain[:, ::-1], plain[::-1, ::-1]]
    counts = np.zeros(4)
    for _ in range(2000):
        found = apply(draw(Augmentation(flip_axes=[0, 1]), random, slices=True), image)
        assert found.shape == image.shape
        counts += [np.array_equal(found[0, ..., 0].numpy(), each) for each in wanted]
    assert counts.sum() == 2000
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)


def test_slices_turn_and_move_in_their_plane() -> None:
    settings = Augmentation(affine_probability=1, rotate_degrees=25, scale_share=0.1, translate_voxels=1.5)
    image = ball((12, 10, 14))[:, :, :, 7:8]
    angles = []
    for seed in range(20):
        change = draw(settings, np.random.default_rng(seed), slices=True)
        matrix = np.array(change.matrix)
        assert change.shift[2] == 0
        np.testing.assert_array_equal(matrix[[0, 1, 2, 2], [2, 2, 0, 1]], 0)
        angles.append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = apply(change, image)
        assert found.shape == image.shape
        back = np.linalg.inv(matrix[:2, :2])
        middle = (np.array(image.shape[1:3]) - 1) / 2
        offset = middle - back @ (middle + np.array(change.shift[:2]))
        for moved, contrast in zip(found.numpy(), image.numpy(), strict=True):
            expected = ndimage.affine_transform(contrast[..., 0], back, offset, order=1, mode="grid-constant")
            np.testing.assert_allclose(moved[..., 0], expected, atol=1e-9)
    assert min(angles) < -10
    assert 10 < max(angles) <= 25


def test_slices_draw_as_many_numbers_as_volumes() -> None:
    first, second = np.random.default_rng(4), np.random.default_rng(4)
    draw(FULL, first, slices=True), draw(FULL, second)
    assert first.random() == second.random()
