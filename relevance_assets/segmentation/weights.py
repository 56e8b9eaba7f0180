"""A trained segmentation network on disk: weights, and all that is needed to build and apply it again.

Belongs here: writing and reading `segmentation.pt`. Does not belong here: models of whole scans
(`training.checkpoint`, whose files say how one target is predicted).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from relevance_assets.segmentation.networks import AttentionUNet
from relevance_assets.training.checkpoint import CheckpointError, plain_state, read_tensors, write_tensors

__all__ = ["Description", "load", "save"]

FORMAT = "relevance-assets segmentation 1"


@dataclass(frozen=True)
class Description:
    """How a network is built, and how scans are brought to it.

    Attributes
    ----------
    classes : tuple of str
        Names of labels 0, 1, ..
    network : dict
        Keyword arguments of `AttentionUNet` beside `inputs` and `outputs`.
    normalisation : str
        "slice" or "volume", see `data.scale_of`.
    size : (x, y, z)
        The training's boxes in voxels; a 3D network predicts in windows of this size.
    seed : int
    """

    classes: tuple[str, ...]
    network: dict[str, Any]
    normalisation: str
    size: tuple[int, int, int]
    seed: int

    @property
    def dims(self) -> int:
        return int(self.network.get("dims", 2))

    def build(self) -> AttentionUNet:
        """The network with fresh weights, from torch's global generator."""
        return AttentionUNet(1, len(self.classes), **self.network)


def save(path: Path, description: Description, state: dict[str, torch.Tensor]) -> None:
    """Write a model, atomically. Equal contents give equal bytes."""
    write_tensors(path, {"format": FORMAT, **asdict(description), "state_dict": plain_state(state)})


def load(path: Path) -> tuple[Description, AttentionUNet]:
    """The description and the trained network, on the CPU, in evaluation mode.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, not one of ours, or its weights do not fit the network it describes.
    """
    content = read_tensors(path, FORMAT)
    try:
        description = Description(**{field.name: content[field.name] for field in fields(Description)})
        network = description.build()
        network.load_state_dict(content["state_dict"])
    except Exception as error:
        raise CheckpointError(f"{path}: weights do not fit the network that it describes; train again") from error
    return description, network.eval()
