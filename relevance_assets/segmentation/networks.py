"""U-Net with additive attention gates, in two or three dimensions.

Belongs here: the network, and how its kernels and pools follow from anisotropic voxels. Does not belong here: losses,
training, prediction.

Source: the 2D network of MS-DeepBrain-Study (github Mahdi-Bashiri/MS-DeepBrain-Study, `lesion_profile.md` §1); gates of
Oktay et al. 2018, arXiv 1804.03999, with the upsampled features as gating signal. MONAI's AttentionUnet has other
layers (batch norms, stride 2 throughout), hence this one for both dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PUBLISHED_WIDTHS", "AttentionUNet", "kernels_and_pools"]

PUBLISHED_WIDTHS = (64, 128, 256, 512, 1024)
Normalisation = Literal["none", "instance"]
CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
UP: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class DoubleConv(nn.Sequential):
    """Convolution, ReLU, dropout, convolution, ReLU; an instance norm after each convolution where asked for."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], norm: Normalisation, dropout: float) -> None:
        dims = len(kernel)
        padding = [size // 2 for size in kernel]
        layers: list[nn.Module] = []
        for number, channels in enumerate((inputs, outputs)):
            conv = CONV[dims](channels, outputs, tuple(kernel), padding=tuple(padding))
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # without norms deep nets need their scale kept
            nn.init.zeros_(conv.bias)
            layers.append(conv)
            if norm == "instance":
                layers.append(NORM[dims](outputs, affine=True))
            layers.append(nn.ReLU())
            if number == 0:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers)


class Gate(nn.Module):
    """Additive attention: features times sigmoid(psi(ReLU(W_g g + W_x x))), all of them 1x1 convolutions."""

    def __init__(self, channels: int, inner: int, dims: int) -> None:
        super().__init__()
        self.signal = CONV[dims](channels, inner, 1)
        self.features = CONV[dims](channels, inner, 1)
        self.psi = CONV[dims](inner, 1, 1)

    def forward(self, signal: Tensor, features: Tensor) -> Tensor:
        weights = self.psi(torch.relu(self.signal(signal) + self.features(features)))
        return features * torch.sigmoid(weights)


