"""Permutation tests of a family of rank correlations: this project and scipy.stats.permutation_test in one run.

    python benchmarks/permutations.py [--permutations 20000] [--repeats 3]

The family is that of study `disability`: 12 scenarios x 10 quantiles x 3 contrasts = 360 columns of 232 scans, with
ties in EDSS. The unit is one permutation of one test. scipy runs fewer of them and is not extrapolated beyond that
unit; its cost per permutation and test does not depend on how many there are, as it works in batches (here of the size
that serves it best: 10 of all columns, 1,000 of one). Three ways to use it: as its documentation does, with the ranks
made once, and with all columns in one call, which is the most that it offers. What this project does besides, the
maximum over the family, is in its time; scipy does not do it. The bootstrap and missing values, which scipy's test
does not know, are measured apart. Rates are by processor time, which other work on the machine disturbs less; for them
to mean anything set OMP_NUM_THREADS=1.

Belongs here: the cases and the table. Does not belong here: what relevance maps cost (`relevance_engine.py`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from relevance_assets.statistics.correlation import spearman_family
from relevance_assets.statistics.partial import partial_spearman_family

SCANS, PEOPLE, COLUMNS, PATTERNS = 232, 166, 360, 12
Array = np.ndarray


class Case(NamedTuple):
    name: str
    tests: int
    permutations: int
    call: Callable[[], Any]
    compare: bool  # with the first case: it does permutations alone


def cohort() -> tuple[Array, Array, Array, Array]:
    """Measures, the same with missing rows, EDSS, covariates."""
    random = np.random.default_rng(0)
    edss = random.choice(np.arange(0, 9, 0.5), SCANS)
    x = random.normal(size=(SCANS, COLUMNS)) + random.normal(size=(SCANS, 1)) + 0.05 * edss[:, None]
    missing = x.copy()
    for pattern in range(1, PATTERNS):
        empty = random.choice(SCANS, random.integers(1, 6), replace=False)
        missing[np.ix_(empty, np.arange(pattern, COLUMNS, 3 * PATTERNS))] = np.nan
    age, sex, lesions = random.normal(45, 14, SCANS), random.integers(0, 2, SCANS), random.exponential(5, SCANS)
    return x, missing, edss, np.column_stack([age, sex, lesions])


def unit_ranks(values: Array) -> Array:
    ranks = stats.rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    return ranks / np.sqrt((ranks**2).sum(axis=0))


def scipy_documented(x: Array, y: Array, resamples: int) -> None:
    """As in the documentation of scipy.stats.spearmanr: ranks anew in every permutation."""
    for column in x.T:
        stats.permutation_test(
            (column,),
            lambda values: stats.spearmanr(values, y).statistic,
            permutation_type="pairings",
            n_resamples=resamples,
            rng=np.random.default_rng(0),
        )


def scipy_ranked(x: Array, y: Array, resamples: int, batch: int) -> Array:
    """Ranks made once and a vectorised statistic; x may be one column or, in one call, many. |rho*| of each."""
    of_y = unit_ranks(y)
    found = stats.permutation_test(
        (unit_ranks(x).T,),
        lambda ranks, axis: ranks @ of_y,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=resamples,
        batch=batch,
        axis=-1,
        rng=np.random.default_rng(0),
    )
    return np.abs(found.null_distribution)


def cases(permutations: int) -> list[Case]:
    x, missing, y, z = cohort()
    few = x[:, :3]

    def ours(values: Array, bootstrap: int = 0, covariates: Array | None = None) -> Callable[[], Any]:
        options: dict[str, Any] = {"permutations": permutations, "bootstrap": bootstrap, "seed": 0}
        options["groups"] = [scan % PEOPLE for scan in range(SCANS)]
        if covariates is None:
            return lambda: spearman_family(values, y, **options)
        return lambda: partial_spearman_family(values, y, covariates, **options)

    fewer = max(1, permutations // 10)
    return [
        Case("this project", COLUMNS, permutations, ours(x), True),
        Case("scipy, all in one call", COLUMNS, fewer, lambda: scipy_ranked(x, y, fewer, 10), True),
        Case("scipy, one column", 1, permutations, lambda: scipy_ranked(few[:, :1], y, permutations, 1000), True),
        Case("scipy, as documented", 3, 200, lambda: scipy_documented(few, y, 200), True),
        Case(f"{PATTERNS} patterns of missing rows", COLUMNS, permutations, ours(missing), False),
        Case("  and 2,000 bootstraps", COLUMNS, permutations, ours(missing, 2000), False),
        Case("partial, missing rows", COLUMNS, permutations, ours(missing, 0, z), False),
        Case("  and 2,000 bootstraps", COLUMNS, permutations, ours(missing, 2000, z), False),
    ]


def agreement(permutations: int) -> str:
    """How far p is from scipy's, both by chance: in standard errors of the difference."""
    x, _, y, _ = cohort()
    few, resamples = x[:, :20], 5000
    frame = spearman_family(few, y, permutations=permutations, bootstrap=0, seed=0)
    ours, rho = frame["p_permutation"].to_numpy(), np.abs(frame["value"].to_numpy())
    theirs = (scipy_ranked(few, y, resamples, 100) >= rho - 1e-12).mean(axis=0)
    both = (ours + theirs) / 2
    error = np.sqrt(both * (1 - both) * (1 / permutations + 1 / resamples)) + 1 / resamples
    return f"p of 20 columns against scipy's null distribution: at most {np.max(np.abs(ours - theirs) / error):.1f} SE"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--permutations", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    todo = cases(options.permutations)
    wall: list[list[float]] = [[] for _ in todo]
    processor: list[list[float]] = [[] for _ in todo]
    for _ in range(options.repeats):  # in turns, so that what else the machine does disturbs all of them alike
        for case, seconds, cpu in zip(todo, wall, processor, strict=True):
            began = time.perf_counter(), time.process_time()
            case.call()
            seconds.append(time.perf_counter() - began[0])
            cpu.append(time.process_time() - began[1])
    threads = os.environ.get("OMP_NUM_THREADS", "as many as there are")
    table = Table(title=f"Permutations of {SCANS} scans; median of {options.repeats}; BLAS threads: {threads}")
    for heading in ("", "tests", "permutations", "s", "CPU s", "million / CPU s", "ns each", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    unit = None
    for case, seconds, cpu in zip(todo, wall, processor, strict=True):
        each = statistics.median(cpu) / case.tests / case.permutations
        unit = each if unit is None else unit
        medians = f"{statistics.median(seconds):.2f}", f"{statistics.median(cpu):.2f}"
        rates = f"{1e-6 / each:.3g}", f"{each * 1e9:,.0f}", f"{each / unit:,.1f}"
        table.add_row(
            case.name, f"{case.tests:,}", f"{case.permutations:,}", *medians, *(rates if case.compare else ())
        )
    console = Console(width=120)
    console.print(table)
    console.print(agreement(options.permutations))


if __name__ == "__main__":
    main()
