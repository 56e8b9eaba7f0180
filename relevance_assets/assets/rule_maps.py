"""Maps of one slice by many cells and other methods, from the trained network or one that learnt nothing.

Belongs here: opening the network for the grid of rules, and the other methods on it. Does not belong here: scores, what
is kept (`rule_grid.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from relevance_assets.assets.class_models import FOLD
from relevance_assets.assets.workspace import Workspace
from relevance_assets.study.slices import MAIN_REGION

if TYPE_CHECKING:
    import numpy as np
    import torch

    from relevance_assets.relevance.composites import Composite
    from relevance_assets.relevance.rule_grid import RuleGrid

__all__ = ["GRID", "Cell", "CellMaps", "OneMap", "map_name", "measure_name"]

GRID = "lrp_grid"
LRP_0 = "lrp_0"  # no method of its own: a composite beside those of the cells
_COSTS: dict[tuple[str, tuple[Any, ...], tuple[str, ...]], dict[str, float]] = {}  # counted once in a process
ACCOUNT = ("start", "total", "bias", "stabiliser", "dead", "clamped", "unexplained", "worst_share")


class Cell(NamedTuple):
    """A cell of the grid, or of another region (`RuleGrid.regions`)."""

    region: str
    gamma: float
    epsilon: float


@dataclass(frozen=True)
class OneMap:
    """A map, what made it, and its account (empty for methods that have none)."""

    method: str
    cell: Cell | None
    relevance: np.ndarray  # (x, y) float32
    account: dict[str, float]
    sound: bool

    def key(self) -> dict[str, Any]:
        return {
            "map": map_name(self.method, *(self.cell or (None, None, None))),
            "method": self.method,
            **dict.fromkeys(Cell._fields),
            **(self.cell._asdict() if self.cell else {}),
        }

    def numbers(self) -> dict[str, Any]:
        return {name: self.account.get(name) for name in ACCOUNT} | {"sound": self.sound}


def map_name(method: str, region: str | None, gamma: float | None, epsilon: float | None) -> str:
    """The key of a map in tables: its cell, its method, or both."""
    if gamma is None:
        return method
    cell = f"gamma {gamma:g}, epsilon {epsilon:g}" + (f" ({region})" if region != MAIN_REGION else "")
    return cell if method == GRID else f"{method} at {cell}"


def measure_name() -> pl.Expr:
    """A score's name with its quantile: the key of a row."""
    at = pl.concat_str("score", pl.lit(" at "), pl.col("quantile").round(4).cast(pl.String))
    return pl.when(pl.col("quantile").is_null()).then("score").otherwise(at)


