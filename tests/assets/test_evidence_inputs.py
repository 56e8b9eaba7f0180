"""Whatever a number rests on is in its fingerprint: a change there makes the number again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from relevance_assets.assets import localisation
from relevance_assets.assets.stages import ALL, NotReady, Stage
from relevance_assets.assets.statistics import statistics_stages
from relevance_assets.assets.workspace import Workspace
from relevance_assets.study import Study


def record(workspace: Workspace, asset: str, item: str) -> None:
    row = {"asset": [asset], "item": [item], "outcome": ["ok"], "fingerprint": ["f"], "result": ["r"]}
    workspace.write("runs", f"{asset}__{item}", pl.DataFrame(row))


SCANS = ["sub-1_ses-M12", "sub-1_ses-M6", "sub-2_ses-M6"]
KNOWN = {
    "scan": SCANS,
    "participant_id": ["sub-1", "sub-1", "sub-2"],
    "session": ["ses-M12", "ses-M6", "ses-M6"],
    "age": [51.0, 50.5, 40.0],
    "sex": ["F", "F", "M"],
    "edss": [3.0, 2.0, 6.0],
    "target": [3.0, 2.0, 6.0],
    "status": ["ok"] * 3,
}


def write_scans(workspace: Workspace, **changes: list[Any]) -> None:
    workspace.write("scans", ALL, pl.DataFrame(KNOWN | changes))


def write_volumes(workspace: Workspace, volume: float) -> None:
    for scan in SCANS:
        frame = pl.DataFrame({"scan": [scan], "region": ["lesion"], "volume_mm3": [volume]})
        workspace.write("region_volumes", scan, frame)


@pytest.fixture
def filled(workspace: Workspace) -> Workspace:
    for scan in SCANS:
        for asset in ("relevance_maps", "quantile_masks", "localisation"):
            record(workspace, asset, scan)
        for region in workspace.study.cohort.truth_regions:
            path = workspace.truth_path(scan, region)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"mask")
    write_scans(workspace)
    write_volumes(workspace, 100.0)
    return workspace


def stage(workspace: Workspace, name: str, study: Study | None = None) -> Stage:
    seen = workspace if study is None else replace(workspace, study=study)
    return next(one for one in [*localisation.localisation_stages(seen), *statistics_stages(seen)] if one.name == name)


def with_statistics(workspace: Workspace, **changes: Any) -> Study:
    statistics = workspace.study.statistics.model_copy(update=changes)
    return workspace.study.model_copy(update={"statistics": statistics})


@pytest.mark.parametrize("changes", [{"confidence": 0.9}, {"bootstrap": 100}, {"seed": 7}])
def test_localisation_summary_follows_its_settings(filled: Workspace, changes: dict[str, Any]) -> None:
    before = stage(filled, "localisation_summary").fingerprint(ALL)
    assert stage(filled, "localisation_summary", with_statistics(filled, **changes)).fingerprint(ALL) != before
    assert stage(filled, "localisation_summary").fingerprint(ALL) == before


def test_localisation_follows_the_seed_of_its_shifts(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage(filled, "localisation").fingerprint(SCANS[0])
    assert stage(filled, "localisation", with_statistics(filled, seed=7)).fingerprint(SCANS[0]) != before
    monkeypatch.setattr(localisation, "SHIFTS", 21)
    assert stage(filled, "localisation").fingerprint(SCANS[0]) != before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w: write_scans(w, age=[51.0, 50.5, 41.0]), id="age"),
        pytest.param(lambda w: write_scans(w, sex=["F", "F", "F"]), id="sex"),
        pytest.param(lambda w: write_volumes(w, 101.0), id="lesion volume"),
        pytest.param(lambda w: write_scans(w, edss=[3.0, 2.0, 6.5]), id="EDSS"),
    ],
)
def test_correlations_follow_what_is_held_fixed(filled: Workspace, change: Callable[[Workspace], None]) -> None:
    before = stage(filled, "correlations").fingerprint(ALL)
    assert stage(filled, "correlations").fingerprint(ALL) == before
    change(filled)
    assert stage(filled, "correlations").fingerprint(ALL) != before


def test_correlations_wait_for_the_volumes_that_they_hold_fixed(filled: Workspace) -> None:
    for scan in SCANS:
        filled.delete("runs", f"localisation__{scan}")
    with pytest.raises(NotReady, match="localisation"):
        stage(filled, "correlations").fingerprint(ALL)
