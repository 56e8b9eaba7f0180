"""Settings of lesions: which masks say where they are, zones, changes, networks that segment.

Belongs here: what a study of lesions may say. Does not belong here: statistics (`evidence.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from relevance_assets.study.base import Label, Settings, Shape, Tissue
from relevance_assets.study.training import Augmentation

__all__ = ["Changes", "Lesions", "MaskSource", "Segmentation", "Zones"]


#: What each loss of a segmentation network can be told (`segmentation.losses`).
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    "cross_entropy": (),
    "dice": ("background",),
    "dice_ce": ("dice_share", "background"),
    "focal": ("alpha", "gamma"),
    "tversky": ("alpha", "beta", "background"),
    "unified_focal": ("gamma", "delta", "background"),
}
APPLIED = {"flips", "overlap", "postprocessing", "opening_mm", "minimum_mm3"}


def _names_the_scan(given: str) -> str:
    try:
        one, other = (given.format(folder=scan, scan=scan) for scan in ("sub-1", "sub-2"))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{given}: only {{folder}} and {{scan}} may stand in braces") from error
    if one == other:
        raise ValueError(f"{given}: has no {{scan}}, so every scan would have the same file")
    if Path(given).is_absolute() or ".." in Path(given).parts:
        raise ValueError(f"{given}: leads out of the BIDS folder; keep the masks in its derivatives")
    return given


MaskFile = Annotated[str, AfterValidator(_names_the_scan)]


class MaskSource(Settings):
    """Masks made elsewhere (by hand, LST-AI, SAMSEG), on the grid of the study's first contrast; voxels > 0 count.

    Paths below the BIDS folder; `{folder}` is sub-<label>[/ses-<label>] and `{scan}` sub-<label>[_ses-<label>].
    """

    lesions: MaskFile
    ventricles: MaskFile
    cortex: MaskFile | None = Field(
        default=None,
        description="cortex, or the fluid around it, also for lesions of a network that learns from these masks; null: "
        "what is outside the brain",
    )


class Zones(Settings):
    """Thresholds of the rules in 3D; what is equal to one is within it (`lesions.zones_3d.ZoneThresholds`).

    Defaults: those of MS-DeepBrain-Study, its disk of 6 mm as a sphere; of the voxel-wise rule, a cortex's thickness.
    """

    ventricle_edge_mm: float = Field(default=7.5, ge=0, description="periventricular: nearest voxel as near as this")
    ventricle_centroid_mm: float = Field(default=15.0, ge=0, description="or the lesion's centroid as near as this")
    cortex_edge_mm: float = Field(default=6.0, ge=0, description="else juxtacortical: nearest voxel as near as this")
    juxtacortical_mm3: float = Field(default=113.1, ge=0, description="and no larger than this")
    voxel_ventricle_mm: float = Field(default=7.5, ge=0, description="a voxel by itself: periventricular")
    voxel_cortex_mm: float = Field(default=3.0, ge=0, description="a voxel by itself: else juxtacortical")


class Changes(Settings):
    """When a lesion counts as another visit's, and as grown or shrunk; conventions, not published ones."""

    reach_mm: float = Field(default=2.0, ge=0, description="voxels of both visits as near as this: the same lesion")
    growth_mm3: float = Field(default=10.0, ge=0, description="enlarging, shrinking: by more than this")
    growth_share: float = Field(default=0.25, ge=0, description="and by more than this share of what it was")


class Lesions(Settings):
    """What is measured of lesions, and which masks say where they are."""

    sources: dict[Label, MaskSource] = Field(min_length=1)
    zones: Zones = Zones()
    changes: Changes = Changes()
    connectivity: Literal[6, 18, 26] = Field(default=26, description="neighbours of a voxel that belong to its lesion")
    minimum_mm3: float = Field(default=0.0, ge=0, description="smaller lesions are not counted")
    rule: Literal["published_2d", "lesion_3d", "voxel_3d"] = Field(
        default="lesion_3d", description="whose burdens go into the subject table"
    )
    source: Label | None = Field(default=None, description="whose burdens go into the subject table; null: the first")


