"""Apply a trained network to scans, unchanged and in float32.

Belongs here: outputs and attention weights of scans. Does not belong here: probabilities, means over folds
and scores (`statistics`), relevance (`relevance`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from relevance_assets.precision import no_tf32
from relevance_assets.training import checkpoint
from relevance_assets.training.data import Batches, Samples, TrainingError, Volumes
from relevance_assets.training.loop import has_gpu, memory_format, switches

__all__ = ["Predictions", "predict"]


@dataclass(frozen=True)
class Predictions:
    """What a network says about n scans, in the order of the samples.

    Attributes
    ----------
    outputs : (n,) float64 array
        Logits of a binary target, else values.
    attention : (n, contrasts) float64 array, or None
        Weights that sum to 1; None for a network that has none.
    """

    outputs: np.ndarray
    attention: np.ndarray | None


def predict(model: nn.Module | Path, samples: Samples, batch_size: int = 8) -> Predictions:
    """Outputs of `model` for `samples`; images are read batch by batch and none is kept.

    Parameters
    ----------
    model
        A `model.pt`, or a network, which is left as it is. It runs on a GPU where there is one.
    batch_size
        Scans at a time; outputs may depend on it in the last bits.

    Raises
    ------
    CheckpointError
        The file cannot be used.
    TrainingError
        The scans do not suit the model, or an output is not finite.
    """
    if isinstance(model, Path):
        network, where = checkpoint.load(model), f"{model}: "
        _check(checkpoint.describe(model), samples, model)
    else:
        network, where = copy.deepcopy(model), ""
    device = torch.device("cuda" if has_gpu() else "cpu")
    network = network.to(device).to(memory_format=memory_format(device)).float().eval()
    attend: Any = getattr(network, "attention", None)
    outputs: list[torch.Tensor] = []
    attention: list[torch.Tensor] = []
    with switches(), torch.inference_mode(), no_tf32():
        for batch in Batches(samples, Volumes(0), batch_size) if len(samples) else ():
            images = batch.images.to(device).contiguous(memory_format=memory_format(device))
            outputs.append(network(images, batch.covariates.to(device)).cpu())
            if attend is not None:
                attention.append(attend(images).cpu())
    values = torch.cat(outputs).double().numpy() if outputs else np.empty(0)
    if not np.isfinite(values).all():
        scan = samples.scans[int((~np.isfinite(values)).argmax())]
        raise TrainingError(f"{where}the output for {scan} is not finite; check its prepared images")
    return Predictions(values, torch.cat(attention).double().numpy() if attention else None)


def _check(description: checkpoint.Description, samples: Samples, path: Path) -> None:
    if samples.covariates.shape[1] != description.covariates:
        raise TrainingError(
            f"{path}: was trained with {description.covariates} covariates, the scans have "
            f"{samples.covariates.shape[1]}; train again"
        )
    if any(len(paths) != description.contrasts for paths in samples.images):
        raise TrainingError(f"{path}: was trained on {description.contrasts} contrasts; train again")
