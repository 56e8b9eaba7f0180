"""One small cohort, run once through Dagster, that the end-to-end tests look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_study import run, settle

from relevance_assets.home import Home


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from relevance_assets.cohort.synthetic import synthesise

    out = tmp_path_factory.mktemp("cohort") / "bids"
    synthesise(out, scans=30, voxel_size_mm=9.0, seed=3)
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cohort: Path) -> Home:
    """The small study, run without disturbance."""
    home = settle(tmp_path_factory.mktemp("finished") / "home", cohort)
    run("run", "disability", home=home.root)
    return home


@pytest.fixture
def copy_of_finished(tmp_path: Path, finished: Home, cohort: Path) -> Home:
    """The finished home with a copy of the cohort, to be changed by the test."""
    home = tmp_path / "home"
    shutil.copytree(finished.root, home)
    shutil.copytree(cohort, tmp_path / "bids")
    return settle(home, tmp_path / "bids")
