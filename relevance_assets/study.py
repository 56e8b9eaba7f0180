"""One study, described by types: what a `defs.yaml` may say, and nothing else.

Belongs here: every setting that a user may write, its default, and the checks that need no data.
Does not belong here: anything that computes, reads a file or imports more than pydantic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Percent = Annotated[int, Field(gt=0, le=100)]
Shape = tuple[int, int, int]
Tissue = Literal["ventricle", "wmh"]


class Settings(BaseModel):
    """Base of every block of settings: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _need_both(atlas: Path | None, names: Path | None, block: str) -> None:
    if (atlas is None) != (names is None):
        absent = "atlas" if atlas is None else "atlas_names"
        raise ValueError(f"{block}.{absent}: an atlas needs both atlas (dseg.nii.gz) and atlas_names (dseg.tsv)")


# --------------------------------------------------------------------------------------- images and people
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

    `binary`: 1 where the value is >= threshold. `regression`: the value itself.
    """

    column: str
    kind: Literal["binary", "regression"]
    threshold: float | None = None
    unit: str = ""

    @model_validator(mode="after")
    def _threshold_given(self) -> Target:
        if (self.kind == "binary") != (self.threshold is not None):
            raise ValueError("target: a binary target needs a threshold, a regression target has none")
        return self


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


# ------------------------------------------------------------------------------------------- preparation
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
        _need_both(self.atlas, self.atlas_names, "remove")
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


# --------------------------------------------------------------------------------------- model and training
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


# ---------------------------------------------------------------------------------- relevance and evidence
Use = Literal["individual", "combined"]


class Method(Settings):
    """One way to explain: where relevance starts, which composite, which rule for gated products.

    `composite` is a name (docs/relevance.md) or rules as data. With `mask`, voxels outside the brain have no part in
    the rules of the first convolutions. `combined`: also the weighted sum of the contrasts' maps. `native`: maps also
    on the raw image's grid. `template`: maps also in MNI152NLin2009aSym, their sums kept. `scenarios`: the number under
    which a publication has the maps, used one by one or combined.
    """

    start: Literal["output", "attention"] = "output"
    composite: Name | list[dict[str, Any]] | dict[str, Any]
    product: Literal["proposed", "all", "half", "abs"] = "proposed"
    mask: bool = True
    combined: bool = True
    native: bool = True
    template: bool = False
    scenarios: dict[Use, int] = {}

    def decisive(self) -> dict[str, Any]:
        """What the maps depend on."""
        return self.model_dump(mode="json", exclude={"scenarios"})

    def grids(self) -> list[Literal["prepared", "native", "template"]]:
        """On which grids there are maps."""
        asked: dict[Literal["prepared", "native", "template"], bool] = {
            "prepared": True,
            "native": self.native,
            "template": self.template,
        }
        return [grid for grid, wanted in asked.items() if wanted]


class Masks(Settings):
    """Top N % of a map's positive voxels in the brain; `negative`: also of its negative ones."""

    negative: bool = False
    top_percents: list[Percent] = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


class Scenario(Settings):
    """A method's maps, one by one (each contrast's map masks that contrast) or combined."""

    method: Name
    map: Use = "combined"


class Inversion(Settings):
    """What the models lose when the most relevant voxels are inverted, q <- 1 - q, beside controls."""

    reference: Scenario
    top_percents: list[Percent] = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    random_draws: int = Field(default=20, ge=1, description="random masks of the reference's sizes")
    seed: int = 0


