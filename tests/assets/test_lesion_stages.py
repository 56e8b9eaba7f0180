"""Studies of lesions: from planted lesions to the tables, and from a finished table without images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import polars as pl
import pytest
import yaml
from lesion_cohort import PEOPLE, SHAPE, VOXEL, ZONES, Made, affine, mask_of, planted, prepared

from relevance_assets.assets.forgetting import NotForgotten, check_forgettable
from relevance_assets.cohort.subjects import SUBJECTS
from relevance_assets.configuration import DEFINITIONS, SettingsError, load_studies, read_settings, remember
from relevance_assets.home import Home
from relevance_assets.imaging.volumes import save_volume

NETWORK = {"segmentation": {"learn_from": "truth"}}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return prepared(tmp_path, segmentation=None)


def test_planted_lesions_come_back_in_their_zones(made: Made) -> None:
    assert {one.outcome for one in made.run("lesions").values()} == {"ok"}
    burden = made.table("lesion_burden").filter(pl.col("rule") == "lesion_3d")
    for scan, (_, lesions) in PEOPLE.items():
        rows = {row["zone"]: row for row in burden.filter(pl.col("scan") == scan).iter_rows(named=True)}
        every = sum(lesions.values())
        for zone in (*ZONES, "all"):
            voxels = every if zone == "all" else lesions.get(zone, 0)
            assert rows[zone]["voxels"] == voxels
            assert rows[zone]["volume_mm3"] == pytest.approx(27 * voxels)
            assert rows[zone]["count"] == (len(lesions) if zone == "all" else int(zone in lesions))
            assert rows[zone]["share"] == (pytest.approx(voxels / every) if every else None)
        totals = made.table("lesion_totals").filter(pl.col("scan") == scan).row(0, named=True)
        assert totals["ventricle_mm3"] == 6**3 * 27
        assert totals["lesions"] == len(lesions)
        assert made.workspace.scan_figure_path(scan, "lesions").stat().st_size > 10_000
    side = made.table("lesions").filter((pl.col("rule") == "lesion_3d") & (pl.col("zone") == "paraventricular"))
    assert side["centroid_x_mm"].to_list() == pytest.approx([31.5] * 3)  # to the right, though the file runs left
    assert side["midplane_mm"].to_numpy() == pytest.approx(31.5, abs=0.6)
    assert side["ventricle_edge_mm"].to_list() == pytest.approx([24.0] * 3)  # centre of a voxel to that of another


def test_distances_are_to_the_cortex_given_and_to_the_brains_rim_without(made: Made) -> None:
    """A sheet of cortex 9 mm from one lesion; its mask changed, that scan alone is measured again."""
    made.run("lesions")
    scan = "sub-4_ses-M6"

    def distance() -> set[float]:
        rows = made.table("lesions").filter(pl.col("scan") == scan, pl.col("rule") == "lesion_3d")
        return set(rows["cortex_edge_mm"].round(6))

    (before,) = distance()
    x = np.argwhere(planted(PEOPLE[scan][1]))[0, 0]
    sheet = np.zeros(SHAPE, np.uint8)
    sheet[x + 3] = 1
    save_volume(mask_of(made, scan, "cortex"), sheet, affine(), np.uint8)
    assert [item for item, one in made.run("lesions").items() if not one.skipped] == [scan]
    assert distance() == {3 * VOXEL} != {before}
    sources = made.workspace.study.lesions.model_dump(exclude_none=True)["sources"]  # type: ignore[union-attr]
    del sources["truth"]["cortex"]
    remember(made.home, "lesion_profile", {"lesions.sources": sources})
    again = Made(made.home, "lesion_profile", made.bids)
    again.run("lesions")
    rows = again.table("lesions").filter(pl.col("scan") == scan, pl.col("rule") == "lesion_3d")
    assert set(rows["cortex_edge_mm"].round(6)) == {before}


def test_tables_of_every_scan(made: Made) -> None:
    made.run("lesions")
    for name in ("lesion_burden", "lesion_totals", "zone_agreement", "zone_sensitivity"):
        assert set(made.table(name)["scan"]) == set(PEOPLE), name
    assert set(made.table("lesions")["scan"]) == set(PEOPLE) - {"sub-1"}
    agreement = made.table("zone_agreement").filter(pl.col("scan") == "sub-1")
    assert agreement["kappa"].null_count() == agreement.height == 3
    sensitivity = made.table("zone_sensitivity").filter(pl.col("factor") == 1, pl.col("threshold") == "cortex_edge_mm")
    same = sensitivity.join(made.table("lesion_burden"), on=["scan", "source", "rule", "zone"])
    assert same.height == 4 * len(PEOPLE)
    assert (same["volume_mm3"] == same["volume_mm3_right"]).all()


def test_a_wrong_mask_stops_its_scan_only(made: Made) -> None:
    mask_of(made, "sub-1").unlink()
    mask_of(made, "sub-1", "ventricles").unlink()
    mask_of(made, "sub-2", "ventricles").unlink()
    mask_of(made, "sub-4_ses-M0", "cortex").unlink()
    other = affine()
    other[0, 3] += 1
    save_volume(mask_of(made, "sub-3"), planted({}), other, np.uint8)
    found = made.run("lesions")
    assert {item for item, one in found.items() if one.outcome == "ok"} == {"sub-4_ses-M6"}
    assert "no lesion mask, such as" in str(found["sub-1"].reason)
    assert "sub-2_label-ventricles_mask.nii.gz" in str(found["sub-2"].reason)
    assert "not on the grid of the first contrast; resample it" in str(found["sub-3"].reason)
    assert "sub-4_ses-M0_label-cortex_mask.nii.gz: no such file; add it, or correct lesions.sources" in str(
        found["sub-4_ses-M0"].reason
    )
    assert all("\n" not in str(one.reason) for one in found.values())
    assert set(made.table("lesion_totals")["scan"]) == {"sub-4_ses-M6"}


def test_only_what_changed_is_measured_again(made: Made) -> None:
    made.run("lesions")
    assert all(one.skipped for one in made.run("lesions").values())
    before = made.table("lesions").filter(pl.col("scan") != "sub-2")
    image = nib.load(mask_of(made, "sub-2"))
    save_volume(mask_of(made, "sub-2"), planted({"juxtacortical": 1}), image.affine, np.uint8)
    assert [item for item, one in made.run("lesions").items() if not one.skipped] == ["sub-2"]
    assert made.table("lesions").filter(pl.col("scan") != "sub-2").equals(before)


def test_people_and_statistics_from_images(made: Made) -> None:
    made.run()
    subjects = made.table("subjects")
    assert subjects["participant_id"].to_list() == ["sub-1", "sub-2", "sub-3", "sub-4"]
    assert subjects["scan"].to_list() == ["sub-1", "sub-2", "sub-3", "sub-4_ses-M0"]  # a person's first
    assert subjects["lesion"].to_list() == [0, 54, 9 * 27, 5 * 27]
    assert subjects["paraventricular"].to_list() == [0, 0, 81, 135]
    assert subjects["unit"].unique().to_list() == ["mm³"]
    groups = made.table("group_comparisons").filter(
        (pl.col("analysis") == "groups") & (pl.col("test") == "mann_whitney") & (pl.col("variant") == "all")
    )
    row = groups.filter(pl.col("measure") == "periventricular_ratio").row(0, named=True)
    assert (row["n_a"], row["n_b"]) == (1, 2)  # shares of nothing are not 0: sub-1 has none
    assert not made.table("published_comparison")["comparable"].any()  # other people than the publication's


def test_a_finished_table_needs_no_images(made: Made, tmp_path: Path) -> None:
    rows = [(f"{n}", 20 + n % 40, n % 2, "MS" if n % 3 else "HC", 1000 + n, 50, 3 * n, n, n, n) for n in range(60)]
    path = tmp_path / "people.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in (tuple(SUBJECTS), *rows)))
    remember(made.home, "lesion_profile", {"cohort.subjects": str(path)})
    statistics = ("subject_table", "lesion_statistics", "correlations", "published_comparison")
    assert made.run(*statistics)["all"].outcome == "ok"
    assert made.table("subjects").height == 60
    assert made.table("subjects")["scan"].null_count() == 60
    assert not made.table("published_comparison")["comparable"].any()  # imported, but not the publication's people
    shown = made.workspace.figure_path("adjustedEffects")
    assert shown.exists()
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    again = made.run("subject_table")["all"]
    assert not again.skipped
    assert made.table("subjects").height == 59
    path.write_text("nonsense")
    assert "no column participant_id" in str(made.run("subject_table")["all"].reason)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lesions.sources": {"a": {"lesions": "x.nii", "ventricles": "{scan}.nii"}}}, "has no {scan}"),
        ({"lesions.sources": {"a": {"lesions": "../{scan}.nii", "ventricles": "{scan}.nii"}}}, "leads out of the BIDS"),
        ({"lesions.sources": {"a": {"lesions": "/{scan}.nii", "ventricles": "{scan}.nii"}}}, "leads out of the BIDS"),
        ({"lesions.sources": {"a": {"lesions": "{scan}{x}.nii", "ventricles": "{scan}.nii"}}}, "may stand in braces"),
        ({"lesions.sources": {"a": {"lesions": "{{scan}}", "ventricles": "{scan}.nii"}}}, "has no {scan}"),
        ({"statistics.correlate_with": "age"}, "not together with statistics.correlate_with"),
        ({"lesions.source": "manual"}, "no source 'manual'; there are truth"),
        ({"lesions": None, "segmentation": None}, "model: needed"),
        ({"lesions": None}, "model: needed"),
        ({"segmentation": {"learn_from": "manual"}}, "learn_from: no source 'manual'; there are truth"),
        (NETWORK | {"segmentation.name": "truth"}, "segmentation.name: truth is one of lesions.sources"),
        (NETWORK | {"segmentation.dims": 3}, "dims 3 needs size, of several slices"),
        (NETWORK | {"segmentation.size": [32, 32, 2]}, "a 2D network takes slices"),
        (NETWORK | {"segmentation.loss": "hinge"}, "segmentation.loss"),
        (
            NETWORK | {"segmentation.loss_options": {"alpha": 3}},
            "dice_ce has no 'alpha'; it has dice_share, background",
        ),
        (NETWORK | {"segmentation.widths": [16, 31]}, "at least two levels, each of an even number"),
        (NETWORK | {"segmentation": None, "cohort.subjects": "x.csv", "lesions": None}, "model: needed"),
        ({"model": {"name": "mrinet"}}, "cohort.target: needed; model, cohort.target and methods go together"),
        ({"lesions.zones.cortex_edge_mm": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    home = Home(tmp_path)
    remember(home, "lesion_profile", settings)
    with pytest.raises(SettingsError) as caught:
        load_studies(home)
    assert said in str(caught.value)


GUIDE = Path(__file__).resolve().parents[2] / "docs" / "lesions.md"


def test_settings_of_the_guide_and_of_the_files_beside_the_study(tmp_path: Path) -> None:
    """Every YAML that a reader may copy is a study."""
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    first = yaml.safe_load(blocks[0])
    for number, settings in enumerate(
        [
            first,
            first | yaml.safe_load(blocks[1]),
            *(read_settings(DEFINITIONS / "lesion_profile" / f"{name}.yaml") for name in ("paper", "synthetic")),
        ]
    ):
        home = Home(tmp_path / str(number))
        remember(home, "lesion_profile", settings)
        assert (load_studies(home)["lesion_profile"].segmentation is None) == (number == 0)


def test_what_a_loss_can_be_told_is_what_it_takes() -> None:
    from relevance_assets.segmentation.losses import LOSSES
    from relevance_assets.study.lesions import LOSS_OPTIONS

    assert {name: set(options) for name, options in LOSS_OPTIONS.items()} == {
        name: set(defaults) for name, (_, defaults) in LOSSES.items()
    }


def test_the_papers_network_has_its_size(tmp_path: Path) -> None:
    """31,380,327 trained numbers (MS-DeepBrain-Study)."""
    from relevance_assets.segmentation.networks import AttentionUNet

    remember(Home(tmp_path), "lesion_profile", read_settings(DEFINITIONS / "lesion_profile" / "paper.yaml"))
    settings = load_studies(Home(tmp_path))["lesion_profile"].segmentation
    assert settings is not None
    network = AttentionUNet(1, 3, **settings.model_dump(include={"dims", "widths", "norm", "gates"}))
    assert sum(each.numel() for each in network.parameters()) == 31_380_327


def test_a_lesion_without_ventricles_to_measure_from_has_no_zone(made: Made) -> None:
    """Nothing is known, which is not nothing: null, and nobody's row in the subject table."""
    image = nib.load(mask_of(made, "sub-2", "ventricles"))
    save_volume(mask_of(made, "sub-2", "ventricles"), np.zeros(SHAPE), image.affine, np.uint8)
    made.run("lesions", "subject_table")
    burden = made.table("lesion_burden").filter((pl.col("scan") == "sub-2") & (pl.col("rule") == "lesion_3d"))
    assert dict(burden.select("zone", "volume_mm3").iter_rows()) == {"all": 54.0, **dict.fromkeys(ZONES)}
    assert made.table("subjects")["participant_id"].to_list() == ["sub-1", "sub-3", "sub-4"]


