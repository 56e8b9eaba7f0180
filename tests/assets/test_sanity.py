"""The stage of the sanity tests: what it rests on, and how it names what failed and what could not be tested."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from relevance_assets.assets.sanity import _named, sanity_stages
from relevance_assets.assets.stages import ALL, NotReady
from relevance_assets.assets.workspace import PLANTED, Workspace


def without_truth(workspace: Workspace) -> Workspace:
    cohort = workspace.study.cohort.model_copy(update={"truth_regions": []})
    return Workspace(workspace.study.model_copy(update={"cohort": cohort}), workspace.home)


def fingerprint(workspace: Workspace) -> str:
    return sanity_stages(workspace)[0].fingerprint(ALL)


def person(workspace: Workspace, name: str = "sub-1", target: float = 2.0, age: float = 50.0) -> None:
    columns = {"scan": ["sub-1"], "participant_id": [name], "status": ["ok"], "target": [target], "age": [age]}
    workspace.write("scans", ALL, pl.DataFrame(columns))


@pytest.fixture
def explained(workspace: Workspace) -> Workspace:
    """A test scan with maps of every fold."""
    runs = [("relevance_maps", "sub-1"), *(("trained_models", str(fold)) for fold in range(3))]
    for asset, item in runs:
        row = {"asset": [asset], "item": [item], "outcome": ["ok"], "fingerprint": ["f"], "result": ["r"]}
        workspace.write("runs", f"{asset}__{item}", pl.DataFrame(row))
    split = {"scan": ["sub-1"], "set": ["test"], "fold": [None], "participant_id": ["sub-1"]}
    workspace.write("splits", ALL, pl.DataFrame(split, schema_overrides={"fold": pl.Int64}))
    person(workspace)
    return workspace


def test_people_and_targets_are_part_of_it(explained: Workspace) -> None:
    study = without_truth(explained)
    seen = {fingerprint(study)}
    for changed in ({"target": 6.0}, {"age": 51.0}, {"name": "sub-2"}):
        person(study, **changed)  # type: ignore[arg-type]
        seen.add(fingerprint(study))
    assert len(seen) == 4
    person(study)
    assert fingerprint(study) in seen


def test_planted_truth_is_part_of_it(explained: Workspace, tmp_path: Path) -> None:
    cohort = explained.study.cohort.model_copy(update={"bids": tmp_path})
    study = Workspace(explained.study.model_copy(update={"cohort": cohort}), explained.home)
    with pytest.raises(NotReady, match="sub-1: no planted truth"):
        fingerprint(study)
    truth = study.truth_path("sub-1", PLANTED)
    truth.parent.mkdir(parents=True)
    seen = {fingerprint(without_truth(study))}
    for content in (b"here", b"there"):
        truth.write_bytes(content)
        seen.add(fingerprint(study))
    assert len(seen) == 3


def test_names_of_tests() -> None:
    frame = pl.DataFrame({"test": ["a", "b"], "method": ["lrp", "ig"], "passed": [False, None]})
    assert _named(frame.filter(~pl.col("passed"))) == "a (lrp)"
    assert _named(frame.filter(pl.col("passed").is_null())) == "b (ig)"
    assert _named(frame.clear()) == "none"
