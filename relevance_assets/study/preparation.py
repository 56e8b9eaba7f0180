"""Settings of the preparation: the steps of a recipe, and what a prepared scan must keep.

Belongs here: one class per step, limits. Does not belong here: the steps themselves (`imaging/`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from relevance_assets.study.base import Label, Settings, Shape, need_both

__all__ = [
    "BiasField",
    "BrainMask",
    "Coregister",
    "CropOrPad",
    "Denoise",
    "Halfway",
    "Limits",
    "Quality",
    "Register",
    "Remove",
    "Reorient",
    "Resample",
    "STEPS",
    "ScaleStep",
    "Step",
]


class Reorient(Settings):
    """Axes to the closest canonical orientation (RAS+): a permutation and flips, no interpolation."""

    step: Literal["reorient"] = "reorient"


class Denoise(Settings):
    """Noise is smoothed along edges; off unless a recipe names it."""

    step: Literal["denoise"] = "denoise"
    contrasts: list[Label] = Field(default=[], description="which; [] means all")
    method: Literal["curvature_flow", "median"] = "curvature_flow"


class Coregister(Settings):
    """Every contrast of a visit rigidly to one of them; nothing is interpolated yet."""

    step: Literal["coregister"] = "coregister"
    reference: Label | None = Field(default=None, description="a contrast; null: the first")


class Halfway(Settings):
    """The visits of a person into the space half-way between them; nothing is interpolated yet."""

    step: Literal["halfway"] = "halfway"
    contrast: Label | None = Field(default=None, description="by which visits are compared; null: the first")


class BrainMask(Settings):
    """Which voxels are brain.

    `nonzero`: some contrast is > 0 on the native grid. `template`: the MNI152 brain moved onto the scan by an affine
    registration; `nonzero` is taken where the image holds only brain already. `command`: a program that reads {image}
    and writes {mask}.
    """

    step: Literal["brain_mask"] = "brain_mask"
    source: Literal["nonzero", "template", "command"] = "nonzero"
    contrast: Label | None = Field(default=None, description="in which the brain is looked for; null: the first")
    command: list[str] = Field(default=[], description="program and arguments, {image} and {mask} among them")

    @model_validator(mode="after")
    def _command_given(self) -> BrainMask:
        given = " ".join(self.command)
        if (self.source == "command") != bool(self.command):
            raise ValueError("brain_mask: source command needs command, other sources have none")
        if self.command and not ("{image}" in given and "{mask}" in given):
            raise ValueError("brain_mask.command: {image} and {mask} must be among its arguments")
        return self


class BiasField(Settings):
    """N4: the slow change of brightness across the brain is divided out."""

    step: Literal["bias_field"] = "bias_field"
    contrasts: list[Label] = Field(default=[], description="which; [] means all. Quantitative maps have none")
    shrink: int = Field(default=4, ge=1, description="the field is fitted on every so manieth voxel per axis")


class Register(Settings):
    """The scan to the template MNI152NLin2009aSym; needless where it lies there already.

    The way is stored, so that any map can be brought there. Images stay in the scan's own space unless the step
    `resample` asks for the template's.
    """

    step: Literal["register"] = "register"
    kind: Literal["affine", "deformable"] = "deformable"
    contrast: Label | None = Field(default=None, description="by which it is registered; null: the first")
    voxel_size_mm: int = Field(default=2, ge=1, le=6, description="of the template while registering")


class Remove(Settings):
    """Regions of an atlas taken out of the brain, by the way to the template that `register` found."""

    step: Literal["remove"] = "remove"
    regions: list[str] = Field(min_length=1, description="names of the atlas, such as cerebellum")
    atlas: Path | None = Field(default=None, description="a dseg.nii.gz in template space; null: approximate regions")
    atlas_names: Path | None = Field(default=None, description="its dseg.tsv (index, name)")

    @model_validator(mode="after")
    def _atlas_with_names(self) -> Remove:
        need_both(self.atlas, self.atlas_names, "remove")
        return self


class Resample(Settings):
    """Every contrast of the scan onto one grid; not done where the grid is this one already.

    The grid has this voxel size over the first contrast's field of view, or is that of the contrast `like`, or, with
    `space: template`, covers the template's brain.
    """

    step: Literal["resample"] = "resample"
    voxel_size_mm: tuple[float, float, float] | None = None
    like: Label | None = None
    space: Literal["scan", "template"] = "scan"
    interpolation: Literal["nearest", "linear", "cubic"] = "linear"

    @model_validator(mode="after")
    def _one_grid(self) -> Resample:
        if (self.voxel_size_mm is None) == (self.like is None):
            raise ValueError("resample: either voxel_size_mm or like (a contrast)")
        if self.voxel_size_mm is not None and min(self.voxel_size_mm) <= 0:
            raise ValueError("resample: voxel sizes must be positive")
        if self.like is not None and self.space == "template":
            raise ValueError("resample: the template's space needs voxel_size_mm")
        return self


class CropOrPad(Settings):
    """To a fixed shape, around the middle of the grid or of the brain's bounding box."""

    step: Literal["crop_or_pad"] = "crop_or_pad"
    shape: Shape
    centre: Literal["grid", "brain"] = "grid"


class ScaleStep(Settings):
    """Each contrast by its own `scale`."""

    step: Literal["scale"] = "scale"


Step = Annotated[
    Reorient
    | Denoise
    | Coregister
    | Halfway
    | BrainMask
    | BiasField
    | Register
    | Remove
    | Resample
    | CropOrPad
    | ScaleStep,
    Field(discriminator="step"),
]
STEPS = (
    "reorient",
    "denoise",
    "coregister",
    "halfway",
    "brain_mask",
    "bias_field",
    "register",
    "remove",
    "resample",
    "crop_or_pad",
    "scale",
)


class Limits(Settings):
    """What a prepared scan must keep to go further; null: no limit."""

    brain_ml: tuple[float, float] | None = Field(default=None, description="least and greatest brain volume, ml")
    template_overlap: float | None = Field(
        default=None, ge=0, le=1, description="least Dice of the brain mask and the template's, after registration"
    )
    similarity: float | None = Field(
        default=None, ge=-1, le=1, description="least absolute correlation with the template, after registration"
    )
    jacobian: tuple[float, float] | None = Field(
        default=None, description="least and greatest local change of volume on the way to the template"
    )
    share_clipped: float | None = Field(default=None, ge=0, le=1, description="greatest, of any contrast")
    share_cropped: float | None = Field(default=None, ge=0, le=1, description="greatest")


class Quality(Settings):
    """A scan beyond `fail` goes no further; one beyond `warn` is named by an asset check."""

    fail: Limits = Limits(template_overlap=0.7, jacobian=(0, 1000))
    warn: Limits = Limits(
        brain_ml=(800, 2200), template_overlap=0.85, jacobian=(0.05, 20), share_clipped=0.05, share_cropped=0.02
    )
