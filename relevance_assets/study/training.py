"""Settings of models: who is held out, which network, how it is trained.

Belongs here: splits, networks, training, augmentation. Does not belong here: networks that segment (`lesions.py`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from relevance_assets.study.base import Name, Settings, Share

__all__ = ["Augmentation", "Model", "Split", "Training"]


class Split(Settings):
    """Held-out test people, and stratified folds of the rest; all scans of a person stay together."""

    test_share: Share = 0.2
    folds: int = Field(default=3, ge=2, le=20)
    strata: int = Field(default=5, ge=2, description="quantile bins of a regression target")
    seed: int = 0


class Model(Settings):
    """A network of the registry (`relevance_assets.models`) and its options."""

    name: Name
    options: dict[str, Any] = {}


class Augmentation(Settings):
    """Random changes of a training scan, the same for all its contrasts; each drawn with its probability."""

    flip_axes: list[Literal[0, 1, 2]] = []
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    rotate90: bool = Field(default=False, description="by 90 degrees in the plane of the first two axes")
    rotate90_probability: float = Field(default=0.5, ge=0, le=1)
    affine_probability: float = Field(default=0.5, ge=0, le=1)
    rotate_degrees: float = Field(default=0.0, ge=0)
    scale_share: float = Field(default=0.0, ge=0, lt=1)
    translate_voxels: float = Field(default=0.0, ge=0)
    noise_probability: float = Field(default=0.5, ge=0, le=1)
    noise_sd: float = Field(default=0.0, ge=0, description="in units of the scaled image")


class Training(Settings):
    """How one fold is fitted. The best epoch by `monitor` on the validation set is kept."""

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    monitor: Literal["auc", "mae", "loss"] = "loss"
    sample_weight: Literal["none", "edss"] = "none"
    balanced_sampler: bool = False
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    start_from: Name | None = Field(
        default=None, description="another study whose models' weights training begins with, where they fit"
    )
    cache_gb: float = Field(default=2.0, ge=0, description="prepared images kept in memory while training")
    devices: int = Field(default=1, ge=1, description="GPUs that train one fold together (without a GPU: processes)")
    strategy: Literal["ddp_spawn", "ddp_fork"] = Field(
        default="ddp_spawn", description="how Lightning starts the processes of several devices"
    )

    def decisive(self) -> dict[str, Any]:
        """What the model depends on; where and how fast it is trained is not part of it."""
        return self.model_dump(mode="json", exclude={"cache_gb", "devices", "strategy"})
