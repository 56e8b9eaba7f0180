"""One study, described by types: what a `defs.yaml` may say, and nothing else.

Belongs here: every setting that a user may write, its default, and the checks that need no data.
Does not belong here: anything that computes, reads a file or imports more than pydantic.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from relevance_assets.study.base import Label, Name, Percent, Settings, Shape, Share, Tissue
from relevance_assets.study.cohort import Cohort, Contrast, Covariate, Scale, Target
from relevance_assets.study.evidence import (
    Automation,
    HeatMap,
    Inversion,
    Masks,
    Method,
    Sanity,
    Scenario,
    Statistics,
    Use,
)
from relevance_assets.study.lesions import Changes, Lesions, MaskSource, Segmentation, Zones
from relevance_assets.study.preparation import (
    STEPS,
    BiasField,
    BrainMask,
    Coregister,
    CropOrPad,
    Denoise,
    Halfway,
    Limits,
    Quality,
    Register,
    Remove,
    Reorient,
    Resample,
    ScaleStep,
    Step,
)
from relevance_assets.study.slices import RuleGrid, Slices, SliceSplit
from relevance_assets.study.training import Augmentation, Model, Phase, Split, Training

__all__ = [
    "Augmentation",
    "Automation",
    "BiasField",
    "BrainMask",
    "Changes",
    "Cohort",
    "Contrast",
    "Coregister",
    "Covariate",
    "CropOrPad",
    "Denoise",
    "Halfway",
    "HeatMap",
    "Inversion",
    "Label",
    "Lesions",
    "Limits",
    "MaskSource",
    "Masks",
    "Method",
    "Model",
    "Name",
    "Percent",
    "Phase",
    "Quality",
    "Register",
    "Remove",
    "Reorient",
    "Resample",
    "RuleGrid",
    "STEPS",
    "Sanity",
    "Scale",
    "ScaleStep",
    "Scenario",
    "Segmentation",
    "Settings",
    "Shape",
    "Share",
    "SliceSplit",
    "Slices",
    "Split",
    "Statistics",
    "Step",
    "Study",
    "Target",
    "Tissue",
    "Training",
    "Use",
    "Zones",
]


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
    slices: Slices | None = None
    rule_grid: RuleGrid | None = None
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
        if self.slices:
            self._check_slices()
            return self
        self._check_parts()
        self._check_evidence()
        self._check_preparation()
        return self

    def _check_slices(self) -> None:
        """Raise ValueError where a study of slices lacks its model, or asks for what only scans have."""
        if self.model is None or self.cohort.target is None or self.cohort.target.kind != "classes":
            raise ValueError("slices: a study of slices needs model and cohort.target of kind classes")
        if len(self.contrasts) != 1:
            raise ValueError("slices: a slice is one picture, so one contrast")
        given: dict[str, object] = {"methods": self.methods, "preparation": self.preparation, "lesions": self.lesions}
        given |= {name: getattr(self, name) for name in ("segmentation", "inversion", "heat_map", "sanity")}
        given |= {"split (slices.split is)": self.split != Split()}
        given |= {"cohort.bids": self.cohort.bids, "cohort.subjects": self.cohort.subjects}
        given |= {"cohort.covariates": self.cohort.covariates}
        for name, value in given.items():
            if value:
                raise ValueError(f"{name}: not for a study of slices; leave it out")

    def _check_parts(self) -> None:
        """Raise ValueError where a model lacks what it needs, or there is nothing to do."""
        if self.rule_grid:
            raise ValueError("rule_grid: only of a study with slices")
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