class AttentionUNet(nn.Module):
    """Images (B, inputs, x, y[, z]) of any size to logits (B, outputs, x, y[, z]).

    The published network has widths 64 to 1024, one input and three outputs: 31,380,327 trained numbers, 31,030,723
    without gates. Dropout between a level's convolutions is 0.1 at the first two levels, 0.2 below, 0.3 at the bottom.
    The border is repeated up to a size that all pools divide, and what was added is cut off again.

    Parameters
    ----------
    inputs, outputs
        Contrasts and classes.
    widths
        Channels per level, from the full grid down. At least two, each even.
    dims
        2 or 3.
    norm
        "none" as published, or "instance" (with learnt scale and shift).
    gates
        False leaves a plain U-Net.
    kernels
        Size of the convolutions per level; 3 along every axis where None.
    pools
        Stride between a level and the next; 2 along every axis where None. See `kernels_and_pools`.
    dropout_scale
        Factor on all dropout shares; 0 is none.

    Raises
    ------
    ValueError
        Settings that make no network.
    """

    def __init__(
        self,
        inputs: int = 1,
        outputs: int = 3,
        *,
        widths: Sequence[int] = (16, 32, 64, 128),
        dims: int = 2,
        norm: Normalisation = "none",
        gates: bool = True,
        kernels: Sequence[Sequence[int]] | None = None,
        pools: Sequence[Sequence[int]] | None = None,
        dropout_scale: float = 1.0,
    ) -> None:
        super().__init__()
        levels = len(widths)
        kernels = kernels or [[3] * dims] * levels
        pools = pools or [[2] * dims] * (levels - 1)
        _check(widths, dims, norm, kernels, pools, dropout_scale)
        self.multiple = tuple(int(size) for size in np.prod(np.array(pools), axis=0))
        dropouts = [dropout_scale * (0.1 if level < 2 else 0.2) for level in range(levels - 1)] + [dropout_scale * 0.3]
        channels = [inputs, *widths]
        self.down = nn.ModuleList(
            DoubleConv(channels[level], widths[level], kernels[level], norm, dropouts[level]) for level in range(levels)
        )
        self.pool = nn.ModuleList(POOL[dims](tuple(stride), tuple(stride)) for stride in pools)
        self.up = nn.ModuleList(
            UP[dims](widths[level + 1], widths[level], tuple(stride), tuple(stride))
            for level, stride in enumerate(pools)
        )
        self.gate = nn.ModuleList(Gate(width, width // 2, dims) for width in widths[:-1]) if gates else None
        self.merge = nn.ModuleList(
            DoubleConv(2 * widths[level], widths[level], kernels[level], norm, dropouts[level])
            for level in range(levels - 1)
        )
        self.classify = CONV[dims](widths[0], outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[2:]
        missing = [-n % m for n, m in zip(size, self.multiple, strict=True)]
        if any(missing):
            images = functional.pad(images, [n for each in reversed(missing) for n in (0, each)], mode="replicate")
        skips = []
        for level, block in enumerate(self.down):
            images = block(images if level == 0 else self.pool[level - 1](images))
            skips.append(images)
        for level in reversed(range(len(self.up))):
            risen, skip = self.up[level](images), skips[level]
            if self.gate is not None:
                skip = self.gate[level](risen, skip)
            images = self.merge[level](torch.cat([skip, risen], dim=1))
        logits = self.classify(images)
        return logits[(..., *(slice(n) for n in size))]


def kernels_and_pools(
    voxel_size_mm: Sequence[float], levels: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Kernels and pools for a grid with thick slices: an axis waits until the others are as coarse as it is.

    An axis whose voxels, at some level, are at least twice the smallest has kernel 1 and pool 1 there; else 3 and 2
    (the rule of nnU-Net, Isensee et al. 2021, Nature Methods 18:203).

    Returns
    -------
    kernels (levels), pools (levels - 1); each with one number per axis.

    Examples
    --------
    >>> kernels_and_pools((0.9, 0.9, 7.0), 4)[1]
    ((2, 2, 1), (2, 2, 1), (2, 2, 2))
    >>> kernels_and_pools((1, 1, 3), 3)
    (((3, 3, 1), (3, 3, 3), (3, 3, 3)), ((2, 2, 1), (2, 2, 2)))
    """
    size = np.array(voxel_size_mm, dtype=np.float64)
    if not (np.isfinite(size).all() and (size > 0).all()):
        raise ValueError(f"voxel sizes {list(voxel_size_mm)} must be positive; correct the affine")
    kernels, pools = [], []
    for _ in range(levels):
        coarse = size >= 2 * size.min()
        kernels.append(tuple(1 if axis else 3 for axis in coarse))
        pools.append(tuple(1 if axis else 2 for axis in coarse))
        size = size * pools[-1]
    return tuple(kernels), tuple(pools[:-1])


def _check(
    widths: Sequence[int],
    dims: int,
    norm: str,
    kernels: Sequence[Sequence[int]],
    pools: Sequence[Sequence[int]],
    dropout_scale: float,
) -> None:
    if dims not in CONV:
        raise ValueError(f"dims must be 2 or 3, not {dims}")
    if len(widths) < 2 or any(width < 2 or width % 2 for width in widths):
        raise ValueError(f"widths {list(widths)}: at least two levels, each of an even number of channels")
    if norm not in ("none", "instance"):
        raise ValueError(f"norm {norm!r} is not known; choose none or instance")
    if not 0 <= dropout_scale <= 3:
        raise ValueError(f"dropout_scale {dropout_scale:g} must be from 0 to 3")
    for name, given, count in (("kernels", kernels, len(widths)), ("pools", pools, len(widths) - 1)):
        if len(given) != count or any(len(each) != dims for each in given):
            raise ValueError(f"{name}: {count} levels with {dims} numbers each are needed, not {list(given)}")
    if any(size < 1 or size % 2 == 0 for kernel in kernels for size in kernel):
        raise ValueError(f"kernels {list(kernels)} must be odd, so that the grid stays where it is")
    if any(size < 1 for stride in pools for size in stride):
        raise ValueError(f"pools {list(pools)} must be at least 1")
