"""What a sanity test says: a number, a threshold that was set before, and whether it passed.

Belongs here: the row of table `sanity`, and the interval of a mean that verdicts rest on. Does not belong here:
any test (`randomisation.py`, `agreement.py`, `confounder.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

__all__ = ["Verdict", "mean_interval", "shown", "verdict_table"]

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """One row of table `sanity`, without study and method.

    Attributes
    ----------
    test : str
    value : float or None
        What was measured; None where it is not defined, and then the test is not passed.
    threshold : float
    passed : bool
    n : int
        Scans, or what the note says.
    note : str
        What the value is, with interval and controls.
    """

    test: str
    value: float | None
    threshold: float
    passed: bool
    n: int
    note: str


def verdict_table(verdicts: Sequence[Verdict]) -> pl.DataFrame:
    """Table `sanity` without its keys: test, value, threshold, passed, n, note."""
    schema = {
        "test": pl.String,
        "value": pl.Float64,
        "threshold": pl.Float64,
        "passed": pl.Boolean,
        "n": pl.Int64,
        "note": pl.String,
    }
    return pl.DataFrame([asdict(verdict) for verdict in verdicts], schema=schema)


def mean_interval(
    values: Sequence[float | None] | np.ndarray, people: Sequence[Hashable] | None = None, *, seed: int = 0
) -> tuple[float | None, float | None, float | None, int]:
    """Mean of the values that there are, its 95 % percentile interval by 2,000 bootstraps over people, and n.

    Parameters
    ----------
    values : n numbers; None or NaN where there is none.
    people : n people, drawn together with all their values; each value its own if not given.

    Returns
    -------
    mean, low, high, n
        None for all numbers without any value, and for the interval with one person only.

    Raises
    ------
    ValueError
        Not one person per value.
    """
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    groups = list(range(len(numbers))) if people is None else list(people)
    if len(groups) != len(numbers):
        raise ValueError(f"bootstrap: {len(groups)} people for {len(numbers)} values; give one for each")
    known = np.isfinite(numbers)
    if not known.any():
        return None, None, None, 0
    numbers, groups = numbers[known], [group for group, there in zip(groups, known, strict=True) if there]
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    member = np.array([index[group] for group in groups])
    sums, counts = np.bincount(member, weights=numbers), np.bincount(member)
    mean = float(numbers.mean())
    if len(index) < 2:
        return mean, None, None, len(numbers)
    drawn = np.random.default_rng(seed).integers(len(index), size=(RESAMPLES, len(index)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return mean, float(low), float(high), len(numbers)


def shown(low: float | None, high: float | None) -> str:
    """The interval as it stands in a note; nothing where there is none."""
    return "" if low is None or high is None else f", 95 % interval {low:.3g} to {high:.3g}"
