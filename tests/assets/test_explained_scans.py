"""Which scans get maps where a study asks for some only."""

from __future__ import annotations

import polars as pl
import pytest

from relevance_assets.assets.relevance import explained_scans
from relevance_assets.assets.stages import ALL
from relevance_assets.assets.workspace import Workspace

SIDES = [*[("train", fold) for fold in (0, 1, 2) for _ in range(10)], *[("test", None)] * 6, *[("new", None)] * 2]


@pytest.fixture
def divided(workspace: Workspace) -> Workspace:
    rows = [
        {"scan": f"sub-{number:02d}", "participant_id": f"sub-{number:02d}", "set": side, "fold": fold}
        for number, (side, fold) in enumerate(SIDES)
    ]
    workspace.write("splits", ALL, pl.DataFrame(rows))
    return workspace


def asked(workspace: Workspace, most: int | None) -> list[str]:
    study = workspace.study.model_copy(update={"explain_at_most": most})
    return explained_scans(Workspace(study, workspace.home))


@pytest.mark.parametrize("most", [None, 38, 100])
def test_all(divided: Workspace, most: int | None) -> None:
    assert asked(divided, most) == [f"sub-{number:02d}" for number in range(38)]


def test_some_of_every_fold(divided: Workspace) -> None:
    scans = asked(divided, 14)
    assert len(scans) == len(set(scans)) == 14
    assert set(scans) >= {f"sub-{number:02d}" for number in range(30, 38)}
    folds = [int(scan[4:]) // 10 for scan in scans if int(scan[4:]) < 30]
    assert [folds.count(fold) for fold in (0, 1, 2)] == [2, 2, 2]


def test_later_scans_are_explained_whatever_was_asked(divided: Workspace) -> None:
    assert asked(divided, 3) == [f"sub-{number:02d}" for number in range(30, 38)]
