"""What an explanation begins with, and what it is.

Belongs here: starts, and the results of single samples as one. Does not belong here: how relevance gets from one to the
other (`engine.py`, `others.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

__all__ = ["Explanation", "Inner", "Start", "merged", "start_values"]


@dataclass(frozen=True)
class Inner:
    """Relevance starts at the output of a named operation inside the network.

    Attributes
    ----------
    layer
        Its name, as `check_model` lists it: `softmax`.
    index
        Along axis 1, the only part that has relevance; None for all.
    values
        The relevance; None for the operation's own output.
    """

    layer: str
    index: int | None = None
    values: Tensor | None = None


Start = None | int | Tensor | Inner


@dataclass(frozen=True)
class Explanation:
    """Why a network said what it said.

    Attributes
    ----------
    relevance
        Shaped like the inputs: a tensor, or a tuple of tensors as they were given.
    output
        What the network said.
    start
        The relevance that was put in.
    ledger
        One row per operation and sample: `sample`, `layer`, `kind`, `rule`, `relevance_in`, `relevance_out`, `bias`,
        `stabiliser`, `dead`, `clamped`, `unexplained`. What came in is what went out, plus what the bias, the
        stabiliser, units without contributions and clamping took, plus what nobody explains. Operations that only
        move values have no row. Empty for methods without rules.
    share_outside
        Per sample, share of the first input's absolute relevance outside the mask; None without a mask.
    """

    relevance: Any
    output: Tensor
    start: Tensor
    ledger: pl.DataFrame
    share_outside: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """(B,): relevance that reached the inputs."""
        parts = (self.relevance,) if isinstance(self.relevance, Tensor) else self.relevance
        return torch.stack([part.flatten(1).sum(1) for part in parts]).sum(0)


def merged(found: list[Explanation]) -> Explanation:
    """Explanations of single samples as one of their batch."""
    ledgers = [one.ledger.with_columns(pl.col("sample") + sample) for sample, one in enumerate(found)]
    outside = [one.share_outside for one in found if one.share_outside is not None]
    relevance: Any = [one.relevance for one in found]
    single = isinstance(relevance[0], Tensor)
    return Explanation(
        torch.cat(relevance) if single else tuple(torch.cat(parts) for parts in zip(*relevance, strict=True)),
        torch.cat([one.output for one in found]),
        torch.cat([one.start for one in found]),
        pl.concat(ledgers),
        torch.cat(outside) if outside else None,
    )


def start_values(value: Tensor, start: Start) -> Tensor:
    """The relevance that is put on a tensor (B, ...).

    Raises
    ------
    ValueError
        If the start does not fit the tensor.
    """
    if isinstance(start, Inner):
        if start.values is not None:
            start = start.values
        elif start.index is None:
            return value.clone()
        else:
            start = start.index
    if isinstance(start, Tensor):
        if start.shape != value.shape:
            raise ValueError(f"start has shape {tuple(start.shape)}, the output {tuple(value.shape)}")
        if not bool(torch.isfinite(start).all()):
            raise ValueError("start holds NaN or infinite values")
        return start.to(value)
    if start is not None and (not isinstance(start, int) or isinstance(start, bool)):
        raise ValueError(f"start is nothing, a class number, a tensor, Inner(...), or a list of these, not {start!r}")
    single = value.ndim == 1 or value.shape[1:].numel() == 1
    if start is None:
        if single:
            return value.clone()
        if value.ndim != 2:
            raise ValueError(
                f"the output has shape {tuple(value.shape)}: say what to explain, start=CLASS or a tensor of that shape"
            )
        chosen = torch.nn.functional.one_hot(value.argmax(1), value.shape[1])
        return value * chosen
    if single and start == 0:
        return value.clone()
    if value.ndim < 2 or not -value.shape[1] <= start < value.shape[1]:
        raise ValueError(f"start={start}: the output has shape {tuple(value.shape)}")
    result = torch.zeros_like(value)
    result[:, start] = value[:, start]
    return result
