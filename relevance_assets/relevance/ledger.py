"""The account of an explanation: what every operation was given, handed on and lost.

Belongs here: the ledger's rows, its bounds and the warning. Does not belong here: how relevance moves.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from relevance_assets.relevance.rules import Losses

__all__ = ["BOUNDS", "COLUMNS", "LOSSES", "Ledger", "warn_of_leaks"]

LOSSES = ("bias", "stabiliser", "dead", "clamped")
COLUMNS = ("relevance_in", "relevance_out", *LOSSES)
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}  # unexplained, relative to what was put in


@dataclass
class Ledger:
    """Rows as they come, for several starts at once; sums stay on their device until `frame`.

    Attributes
    ----------
    starts, samples
        How many.
    """

    starts: int
    samples: int
    rows: list[tuple[str, str, str, list[Tensor | float]]] = field(default_factory=list)
    active: list[Sequence[int]] = field(default_factory=list)

    def add(self, layer: str, kind: str, rule: str, active: Sequence[int], sums: list[Tensor | float]) -> None:
        """One operation: (active starts, samples) each of `COLUMNS`."""
        self.rows.append((layer, kind, rule, sums))
        self.active.append(active)

    def values(self) -> np.ndarray:
        """(rows, columns, starts, samples), as rows came."""
        values = np.zeros((len(self.rows), len(COLUMNS), self.starts, self.samples))
        # one transfer for all sums
        flat = [
            s.detach().reshape(-1).to(torch.float64) for *_, sums in self.rows for s in sums if isinstance(s, Tensor)
        ]
        moved = torch.cat(flat).cpu().numpy() if flat else np.zeros(0)
        at = 0
        for row, ((*_, sums), active) in enumerate(zip(self.rows, self.active, strict=True)):
            for column, value in enumerate(sums):
                if isinstance(value, Tensor):
                    size = value.numel()
                    values[row, column, list(active)] = moved[at : at + size].reshape(value.shape)
                    at += size
                else:
                    values[row, column, list(active)] = value
        return values

    def frames(self) -> list[pl.DataFrame]:
        """One frame per start, in the order of execution."""
        values = self.values()
        return [self._frame(values[:, :, start]) for start in range(self.starts)]

    def _frame(self, values: np.ndarray) -> pl.DataFrame:
        order = range(len(self.rows) - 1, -1, -1)
        keys: dict[str, list[Any]] = {"sample": [], "layer": [], "kind": [], "rule": []}
        for sample in range(self.samples):
            for row in order:
                for key, value in zip(keys, (sample, *self.rows[row][:3]), strict=True):
                    keys[key].append(value)
        columns = {name: values[::-1, place].T.reshape(-1) for place, name in enumerate(COLUMNS)}
        schema = {"sample": pl.Int64, "layer": pl.String, "kind": pl.String, "rule": pl.String}
        frame = pl.DataFrame(keys, schema=schema).with_columns(
            pl.Series(name, values, dtype=pl.Float64) for name, values in columns.items()
        )
        lost = pl.sum_horizontal("relevance_out", *LOSSES)
        return frame.with_columns(unexplained=pl.col("relevance_in") - lost)


def sums(relevance_in: Tensor, relevance_out: Tensor | float, losses: Losses) -> list[Tensor | float]:
    """In the order of `COLUMNS`."""
    return [relevance_in, relevance_out, losses.bias, losses.stabiliser, losses.dead, losses.clamped]


def warn_of_leaks(
    ledger: pl.DataFrame, put_in: Tensor, total: Sequence[float], dtype: torch.dtype, why: str | None = None
) -> None:
    """Warn if relevance went missing without an account of it.

    Parameters
    ----------
    ledger
        Of one start.
    put_in : (B, ...)
        The relevance that was put in.
    total
        Per sample, what arrived at the inputs.
    why
        What to say of the reason; without it, that rounding is.
    """
    bound = BOUNDS[dtype]
    if why is None:
        why = (
            f"Signs cancel more than {str(dtype).removeprefix('torch.')} can bear: use a larger epsilon, another rule"
            + (", or dtype=torch.float64" if dtype == torch.float32 else "")
        )
    per_sample = ledger.group_by("sample", maintain_order=True).agg(pl.col(LOSSES).sum())
    lost = dict(zip(per_sample["sample"], per_sample.select(pl.sum_horizontal(LOSSES)).to_series(), strict=True))
    rows = put_in.reshape(len(put_in), -1)
    start, sizes = rows.sum(1).tolist(), rows.abs().sum(1).tolist()  # one class against another may sum to 0
    for sample, (given, scale, arrived) in enumerate(zip(start, sizes, total, strict=True)):
        left = abs(given - arrived - lost.get(sample, 0.0))
        worst = (
            ledger.filter(pl.col("sample") == sample)
            .sort(pl.col("unexplained").abs(), descending=True, nulls_last=True)
            .head(1)
        )
        largest = abs(worst["unexplained"][0]) if worst.height else 0.0
        if not np.isfinite([given, arrived, left, largest]).all() or max(left, largest) > bound * scale:
            name = worst["layer"][0] if worst.height else "no operation"
            warnings.warn(
                f"sample {sample}: relevance of {left:.3g} is unexplained ({left / scale if scale else np.inf:.2g} of "
                f"the start {given:.3g}; bound {bound:g}); most at {name}: {largest:.3g}. {why}",
                RuntimeWarning,
                stacklevel=4,
            )