class Segmentation(Settings):
    """A network that learns ventricles and lesions from one source's masks, and is itself a source of masks.

    Folds of people: each person's masks come from a network that never saw them, a new person's from all networks.
    MS-DeepBrain-Study has widths 64 to 1024 without norm, slices normalised by themselves, cross-entropy, Adam with
    1e-4; batch, epochs, plateau and stop are as here.
    """

    learn_from: Label = Field(description="one of lesions.sources")
    name: Label = Field(default="network", description="of the source that the networks' masks become")
    dims: Literal[2, 3] = Field(default=2, description="slices, or blocks of several slices")
    widths: list[int] = Field(default=[16, 32, 64, 128], description="channels per level, from the full grid down")
    norm: Literal["none", "instance"] = "instance"
    gates: bool = Field(default=True, description="attention gates; false: a plain U-Net")
    dropout_scale: float = Field(default=1.0, ge=0, le=3, description="factor on the published dropout")
    size: Shape | None = Field(
        default=None, description="of the training's boxes, voxels; null: whole slices. 3D needs one"
    )
    normalisation: Literal["slice", "volume"] = Field(default="volume", description="mean and SD of a slice or a brain")
    loss: Literal["cross_entropy", "dice", "dice_ce", "focal", "tversky", "unified_focal"] = "dice_ce"
    loss_options: dict[str, float] = {}
    class_weights: tuple[float, float, float] | None = Field(
        default=None, description="background, ventricles, lesions"
    )
    validate_with: Literal["next_fold", "none"] = Field(
        default="next_fold", description="who chooses the epoch; none: the training's own loss does"
    )
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    lowest_rate: float = Field(default=1e-7, gt=0)
    plateau: int = Field(default=10, ge=1, description="epochs without a lower loss before the rate is halved")
    stop_after: int = Field(default=15, ge=1, description="epochs without a lower loss before training ends")
    foreground_share: float | None = Field(
        default=0.5, ge=0, le=1, description="of boxes drawn where a label is; null: every slice once per epoch"
    )
    per_epoch: int | None = Field(default=None, ge=1, description="boxes per epoch; null: as many as slices with brain")
    augmentation: Augmentation = Augmentation()
    intensity_scale: float = Field(default=0.0, ge=0, lt=1)
    intensity_shift: float = Field(default=0.0, ge=0)
    flips: bool = Field(default=True, description="probabilities are the mean over the scan and its mirror image")
    overlap: float = Field(default=0.5, ge=0, lt=1, description="of a 3D network's windows")
    postprocessing: Literal["millimetres", "published", "published_inference"] = Field(
        default="millimetres", description="or slice by slice: 5 pixels and a disk of 2, or of 1 for lesions only"
    )
    opening_mm: dict[Tissue, float] = Field(default={}, description="radius of the ball that opens a class")
    minimum_mm3: dict[Tissue, float] = Field(default={}, description="smaller pieces of a class are removed")
    seed: int = 0

    @model_validator(mode="after")
    def _makes_a_network(self) -> Segmentation:
        if len(self.widths) < 2 or any(width < 2 or width % 2 for width in self.widths):
            raise ValueError(f"segmentation.widths {self.widths}: at least two levels, each of an even number")
        unknown = sorted(set(self.loss_options) - set(LOSS_OPTIONS[self.loss]))
        if unknown:
            known = ", ".join(LOSS_OPTIONS[self.loss]) or "none"
            raise ValueError(f"segmentation.loss_options: {self.loss} has no {unknown[0]!r}; it has {known}")
        if self.postprocessing != "millimetres" and (self.opening_mm or self.minimum_mm3):
            raise ValueError("segmentation: opening_mm and minimum_mm3 belong to postprocessing: millimetres")
        return self

    @model_validator(mode="after")
    def _size_of_dims(self) -> Segmentation:
        if self.dims == 3 and (self.size is None or self.size[2] < 2 or self.foreground_share is None):
            raise ValueError("segmentation: dims 3 needs size, of several slices, and foreground_share")
        if self.dims == 2 and self.size is not None and self.size[2] != 1:
            raise ValueError(f"segmentation.size: a 2D network takes slices, (x, y, 1), not {self.size}")
        return self

    def applied(self) -> dict[str, Any]:
        """What decides over masks beside the trained networks."""
        return self.model_dump(mode="json", include=APPLIED)

    def trained(self) -> dict[str, Any]:
        """What decides over the networks."""
        return self.model_dump(mode="json", exclude={"name", *self.applied()})
