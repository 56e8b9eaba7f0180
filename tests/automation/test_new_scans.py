"""New scans come, change and go: the right things are done, and only those."""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import replace

import pytest
from service import Service

from relevance_assets.assets import automation
from relevance_assets.assets.chunks import CHUNK, contiguous
from relevance_assets.assets.runner import run_study
from relevance_assets.assets.stages import Stage
from relevance_assets.assets.workspace import Workspace
from relevance_assets.cohort.watch import look
from relevance_assets.component import study_definitions

CHAIN = ["raw_scans", "prepared_volumes", "predictions", "relevance_maps", "quantile_masks"]
MODELS = [("trained_models", fold) for fold in "012"]
STATISTICS = ["preparation_overview", "scores", "correlations", "published_comparison"]
SCANS = [f"sub-{number:05d}" for number in range(1, 13)]


def sets(service: Service) -> dict[str, str]:
    return {scan: side for scan, (side, _) in service.workspace.sides.items()}


@pytest.mark.parametrize("registered", [False, True], ids=["no keys yet", "keys there before the first look"])
def test_the_first_cohort_needs_no_trick(service: Service, registered: bool) -> None:
    """Dagster's own conditions do not ask for partitions that were there when they first looked."""
    if registered:
        service.instance.add_dynamic_partitions("disability_scans", SCANS)
    made = service.settle()
    for scan in SCANS:
        assert service.stages_of(scan) == CHAIN
    assert [one for one in made if one[0] == "trained_models"] == MODELS
    assert service.stages_of("all") == STATISTICS
    assert len(made) == len(SCANS) * len(CHAIN) + 3 + len(STATISTICS), "each once"
    assert service.instance.get_dynamic_partitions("disability_scans") == SCANS
    assert not service.look()


def test_a_new_scan_is_all_that_is_worked_on(service: Service) -> None:
    service.settle()
    before = sets(service)
    (new,) = service.add(1, first=100)
    made = service.settle()
    assert made == [(stage, new) for stage in CHAIN], "no training, no statistics, no neighbour"
    assert sets(service) == before | {new: "new"}
    assert service.runs < 30


def test_a_copy_in_progress_is_not_a_scan(service: Service) -> None:
    service.settle()
    patient = service.study.automation.model_copy(update={"quiet_seconds": 3600})
    service.study = service.study.model_copy(update={"automation": patient})
    service.add(1, first=100)
    assert service.settle() == [], "participants.tsv did change, and is read; the scan is left alone"
    assert "sub-00100" not in service.workspace.read("scans")["scan"]
    assert "still being written" in service.said
    (request,) = service.look(later_s=3700)
    assert request.job_name == "disability_cohort", "once it has settled it is asked for"


def test_a_folder_that_is_just_being_filled_is_left_alone(service: Service) -> None:
    patient = service.study.automation.model_copy(update={"quiet_seconds": 3600})
    service.study = service.study.model_copy(update={"automation": patient})
    assert not service.look()
    assert "12 scans are still being written" in service.said
    assert service.look(later_s=3700)


def test_quiet_is_counted_from_the_last_change_that_the_file_system_saw(service: Service) -> None:
    """cp -p and rsync -t set modification times back; the time of the change itself they cannot."""
    path = service.bids / "sub-00001" / "anat" / "sub-00001_T1map.nii.gz"
    path.write_bytes(b"again")
    os.utime(path, (0, 0))
    folder = look(service.bids)
    assert "sub-00001" in folder.changed_after(time.time() - 60)
    assert not folder.changed_after(time.time() + 1)


def test_a_changed_scan_is_done_again_alone_and_nobody_is_trained_again(service: Service) -> None:
    service.settle()
    scan = next(name for name, side in sets(service).items() if side == "train")
    (service.bids / scan / "anat" / f"{scan}_T1map.nii.gz").write_bytes(b"another image")
    assert service.settle() == [(stage, scan) for stage in CHAIN]
    assert "trained on other scans" in service.said


def test_a_scan_that_goes_leaves_the_tables_and_its_files_are_set_aside(service: Service) -> None:
    service.settle()
    scan = next(name for name, side in sets(service).items() if side == "train")
    kept = service.home.image("disability", scan, "res-prepared_desc-preproc_T1map")
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"a map that took long")
    shutil.move(service.bids / scan, service.bids.parent / scan)
    assert service.settle() == []
    workspace = service.workspace
    for table in ("scans", "raw_scans", "volumes", "splits", "predictions", "relevance_maps", "quantile_masks"):
        assert scan not in workspace.read(table)["scan"], table
    assert not [name for name in workspace.store.partitions("runs", "disability") if scan in name]
    assert scan not in service.instance.get_dynamic_partitions("disability_scans")
    assert (service.home.removed("disability") / scan / kept.name).read_bytes() == b"a map that took long"
    assert not kept.parent.exists()


def test_who_comes_back_is_not_new_to_the_models_that_learnt_from_them(service: Service) -> None:
    service.settle()
    scan, side = next((name, side) for name, side in service.workspace.sides.items() if side[0] == "train")
    away = service.bids.parent / scan
    shutil.move(service.bids / scan, away)
    service.settle()
    shutil.move(away, service.bids / scan)
    service.settle()
    assert service.workspace.sides[scan] == side


def test_a_disk_that_is_not_mounted_is_no_reason_to_delete(service: Service) -> None:
    service.settle()
    shutil.move(service.bids, service.bids.parent / "elsewhere")
    assert service.look() == []
    assert "no such folder" in service.said
    shutil.copytree(service.bids.parent / "elsewhere" / "sub-00001", service.bids / "sub-00001")
    assert service.look() == []
    assert "is its disk mounted?" in service.said
    assert service.workspace.known_scans().height == len(SCANS)