class HeatMap(Settings):
    """How often a voxel is among the most relevant, by group, in template space."""

    method: Name
    map: Literal["combined"] | Name = "combined"
    top_percent: Percent = 40
    voxel_size_mm: int = Field(default=2, ge=1, description="of the template's grid that maps are shown on")
    test_voxel_size_mm: int = Field(default=6, ge=1, description="of the grid on which groups are compared")
    permutations: int = Field(default=1_000, ge=1)
    tfce: bool = Field(default=False, description="threshold-free cluster enhancement: a hundred times slower")
    atlas: Path | None = Field(default=None, description="a dseg.nii.gz in template space; null: approximate regions")
    atlas_names: Path | None = Field(default=None, description="its dseg.tsv (index, name)")
    seed: int = 0

    @model_validator(mode="after")
    def _atlas_with_names(self) -> HeatMap:
        _need_both(self.atlas, self.atlas_names, "heat_map")
        return self


class Sanity(Settings):
    """Tests that an explanation must pass before anybody believes it."""

    methods: list[Name] = Field(min_length=1)
    scans: int = Field(default=8, ge=2, description="scans whose maps are compared after weights are re-drawn")
    seeds: int = Field(default=2, ge=2, description="how often weights are re-drawn")
    stages: int | None = Field(default=None, ge=2, description="groups of layers in the cascade; null: every depth")
    training_scans: int = Field(default=60, ge=8, description="scans that the two extra networks learn from")
    epochs: int = Field(default=3, ge=1, description="of one round of training of the two extra networks")
    rounds: int = Field(default=6, ge=1, description="at most; an extra network that has learnt its labels stops")
    seed: int = 0


class Statistics(Settings):
    """What is drawn at random, how often, and how sure an interval is."""

    permutations: int = Field(default=20_000, ge=1)
    bootstrap: int = Field(default=2_000, ge=100)
    confidence: Share = 0.95
    seed: int = 0
    correlate_with: str | None = Field(default=None, description="column for the correlation of mask means")
    adjust_for: list[str] = Field(
        default=[], description="columns, or truth regions (their volume), that a partial correlation holds fixed"
    )
    ridge_voxel_size_mm: float | None = Field(default=None, gt=0, description="ridge baseline's voxel size")


class Automation(Settings):
    """What happens by itself while the service runs (docs/operating.md). Times are cron's, in UTC."""

    quiet_seconds: float = Field(default=60, ge=0, description="a scan is new once its files are unchanged so long")
    train_from_scans: int = Field(default=1, ge=1, description="prepared scans that the first training waits for")
    statistics: str = Field(default="0 2 * * *", description="when statistics and the database are brought up to date")
    retraining: str = Field(default="0 3 * * 0", description="when all is divided and trained anew; off unless started")


# ----------------------------------------------------------------------------------------------------- lesions
class MaskSource(Settings):
    """Masks made elsewhere (by hand, LST-AI, SAMSEG), on the grid of the study's first contrast; voxels > 0 count.

    Paths below the BIDS folder; `{folder}` is sub-<label>[/ses-<label>] and `{scan}` sub-<label>[_ses-<label>].
    """

    lesions: str
    ventricles: str
    cortex: str | None = Field(default=None, description="cortex, or CSF around it; null: what is outside the brain")

    @field_validator("lesions", "ventricles", "cortex")
    @classmethod
    def _names_the_scan(cls, given: str | None) -> str | None:
        if given is None:
            return None
        try:
            one, other = (given.format(folder=scan, scan=scan) for scan in ("sub-1", "sub-2"))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{given}: only {{folder}} and {{scan}} may stand in braces") from error
        if one == other:
            raise ValueError(f"{given}: has no {{scan}}, so every scan would have the same file")
        if Path(given).is_absolute() or ".." in Path(given).parts:
            raise ValueError(f"{given}: leads out of the BIDS folder; keep the masks in its derivatives")
        return given


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
    opening_mm: dict[Tissue, float] = Field(default={}, description="radius of the ball that opens a class")
    minimum_mm3: dict[Tissue, float] = Field(default={}, description="smaller pieces of a class are removed")
    seed: int = 0

    @model_validator(mode="after")
    def _size_of_dims(self) -> Segmentation:
        if self.dims == 3 and (self.size is None or self.size[2] < 2 or self.foreground_share is None):
            raise ValueError("segmentation: dims 3 needs size, of several slices, and foreground_share")
        if self.dims == 2 and self.size is not None and self.size[2] != 1:
            raise ValueError(f"segmentation.size: a 2D network takes slices, (x, y, 1), not {self.size}")
        return self

    def applied(self) -> dict[str, Any]:
        """What decides over masks beside the trained networks."""
        return self.model_dump(mode="json", include={"flips", "overlap", "opening_mm", "minimum_mm3"})

    def trained(self) -> dict[str, Any]:
        """What decides over the networks."""
        return self.model_dump(mode="json", exclude={"name", *self.applied()})


