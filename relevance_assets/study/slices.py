"""Settings of a study of 2D pictures with masks: which pictures, how they are divided, which rules are compared.

Belongs here: what only such a study says. Does not belong here: its model and training (`training.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from relevance_assets.study.base import Name, Settings, Share

__all__ = ["MAIN_REGION", "PUBLISHED_GRID", "Region", "RuleGrid", "SliceSplit", "Slices"]

PUBLISHED_GRID = tuple(float(value) for value in range(-100, 101, 20))
#: Each of three classes needs a patient in each of three sets; patients have six slices, the ninth needs but one.
LEAST_SYNTHETIC = 25
Quantile = Annotated[float, Field(gt=0, lt=1)]
MAIN_REGION = "grid"
Reference = Literal["lrp_0", "gradient_x_input", "integrated_gradients", "grad_cam", "saliency", "occlusion"]


class SliceSplit(Settings):
    """Who trains, validates and tests (`cohort.slice_splits`)."""

    how: Literal["auto", "patient", "block", "published"] = Field(
        default="auto",
        description="auto: by patient, where none is known by block; published: single slices, which leaks",
    )
    shares: tuple[Share, Share, Share] = Field(default=(0.7, 0.15, 0.15), description="train, validation, test")
    buffer: int = Field(default=6, ge=0, description="block: slices left out on both sides of a border between sets")
    folds: tuple[int, int] | None = Field(default=None, description="patient: folds of cvind.mat to validate and test")
    seed: int = 0


class Slices(Settings):
    """A folder of slices, as downloaded or with `index.csv`, in place of a BIDS folder (docs/rules.md)."""

    folder: Path | None = Field(default=None, description="null: synthetic slices below the home folder")
    synthetic: int = Field(default=120, ge=LEAST_SYNTHETIC, description="how many synthetic slices")
    synthetic_size: int = Field(default=64, ge=48, le=1024, description="their pixels along both axes")
    block: int = Field(default=50, ge=1, description="slice numbers per block, where no patient is known")
    every: int = Field(default=1, ge=1, description="n: of the slices, sorted by number, only the first of each n")
    size: tuple[int, int] = Field(default=(256, 256), description="pixels that slices are resized to")
    split: SliceSplit = SliceSplit()
    seed: int = Field(default=0, ge=0, description="of the synthetic slices")


class Region(Settings):
    """Pairs of a gamma and an epsilon, and what epsilon means."""

    gammas: list[float] = Field(default=list(PUBLISHED_GRID), min_length=1)
    epsilons: list[float] = Field(default=list(PUBLISHED_GRID), min_length=1)
    signed: bool = Field(default=False, description="z + epsilon sgn(z); false: z + epsilon, as published")
    relative: bool = Field(default=False, description="epsilon in units of the layer's mean |z|")

    @model_validator(mode="after")
    def _values(self) -> Self:
        for name in ("gammas", "epsilons"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"rule_grid.{name}: each value once")
        if self.signed and min(self.epsilons) < 0:
            raise ValueError("rule_grid.epsilons: signed epsilon must not be negative")
        return self

    @property
    def pairs(self) -> list[tuple[float, float]]:
        return [(gamma, epsilon) for gamma in self.gammas for epsilon in self.epsilons]


class RuleGrid(Region):
    """A grid of gamma and epsilon, its maps scored against masks; a cell is chosen on validation slices.

    Its own gammas and epsilons are the region `grid`; `sensible` is a second one, in which a cell is chosen too.
    """

    sensible: Region | None = Field(
        default=None, description="another region, such as gamma 0 to 1 and signed relative epsilon 0 to 1"
    )
    variant: Literal["as_published_code", "figure", "readme"] | tuple[int, int] = "as_published_code"
    boxes: Literal["data_range", "as_published"] = Field(default="data_range", description="bounds of zB")
    explained: list[Literal["true", "predicted"]] = Field(default=["true", "predicted"], min_length=1)
    quantiles: list[Quantile] = Field(default=[0.95], min_length=1)
    score: Name = Field(default="iou", description="by which the cell is chosen that figures and words are about")
    published: tuple[float, float] = (-20.0, 0.0)
    references: list[Reference] = ["lrp_0", "gradient_x_input", "integrated_gradients", "grad_cam"]
    random_weights: int = Field(
        default=3, ge=0, description="networks that learnt nothing, whose mean score is beside the chosen cell's"
    )
    images: int | None = Field(
        default=None, ge=3, description="validation and test slices explained, of each; null: all"
    )
    maps: list[tuple[float, float]] = Field(default=[], description="cells whose maps are kept as files")
    seed: int = 0

    @model_validator(mode="after")
    def _cells(self) -> Self:
        for name in ("quantiles", "explained", "references"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"rule_grid.{name}: each value once")
        unknown = [cell for cell in self.maps if cell not in self.pairs]
        if unknown:
            raise ValueError(f"rule_grid.maps: {list(unknown[0])} is no cell of the grid")
        return self

    @property
    def regions(self) -> dict[str, Region]:
        """By name, the main one first."""
        return {MAIN_REGION: self} | ({"sensible": self.sensible} if self.sensible else {})
