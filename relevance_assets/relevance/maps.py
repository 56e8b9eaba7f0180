"""A scan's explanation by a method of a study: its maps as arrays, and the numbers that describe them.

Belongs here: how a study's method asks the engine; functions of maps. Does not belong here: how relevance moves
(`engine.py`), masks, files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from relevance_assets.relevance.composites import Assignment, Composite, Plain, composite_of
from relevance_assets.relevance.engine import Explainer
from relevance_assets.relevance.explanation import Explanation, Inner
from relevance_assets.relevance.gradients import Gradients
from relevance_assets.relevance.ledger import COLUMNS, LOSSES, Ledger
from relevance_assets.relevance.others import is_baseline
from relevance_assets.study import Method

__all__ = ["ScanExplainer", "ScanMaps", "Scenarios", "account", "combined_map", "mean_maps", "summary"]

ATTENTION = "softmax"  # the operation that makes attention weights

Array = NDArray[np.floating]
Exact = NDArray[np.float64]


def combined_map(maps: Array, images: Array) -> NDArray[np.float64]:
    """sum_l R_l * q_l, signed (Lu et al. 2023, equation 8); 0 wherever all contrasts are 0.

    Parameters
    ----------
    maps, images : (C, X, Y, Z)
        Relevance, and the scaled images it explains.

    Raises
    ------
    ValueError
        If their shapes differ.
    """
    if maps.shape != images.shape or maps.ndim != 4:
        raise ValueError(f"maps {maps.shape} and images {images.shape} must both be (contrast, x, y, z)")
    return np.einsum("cxyz,cxyz->xyz", maps.astype(np.float64), images.astype(np.float64))


def summary(relevance: Array, brain: NDArray[np.bool_]) -> dict[str, float | None]:
    """What table `relevance_maps` says of one map beside its account.

    Parameters
    ----------
    relevance, brain : (X, Y, Z)
        One map and the brain's voxels.

    Returns
    -------
    dict
        `total`, the map's sum; `share_outside_brain`, of the positive relevance; `share_positive`, of the absolute
        relevance. Shares are None where there is nothing to share.

    Raises
    ------
    ValueError
        If shapes differ or the map is not finite.
    """
    if relevance.shape != brain.shape:
        raise ValueError(f"map {relevance.shape} and brain mask {brain.shape} differ in shape")
    if not np.isfinite(relevance).all():
        raise ValueError("relevance map holds NaN or infinite values")
    relevance = relevance.astype(np.float64)
    positive = np.clip(relevance, 0, None)
    gained, size = float(positive.sum()), float(np.abs(relevance).sum())
    return {
        "total": float(relevance.sum()),
        "share_outside_brain": float(positive[~brain].sum()) / gained if gained else None,
        "share_positive": gained / size if size else None,
    }


@dataclass(frozen=True)
class ScanMaps:
    """Relevance of one scan.

    By rules: with start = attention, `start[l] == maps[l].sum() + lost[l]` for each contrast; with start = output,
    `start[0] == maps.sum() + covariates.sum() + lost[0]`; both to rounding.

    Without rules there is no such proof: `start` and `lost` are (1,) NaN and the ledger is empty. Only integrated
    gradients of the output have a sum to compare with: `start` is f(x) - f(0), and `lost` what the steps miss of it.

    Attributes
    ----------
    maps : (C, X, Y, Z)
        Signed relevance of every voxel.
    start : (C,) or (1,)
        Relevance put in, per path: attention weights, or f(x).
    covariates : (P,)
        Relevance of the covariates.
    lost : like `start`
        Relevance that rules did not hand on: taken by biases, stabilisers, units without contributions, clamping.
    ledger
        One row per operation: `layer`, `kind`, `rule`, and sums over all starts.
    """

    maps: NDArray[np.float64]
    start: NDArray[np.float64]
    covariates: NDArray[np.float64]
    lost: NDArray[np.float64]
    ledger: pl.DataFrame

    @property
    def amplification(self) -> NDArray[np.float64]:
        """(C,): sum of |R| over voxels per relevance put in; far above 1 where signs cancel."""
        start = np.abs(self.start) if len(self.start) == len(self.maps) else np.abs(self.start).sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(self.maps).sum(axis=(1, 2, 3)) / start


class Scenarios:
    """A trained network and the methods of a study, ready for many scans; what methods have in common is done once.

    All methods with rules share one forward pass, and the pass backwards wherever their rules are the same. Saliency
    and integrated gradients share every place at which a gradient is taken (`gradients.py`).

    Parameters
    ----------
    model
        A network of `relevance_assets.models`: images (B, C, X, Y, Z) and covariates (B, P) to (B,).
    methods
        By name. Each: start, composite, product rule, and whether the brain mask has a part.
    dtype
        Of rules: float64 unless speed matters more: an epsilon of 1e-8 vanishes beside float32 numbers.
    gradients
        Type of saliency and integrated gradients; float32 is faster and less exact, see `Gradients`.
    device
        Of all copies of the network.

    Raises
    ------
    ValueError
        For an unknown composite, or start = attention without attention.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Mapping[str, Method],
        *,
        dtype: torch.dtype = torch.float64,
        gradients: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> None:
        self.methods = dict(methods)
        self.composites: dict[str, Any] = {}
        attends = getattr(model, "attention", None) is not None
        for name, method in self.methods.items():
            if method.start == "attention" and not attends:
                raise ValueError(
                    f"method start 'attention' needs a network with attention, and {type(model).__name__} has none; "
                    "use start: output"
                )
            composite: Any = method.composite
            if not is_baseline(composite):
                composite = with_product(composite_of(composite), method.product)
            self.composites[name] = composite
        self.steps = {name: steps for name, one in self.composites.items() if (steps := _steps(one)) is not None}
        self.explainer = Explainer(model, dtype=dtype, device=device)
        self.gradients = None
        if self.steps:
            attention = ATTENTION if attends else None
            self.gradients = Gradients(model, attention=attention, dtype=gradients, device=device)

    def __call__(
        self,
        images: ArrayLike,
        covariates: ArrayLike = (),
        brain: ArrayLike | None = None,
        only: Collection[str] | None = None,
    ) -> dict[str, ScanMaps]:
        """Explain one scan by every method.

        Parameters
        ----------
        images : (C, X, Y, Z)
            As the network saw them in training, without augmentation.
        covariates : (P,)
        brain : (X, Y, Z) bool
            Voxels that may have relevance, where the method has `mask`.
        only
            Names of methods, where not all are wanted.

        Raises
        ------
        ValueError
            For numbers that are not finite or outside the interval that a box rule assumes.
        """
        q = torch.as_tensor(np.asarray(images, dtype=np.float64)).unsqueeze(0)
        p = torch.as_tensor(np.asarray(covariates, dtype=np.float64)).reshape(1, -1)
        if not torch.isfinite(q).all():
            raise ValueError("images hold NaN or infinite values; repair or leave out the scan")
        if not torch.isfinite(p).all():
            raise ValueError("covariates hold NaN or infinite values; correct the participants' table")
        mask = None if brain is None else torch.as_tensor(np.asarray(brain, dtype=bool))
        asked = [name for name in self.methods if only is None or name in only]
        steps = {name: self.steps[name] for name in asked if name in self.steps}
        found = self._by_gradients(steps, q, p) if steps else {}
        for masked in (True, False):
            names = [n for n in asked if n not in steps and self.methods[n].mask is masked]
            if names:
                found |= self._by_engine(names, q, p, mask if masked else None)
        return {name: found[name] for name in asked}

    def _by_engine(self, names: Sequence[str], q: Tensor, p: Tensor, mask: Tensor | None) -> dict[str, ScanMaps]:
        """Rules, and baselines that share nothing."""
        starts: dict[str, list[Any]] = {}
        for name in names:
            # one start per contrast, so that each map has an account of its own; an encoder that a start does not
            # reach costs nothing
            inner = [Inner(ATTENTION, index=contrast) for contrast in range(q.shape[1])]
            starts[name] = inner if self.methods[name].start == "attention" else [None]
        wanted = [(self.composites[name], start) for name in names for start in starts[name]]
        explained = iter(self.explainer.several((q, p), wanted, mask, together=True))
        result = {}
        for name in names:
            found = [next(explained) for _ in starts[name]]
            result[name] = _without_account(found) if is_baseline(self.composites[name]) else _accounted(found)
        return result

    def _by_gradients(self, steps: Mapping[str, int], q: Tensor, p: Tensor) -> dict[str, ScanMaps]:
        """Saliency (0 steps) is the gradient at the scan, where integrated gradients take their last."""
        assert self.gradients is not None
        found: dict[str, ScanMaps] = {}
        counts = sorted({count for count in steps.values() if count}) or [1]
        for count in counts:
            places = [(step + 1) / count for step in range(count)]  # the right ends of intervals
            names = [n for n, steps in steps.items() if steps == count or (not steps and count == counts[-1])]
            weights = {True: [1 / count] * count, False: [0.0] * (count - 1) + [1.0]}  # of the mean, of the last
            asked = [mean for mean in weights if any(bool(steps[name]) is mean for name in names)]
            starts = {self.methods[name].start for name in names}
            line = self.gradients(q, p, starts, places, [weights[mean] for mean in asked])
            for name in names:
                start = self.methods[name].start
                image, numbers = (_array(part) for part in line.sums[start][asked.index(bool(steps[name]))])
                if steps[name]:
                    change = line.output - line.reference if start == "output" else None
                    found[name] = _maps(image * q[0].numpy(), numbers * p[0].numpy(), change)
                else:
                    found[name] = _maps(np.abs(image), np.abs(numbers))
        return found


