"""What study `disability` costs: twelve scenarios and eleven quantiles of a scan, permutations, memory of many scans.

    python benchmarks/disability.py                       # all three parts
    python benchmarks/disability.py --quick               # the first two, fewer of everything: under a minute
    python benchmarks/disability.py --parts permutations  # one of them

Belongs here: which parts are run, and their tables. Does not belong here: the cases (`scenarios.py`,
`permutations.py`, `cohort_memory.py`), measuring (`measure.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

PARTS = ("evidence", "permutations", "memory")
FEW, MANY, FLAT = 50, 400, 1.1  # scans, and how much more memory the many may take
NOTES = """s: median of turns after one to warm up, one thread. CPU s: less disturbed by what else runs. Pass: forward +
backward of the network to its images; forward: without the way back. Both are counted in FLOPs, exact on every
machine; seconds are compared with a pass in float64 above, with a forward in float32 below. Methods are the study's:
rules in float64, gradients in float32 unless said. An inversion is one forward."""


def show(console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("", *headings):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def evidence(console: Console, repeats: int) -> None:
    """Explanations of one scan, its inversions, and both together."""
    from scenarios import PERCENTS, case, explanations, inversions

    from relevance_assets.relevance.cost import TOGETHER

    given = case()
    costs = {cost.name: cost for cost in explanations(given, repeats)}
    unit = costs["forward + backward"].seconds["cpu"]
    numbers = {name: sorted(method.scenarios.values()) for name, method in given.study.methods.items()}
    every = sorted(number for some in numbers.values() for number in some)
    rows = []
    for name, cost in costs.items():
        which = f"{every[0]}-{every[-1]}" if name.startswith(TOGETHER) else ", ".join(map(str, numbers.get(name, [])))
        counts = f"{cost.passes:.2f}", f"{cost.forwards:.2f}"
        times = f"{cost.seconds['median']:.3f}", f"{cost.seconds['cpu']:.3f}", f"{cost.seconds['cpu'] / unit:.2f}"
        rows.append((name, which, *counts, *times))
    shape = " x ".join(map(str, given.scan.images.shape))
    title = f"Explanations of one scan, {shape}, by one model, {given.device}"
    show(console, title, ("scenarios", "passes", "forwards", "s", "CPU s", "CPU s / pass"), rows)

    plan, took = inversions(given, repeats)
    wanted, different = len(plan.rows), plan.predictions
    took["all"] = {name: value * different for name, value in took["inversion"].items()}
    work = {
        "network alone, one forward": (1, took["forward"]),
        "one inversion": (1, took["inversion"]),
        "planning": (wanted, took["planning"]),
        "all that differ": (different, took["all"]),
    }
    lines = []
    for name, (count, time) in work.items():
        times = f"{time['median']:.3f}", f"{time['cpu']:.3f}", f"{time['cpu'] / count * 1e3:.2f}"
        lines.append((name, f"{count:,}", *times, f"{time['cpu'] / took['forward']['cpu']:.2f}"))
    title = f"Inversions of the same: {len(PERCENTS) + 1} quantiles of {len(every)} scenarios with every control"
    show(console, title, ("inversions", "s", "CPU s", "CPU ms each", "CPU s / forward"), lines)

    parts = costs[TOGETHER].seconds, took["planning"], took["all"]
    wall, processor = (sum(part[key] for part in parts) for key in ("median", "cpu"))
    console.print(
        f"One scan and one model, all: {costs[TOGETHER].forwards + different:.0f} forwards by FLOPs, {wall:.2f} s, "
        f"{processor:.2f} CPU s"
    )
    print(NOTES)


def permutations(console: Console, repeats: int, count: int) -> None:
    from measure import seconds
    from permutations import COLUMNS, SCANS, agreement, cases

    todo = cases(count)
    times = seconds({case.name: case.call for case in todo}, repeats, "cpu")
    unit = times[todo[0].name]["cpu"] / todo[0].tests / todo[0].permutations
    rows = []
    for case in todo:
        each = times[case.name]["cpu"] / case.tests / case.permutations
        rates = (f"{1e-6 / each:.3g}", f"{each * 1e9:,.0f}", f"{each / unit:,.1f}") if case.compare else ("", "", "")
        took = f"{times[case.name]['median']:.2f}", f"{times[case.name]['cpu']:.2f}"
        rows.append((case.name, f"{case.tests:,}", f"{case.permutations:,}", *took, *rates))
    threads = os.environ.get("OMP_NUM_THREADS", "as many as there are")
    title = f"Permutations of a family of {COLUMNS} columns, {SCANS} scans; each: per test; BLAS threads: {threads}"
    headings = ("tests", "each", "s", "CPU s", "M / CPU s", "ns", "ratio")
    show(console, title, headings, rows)
    console.print(agreement(count))


def memory(console: Console) -> None:
    from cohort_memory import peak_memory

    found = {}
    for scans in (FEW, MANY):
        with tempfile.TemporaryDirectory() as folder:
            found[scans] = peak_memory(Path(folder), scans)
    few, many = found[FEW], found[MANY]
    rows = [
        (
            stage,
            *(f"{value:.0f}" for value in (few.resident[stage], few.peak[stage], many.resident[stage], peak)),
            f"{peak / few.peak[stage]:.3f}",
            f"{many.rows[stage]:,}",
            f"{many.seconds[stage]:.1f}",
        )
        for stage, peak in many.peak.items()
    ]
    headings = (f"{FEW}: MB", "peak", f"{MANY}: MB", "peak", "ratio", f"{MANY}: rows", "CPU s")
    title = f"Memory of a process after and during each stage, {FEW} and {MANY} scans of 16 x 16 x 16"
    show(console, title, headings, rows)
    grown = {stage: peak - few.peak[stage] for stage, peak in many.peak.items()}
    most = sorted(grown, key=lambda stage: -grown[stage])[:3]
    each = ", ".join(f"{stage} {grown[stage] / (MANY - FEW):.2f}" for stage in most)
    print(f"grow most, MB for each scan more: {each}; what all stages share are libraries")
    ratio = max(many.peak.values()) / max(few.peak.values())
    print(f"peak of the process {ratio:.3f} x, target {FLAT:g} {'reached' if ratio <= FLAT else 'MISSED'}")
    ratio = many.peak[most[0]] / few.peak[most[0]]
    print(f"peak of {most[0]} {ratio:.3f} x, target {FLAT:g} {'reached' if ratio <= FLAT else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=None, help="default: all")
    parser.add_argument("--repeats", type=int, default=None, help="turns that are timed (default 5)")
    parser.add_argument("--quick", action="store_true", help="no memory, 1 turn, 2,000 permutations: under a minute")
    options = parser.parse_args()
    parts = options.parts or (PARTS[:2] if options.quick else PARTS)
    repeats = options.repeats or (1 if options.quick else 5)
    torch.set_num_threads(1)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    if "evidence" in parts:
        evidence(console, repeats)
    if "permutations" in parts:
        permutations(console, repeats, 2_000 if options.quick else 20_000)
    if "memory" in parts:
        memory(console)


if __name__ == "__main__":
    main()
