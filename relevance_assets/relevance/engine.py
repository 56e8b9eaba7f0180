"""From a trained network and one scan to a relevance map per contrast.

Belongs here: where relevance starts, the backward pass, and the account of what was lost on the way. Does not
belong here: rules, files, what is done with maps.

Two starts. `attention`: the attention weight a_l is put on the score e_l before the softmax (which relevance
passes unchanged), so each contrast's map explains its own weight and sums to it. `output`: f(x), the logit or
value, with its sign.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from relevance_assets.relevance.composites import COMPOSITES, build_composite
from relevance_assets.relevance.rules import Accounted, ThresholdPass
from relevance_assets.study import Method

__all__ = ["Explainer", "Explanation", "explain"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """Relevance of one scan.

    With start = attention, `start[l] == maps[l].sum() + lost[l]` for each contrast; with start = output,
    `start[0] == maps.sum() + covariates.sum() + lost[0]`; both to rounding.

    Attributes
    ----------
    maps : (C, X, Y, Z)
        Signed relevance of every voxel.
    start : (C,) or (1,)
        Relevance put in, per path: attention weights, or f(x).
    covariates : (P,)
        Relevance of the covariates.
    output
        f(x) of the network.
    attention : (C,) or None
        Attention weights, where the network has them.
    lost : like `start`
        Relevance that rules did not hand on: absorbed by biases and stabilisers, or sent to a unit without
        contributions.
    leaks
        The same per layer; a layer shared by the contrasts has one entry per contrast, `name[l]`.
    clamped
        Per threshold-ReLU, the share of absolute relevance that landed on units held at their threshold.
    """

    maps: Array
    start: Array
    covariates: Array
    output: float
    attention: Array | None
    lost: Array
    leaks: dict[str, float] = field(default_factory=dict)
    clamped: dict[str, float] = field(default_factory=dict)

    @property
    def amplification(self) -> Array:
        """(C,): sum of |R| over voxels per relevance put in; far above 1 where signs cancel."""
        start = np.abs(self.start) if len(self.start) == len(self.maps) else np.abs(self.start).sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(self.maps).sum(axis=(1, 2, 3)) / start


class Explainer:
    """A network made ready once, that explains many scans.

    It works on a copy in `dtype` on `device`, folded and in evaluation mode; the network given is never touched.
    Use it as a context manager, or call `close` to drop the copy.

    Parameters
    ----------
    model
        A network of `relevance_assets.models`.
    method
        Start, composite and product rule.
    dtype
        float64 unless speed matters more: epsilon 1e-8 vanishes beside float32 numbers.
    device
        As torch names them.

    Raises
    ------
    ValueError
        For an unknown composite, start = attention without attention, or a layer without rule.
    CanonizationError
        If a batch norm cannot be folded.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> None:
        if method.start == "attention" and getattr(model, "attention", None) is None:
            raise ValueError(
                f"method start 'attention' needs a network with attention, and {type(model).__name__} has none; "
                "use start: output"
            )
        self.method = method
        self.dtype, self.device = dtype, torch.device(device)
        self.composite = build_composite(method.composite, model, product=method.product)
        self.model: Any = copy.deepcopy(model).to(self.device, dtype).eval().requires_grad_(False)
        self.composite.register(self.model)
        self.layers = {name: place for place, (name, _) in enumerate(self.model.named_modules())}

    def __call__(self, images: ArrayLike, covariates: ArrayLike = ()) -> Explanation:
        """Explain one scan.

        Parameters
        ----------
        images : (C, X, Y, Z)
            As the network saw them in training, without augmentation; in [0, 1] for `disability`.
        covariates : (P,)

        Raises
        ------
        ValueError
            For numbers that are not finite, images outside the interval that the composite assumes, or shapes
            that the network refuses.
        """
        if self.model is None:
            raise ValueError("this explainer is closed; make a new one")
        q = self._tensor(images, "images")
        p = self._tensor(covariates, "covariates")
        box = COMPOSITES[self.method.composite].box
        if box is not None and (q.min() < box[0] or q.max() > box[1]):
            raise ValueError(
                f"composite {self.method.composite} needs images in [{box[0]:g}, {box[1]:g}], given "
                f"[{q.min():g}, {q.max():g}]; scale them in the preparation"
            )
        q, p = q.unsqueeze(0).requires_grad_(), p.reshape(1, -1).requires_grad_()
        try:
            with torch.enable_grad():
                return self._explain(q, p)
        finally:
            for hook in self.composite.hook_refs:
                hook.remove()  # what it stored of this scan, not its place in the network

    def close(self) -> None:
        """Drop the copy of the network."""
        self.composite.remove()
        self.model = None

    def __enter__(self) -> Explainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tensor(self, values: ArrayLike, what: str) -> Tensor:
        tensor = torch.as_tensor(np.asarray(values, dtype=np.float64)).to(self.device, self.dtype)
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{what} hold NaN or infinite values; repair or leave out the scan")
        return tensor

    def _explain(self, images: Tensor, covariates: Tensor) -> Explanation:
        model, attention = self.model, None
        if getattr(model, "attention", None) is None:
            output = model(images, covariates)
            target = start = output
        else:
            embeddings = model.embed(images)
            scores = model.scores(embeddings)
            attention = torch.softmax(scores.detach(), dim=1)
            output = model.classify(embeddings, scores, covariates)
            target, start = (scores, attention) if self.method.start == "attention" else (output, output)
        start = start.detach().reshape(-1)
        maps, numbers = torch.autograd.grad(
            target, (images, covariates), start.reshape(target.shape), allow_unused=True
        )
        leaks, clamped = self._account()
        return Explanation(
            maps=_array(maps[0]),
            start=_array(start),
            covariates=np.zeros(covariates.shape[1]) if numbers is None else _array(numbers[0]),
            output=float(output.detach()),
            attention=None if attention is None else _array(attention[0]),
            lost=self._per_path(leaks, len(start)),
            leaks=leaks,
            clamped=clamped,
        )

    def _account(self) -> tuple[dict[str, float], dict[str, float]]:
        leaks: dict[str, float] = {}
        clamped: dict[str, float] = {}
        hooks = [h for h in self.composite.hook_refs if isinstance(h, Accounted | ThresholdPass)]
        for hook in sorted(hooks, key=lambda hook: self.layers[hook.name]):
            if isinstance(hook, ThresholdPass):
                if hook.clamped is not None:
                    clamped[hook.name] = float(hook.clamped)
                hook.clamped = None
            elif hook.lost is not None:
                lost = hook.lost[0].tolist()
                leaks |= {f"{hook.name}[{i}]" if len(lost) > 1 else hook.name: v for i, v in enumerate(lost)}
                hook.lost = None
        return leaks, clamped

    def _per_path(self, leaks: dict[str, float], paths: int) -> Array:
        """Leaks summed per contrast when relevance starts at the attention, else all together."""
        lost = np.zeros(paths)
        for name, value in leaks.items():
            if self.method.start == "output":
                lost[0] += value
            elif name.startswith("encoders."):
                lost[int(name.split(".")[1])] += value
            else:
                lost[int(name.partition("[")[2].rstrip("]") or 0)] += value
        return lost


def _array(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy().copy()


def explain(
    model: nn.Module,
    images: ArrayLike,
    covariates: ArrayLike,
    method: Method,
    *,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Explanation:
    """Explain one scan; for many scans of one network use `Explainer`."""
    with Explainer(model, method, dtype=dtype, device=device) as explainer:
        return explainer(images, covariates)