class ScanExplainer:
    """`Scenarios` of one method."""

    def __init__(self, model: nn.Module, method: Method, **options: Any) -> None:
        self.scenarios = Scenarios(model, {"only": method}, **options)

    def __call__(self, images: ArrayLike, covariates: ArrayLike = (), brain: ArrayLike | None = None) -> ScanMaps:
        """Explain one scan; see `Scenarios`."""
        return self.scenarios(images, covariates, brain)["only"]


def _steps(composite: Any) -> int | None:
    """Intervals of integrated gradients, 0 for saliency; None for what `Gradients` does not offer."""
    options = dict(composite) if isinstance(composite, Mapping) else {"method": composite}
    name = options.pop("method", None)
    if name == "saliency" and not options:
        return 0
    steps = options.pop("steps", 50)
    if name == "integrated_gradients" and not options and isinstance(steps, int) and steps > 0:
        return steps  # anything else the baseline itself takes, or refuses
    return None


def _accounted(found: Sequence[Explanation]) -> ScanMaps:
    """Relevance by rules, of one start per contrast or of one for all."""
    frames = [explanation.ledger for explanation in found]
    return ScanMaps(
        maps=_array(torch.stack([e.relevance[0][0] for e in found]).sum(0)),
        start=np.array([float(e.start.sum()) for e in found]),
        covariates=_array(torch.stack([e.relevance[1][0] for e in found]).sum(0)),
        lost=np.array([frame.select(pl.sum_horizontal(LOSSES).sum()).item() for frame in frames]),
        ledger=_summed(frames),
    )


