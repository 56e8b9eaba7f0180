"""Settings of relevance maps, of what is asked of them, of statistics, and of what happens by itself.

Belongs here: methods, masks, inversion, heat maps, sanity tests, statistics, automation. Does not belong here: lesions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from relevance_assets.study.base import Name, Percent, Settings, Share, need_both

__all__ = ["Automation", "HeatMap", "Inversion", "Masks", "Method", "Sanity", "Scenario", "Statistics", "Use"]

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
        need_both(self.atlas, self.atlas_names, "heat_map")
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
