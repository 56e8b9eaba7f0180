"""A trained model on disk: weights, and all that is needed to build the network again.

Belongs here: writing and reading `model.pt`. Does not belong here: the state of a training that is under way
(`resume.py`).
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from relevance_assets.files import atomic_path
from relevance_assets.models import registry
from relevance_assets.study import Shape

__all__ = [
    "CheckpointError",
    "Description",
    "save",
    "load",
    "describe",
    "read_tensors",
    "write_tensors",
    "plain_state",
    "transfer",
]

FORMAT = "relevance-assets model 1"


class CheckpointError(ValueError):
    """A file is not a model that this version can read; the message names the file."""


@dataclass(frozen=True)
class Description:
    """How a network is built again, and from which training it comes."""

    name: str
    options: dict[str, Any]
    shape: Shape
    contrasts: int
    covariates: int
    target_kind: str
    target_mean: float
    seed: int
    classes: tuple[str, ...] = ()

    def build(self, **files: Any) -> nn.Module:
        """The network with fresh weights, or those of `files` (`registry.FILES`)."""
        return registry.build(
            self.name,
            shape=self.shape,
            contrasts=self.contrasts,
            covariates=self.covariates,
            options=self.options | files,
            target_mean=self.target_mean,
            classes=len(self.classes),
        )

    def plain(self) -> dict[str, Any]:
        """Its fields, `classes` only where there are any: other models keep the bytes that they always had."""
        return {name: value for name, value in asdict(self).items() if name != "classes" or value}


def save(path: Path, description: Description, state: dict[str, torch.Tensor]) -> None:
    """Write a model, atomically. Equal contents give equal bytes."""
    write_tensors(path, {"format": FORMAT, **description.plain(), "state_dict": plain_state(state)})


def load(path: Path) -> nn.Module:
    """The trained network, on the CPU, in evaluation mode.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, not one of ours, or its weights do not fit the network it names.
    """
    description, state = _read(path)
    try:
        network = description.build()
        network.load_state_dict(state)
    except Exception as error:
        raise CheckpointError(
            f"{path}: weights do not fit a {description.name!r} of this version ({_first_line(error)}); train again"
        ) from error
    return network.eval()


def transfer(path: Path, network: nn.Module) -> int:
    """Give `network` the weights of a trained one wherever name and shape are the same; how many numbers these are.

    Raises
    ------
    CheckpointError
        The file cannot be used, or nothing in it fits.
    """
    _, state = _read(path)
    own = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise CheckpointError(f"{path}: nothing in it fits a {type(network).__name__}; take the same network and grid")
    network.load_state_dict(fitting, strict=False)
    learnt = {name for name, _ in network.named_parameters()}
    return sum(value.numel() for name, value in fitting.items() if name in learnt)


def describe(path: Path) -> Description:
    """What `path` says about its network. Raises CheckpointError as `load` does."""
    return _read(path)[0]


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, atomically and with bytes that do not depend on the file's name."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def plain_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU in row-major order, whatever device and memory format training used."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def read_tensors(path: Path, form: str) -> dict[str, Any]:
    """What `write_tensors` wrote, on the CPU. Raises CheckpointError where it is missing, damaged or another form."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such model; train it first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own for a damaged file
        raise CheckpointError(f"{path}: damaged or not a model file; delete it and train again") from error
    if not isinstance(content, dict) or content.get("format") != form:
        raise CheckpointError(f"{path}: not a model of this version ({form!r}); delete it and train again")
    return content


def _read(path: Path) -> tuple[Description, dict[str, torch.Tensor]]:
    content = read_tensors(path, FORMAT)
    try:
        known = {"classes": ()} | content
        description = Description(**{field.name: known[field.name] for field in fields(Description)})
        return description, content["state_dict"]
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks {error}; delete it and train again") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
