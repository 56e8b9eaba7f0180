"""Random changes of a training scan: drawn in one place, applied in another, so that any can be replayed.

Belongs here: flips, quarter turns, affine maps and noise, on tensors. Does not belong here: which scans are
changed (`data.py`), and anything at evaluation, where no scan is changed.

The study of Lu et al. (2023, arXiv 2308.07611) names random flips, 90-degree rotations, affine maps and
Gaussian noise, but no probabilities; those are settings. Noise is added where some contrast is above 0: the
background stays exactly 0 as in every scan that the network will be asked about. It is not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from relevance_assets.study import Augmentation, Shape

__all__ = ["Change", "draw", "apply", "check"]


@dataclass(frozen=True)
class Change:
    """What happens to one scan, in this order; the same for all its contrasts, but for the noise.

    Attributes
    ----------
    flips : tuple of int
        Axes that are reversed.
    quarter_turns : int
        Turns by 90 degrees from axis 0 towards axis 1.
    matrix : (3, 3) nested tuple, or None
        Rotation times scale, about the grid's middle, in voxels.
    shift : tuple of float
        Translation after it, in voxels.
    noise_sd, noise_seed
        Gaussian noise; none where `noise_sd` is 0.
    """

    flips: tuple[int, ...] = ()
    quarter_turns: int = 0
    matrix: tuple[tuple[float, ...], ...] | None = None
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise_sd: float = 0.0
    noise_seed: int = 0

    @property
    def nothing(self) -> bool:
        return not (self.flips or self.quarter_turns or self.matrix is not None or self.noise_sd)


def check(settings: Augmentation, shape: Shape) -> None:
    """Raise ValueError where a grid of this shape cannot be changed in this way."""
    if settings.rotate90 and shape[0] != shape[1]:
        raise ValueError(
            "augmentation: rotate90 needs a grid with equal first two axes, "
            f"not {'x'.join(map(str, shape))}; "
            "set rotate90: false or prepare the scans to such a shape (crop_or_pad)"
        )


def draw(settings: Augmentation, random: np.random.Generator, *, slices: bool = False) -> Change:
    """One change. The number of draws depends on the settings alone, never on what was drawn before.

    Slices (x, y, 1) turn and move in their plane.
    """
    chances = random.random(3 + len(settings.flip_axes))
    turns = int(random.integers(1, 4))
    direction = random.standard_normal(3)
    amounts = random.uniform(-1, 1, size=5)
    noise_seed = int(random.integers(2**62))

    flips = zip(settings.flip_axes, chances[3:], strict=True)
    moves = bool(settings.rotate_degrees or settings.scale_share or settings.translate_voxels)
    moved = moves and bool(chances[1] < settings.affine_probability)
    if slices:
        direction, amounts[4] = np.array([0.0, 0.0, 1.0]), 0.0
    shift = settings.translate_voxels * amounts[2:] if moved else np.zeros(3)
    matrix = None
    if moved:
        angle = np.deg2rad(settings.rotate_degrees) * amounts[0]
        turned = (1 + settings.scale_share * amounts[1]) * _rotation(direction, angle)
        if slices:
            turned[2, 2] = 1.0
        matrix = tuple(tuple(float(value) for value in row) for row in turned)
    return Change(
        flips=tuple(sorted({axis for axis, chance in flips if chance < settings.flip_probability})),
        quarter_turns=turns if settings.rotate90 and chances[0] < settings.rotate90_probability else 0,
        matrix=matrix,
        shift=(float(shift[0]), float(shift[1]), float(shift[2])),
        noise_sd=settings.noise_sd if chances[2] < settings.noise_probability else 0.0,
        noise_seed=noise_seed,
    )


def apply(change: Change, images: torch.Tensor) -> torch.Tensor:
    """The changed scan: (contrast, x, y, z) -> the same shape, on the same device; `images` is left alone.

    The affine map moves the content by `matrix` about the grid's middle and then by `shift`, with linear
    interpolation and 0 from outside. It is meant for grids whose voxels are cubes.
    """
    if change.flips:
        images = images.flip([axis + 1 for axis in change.flips])
    if change.quarter_turns:
        images = images.rot90(change.quarter_turns, (1, 2))
    if change.matrix is not None:
        images = _move(images, change.matrix, change.shift)
    if change.noise_sd:
        random = torch.Generator(device=images.device).manual_seed(change.noise_seed)
        noise = torch.randn(images.shape, generator=random, device=images.device, dtype=images.dtype)
        brain = (images > 0).any(dim=0, keepdim=True)
        images = images + change.noise_sd * noise * brain
    return images


def _rotation(direction: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula: the rotation by `angle` (radians) about `direction`."""
    x, y, z = direction / np.linalg.norm(direction)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _move(
    images: torch.Tensor, matrix: tuple[tuple[float, ...], ...], shift: tuple[float, float, float]
) -> torch.Tensor:
    """Value at v is the image's at M^-1 (v - c - shift) + c, c the middle of the grid.

    `affine_grid` wants that map in coordinates from -1 to 1 and with the axes in reverse.
    """
    if images.shape[3] == 1:  # of which torch's affine_grid warns; a slice changes in its plane only
        return _move(images.expand(-1, -1, -1, 2), matrix, shift)[..., :1]
    half = (np.array(images.shape[1:], dtype=float) - 1) / 2
    half = np.maximum(half, 0.5)  # an axis of one voxel has no extent to divide by
    back = np.linalg.inv(np.array(matrix))
    theta = np.concatenate([back * half / half[:, None], (-back @ np.array(shift) / half)[:, None]], axis=1)
    theta = np.concatenate([theta[::-1, 2::-1], theta[::-1, 3:]], axis=1)
    grid = functional.affine_grid(
        torch.as_tensor(theta.copy(), dtype=images.dtype, device=images.device)[None],
        [1, *images.shape],
        align_corners=True,
    )
    moved = functional.grid_sample(images[None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return moved[0]
