"""Training that begins with another study's models: not with people who are to be new."""

from __future__ import annotations

import polars as pl
import pytest

from relevance_assets.assets import models
from relevance_assets.assets.stages import ALL, NotReady
from relevance_assets.assets.workspace import Workspace

PEOPLE = [f"sub-{number:02d}" for number in range(6)]


@pytest.fixture
def beginner(workspace: Workspace) -> Workspace:
    """Two people of each fold; sub-04 and sub-05 are the test set."""
    training = workspace.study.training.model_copy(update={"start_from": "before"})
    study = workspace.study.model_copy(update={"training": training})
    started = Workspace(study, workspace.home)
    sides = [("train", 0), ("train", 0), ("train", 1), ("train", 1), ("test", None), ("test", None)]
    rows = [
        {"scan": scan, "participant_id": scan, "set": side, "fold": fold}
        for scan, (side, fold) in zip(PEOPLE, sides, strict=True)
    ]
    started.write("splits", ALL, pl.DataFrame(rows))
    return started


def trained_before(workspace: Workspace, fold: str, train: list[str], validation: list[str]) -> None:
    rows = [
        {"model": "m", "fold": fold, "scan": scan, "participant_id": scan, "set": side}
        for side, scans in (("train", train), ("validation", validation))
        for scan in scans
    ]
    workspace.store.write("training_scans", "before", fold, pl.DataFrame(rows))


def divided(fold: int) -> pl.DataFrame:
    sides = ["validation" if number // 2 == fold else "train" for number in range(4)]
    return pl.DataFrame({"scan": PEOPLE[:4], "participant_id": PEOPLE[:4], "set": sides})


def test_the_same_split_is_fine(beginner: Workspace) -> None:
    trained_before(beginner, "0", PEOPLE[2:4], PEOPLE[:2])
    models._check_unseen(beginner, "0", divided(0))


def test_who_validates_here_must_not_have_been_learnt_from(beginner: Workspace) -> None:
    trained_before(beginner, "0", PEOPLE[1:4], PEOPLE[:1])
    with pytest.raises(ValueError, match=r"before was trained on sub-01, who validate or test here"):
        models._check_unseen(beginner, "0", divided(0))


def test_who_is_tested_must_not_have_chosen_an_epoch(beginner: Workspace) -> None:
    trained_before(beginner, "0", PEOPLE[2:4], [*PEOPLE[:2], *PEOPLE[4:]])
    with pytest.raises(ValueError, match=r"sub-04 and 1 more, who validate or test here"):
        models._check_unseen(beginner, "0", divided(0))


def test_a_study_that_was_not_run_is_named(beginner: Workspace) -> None:
    with pytest.raises(NotReady, match="before has no such model; run before first"):
        models.start_hash(beginner, "0")
    row = {"model": "m", "fold": "0", "path": "x", "sha256": "abc", "parameters": 1, "device": "cpu", "seed": 0}
    beginner.store.write("models", "before", "0", pl.DataFrame([row | {"best_epoch": 1, "seconds": 1.0}]))
    assert models.start_hash(beginner, "0") == "abc"
