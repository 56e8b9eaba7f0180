"""Networks of a study that segment: who learns from whom, masks on the scan's own grid, scores against the truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import polars as pl
import pytest
from lesion_cohort import PEOPLE, Made, affine, mask_of, planted, prepared, write_cohort

from relevance_assets.assets import checks
from relevance_assets.configuration import remember
from relevance_assets.files import sha256
from relevance_assets.imaging.volumes import save_volume

TINY: dict[str, Any] = {
    "learn_from": "truth",
    "widths": [4, 8],
    "dropout_scale": 0,
    "epochs": 4,
    "per_epoch": 120,
    "learning_rate": 0.02,
}
STAGES = ("splits", "trained_models", "segmentations", "lesions", "segmentation_summary", "source_agreement")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two folds of four people, one of whom has a visit more, whose truth is not known."""
    folder = tmp_path_factory.mktemp("finished")
    write_cohort(folder / "bids")
    made = prepared(folder, segmentation=TINY, split={"folds": 2})
    for label in ("lesion", "ventricles"):
        mask_of(made, "sub-4_ses-M6", label).unlink()
    made.run(*STAGES)
    return made


@pytest.fixture
def made(finished: Made, tmp_path: Path) -> Made:
    """A copy of it to change."""
    shutil.copytree(finished.home.root, tmp_path / "home")
    shutil.copytree(finished.bids, tmp_path / "bids", copy_function=shutil.copy2)
    from relevance_assets.home import Home

    home = Home(tmp_path / "home")
    remember(home, "lesion_profile", {"cohort.bids": str(tmp_path / "bids")})
    return Made(home, "lesion_profile", tmp_path / "bids")


def mask(made: Made, scan: str, name: str) -> Any:
    return nib.load(made.workspace.segmented_path(scan, "network", name))


def test_nobody_is_segmented_by_a_network_that_saw_them(finished: Made) -> None:
    sides = dict(finished.table("splits").select("participant_id", "fold").unique().iter_rows())
    assert sorted(sides.values()) == [0, 0, 1, 1]
    learnt = finished.table("training_scans")
    assert "sub-4_ses-M6" not in set(learnt["scan"])  # no masks to learn from
    for fold in ("0", "1"):
        roles = dict(learnt.filter(fold=fold).select("participant_id", "set").iter_rows())
        assert roles == {person: "test" if side == int(fold) else "train" for person, side in sides.items()}
    made = finished.table("segmentations")
    assert set(made["scan"]) == set(PEOPLE)
    for scan, fold in made.select("scan", "fold").iter_rows():
        assert fold == str(sides[scan.split("_")[0]]), "both visits, also the one without truth"
    assert checks.never_seen(finished.workspace, "segmentations", ["train", "validation"])[0]


def test_the_check_sees_a_mask_by_a_network_that_knew_its_person(made: Made) -> None:
    rows = made.table("segmentations").filter(scan="sub-1").drop("study")
    for fold in (str(1 - int(rows["fold"][0])), "ensemble"):
        made.workspace.write("segmentations", "sub-1", rows.with_columns(fold=pl.lit(fold)))
        assert not checks.never_seen(made.workspace, "segmentations", ["train", "validation"])[0]


def test_masks_lie_on_the_scans_own_grid_and_say_who_made_them(finished: Made) -> None:
    rows = finished.table("segmentations")
    for scan in PEOPLE:
        for name, tissue in (("lesions", "wmh"), ("ventricles", "ventricle")):
            image = mask(finished, scan, name)
            np.testing.assert_allclose(image.affine, affine(), atol=1e-4)
            values = np.asanyarray(image.dataobj)
            assert set(np.unique(values)) <= {0, 1}
            row = rows.row(by_predicate=(pl.col("scan") == scan) & (pl.col("class") == tissue), named=True)
            assert row["voxels"] == values.sum()
            assert row["volume_mm3"] == pytest.approx(27 * values.sum())
            path = finished.home.root / row["path"]
            assert row["sha256"] == sha256(path)
            about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
            network = finished.home.model("lesion_profile", int(row["fold"])) / "segmentation.pt"
            assert about["SegmentedBy"] == {row["fold"]: sha256(network)}
            assert about["Sources"] == [f"bids:raw:{scan.replace('_', '/')}/anat/{scan}_FLAIR.nii.gz"]


