"""A study whose science is a pause of no length, driven as the daemon would drive it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from relevance_assets.assets.workspace import Workspace
from relevance_assets.configuration import load_studies
from relevance_assets.home import Home
from relevance_assets.study import Automation

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from service import Service
from stand_in import stand_in


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    home, bids = Home(tmp_path / "home"), tmp_path / "bids"
    monkeypatch.setenv("RELEVANCE_HOME", str(home.root))
    study = load_studies(home)["disability"]
    cohort = study.cohort.model_copy(update={"bids": bids, "truth_regions": []})
    statistics = study.statistics.model_copy(update={"adjust_for": ["age"]})
    update = {
        "contrasts": study.contrasts[:1],
        "cohort": cohort,
        "automation": Automation(quiet_seconds=0),
        "statistics": statistics,
    }
    study = study.model_copy(update=update | dict.fromkeys(("inversion", "heat_map", "sanity")))
    with dg.DagsterInstance.ephemeral() as instance:
        found = Service(study, home, instance)
        chain: Callable[[Workspace], list] = lambda workspace: stand_in(workspace, 0.0, found.fault)  # noqa: E731
        monkeypatch.setattr("relevance_assets.component.study_stages", chain)
        monkeypatch.setattr("relevance_assets.assets.automation.study_stages", chain)
        found.add(12, first=1)
        yield found
