"""Seconds and memory of all statistics of 1,380 people: `python benchmarks/lesion_statistics.py`.

Belongs here: measuring `lesion_statistics`. Does not belong here: its numbers, which are those of its tests. It takes
the real subject table in ../shared if it is there, else made people of the same number. Fails above 20 s of one core.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy is loaded
os.environ["POLARS_MAX_THREADS"] = "1"

BUDGET = 20.0
PEOPLE = {"HC": 999, "MS": 381}
TABLE = Path(__file__).parents[1].parent / "shared" / "data" / "ms-deepbrain-tables" / "subjects.csv"


def subjects():  # type: ignore[no-untyped-def]
    """The real table, or people drawn at random."""
    import numpy as np
    import polars as pl

    from relevance_assets.statistics.lesion_profile import COLUMNS, read_subjects

    if TABLE.exists():
        return read_subjects(pl.read_csv(TABLE)), TABLE.name
    random = np.random.default_rng(0)
    n = sum(PEOPLE.values())
    zones = random.poisson(random.gamma(0.5, 40, size=(n, 3))).astype(float)
    table = {"participant_id": [str(i) for i in range(n)], "age": random.uniform(18, 69, n).round()}
    table |= {"sex": random.integers(0, 2, n), "group": [group for group, k in PEOPLE.items() for _ in range(k)]}
    table |= {"intracranial_area": random.normal(1.1e5, 1e4, n), "ventricle_area": random.gamma(4, 120, n)}
    table |= {"lesion_area": zones.sum(axis=1), "periventricular_area": zones[:, 0]}
    table |= {"paraventricular_area": zones[:, 1], "juxtacortical_area": zones[:, 2]}
    return read_subjects(pl.DataFrame(table).rename({ours: theirs for theirs, ours in COLUMNS.items()})), "made people"


def peak_mb() -> float:
    """Peak memory of this process, MB; `getrusage` would count the parent's libraries (`measure.py`)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> int:
    began = time.perf_counter(), time.process_time()
    people, source = subjects()
    from relevance_assets.statistics.lesion_statistics import table_makers

    loaded = time.perf_counter() - began[0], time.process_time() - began[1]
    print(f"{people.height} people of {source}, 10,000 resamples, one core")
    print(f"{'table':<20}{'rows':>7}{'s':>8}{'CPU s':>8}")
    print(f"{'(reading, imports)':<20}{'':>7}{loaded[0]:>8.2f}{loaded[1]:>8.2f}")
    total = list(loaded)
    for name, make in table_makers(people).items():
        start = time.perf_counter(), time.process_time()
        rows = make().height
        took = time.perf_counter() - start[0], time.process_time() - start[1]
        total = [total[0] + took[0], total[1] + took[1]]
        print(f"{name:<20}{rows:>7}{took[0]:>8.2f}{took[1]:>8.2f}")
    print(f"{'all':<20}{'':>7}{total[0]:>8.2f}{total[1]:>8.2f}")
    print(f"peak memory {peak_mb():.0f} MB; budget {BUDGET:.0f} s of one core")
    return int(total[1] > BUDGET)


if __name__ == "__main__":
    sys.exit(main())