def _without_account(found: Sequence[Explanation]) -> ScanMaps:
    """A baseline's maps: of attention weights, each contrast's is what its own weight says of it."""
    if len(found) == 1:
        return _maps(_array(found[0].relevance[0][0]), _array(found[0].relevance[1][0]))
    maps = np.stack([_array(e.relevance[0][0, contrast]) for contrast, e in enumerate(found)])
    return _maps(maps, np.zeros(found[0].relevance[1].shape[1]))


def _maps(maps: Exact, covariates: Exact, change: float | None = None) -> ScanMaps:
    """Maps without rules; `change`: f(x) - f(0), which they add up to but for the steps of a sum."""
    start = np.array([np.nan if change is None else change])
    ledger = Ledger(1, 1).frames()[0]
    return ScanMaps(maps, start, covariates, np.array([np.nan]), _summed([ledger]))


def with_product(composite: Composite, rule: str) -> Composite:
    """The composite with this rule for gated products."""
    return replace(composite, layers=(Assignment(Plain(rule), kind="product"), *composite.layers))


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().to("cpu", torch.float64).numpy().copy()


def _summed(frames: Sequence[pl.DataFrame], factor: float = 1.0) -> pl.DataFrame:
    """Ledgers of one network, added up by operation."""
    numbers = [*COLUMNS, "unexplained"]
    both = pl.concat(frames)
    rows = both.group_by("layer", maintain_order=True)
    return rows.agg(pl.col("kind", "rule").first(), pl.col(numbers).sum() * factor)


def account(explanation: ScanMaps, index: int | None = None) -> dict[str, Any]:
    """What went in, what came out, what rules are known to have lost, and what nobody accounts for.

    Parameters
    ----------
    explanation
        Of one scan.
    index
        The contrast, where each has its own start (attention); None for the whole explanation.

    Returns
    -------
    dict
        `start`; `total`, over voxels (and covariates, for the whole); `difference` = start - total; `lost`, the
        itemised part of it; `unexplained` = difference - lost, zero to rounding. A method without rules has no account:
        `lost` and `unexplained` are None; integrated gradients of the output have a start, f(x) - f(0), from which
        their sum differs by the error of their steps.
    """
    if index is None:
        start, lost = float(explanation.start.sum()), float(explanation.lost.sum())
        total = float(explanation.maps.sum() + explanation.covariates.sum())
    else:
        start, lost = float(explanation.start[index]), float(explanation.lost[index])
        total = float(explanation.maps[index].sum())
    difference = start - total
    found = {
        "start": start,
        "total": total,
        "difference": difference,
        "lost": lost,
        "unexplained": difference - lost,
    }
    return {name: None if np.isnan(value) else value for name, value in found.items()}


def mean_maps(explanations: Sequence[ScanMaps]) -> ScanMaps:
    """The mean over models of one scan's explanations; the account holds for it as for each."""
    return ScanMaps(
        maps=np.mean([e.maps for e in explanations], axis=0),
        start=np.mean([e.start for e in explanations], axis=0),
        covariates=np.mean([e.covariates for e in explanations], axis=0),
        lost=np.mean([e.lost for e in explanations], axis=0),
        ledger=_summed([e.ledger for e in explanations], 1 / len(explanations)),
    )
