"""The real subject table where it is at hand, and made people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from relevance_assets.statistics.lesion_profile import COLUMNS, ZONES, read_subjects

TABLES = Path(__file__).parents[2].parent / "shared" / "data" / "ms-deepbrain-tables"
Maker = Callable[..., pl.DataFrame]


@pytest.fixture(scope="session")
def real() -> pl.DataFrame:
    """The study's 1,380 people."""
    if not TABLES.is_dir():
        pytest.skip("no ../shared/data/ms-deepbrain-tables")
    return read_subjects(pl.read_csv(TABLES / "subjects.csv"))


@pytest.fixture(scope="session")
def made() -> Maker:
    """Makes people: `made(controls, patients, **columns)`; columns replace those drawn at random."""

    def make(controls: int, patients: int, **columns: Any) -> pl.DataFrame:
        random = np.random.default_rng(1)
        n = controls + patients
        zones = random.poisson(random.gamma(0.4, 30, size=(n, 3))).astype(float)
        table: dict[str, Any] = {"participant_id": [str(i) for i in range(n)]}
        table |= {"age": random.integers(18, 75, n).astype(float), "sex": random.integers(0, 2, n).astype(float)}
        table |= {"group": ["HC"] * controls + ["MS"] * patients}
        table |= {"intracranial_area": random.normal(1e5, 1e4, n), "ventricle_area": random.gamma(4, 120, n)}
        table |= {"lesion_area": zones.sum(axis=1)} | {f"{z}_area": zones[:, i] for i, z in enumerate(ZONES)}
        frame = pl.DataFrame(table | columns, strict=False)
        return read_subjects(frame.rename({ours: theirs for theirs, ours in COLUMNS.items()}))

    return make
