"""MRInet: five convolutions with pools, two dense layers; one value per scan (brain age).

Belongs here: the network. Does not belong here: ensembles, training, relevance rules.

Source: Hofmann et al. 2022 and the authors' toolbox xai4mri (`mrinets.py`), layer by layer: convolutions of
16, 16, 32, 64 (3x3x3) and 32 (1x1x1) channels, each followed by ReLU and a 3x3x3 maximum pool with stride 2,
all padded as TensorFlow's SAME; dropout 0.5; dense 64, ReLU, dense 1 whose bias begins at the mean target.
Weights begin as in Keras: Glorot-uniform, biases 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MRINet", "SamePool3d"]

Shape = tuple[int, int, int]


class SamePool3d(nn.MaxPool3d):
    """3x3x3 maximum, stride 2, padded as TensorFlow's SAME: n voxels become ceil(n / 2).

    An odd axis is padded by one voxel at both ends, an even one at its end only (`ceil_mode`).
    Padding never wins the maximum.
    """

    def __init__(self) -> None:
        super().__init__(3, stride=2)

    def forward(self, input: Tensor) -> Tensor:
        padding = tuple(size % 2 for size in input.shape[-3:])
        return functional.max_pool3d(input, 3, 2, padding, ceil_mode=True)


class MRINet(nn.Module):
    """One value per scan from C contrasts and P covariates.

    Parameters
    ----------
    shape
        Grid of the images; any size of at least one voxel. The model works on this shape only.
    contrasts, covariates
        C, as input channels, and P; covariates join the features before the last dense layer.
    channels, dense, dropout
        Widths of the convolutions (the last is 1x1x1) and of the dense layer, and the share dropped
        before it.
    target_mean
        Where the output's bias begins.

    Raises
    ------
    ValueError
        If an option or the shape has no meaning.
    """

    attention = None  # one path, nothing to weigh

    def __init__(
        self,
        shape: Shape,
        contrasts: int = 1,
        covariates: int = 0,
        *,
        channels: Sequence[int] = (16, 16, 32, 64, 32),
        dense: int = 64,
        dropout: float = 0.5,
        target_mean: float = 0.0,
    ) -> None:
        super().__init__()
        if min((contrasts, dense, len(channels), *channels, *shape)) < 1 or covariates < 0:
            raise ValueError("mrinet: shape, contrasts, channels and dense must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"mrinet: dropout must be in [0, 1), not {dropout}")
        self.shape: Shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.contrasts = contrasts
        self.covariates = covariates
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        grid, inputs = self.shape, contrasts
        for number, outputs in enumerate(channels, start=1):
            kernel = 3 if number < len(channels) else 1
            layers[f"conv{number}"] = nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2)
            layers[f"relu{number}"] = nn.ReLU()
            layers[f"pool{number}"] = SamePool3d()
            grid, inputs = ((grid[0] + 1) // 2, (grid[1] + 1) // 2, (grid[2] + 1) // 2), outputs
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(dropout)
        layers["dense"] = nn.Linear(inputs * grid[0] * grid[1] * grid[2], dense)
        layers["relu_dense"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.output = nn.Linear(dense + covariates, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.output.bias, target_mean)

    def forward(self, images: Tensor, covariates: Tensor) -> Tensor:
        """Values (B,) of images (B, C, X, Y, Z) and covariates (B, P)."""
        expected = (self.contrasts, *self.shape)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"mrinet: built for images {expected}, given {tuple(images.shape[1:])}")
        features = self.features(images)
        if self.covariates:
            features = torch.cat([features, covariates], dim=1)
        return self.output(features).squeeze(-1)
