"""Labels of a whole scan from a trained network, on the scan's own grid.

Belongs here: slices and windows through a network, their averages. Does not belong here: what is done with labels
afterwards (`postprocess.py`, `metrics.py`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relevance_assets.precision import has_gpu, no_tf32
from relevance_assets.segmentation import weights
from relevance_assets.segmentation.data import scale_of
from relevance_assets.segmentation.fit import memory_format
from relevance_assets.training.data import TrainingError
from relevance_assets.training.loop import switches

__all__ = ["Segmentation", "Segmenter"]


@dataclass(frozen=True)
class Segmentation:
    """Labels (x, y, z) uint8, the most probable class of each voxel, and probabilities (class, x, y, z) float32."""

    labels: np.ndarray
    probabilities: np.ndarray


class Segmenter:
    """A trained network ready to be applied to any number of scans.

    Parameters
    ----------
    model
        A `segmentation.pt`, or description and network, which are left as they are. Runs on a GPU where there is one.
    flips
        Probabilities are the mean over the image and its mirror image from left to right (first axis).
    overlap
        Share by which neighbouring windows of a 3D network overlap; they count by a Gaussian of their distance from
        the window's middle (MONAI).
    batch_size
        Slices or windows at a time.

    Raises
    ------
    CheckpointError
        The file cannot be used.
    """

    def __init__(
        self,
        model: Path | tuple[weights.Description, torch.nn.Module],
        *,
        flips: bool = True,
        overlap: float = 0.5,
        batch_size: int = 8,
    ) -> None:
        self.description, network = weights.load(model) if isinstance(model, Path) else copy.deepcopy(model)
        self.device = torch.device("cuda" if has_gpu() else "cpu")
        form: Any = memory_format(self.device, self.description.dims)
        self.network = network.to(self.device).to(memory_format=form).eval()
        self.flips, self.overlap, self.batch_size, self.format = flips, overlap, batch_size, form

    def __call__(self, image: np.ndarray, brain: np.ndarray | None = None, name: str = "scan") -> Segmentation:
        """Segment one scan.

        Parameters
        ----------
        image : (x, y, z)
            Raw intensities; scaled here as in the training.
        brain : (x, y, z), optional
            As given in the training.
        name
            Of the scan, for errors.

        Raises
        ------
        TrainingError
            The image is not 3D or not finite, or has no brain to scale by.
        """
        image = np.asarray(image, dtype=np.float32)
        if image.ndim != 3 or not image.size or not np.isfinite(image).all():
            raise TrainingError(f"{name}: a finite image with three axes is needed, not {image.shape}; check the image")
        mean, sd = scale_of(image, self.description.normalisation, brain, name)  # type: ignore[arg-type]
        scaled = torch.from_numpy(((image - mean) / sd).astype(np.float32))
        background = float((-mean / sd).min())
        with switches(), torch.inference_mode(), no_tf32():
            found = self._apply(scaled, background)
            if self.flips:
                found = (found + self._apply(scaled.flip(0), background).flip(1)) / 2
        probabilities = found.numpy()
        if not np.isfinite(probabilities).all():
            raise TrainingError(f"{name}: the network's output is not finite; check the image")
        return Segmentation(probabilities.argmax(axis=0).astype(np.uint8), probabilities)

    def _apply(self, scaled: torch.Tensor, background: float) -> torch.Tensor:
        """Probabilities (class, x, y, z) of a scaled image, on the CPU."""
        if self.description.dims == 2:
            slices = scaled.movedim(2, 0)[:, None].split(self.batch_size)
            return torch.cat([self._softmax(part).cpu() for part in slices]).permute(1, 2, 3, 0)
        from monai.inferers import sliding_window_inference

        found: Any = sliding_window_inference(
            scaled[None, None],
            roi_size=self.description.size,
            sw_batch_size=self.batch_size,
            predictor=self._softmax,
            overlap=self.overlap,
            mode="gaussian",
            padding_mode="constant",
            cval=background,
            sw_device=self.device,
            device="cpu",
        )
        return found[0] / found[0].sum(dim=0, keepdim=True)  # windows' weights leave rounding behind

    def _softmax(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.device).contiguous(memory_format=self.format)
        return torch.softmax(self.network(images).float(), dim=1)
