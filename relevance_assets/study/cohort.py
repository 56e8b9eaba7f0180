"""Settings of images and people: contrasts, the target, who takes part.

Belongs here: what a study needs to know of its data. Does not belong here: what is done with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from relevance_assets.study.base import Label, Settings

__all__ = ["Cohort", "Contrast", "Covariate", "Scale", "Target"]


class Scale(Settings):
    """How an image's values become numbers in [0, 1]; always clipped, background exactly 0.

    `range`: (x - low) / (high - low) in the image's unit. `percentile`: x / p-th percentile of the brain's
    voxels. `white_matter_peak`: as range, in units of white matter's peak in the brain's histogram. `z_score`: as
    range, in standard deviations of the brain's voxels from their mean. What is not given: low 0 and high 1, for
    white_matter_peak high 1.5, for z_score -3 and 3.

    `peak`, for white_matter_peak: which mode of the histogram is white matter. `brightest` for T1w, `largest` for
    FLAIR, `darkest` for T2w.
    """

    rule: Literal["range", "percentile", "white_matter_peak", "z_score"] = "range"
    low: float = 0.0
    high: float = 1.0
    percentile: float = Field(default=99.5, gt=0, le=100)
    peak: Literal["brightest", "largest", "darkest"] = "brightest"

    @model_validator(mode="before")
    @classmethod
    def _limits_of_rule(cls, given: Any) -> Any:
        defaults = {"white_matter_peak": {"high": 1.5}, "z_score": {"low": -3.0, "high": 3.0}}
        return defaults.get(str(given.get("rule")), {}) | given if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _ordered(self) -> Scale:
        if self.rule != "percentile" and self.high <= self.low:
            raise ValueError(f"scale: high ({self.high}) must be above low ({self.low})")
        return self


class Contrast(Settings):
    """One image per scan: its name in tables, and the BIDS suffix and entities that find it."""

    name: Label
    suffix: Label
    entities: dict[Label, Label] = {}
    scale: Scale = Scale()


class Target(Settings):
    """What the model learns: a column of participants.tsv or sessions.tsv.

    `binary`: 1 where the value is >= threshold. `regression`: the value itself. `classes`: the place of the value
    among `classes`, from 0.
    """

    column: str
    kind: Literal["binary", "regression", "classes"]
    threshold: float | None = None
    classes: list[str] = Field(default=[], description="the values of the column, in the order of the outputs")
    unit: str = ""

    @property
    def of_one_output(self) -> Literal["binary", "regression"]:
        """The kind, of networks with one output."""
        if self.kind == "classes":
            raise ValueError("target: kind classes has an output for each class")
        return self.kind

    @model_validator(mode="after")
    def _threshold_given(self) -> Target:
        if (self.kind == "binary") != (self.threshold is not None):
            raise ValueError("target: a binary target needs a threshold, a regression target has none")
        return self

    @model_validator(mode="after")
    def _classes_given(self) -> Target:
        if (self.kind == "classes") != bool(self.classes):
            raise ValueError("target: kind classes needs classes (the values of the column), other kinds have none")
        if self.classes and len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError(f"target.classes: two or more names, each once, not {', '.join(self.classes)}")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `classes` where there are none: what is known of other targets stays what it was."""
        return {name: value for name, value in plain(self).items() if name != "classes" or value}


class Covariate(Settings):
    """A number beside the images: the column divided by `divide_by`."""

    column: str
    divide_by: float = Field(default=1.0, gt=0)


class Cohort(Settings):
    """Who takes part. `bids: null` means the synthetic cohort below the home folder."""

    bids: Path | None = None
    include: dict[str, list[str | float | int]] = {}
    target: Target | None = Field(default=None, description="needed by a study with a model")
    covariates: list[Covariate] = []
    subjects: Path | None = Field(default=None, description="a finished subject table (CSV), in place of images")
    truth_regions: list[Label] = []