def test_another_recipe_recomputes_everything_below_it_and_nothing_else(service: Service) -> None:
    service.settle()
    steps = [
        s.model_copy(update={"shape": (26, 34, 30)}) if s.step == "crop_or_pad" else s
        for s in service.study.preparation
    ]
    service.study = service.study.model_copy(update={"preparation": steps})
    made = service.settle()
    assert {stage for stage, _ in made} == {*CHAIN[1:], "trained_models"}
    assert len(made) == len(SCANS) * 4 + 3


def test_words_are_not_settings(service: Service) -> None:
    service.settle()
    service.study = service.study.model_copy(update={"title": "Another title", "question": "Another?"})
    assert service.settle() == []


def test_the_first_training_waits_for_enough_scans(service: Service) -> None:
    automation = service.study.automation.model_copy(update={"train_from_scans": 18})
    service.study = service.study.model_copy(update={"automation": automation})
    assert {stage for stage, _ in service.settle()} == {"raw_scans", "prepared_volumes", "preparation_overview"}
    assert "12 of the 18 scans" in service.said
    assert not service.look()
    assert "12 of the 18 scans" in service.said, "not only once"
    service.add(6, first=200)
    assert {stage for stage, _ in service.settle()} >= {"trained_models", "relevance_maps"}
    assert "new" not in sets(service).values()


def test_retraining_divides_everybody_anew(service: Service) -> None:
    service.settle()
    service.add(6, first=100)
    service.settle()
    assert list(sets(service).values()).count("new") == 6
    definitions = study_definitions(service.study, service.home)
    job = definitions.resolve_job_def("disability_retraining")
    assert job.execute_in_process(instance=service.instance).success
    made = service.settle()
    assert "new" not in sets(service).values()
    assert [one for one in made if one[0] == "trained_models"] == MODELS
    assert {stage for stage, _ in made} == {"trained_models", *CHAIN[2:], *STATISTICS[1:]}


def test_statistics_come_at_night(service: Service) -> None:
    service.settle()
    service.add(1, first=100)
    assert "scores" not in {stage for stage, _ in service.settle()}
    job = study_definitions(service.study, service.home).resolve_job_def("disability_statistics")
    service.made.clear()
    assert job.execute_in_process(instance=service.instance).success
    assert {stage for stage, _ in service.made} == set(STATISTICS)


def test_half_of_the_scans_at_random_take_few_runs() -> None:
    """A range is a stretch of keys in the order of adding: asked for one by one, these were 344 runs."""
    keys = [f"sub-{number:05d}" for number in range(1381)]
    todo = set(random.Random(0).sample(keys, 690))
    chunks = contiguous(keys, todo, set(keys))
    assert len(chunks) <= -(-690 // CHUNK) + 1
    assert set().union(*map(set, chunks)) >= todo
    assert max(len(todo & set(chunk)) for chunk in chunks) <= CHUNK


def test_a_broken_participants_file_takes_nothing_away(service: Service) -> None:
    """A typo in its header fails the stage; the scans that are there stay, and it is said what is wrong."""
    service.settle()
    people = service.bids / "participants.tsv"
    whole = people.read_text()
    people.write_text(whole.replace("participant_id", "participant", 1))
    service.settle()
    workspace = service.workspace
    assert (workspace.record("participants", "all") or {})["outcome"] == "failed"
    for table in ("scans", "raw_scans", "volumes", "relevance_maps", "splits"):
        assert set(workspace.read(table)["scan"]) == set(SCANS), table
    people.write_text(whole)
    assert service.settle() == [], "nothing was lost, so nothing is made again"


def test_a_truncated_participants_file_takes_nothing_away(service: Service) -> None:
    """Half a cohort does not leave by itself; a person who asks gets what they ask for."""
    service.settle()
    people = service.bids / "participants.tsv"
    lines = people.read_text().splitlines()
    people.write_text("\n".join(lines[:4]) + "\n")
    service.settle()
    record = service.workspace.record("participants", "all") or {}
    assert "9 of 12 scans would leave the study" in record["reason"]
    assert set(service.workspace.read("relevance_maps")["scan"]) == set(SCANS)
    assert set(service.instance.get_dynamic_partitions("disability_scans")) == set(SCANS)
    run_study(service.workspace, service.instance)
    assert service.workspace.known_scans().height == 3


def test_a_table_of_people_that_is_being_written_is_waited_for(service: Service) -> None:
    service.settle()
    quiet = service.study.automation.model_copy(update={"quiet_seconds": 60})
    service.study = service.study.model_copy(update={"automation": quiet})
    (service.bids / "participants.tsv").touch()
    assert service.look() == []
    assert "still being written" in service.said
    service.look(later_s=61)
    assert "still being written" not in service.said


def test_another_version_of_a_stage_is_noticed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade neither the folder nor the records have changed."""
    service.settle()
    chain = automation.study_stages

    def upgraded(workspace: Workspace) -> list[Stage]:
        return [replace(one, version="next") if one.name == "quantile_masks" else one for one in chain(workspace)]

    monkeypatch.setattr(automation, "study_stages", upgraded)
    assert {request.tags["dagster/asset_partition_range_start"] for request in service.look()} == {SCANS[0]}


def test_what_somebody_deleted_is_noticed_within_the_hour(service: Service) -> None:
    service.settle()
    service.workspace.delete("predictions", SCANS[0])
    assert service.look() == []
    assert service.look(later_s=3601) != []