def block(x: int, *, length: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[x : x + 4, 24:28, 20 : 20 + length] = 1
    return mask


def test_lesions_change_between_visits(made: Made) -> None:
    """One grows from 4 to 8 voxels, one is new, one is gone, one stays; found half-way between the visits."""
    visits = {
        "sub-4_ses-M0": block(8, length=4) | block(16, length=4) | block(34, length=4),
        "sub-4_ses-M6": block(8, length=8) | block(26, length=4) | block(34, length=4),
    }
    for scan, mask in visits.items():
        save_volume(mask_of(made, scan), mask, affine(), np.uint8)
    halfway = [{"step": "halfway"}, {"step": "brain_mask"}]
    halfway += [{"step": "resample", "voxel_size_mm": [VOXEL] * 3}, {"step": "scale"}]  # type: ignore[dict-item]
    remember(made.home, "lesion_profile", {"preparation": halfway})
    made.run("participants", "raw_scans", "prepared_volumes", "lesions")
    assert {item: one.outcome for item, one in made.run("lesion_changes").items()} == {"sub-4_ses-M6": "ok"}
    changes = made.table("lesion_changes")
    assert changes["since"].unique().to_list() == ["sub-4_ses-M0"]
    volumes = changes.select("state", "volume_before_mm3", "volume_after_mm3")
    found = {state: (before / 27 / 16, after / 27 / 16) for state, before, after in volumes.iter_rows()}
    assert changes.height == 4
    # the visits lie where they lie: half-way is their own grid, but for rounding of the registration
    for state, expected in {"enlarging": (4, 8), "new": (0, 4), "resolved": (4, 0), "stable": (4, 4)}.items():
        assert found[state] == pytest.approx(expected, rel=0.25), state
    assert all(one.skipped for one in made.run("lesion_changes").values())
    save_volume(mask_of(made, "sub-4_ses-M0"), visits["sub-4_ses-M6"], affine(), np.uint8)
    made.run("lesions", "lesion_changes")
    assert made.table("lesion_changes")["state"].to_list() == ["stable"] * 3


def test_nobody_is_forgotten_whom_an_imported_table_names(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    path = tmp_path / "people.csv"
    path.write_text(f"{','.join(SUBJECTS)}\n7,44,F,MS,1000,50,3,1,1,1\n")
    remember(home, "lesion_profile", {"cohort.subjects": str(path)})
    with pytest.raises(NotForgotten, match=r"people.csv still names sub-7: remove the row first"):
        check_forgettable(home, "sub-7")
    check_forgettable(home, "sub-1")  # 1 is in the table, but no person
