"""What a second call of a study sees: corrected people, changed settings, kills in between, lost files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from relevance_assets.assets.cohort import cohort_stages
from relevance_assets.assets.models import model_stages
from relevance_assets.assets.runner import Failed, dagster_instance, run_study
from relevance_assets.assets.stages import ALL, Done, Stage, below, each, run_items, state_of
from relevance_assets.assets.workspace import Workspace


def stage_of(workspace: Workspace, make: object, **changes: object) -> Stage:
    stage = Stage(
        name="splits",
        version="1",
        description="",
        tables=("splits",),
        items=lambda: [ALL],
        inputs=lambda _: "as before",
        work=each(make),  # type: ignore[arg-type]
    )
    return replace(stage, **changes)  # type: ignore[arg-type]


def done(_: str) -> Done:
    return Done(
        {"splits": pl.DataFrame({"scan": ["sub-1"], "set": ["train"], "fold": [0], "participant_id": ["sub-1"]})}, "r"
    )


def test_a_kill_between_new_files_and_their_record_leaves_the_item_undone(workspace: Workspace) -> None:
    run_items(workspace, stage_of(workspace, done), [ALL])

    def killed(_: str) -> Done:
        raise SystemExit("as SIGKILL would")

    changed = stage_of(workspace, killed, inputs=lambda _: "changed")
    with pytest.raises(SystemExit):
        run_items(workspace, changed, [ALL])
    assert state_of(workspace, stage_of(workspace, done), ALL) == "stale", "back to the old settings"


def test_a_lost_table_file_is_made_again(workspace: Workspace) -> None:
    stage = stage_of(workspace, done)
    run_items(workspace, stage, [ALL])
    assert state_of(workspace, stage, ALL) == "current"
    workspace.delete("splits", ALL)
    assert state_of(workspace, stage, ALL) == "stale"


@pytest.mark.parametrize("error", [OSError("not mounted"), ValueError("no such folder")])
def test_an_unreadable_input_stops_no_neighbour(workspace: Workspace, error: Exception) -> None:
    run_items(workspace, stage_of(workspace, done), [ALL])

    def unreadable(_: str) -> None:
        raise error

    stage = stage_of(workspace, done, inputs=unreadable)
    assert state_of(workspace, stage, ALL) == "stale"
    assert run_items(workspace, stage, [ALL])[0].reason == str(error)


def person(workspace: Workspace, target: float) -> None:
    columns = {"scan": ["sub-1"], "participant_id": ["sub-1"], "status": ["ok"], "target": [target], "age": [50.0]}
    workspace.write("scans", ALL, pl.DataFrame(columns))


def record(workspace: Workspace, asset: str, item: str, result: str) -> None:
    row = {"asset": [asset], "item": [item], "outcome": ["ok"], "fingerprint": ["f"], "result": [result]}
    workspace.write("runs", f"{asset}__{item}", pl.DataFrame(row))


def test_a_corrected_target_reaches_the_models(workspace: Workspace) -> None:
    """Same split, other EDSS: weights and predictions change, so the fold must be trained again."""
    record(workspace, "splits", ALL, "split")
    record(workspace, "prepared_volumes", "sub-1", "volume")
    workspace.write(
        "splits", ALL, pl.DataFrame({"scan": ["sub-1"], "set": ["train"], "fold": [0], "participant_id": ["sub-1"]})
    )
    trained = next(stage for stage in model_stages(workspace) if stage.name == "trained_models")
    person(workspace, 2.0)
    before = trained.fingerprint("0")
    assert trained.fingerprint("0") == before
    person(workspace, 3.0)
    assert trained.fingerprint("0") != before


def test_scores_follow_predictions_not_only_weights(workspace: Workspace) -> None:
    scores = next(stage for stage in model_stages(workspace) if stage.name == "scores")
    person(workspace, 2.0)
    record(workspace, "predictions", "sub-1", "said")
    before = scores.fingerprint(ALL)
    record(workspace, "predictions", "sub-1", "said otherwise")
    assert scores.fingerprint(ALL) != before


def test_what_rests_on_the_splits(workspace: Workspace) -> None:
    stages = [*cohort_stages(workspace), *model_stages(workspace)]
    assert [stage.name for stage in below(stages, "splits")] == ["trained_models", "predictions", "scores"]
    assert next(stage for stage in stages if stage.name == "splits").resets


def test_rows_of_a_stage_that_the_settings_leave_out_go(workspace: Workspace) -> None:
    study = workspace.study.model_copy(
        update={"cohort": workspace.study.cohort.model_copy(update={"truth_regions": [], "bids": Path("/nowhere")})}
    )
    real = Workspace(study, workspace.home)
    record(real, "localisation", "sub-1", "r")
    columns = {"method": ["m"], "scan": ["sub-1"], "contrast": ["qT1"], "region": ["decoy"], "metric": ["share"]}
    real.write("localisation", "sub-1", pl.DataFrame(columns))
    with dagster_instance(real.home, alone=True) as instance, pytest.raises(Failed, match="/nowhere"):
        run_study(real, instance)
    assert real.read("localisation").is_empty()


def test_two_command_lines_do_not_run_one_home(workspace: Workspace) -> None:
    with (
        dagster_instance(workspace.home, alone=True),
        pytest.raises(Failed, match="another process"),
        dagster_instance(workspace.home, alone=True),
    ):
        pass
    with dagster_instance(workspace.home, alone=True):
        pass  # given back
