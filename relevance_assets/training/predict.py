"""Apply a trained network to scans, unchanged and in float32.

Belongs here: outputs and attention weights of scans. Does not belong here: probabilities, means over folds
and scores (`statistics`), relevance (`relevance`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
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
from relevance_assets.training.optimiser import arrange

__all__ = ["Predictions", "Predictor", "predict"]


@dataclass(frozen=True)
class Predictions:
    """What a network says about n scans, in the order of the samples.

    Attributes
    ----------
    outputs : (n,) or (n, classes) float64 array
        Logits of a binary target or of classes, else values.
    attention : (n, contrasts) float64 array, or None
        Weights that sum to 1; None for a network that has none.
    """

    outputs: np.ndarray
    attention: np.ndarray | None


class Predictor:
    """A network ready to be applied: opened once, for any number of calls.

    Parameters
    ----------
    model
        A `model.pt`, or a network, which is left as it is. It runs on a GPU where there is one.

    Raises
    ------
    CheckpointError
        The file cannot be used.
    """

    def __init__(self, model: nn.Module | Path) -> None:
        self.description: checkpoint.Description | None = None
        self.path: Path | None = None
        if isinstance(model, Path):
            self.path, self.description = model, checkpoint.describe(model)
            network = checkpoint.load(model)
        else:
            network = copy.deepcopy(model)
        self.device = torch.device("cuda" if has_gpu() else "cpu")
        self.network = network.to(self.device).float().eval()
        arrange(self.network, self.device)

    def __call__(self, samples: Samples, batch_size: int = 8) -> Predictions:
        """Outputs for `samples`; images are read batch by batch and none is kept.

        Parameters
        ----------
        batch_size
            Scans at a time; outputs may depend on it in the last bits.

        Raises
        ------
        TrainingError
            The scans do not suit the model, or an output is not finite.
        """
        if self.description is not None:
            _check(self.description, samples, self.path)
        attend: Any = getattr(self.network, "attention", None)
        outputs: list[torch.Tensor] = []
        attention: list[torch.Tensor] = []
        with switches(), torch.inference_mode(), no_tf32():
            for batch in Batches(samples, Volumes(0), batch_size) if len(samples) else ():
                images = batch.images.to(self.device).contiguous(memory_format=memory_format(self.device))
                outputs.append(self.network(images, batch.covariates.to(self.device)).cpu())
                if attend is not None:
                    attention.append(attend(images).cpu())
        values = torch.cat(outputs).double().numpy() if outputs else self._nothing()
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1) if len(values) else np.ones(0, dtype=bool)
        if not finite.all():
            scan = samples.scans[int((~finite).argmax())]
            where = f"{self.path}: " if self.path else ""
            raise TrainingError(f"{where}the output for {scan} is not finite; check its prepared images")
        return Predictions(values, torch.cat(attention).double().numpy() if attention else None)

    def outputs(self, batches: Iterable[np.ndarray], covariates: np.ndarray) -> np.ndarray:
        """Outputs for images of one person, (n,) or (n, classes) float64.

        Parameters
        ----------
        batches
            Of (b, contrasts, x, y, z); one after the other.
        covariates : (p,)
            The same for all.

        Raises
        ------
        TrainingError
            An output is not finite.
        """
        numbers = torch.from_numpy(np.asarray(covariates, dtype=np.float32)).to(self.device)
        found = []
        with switches(), torch.inference_mode(), no_tf32():
            for batch in batches:
                images = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32)).to(self.device)
                images = images.contiguous(memory_format=memory_format(self.device))
                found.append(self.network(images, numbers.expand(len(images), -1)).cpu())
        values = torch.cat(found).double().numpy() if found else self._nothing()
        if not np.isfinite(values).all():
            raise TrainingError(f"{self.path or 'the model'}: an output is not finite; check the images")
        return values

    def _nothing(self) -> np.ndarray:
        classes = len(self.description.classes) if self.description else getattr(self.network, "classes", 0)
        return np.empty((0, classes) if classes else 0)


def predict(model: nn.Module | Path, samples: Samples, batch_size: int = 8) -> Predictions:
    """Outputs of `model` for `samples`; see `Predictor`."""
    return Predictor(model)(samples, batch_size)


def _check(description: checkpoint.Description, samples: Samples, path: Path | None) -> None:
    if samples.covariates.shape[1] != description.covariates:
        raise TrainingError(
            f"{path}: was trained with {description.covariates} covariates, the scans have "
            f"{samples.covariates.shape[1]}; train again"
        )
    if any(len(paths) != description.contrasts for paths in samples.images):
        raise TrainingError(f"{path}: was trained on {description.contrasts} contrasts; train again")
