"""Which weights learn, in which steps, and how they lie in memory.

Belongs here: the optimiser, learning rates, phases of training. Does not belong here: losses (`losses.py`), the epochs
themselves (`loop.py`).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from relevance_assets.study import Phase, Training
from relevance_assets.training.data import TrainingError
from relevance_assets.training.losses import Kind

__all__ = ["arrange", "begin_epoch", "learning_rate", "learns", "memory_format", "optimizer", "scale_output"]


def memory_format(device: torch.device | str) -> torch.memory_format:
    """Channels last on the CPU, where convolutions are about twice as fast with it; else row-major."""
    return torch.channels_last_3d if torch.device(device).type == "cpu" else torch.contiguous_format


def arrange(network: nn.Module, device: torch.device) -> None:
    """Lay out weights as `memory_format`, those of 2D convolutions likewise; torch would refuse to do both at once."""
    last = memory_format(device) is torch.channels_last_3d
    formats = {
        4: torch.channels_last if last else torch.contiguous_format,
        5: torch.channels_last_3d if last else torch.contiguous_format,
    }
    for parameter in network.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


def learning_rate(training: Training, epoch: int) -> float:
    """Rate in epoch 1, 2, ..: constant or that of the phase, or half a cosine from the full rate towards 0."""
    if training.schedule == "constant":
        return training.phase(epoch).learning_rate
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / training.epochs))


def output_layer(network: nn.Module) -> nn.Linear:
    """The last dense layer with one output, in the order of the network's definition."""
    layers = [each for each in network.modules() if isinstance(each, nn.Linear) and each.out_features == 1]
    if not layers:
        raise TrainingError(f"{type(network).__name__} has no dense output layer; it cannot be trained here")
    return layers[-1]


def scale_output(network: nn.Module, scale: float) -> None:
    """Let the output vary as much as the target does, before training begins.

    Together with `scale` times the learning rate (and decay / scale) for this layer, Adam goes the way that it
    would go with a standardised target, while the network says years all along. Without it the weights would
    have to travel some 25 times as far to span a range of ages, and whole layers of units die on the way.
    """
    with torch.no_grad():
        output_layer(network).weight.mul_(scale)


def optimizer(network: nn.Module, training: Training, kind: Kind, scale: float) -> torch.optim.Optimizer:
    """AdamW; biases and norms do not decay, and the output layer takes steps in the target's scale.

    MRInet's output bias holds the mean target and must not shrink. See `scale_output` for the rest. Adam is AdamW
    without decay.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    last = set() if kind == "classes" else set(output_layer(network).parameters())
    decay = training.weight_decay if training.optimiser == "adamw" else 0.0
    for parameter in network.parameters():
        groups.setdefault((parameter in last, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "scale": scale if is_last else 1.0,
                "weight_decay": decay / (scale if is_last else 1.0) * decays,
            }
            for (is_last, decays), parameters in groups.items()
        ],
        lr=learning_rate(training, 1),
    )


def learns(network: nn.Module, phase: Phase) -> set[str]:
    """Names of the parameters that learn in a phase."""
    part = phase.train
    names = [name for name, _ in network.named_parameters()]
    return {name for name in names if part == "all" or (part == "features") == name.startswith("features.")}


def begin_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, training: Training, epoch: int) -> None:
    """Let those parameters learn whose turn it is; with a new phase the optimiser's memory is emptied.

    What does not learn has no gradient, so that the optimiser leaves it alone, decay included. Running statistics of
    batch norms go on in all phases.
    """
    if not training.phases:
        return
    turn = learns(network, training.phase(epoch))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in turn)
    if training.begins_phase(epoch):
        optimizer.state.clear()