def test_scores_are_those_of_the_masks_on_disk(finished: Made) -> None:
    """A file that runs to the left is turned for the network and back: scores by hand are of the files as they are."""
    scores = finished.table("segmentation_scores")
    assert set(scores["scan"]) == set(PEOPLE) - {"sub-4_ses-M6"}
    overlaps = []
    for scan in sorted(set(scores["scan"])):
        truth = np.asanyarray(nib.load(mask_of(finished, scan)).dataobj) > 0
        ventricles = (np.asanyarray(nib.load(mask_of(finished, scan, "ventricles")).dataobj) > 0) & ~truth
        for tissue, name, true in (("wmh", "lesions", truth), ("ventricle", "ventricles", ventricles)):
            found = np.asanyarray(mask(finished, scan, name).dataobj) > 0
            rows = scores.filter((pl.col("scan") == scan) & (pl.col("class") == tissue))
            value = dict(rows.select("metric", "value").iter_rows())
            both, sizes = (found & true).sum(), found.sum() + true.sum()
            assert value["dice"] == (pytest.approx(2 * both / sizes) if sizes else None)
            assert value["volume_difference_mm3"] == pytest.approx(27 * (int(found.sum()) - int(true.sum())))
            overlaps.append((tissue, both, found.sum(), true.sum()))
    assert sum(both for tissue, both, _, _ in overlaps if tissue == "ventricle") > 0, "nothing learnt: nothing shown"
    summary = finished.table("segmentation_summary").filter((pl.col("metric") == "dice") & (pl.col("class") != "all"))
    for row in summary.filter(form="pooled_as_published").iter_rows(named=True):
        both, found, true = (sum(o[i] for o in overlaps if o[0] == row["class"]) for i in (1, 2, 3))
        assert row["value"] == pytest.approx(2 * both / (found + true), abs=1e-6)
        assert row["n"] == 4
    for row in summary.filter(form="mean_over_scans").iter_rows(named=True):
        values = [2 * both / (f + t) for tissue, both, f, t in overlaps if tissue == row["class"] and f + t]
        assert (row["value"], row["n"]) == (pytest.approx(np.mean(values)), len(values))


def test_the_network_is_a_source_beside_the_truth(finished: Made) -> None:
    burden = finished.table("lesion_burden")
    assert set(burden["source"]) == {"truth", "network"}
    assert set(burden.filter(source="network")["scan"]) == set(PEOPLE)
    assert set(burden.filter(source="truth")["scan"]) == set(PEOPLE) - {"sub-4_ses-M6"}
    agreement = finished.table("source_agreement")
    assert set(agreement.select("source_a", "source_b").rows()) == {("truth", "network")}
    assert agreement.height == 3 * 4
    assert set(agreement["n"]) == {4}


def test_who_comes_later_is_segmented_by_all_networks_and_none_is_trained_again(made: Made) -> None:
    before = made.table("models")
    for place, image in ((made.bids, True), (made.bids / "derivatives" / "truth", False)):
        old, new = place / "sub-3", place / "sub-9"
        shutil.copytree(old, new)
        for path in sorted(new.rglob("sub-3_*")):
            path.rename(path.with_name(path.name.replace("sub-3", "sub-9")))
        assert list(new.rglob("sub-9_*")), image
    table = made.bids / "participants.tsv"
    table.write_text(table.read_text() + "sub-9\t50\tF\tMS\n")
    made.run("participants", "raw_scans", "prepared_volumes", "splits")
    found = made.run("segmentations")
    assert [scan for scan, one in found.items() if not one.skipped] == ["sub-9"]
    assert made.table("models").equals(before)
    rows = made.table("segmentations").filter(scan="sub-9")
    assert set(rows["fold"]) == {"ensemble"}
    assert made.table("splits").filter(scan="sub-9")["set"].to_list() == ["new"]
    assert made.table("segmentation_scores").filter(scan="sub-9").height == 22
    assert checks.never_seen(made.workspace, "segmentations", ["train", "validation"])[0]
    from relevance_assets.assets.chain import study_stages
    from relevance_assets.assets.planning import plan

    stages = study_stages(made.workspace)
    assert "trained_models" not in {due.stage.name for due in plan(made.workspace, stages).due}


def test_corrected_masks_are_scored_again_and_trained_again_only_where_asked(made: Made) -> None:
    save_volume(mask_of(made, "sub-2"), planted({"juxtacortical": 4}), affine(), np.uint8)
    found = made.run("segmentations")
    assert [scan for scan, one in found.items() if not one.skipped] == ["sub-2"]
    from relevance_assets.assets.chain import study_stages
    from relevance_assets.assets.planning import plan

    fold = made.table("segmentations").filter(scan="sub-2")["fold"][0]
    planned = plan(made.workspace, study_stages(made.workspace))
    assert "trained_models" not in {due.stage.name for due in planned.due}
    assert [note for note in planned.notes if "trained on other scans than today's" in note]
    again = made.run("trained_models")  # as the command line does
    assert [one for one, outcome in again.items() if not outcome.skipped] == [str(1 - int(fold))]


def test_what_is_removed_of_masks_is_a_setting_of_their_own(made: Made) -> None:
    def voxels() -> dict[str, int]:
        return dict(made.table("segmentations").group_by("class").agg(pl.col("voxels").sum()).iter_rows())

    before = voxels()
    remember(made.home, "lesion_profile", {"segmentation.minimum_mm3": {"ventricle": 1e6}})
    assert all(one.skipped for one in made.run("trained_models").values())
    assert not any(one.skipped for one in made.run("segmentations").values())
    assert voxels() == before | {"ventricle": 0}
    assert before["ventricle"] > 0


