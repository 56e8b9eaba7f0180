"""What lesions cost: zones of 1,000 lesions in a volume of 1 mm by all rules, and statistics of 1,380 people.

    python benchmarks/lesions.py             # one thread: under a minute
    python benchmarks/lesions.py --parts zones --repeats 1

Belongs here: planted scenes, turns and tables of the module `relevance_assets.lesions`. Does not belong here:
whether zones are right (`tests/lesions`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

SHAPE = (181, 217, 181)  # the MNI template's, 1 mm
CENTRE, RADII = (90, 108, 80), (70, 88, 66)
LESIONS, FARTHEST = 1000, 3  # how many, and the radius in voxels of the largest
ZONES_SECONDS = 5.0


def scene(seed: int = 0) -> dict[str, np.ndarray]:
    """An ellipsoid brain with cortex and two ventricles, a FLAIR of it, and 1,000 balls that do not touch."""
    random = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(n) for n in SHAPE)]

    def ellipsoid(centre: tuple[int, ...], radii: tuple[int, ...]) -> np.ndarray:
        return sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True))

    depth = ellipsoid(CENTRE, RADII)
    brain, cortex = depth <= 1, (depth <= 1) & (depth > 0.93)
    ventricles = (ellipsoid((78, 108, 85), (8, 32, 14)) <= 1) | (ellipsoid((102, 108, 85), (8, 32, 14)) <= 1)
    places = np.argwhere((depth < 0.9) & ~ventricles)
    lesions, taken = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    ball = np.linalg.norm(np.indices((2 * FARTHEST + 1,) * 3) - FARTHEST, axis=0)
    count = 0
    for place in places[random.permutation(len(places))]:
        box = tuple(slice(at - FARTHEST, at + FARTHEST + 1) for at in place)
        body = ball <= random.integers(1, FARTHEST + 1)
        wide = tuple(slice(at - FARTHEST - 1, at + FARTHEST + 2) for at in place)
        if taken[wide].any() or (ventricles[box] & body).any():
            continue
        lesions[box] |= body
        taken[box] |= body
        count += 1
        if count == LESIONS:
            break
    flair = np.where(ventricles, 150.0, np.where(cortex, 450.0, 500.0)) + 300.0 * lesions
    flair = np.where(brain, flair + random.normal(0, 10, SHAPE), random.uniform(0, 8, SHAPE))
    return {"lesions": lesions, "ventricles": ventricles, "cortex": cortex, "brain": brain, "flair": flair}


@contextmanager
def clock(took: dict[str, float], name: str) -> Iterator[None]:
    """Processor time of what is done inside."""
    began = time.process_time()
    yield
    took[name] = time.process_time() - began


def zones(console: Console, repeats: int) -> None:
    """Every step from a mask to its tables, in turns; the median turn against the target."""
    from relevance_assets.lesions import burden as tables
    from relevance_assets.lesions.components import label_lesions, voxel_mm3
    from relevance_assets.lesions.distances import mid_plane
    from relevance_assets.lesions.published_images import csf_candidates, prepare_flair
    from relevance_assets.lesions.zones_2d import published_zones
    from relevance_assets.lesions.zones_3d import agreement

    given = scene()
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -np.array(CENTRE)
    masks = {name: given[name] for name in ("ventricles", "cortex", "brain")}
    turns: list[dict[str, float]] = []
    for _ in range(repeats):
        took: dict[str, float] = {}
        with clock(took, "components"):
            labels = label_lesions(given["lesions"], affine)
        with clock(took, "mid-plane"):
            plane = mid_plane(given["brain"], affine)
        with clock(took, "shapes and distances"):
            found = tables.measure(labels, affine, plane=plane, **masks)
        with clock(took, "zones, two rules in 3D"):
            maps = tables.zone_maps(found)
        with clock(took, "fluid of the published rule"):
            fluid = csf_candidates(prepare_flair(given["flair"]))
        with clock(took, "zones, published rule"):
            flat = published_zones(given["lesions"], given["ventricles"], fluid)
        with clock(took, "table of lesions"):
            rows = tables.lesion_rows(found), tables.published_lesions(flat, affine, plane)
        maps[tables.PUBLISHED_RULE] = flat.zones
        numbers = dict.fromkeys(maps, labels) | {tables.PUBLISHED_RULE: flat.labels}
        with clock(took, "table of burden"):
            burdens = [tables.burden(rule, zone, numbers[rule], voxel_mm3(affine)) for rule, zone in maps.items()]
        with clock(took, "agreement of rules"):
            agreed = {pair: agreement(*(maps[rule] for rule in pair)) for pair in combinations(maps, 2)}
        with clock(took, "sensitivity to thresholds"):
            tables.sensitivity(found)
        turns.append(took)
    title = f"Zones of {int(labels.max()):,} lesions, {' x '.join(map(str, SHAPE))} voxels"
    table = Table("", "CPU s", title=title, min_width=len(title))
    for name in turns[0]:
        table.add_row(name, f"{np.median([turn[name] for turn in turns]):.2f}")
    total = float(np.median([sum(turn.values()) for turn in turns]))
    table.add_row("all", f"{total:.2f}")
    console.print(table)
    counts = {frame["rule"][0]: dict(zip(frame["zone"], frame["count"], strict=True)) for frame in burdens}
    print(f"rows: {', '.join(str(frame.height) for frame in rows)}; lesions by zone: {counts}")
    print("kappa:", ", ".join(f"{a} and {b} {found.kappa:.2f}" for (a, b), found in agreed.items()))
    print(f"zones {total:.2f} CPU s, target {ZONES_SECONDS:g} {'reached' if total < ZONES_SECONDS else 'MISSED'}")


def statistics(console: Console, repeats: int) -> None:
    """In a process of its own, where libraries may use one thread only."""
    subprocess.run([sys.executable, Path(__file__).with_name("lesion_statistics.py")], check=True)


PARTS = {"zones": zones, "statistics": statistics}  # name -> what it measures and prints


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="turns that are timed")
    options = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=120)
    for name in options.parts:
        PARTS[name](console, options.repeats)


if __name__ == "__main__":
    main()