class CellMaps:
    """The network made ready for the grid; opened once for any number of slices.

    Parameters
    ----------
    cells
        All of the study's where None.
    references
        Other methods; the study's where None.
    seed
        The same network with weights as drawn; None: the trained one.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        cells: Sequence[Cell] | None = None,
        references: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> None:
        settings = workspace.study.rule_grid
        assert settings is not None
        self.workspace, self.settings, self.seed = workspace, settings, seed
        self.references = settings.references if references is None else references
        every = [Cell(name, *pair) for name, region in settings.regions.items() for pair in region.pairs]
        self.cells = every if cells is None else list(cells)

    def image(self, scan: str) -> np.ndarray:
        """(3, x, y): the slice in all three colours."""
        import numpy as np

        from relevance_assets.imaging.volumes import load_volume

        values = load_volume(self.workspace.prepared_paths(scan)[0])[0][..., 0]
        return np.repeat(values[None].astype(np.float32), 3, axis=0)

    def truth(self, scan: str) -> np.ndarray:
        """(x, y) bool."""
        from relevance_assets.imaging.volumes import load_volume

        inside: np.ndarray = load_volume(self.workspace.tumour_path(scan))[0][..., 0] > 0
        return inside

    def __call__(self, image: np.ndarray, target: int) -> Iterator[OneMap]:
        """All maps of one slice for one class: cells in the order of the grid, then the other methods."""
        found = {one.cell: one for one in self.grid(image, (target,))}

        def own(cell: Cell | str) -> tuple[np.ndarray, dict[str, float], bool]:
            one = found[cell]
            return one.relevance, {name: getattr(one.account, name) for name in ACCOUNT}, one.account.sound()

        for cell in self.cells:
            yield OneMap(GRID, cell, *own(cell))
        for name in self.references:
            if name == LRP_0:
                yield OneMap(name, None, *own(name))
            else:
                yield OneMap(name, None, self._reference(name, image, target), {}, True)

    def costs(self, image: np.ndarray, target: int) -> dict[str, float]:
        """What a map of each method costs, in forward passes of the network by floating point operations.

        The same for all slices, since they have one size; a cell's is its share of all maps of a slice.
        """
        from relevance_assets.relevance.cost import flops
        from relevance_assets.relevance.rule_grid import cost

        key = (self.workspace.study.model_dump_json(), tuple(self.cells), tuple(self.references))
        if key not in _COSTS:
            grid = cost(self.grid, image, (target,))
            _COSTS[key] = dict.fromkeys((GRID, LRP_0), grid["forwards_per_map"]) | {
                name: flops(lambda name=name: self._reference(name, image, target)) / grid["flops_of_forward"]
                for name in self.references
                if name != LRP_0
            }
        return _COSTS[key]

    def scored(self, image: np.ndarray, target: int, truth: np.ndarray) -> tuple[list[OneMap], pl.DataFrame]:
        """All maps of one slice for one class, and their scores with their keys; of a map that does not add up none."""
        from relevance_assets.evidence.mask_scores import score_maps

        found = list(self(image, target))
        scores = score_maps([one.relevance for one in found], truth, quantiles=self.settings.quantiles, auc=False)
        keys = pl.DataFrame([{"place": place, "sound": one.sound} | one.key() for place, one in enumerate(found)])
        known = (pl.when("sound").then(name).alias(name) for name in ("value", "normalised"))
        return found, scores.rename({"map": "place"}).join(keys, on="place").with_columns(known).drop("place", "sound")

    @cached_property
    def network(self) -> torch.nn.Module:
        """(1, 3, x, y) to logits."""
        import torch
        from torch import nn

        from relevance_assets.models.vgg16 import VGG16
        from relevance_assets.training import checkpoint

        path = self.workspace.home.model(self.workspace.study.name, int(FOLD)) / "model.pt"
        if self.seed is None:
            found = checkpoint.load(path)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                found = checkpoint.describe(path).build(weights=None).eval()
        if not isinstance(found, VGG16):
            raise ValueError(f"rule_grid: explains a vgg16, not {self.workspace.study.network.name}")
        return nn.Sequential(found.features, found.avgpool, found.flatten, found.classifier)

    @cached_property
    def grid(self) -> RuleGrid:
        from relevance_assets.precision import has_gpu
        from relevance_assets.relevance.rule_grid import RuleGrid
        from relevance_assets.relevance.vgg_rules import composite, lrp_0

        settings, regions = self.settings, self.settings.regions
        assert self.workspace.study.slices is not None
        composites: dict[Cell | str, Composite] = {
            cell: composite(
                settings.variant,
                cell.gamma,
                cell.epsilon,
                boxes=settings.boxes,
                signed=regions[cell.region].signed,
                relative=regions[cell.region].relative,
            )
            for cell in self.cells
        }
        if LRP_0 in self.references:
            composites[LRP_0] = lrp_0()
        shape = (3, *self.workspace.study.slices.size)
        return RuleGrid(self.network, shape, composites, device="cuda" if has_gpu() else "cpu")

    def _reference(self, name: str, image: np.ndarray, target: int) -> np.ndarray:
        """Another method's map, summed over the colours."""
        import numpy as np
        import torch

        from relevance_assets.relevance.baselines import BASELINES

        method, device = BASELINES[name], self.grid.explainer.device
        features, *rest = self.network.to(device).children()
        *convolutions, pool = features.children()  # Grad-CAM's features are those before the last pool

        def value(inputs: tuple[torch.Tensor, ...]) -> Any:
            seen = inputs[0].view_as(inputs[0])  # no leaf: costs are counted, see `relevance.cost`
            for part in convolutions:
                seen = part(seen)
            output = seen
            for part in (pool, *rest):
                output = part(output)
            return (output[:, target], seen) if method.needs == "features" else output[:, target]

        (found,) = method(value, (torch.from_numpy(image)[None].to(device),))
        relevance: np.ndarray = found[0].sum(0).detach().cpu().numpy().astype(np.float32)
        return relevance
