"""Settings of models: who is held out, which network, how it is trained.

Belongs here: splits, networks, training, augmentation. Does not belong here: networks that segment (`lesions.py`).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Literal

from pydantic import Field, model_validator

from relevance_assets.study.base import Name, Settings, Share

__all__ = ["Augmentation", "Model", "Phase", "Split", "Training"]


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


class Phase(Settings):
    """Epochs in which the same weights learn at the same rate; the optimiser begins anew with each phase.

    `features`: those of the network's module of that name. `classifier`: all others.
    """

    epochs: int = Field(ge=1)
    train: Literal["classifier", "features", "all"] = "all"
    learning_rate: float = Field(gt=0)


class Training(Settings):
    """How one fold is fitted. The best epoch by `monitor` on the validation set is kept; with `last`, the last one."""

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    phases: list[Phase] = Field(default=[], description="in place of epochs and learning_rate")
    optimiser: Literal["adamw", "adam"] = Field(default="adamw", description="adam has no weight decay")
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    monitor: Literal["auc", "mae", "accuracy", "balanced_accuracy", "loss", "last"] = "loss"
    sample_weight: Literal["none", "edss"] = "none"
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: each class weighs the same in the loss, however many scans it has"
    )
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

    @model_validator(mode="after")
    def _without_effect(self) -> Training:
        changed = [name for name, field in Training.model_fields.items() if getattr(self, name) != field.default]
        if self.phases and (doubled := [name for name in ("epochs", "learning_rate") if name in changed]):
            raise ValueError(f"training.{doubled[0]}: the phases have their own; leave it out")
        if self.phases and self.schedule != "constant":
            raise ValueError("training.schedule: phases have constant rates; leave it out")
        if self.optimiser == "adam" and self.weight_decay and "weight_decay" in changed:
            raise ValueError("training.weight_decay: adam has none; leave it out or take optimiser: adamw")
        return self

    def phase(self, epoch: int) -> Phase:
        """The phase of epoch 1, 2, ..; without `phases` one in which all weights learn."""
        if not self.phases:
            return Phase(epochs=self.epochs, learning_rate=self.learning_rate)
        return next(phase for end, phase in zip(self._ends, self.phases, strict=True) if epoch <= end)

    def begins_phase(self, epoch: int) -> bool:
        """Whether a phase begins with epoch 1, 2, .."""
        return epoch - 1 in (0, *self._ends)

    @property
    def total_epochs(self) -> int:
        """Epochs of all phases."""
        return self._ends[-1] if self.phases else self.epochs

    @property
    def _ends(self) -> list[int]:
        """The last epoch of each phase."""
        return list(accumulate(phase.epochs for phase in self.phases))

    def decisive(self) -> dict[str, Any]:
        """What the model depends on; where and how fast it is trained is not part of it.

        Settings that came later are named only where they differ from what was done before there were any, so that
        models of older versions stay known.
        """
        plain = self.model_dump(mode="json", exclude={"cache_gb", "devices", "strategy"})
        later: dict[str, Any] = {"phases": [], "optimiser": "adamw", "class_weights": "none"}
        return {name: value for name, value in plain.items() if name not in later or value != later[name]}