def test_too_few_people_are_counted_and_the_way_out_named(tmp_path: Path) -> None:
    write_cohort(tmp_path / "bids")
    made = prepared(tmp_path, segmentation=TINY, split={"folds": 5})
    reason = str(made.run("splits")["all"].reason)
    assert "people with masks: 4, too few for 5 folds; add masks or set split.folds to their number" in reason
    for scan in set(PEOPLE) - {"sub-2"}:
        for label in ("lesion", "ventricles"):
            mask_of(made, scan, label).unlink()
    reason = str(made.run("splits")["all"].reason)
    assert (
        "people with masks: 1, too few for 5 folds; add masks or do without the network (segmentation: null)" in reason
    )


def test_a_bad_mask_is_its_scans_fault_alone(made: Made) -> None:
    """The others are learnt from, segmented and measured; the network that there was stays if nothing can be learnt."""
    other = affine()
    other[0, 3] += 1
    save_volume(mask_of(made, "sub-3"), planted({}), other, np.uint8)
    made.run("splits")
    assert {one.outcome for one in made.run("trained_models").values()} == {"ok"}
    assert "sub-3" not in set(made.table("training_scans").filter(pl.col("set") != "test")["scan"])
    failed = {scan: one.reason for scan, one in made.run("segmentations").items() if one.outcome == "failed"}
    assert list(failed) == ["sub-3"]
    assert "sub-3_label-lesion_mask.nii.gz: not on the grid of the first contrast" in str(failed["sub-3"])
    assert [scan for scan, one in made.run("lesions").items() if one.outcome == "failed"] == ["sub-3"]
    networks = [made.home.model("lesion_profile", fold) / "segmentation.pt" for fold in (0, 1)]
    before = [sha256(path) for path in networks]
    for scan in PEOPLE:
        save_volume(mask_of(made, scan), planted({}), other, np.uint8)
    assert {one.outcome for one in made.run("trained_models").values()} == {"failed"}
    assert [sha256(path) for path in networks] == before
    assert made.table("models").height == 2


def test_published_post_processing_and_what_a_mask_says_of_its_making(made: Made) -> None:
    """Slice by slice an opening with a disk of 2 pixels leaves nothing thinner than five."""
    remember(made.home, "lesion_profile", {"segmentation.postprocessing": "published", "segmentation.name": "unet"})
    assert not any(one.skipped for one in made.run("segmentations").values())
    folder = made.workspace.segmented_path("sub-1", "unet", "ventricles").parent
    assert list(folder.glob("*_desc-network_mask*")) == [], "masks of the earlier name are gone"
    path = made.workspace.segmented_path("sub-1", "unet", "ventricles")
    for plane in np.moveaxis(np.asanyarray(nib.load(path).dataobj), 2, 0):
        rows, columns = (plane.any(axis=axis).sum() for axis in (1, 0))
        assert not plane.any() or (rows >= 5 and columns >= 5)
    about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert about["Settings"]["postprocessing"] == "published"
    assert about["SourceSha256"] == sha256(made.bids / "sub-1" / "anat" / "sub-1_FLAIR.nii.gz")


def test_masks_that_come_later_are_learnt_from_when_all_is_divided_anew(made: Made) -> None:
    """Counted until then."""
    table = made.bids / "participants.tsv"
    table.write_text(table.read_text() + "sub-9\t50\tF\tMS\n")
    for place in (made.bids, made.bids / "derivatives" / "truth"):
        shutil.copytree(place / "sub-3", place / "sub-9")
        for path in sorted((place / "sub-9").rglob("sub-3_*")):
            path.rename(path.with_name(path.name.replace("sub-3", "sub-9")))
    found = made.run("participants", "raw_scans", "prepared_volumes", "splits")["all"]
    assert found.metadata["scans_with_masks_not_learnt_from"] == 1


def test_blocks_of_thick_slices(tmp_path: Path) -> None:
    """A 3D network whose kernels follow from the voxels; one fold chooses the epoch."""
    write_cohort(tmp_path / "bids")
    blocks = TINY | {"dims": 3, "size": [24, 24, 8], "per_epoch": 8, "epochs": 1}
    made = prepared(tmp_path, segmentation=blocks, split={"folds": 3})
    assert {one.outcome for one in made.run("splits", "trained_models").values()} == {"ok"}
    roles = made.table("training_scans").group_by("fold").agg(pl.col("set").unique().sort())
    assert all(sets == ["test", "train", "validation"] for sets in roles["set"].to_list())
    assert made.table("training_epochs")["validation_loss"].null_count() == 0
    assert {one.outcome for one in made.run("segmentations").values()} == {"ok"}
    assert made.table("segmentation_scores")["scan"].n_unique() == len(PEOPLE)