class Study(Settings):
    """One study: images -> prepared volumes -> models -> maps -> evidence -> statistics.

    A study with `lesions` may do without target, model and methods.
    """

    name: Name
    title: str
    question: str
    citation: str
    owners: list[str] = ["team:relevance"]
    contrasts: list[Contrast] = Field(min_length=1)
    cohort: Cohort
    preparation: list[Step]
    quality: Quality = Quality()
    split: Split = Split()
    model: Model | None = None
    training: Training = Training()
    methods: dict[Name, Method] = {}
    masks: Masks = Masks()
    inversion: Inversion | None = None
    heat_map: HeatMap | None = None
    sanity: Sanity | None = None
    lesions: Lesions | None = None
    segmentation: Segmentation | None = None
    statistics: Statistics = Statistics()
    automation: Automation = Automation()

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        names = [contrast.name for contrast in self.contrasts]
        if len(set(names)) != len(names) or "combined" in names:
            raise ValueError("contrasts: names must differ from each other and from 'combined'")
        files = [(contrast.suffix, tuple(sorted(contrast.entities.items()))) for contrast in self.contrasts]
        if len(set(files)) != len(files):
            raise ValueError("contrasts: two of them name the same image (suffix and entities)")
        labels = [name.replace("_", "").lower() for name in self.methods]
        if len(set(labels)) != len(labels):
            raise ValueError(
                "methods: names must differ by more than underscores and capitals (they become BIDS labels)"
            )
        self._check_parts()
        self._check_evidence()
        self._check_preparation()
        return self

    def _check_parts(self) -> None:
        """Raise ValueError where a model lacks what it needs, or there is nothing to do."""
        parts = {"model": self.model, "cohort.target": self.cohort.target, "methods": self.methods}
        absent = [name for name, part in parts.items() if not part]
        if absent and (len(absent) < len(parts) or not self.lesions):
            raise ValueError(f"{absent[0]}: needed; model, cohort.target and methods go together")
        if self.lesions and self.statistics.correlate_with:
            raise ValueError("lesions: not together with statistics.correlate_with; describe two studies")
        if self.cohort.subjects and (self.model or not self.lesions):
            raise ValueError("cohort.subjects: only of a study with lesions and without a model")
        self._check_sources()

    def _check_sources(self) -> None:
        """Raise ValueError where masks are asked for that no source has."""
        given = list(self.lesions.sources) if self.lesions else []
        known = [*given, *([self.segmentation.name] if self.segmentation else [])]
        if self.segmentation and (self.model or not self.lesions):
            raise ValueError("segmentation: only of a study with lesions and without a model")
        if self.segmentation and self.segmentation.learn_from not in given:
            raise ValueError(
                f"segmentation.learn_from: no source {self.segmentation.learn_from!r}; there are {', '.join(given)}"
            )
        if len(set(known)) != len(known):
            raise ValueError(f"segmentation.name: {known[-1]} is one of lesions.sources; choose another")
        if self.lesions and self.lesions.source is not None and self.lesions.source not in known:
            raise ValueError(f"lesions.source: no source {self.lesions.source!r}; there are {', '.join(known)}")

    def _check_evidence(self) -> None:
        """Raise ValueError where evidence is asked for that the methods do not give."""
        named: list[tuple[str, str, str]] = []  # setting, method, map
        if self.inversion:
            named.append(("inversion.reference", self.inversion.reference.method, self.inversion.reference.map))
        if self.heat_map:
            named.append(("heat_map", self.heat_map.method, self.heat_map.map))
            if self.heat_map.top_percent not in self.masks.top_percents:
                raise ValueError(f"heat_map.top_percent: {self.heat_map.top_percent} is not among masks.top_percents")
            maps = [*(contrast.name for contrast in self.contrasts), "combined"]
            if self.heat_map.map not in maps:
                raise ValueError(f"heat_map.map: no map {self.heat_map.map!r}; there are {', '.join(maps)}")
        named += [("sanity.methods", method, "individual") for method in (self.sanity.methods if self.sanity else [])]
        for setting, method, use in named:
            if method not in self.methods:
                raise ValueError(f"{setting}: no method {method!r}; there are {', '.join(self.methods)}")
            if use == "combined" and not self.has_combined(method):
                raise ValueError(f"{setting}: method {method!r} has no combined map")
        binary = self.cohort.target is not None and self.cohort.target.kind == "binary"
        for block in ("inversion", "heat_map", "sanity"):
            if getattr(self, block) and not binary:
                raise ValueError(f"{block}: compares two classes, and the target is no class; leave it out")

    def _check_preparation(self) -> None:
        """Raise ValueError where the recipe's steps do not fit each other or the contrasts."""
        by_name = {step.step: step for step in self.preparation}
        if [step.step for step in self.preparation] != [name for name in STEPS if name in by_name]:
            raise ValueError(f"preparation: each step at most once, in the order {', '.join(STEPS)}")
        if "brain_mask" not in by_name or "scale" not in by_name:
            raise ValueError("preparation: the steps brain_mask and scale are needed")
        names = [contrast.name for contrast in self.contrasts]
        for step in self.preparation:
            given = [
                *getattr(step, "contrasts", []),
                *(getattr(step, k, None) for k in ("reference", "contrast", "like")),
            ]
            unknown = [name for name in given if name is not None and name not in names]
            if unknown:
                raise ValueError(f"preparation, {step.step}: no contrast {unknown[0]!r}; there are {', '.join(names)}")
        resample, crop = by_name.get("resample"), by_name.get("crop_or_pad")
        in_template = isinstance(resample, Resample) and resample.space == "template"
        if "register" not in by_name and ("remove" in by_name or in_template):
            raise ValueError("preparation: the template's regions and space need the step register")
        halfway, coregister = by_name.get("halfway"), by_name.get("coregister")
        if isinstance(halfway, Halfway) and isinstance(coregister, Coregister):
            compared, reference = halfway.contrast or names[0], coregister.reference or names[0]
            if compared != reference:
                raise ValueError(
                    f"preparation, halfway: compares visits by {compared}, but coregister brings them to {reference}; "
                    f"write contrast: {reference}"
                )
        if "halfway" in by_name and (resample is None or (isinstance(crop, CropOrPad) and crop.centre == "brain")):
            raise ValueError(
                "preparation: halfway puts all visits on one grid: it needs resample, and crop_or_pad with centre: grid"
            )

    def has_combined(self, method: str) -> bool:
        """Whether a method's maps are also summed over contrasts."""
        return self.methods[method].combined and len(self.contrasts) > 1

    @property
    def target(self) -> Target:
        """What the model learns; of studies with a model."""
        if self.cohort.target is None:
            raise ValueError(f"{self.name} has no cohort.target")
        return self.cohort.target

    @property
    def network(self) -> Model:
        """The model; of studies that have one."""
        if self.model is None:
            raise ValueError(f"{self.name} has no model")
        return self.model

    @property
    def shape(self) -> Shape | None:
        """The prepared grid's shape, where the recipe fixes it."""
        return next((s.shape for s in self.preparation if isinstance(s, CropOrPad)), None)
