"""Settings: unknown keys are errors, dotted overrides reach into lists, errors name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from relevance_assets.configuration import (
    DEFINITIONS,
    SettingsError,
    load_studies,
    overridden,
    read_settings,
    remember,
    study_from,
)
from relevance_assets.home import Home, check_scan, split_scan


@pytest.fixture
def attributes() -> dict:
    return read_settings(DEFINITIONS / "disability" / "defs.yaml")["attributes"]


def test_shipped_studies_are_valid(tmp_path: Path) -> None:
    studies = load_studies(Home(tmp_path))
    assert set(studies) >= {"disability", "brain_age"}
    assert studies["disability"].shape == (28, 34, 30)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training.epoch": 3}, "training.epoch"),
        ({"contrasts.qT1.name": "combined"}, "combined"),
        ({"cohort.target.threshold": None}, "threshold"),
        ({"preparation.scale": {"step": "reorient"}}, "order"),
        ({"contrasts.qT1.scale": {"low": 2, "high": 1}}, "above low"),
        ({"split.folds": 1}, "split.folds"),
        ({"name": "../evil"}, "name"),
        ({"contrasts.MWF.suffix": "T1map"}, "same image"),
        ({"methods": {"lrp_a": {"composite": "disability"}, "lrpA": {"composite": "disability"}}}, "BIDS labels"),
        ({"heat_map.map": "qT7"}, r"heat_map\.map: no map 'qT7'; there are qT1, MWF, NDI, combined"),
        ({"heat_map.map": "individual"}, r"heat_map\.map: no map 'individual'"),
        ({"inversion.reference.map": "qT7"}, r"inversion\.reference\.map: .*'individual' or 'combined'"),
        ({"heat_map.atlas": "dseg.nii.gz"}, r"heat_map\.atlas_names: an atlas needs both"),
        ({"heat_map.atlas_names": "dseg.tsv"}, r"heat_map\.atlas: an atlas needs both"),
    ],
)
def test_wrong_settings_name_the_key(attributes: dict, tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        study_from(overridden(attributes, change), Home(tmp_path), "defs.yaml")
    assert "\n" not in str(caught.value)


def test_a_heat_map_of_one_contrast_and_of_an_atlas_is_fine(attributes: dict, tmp_path: Path) -> None:
    change = {"heat_map.map": "MWF", "heat_map.atlas": "dseg.nii.gz", "heat_map.atlas_names": "dseg.tsv"}
    study = study_from(overridden(attributes, change), Home(tmp_path), "defs.yaml")
    assert study.heat_map is not None
    assert study.heat_map.map == "MWF"


def test_overrides_reach_lists_by_name_and_leave_the_original(attributes: dict) -> None:
    changed = overridden(attributes, {"preparation.resample.voxel_size_mm": [4, 4, 4], "contrasts.1.scale.high": 0.5})
    assert changed["preparation"][2]["voxel_size_mm"] == [4, 4, 4]
    assert changed["contrasts"][1]["scale"]["high"] == 0.5
    assert attributes["preparation"][2]["voxel_size_mm"] == [6, 6, 6]
    with pytest.raises(SettingsError, match="no 'absent' in that list"):
        overridden(attributes, {"contrasts.absent.scale.high": 1})
    with pytest.raises(SettingsError, match="single value"):
        overridden(attributes, {"name.first": 1})


def test_remembered_settings_come_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    remember(home, "disability", {"training.epochs": 2})
    remember(home, "disability", {"split.seed": 7})
    study = load_studies(home)["disability"]
    assert (study.training.epochs, study.split.seed) == (2, 7)


def test_a_setting_takes_the_place_of_what_was_remembered_below_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    remember(home, "disability", {"sanity.epochs": 3, "training.epochs": 2})
    remember(home, "disability", {"sanity": None})
    assert read_settings(home.settings("disability")) == {"sanity": None, "training.epochs": 2}
    study = load_studies(home)["disability"]
    assert (study.sanity, study.training.epochs) == (None, 2)


def test_broken_yaml_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: [1,")
    with pytest.raises(SettingsError, match=r"x\.yaml: not valid YAML"):
        read_settings(path)
    path.write_text("- 1")
    with pytest.raises(SettingsError, match="mapping"):
        read_settings(path)


@pytest.mark.parametrize("name", ["sub-1/../x", "sub-", "ses-1", "sub-1_ses-", "sub-a b", "sub-1_ses-2_run-1", ""])
def test_unsafe_scan_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a scan name"):
        check_scan(name)


def test_scan_names_split() -> None:
    assert split_scan("sub-A_ses-1") == ("sub-A", "ses-1")
    assert split_scan("sub-A") == ("sub-A", None)
