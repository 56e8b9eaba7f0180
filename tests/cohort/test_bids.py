"""Which file is which contrast, what is missing or doubled, and what a sidecar inherits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relevance_assets.cohort.bids import DatasetError, find_scan, index_scans
from relevance_assets.study import Contrast

Put = Callable[..., Path]
T1W = Contrast(name="T1w", suffix="T1w")
NDI = Contrast(name="NDI", suffix="dwimap", entities={"model": "noddi", "param": "ICVF"})


def test_scans_with_and_without_sessions_in_order(bids: Path, put: Put) -> None:
    for name in ("sub-B/anat/sub-B_T1w", "sub-A/ses-2/anat/sub-A_ses-2_T1w", "sub-A/ses-1/anat/sub-A_ses-1_T1w"):
        put(f"{name}.nii.gz")
    scans = index_scans(bids, [T1W])
    assert list(scans) == ["sub-A_ses-1", "sub-A_ses-2", "sub-B"]
    assert (scans["sub-A_ses-2"].participant_id, scans["sub-A_ses-2"].session) == ("sub-A", "ses-2")
    assert scans["sub-B"].session is None
    assert scans["sub-B"].images == {"T1w": bids / "sub-B/anat/sub-B_T1w.nii.gz"}
    assert not any(scan.problems for scan in scans.values())


def test_derivatives_are_not_raw(bids: Path, put: Put) -> None:
    put("sub-A/anat/sub-A_T1w.nii.gz")
    put("derivatives/truth/sub-A/anat/sub-A_T1w.nii.gz")
    put("derivatives/truth/sub-Z/anat/sub-Z_T1w.nii.gz")
    put("sourcedata/sub-Y/anat/sub-Y_T1w.nii.gz")
    scans = index_scans(bids, [T1W])
    assert list(scans) == ["sub-A"]
    assert scans["sub-A"].images["T1w"] == bids / "sub-A/anat/sub-A_T1w.nii.gz"


@pytest.mark.parametrize("value", ["ICVF", "icvf"])
def test_entities_that_the_standard_does_not_know(bids: Path, put: Put, value: str) -> None:
    put(f"sub-A/dwi/sub-A_model-noddi_param-{value}_dwimap.nii.gz")
    put("sub-A/dwi/sub-A_model-noddi_param-OD_dwimap.nii.gz")
    found = index_scans(bids, [NDI])["sub-A"]
    assert found.images["NDI"].name == f"sub-A_model-noddi_param-{value}_dwimap.nii.gz"


def test_of_several_the_plain_one_is_meant(bids: Path, put: Put) -> None:
    put("sub-A/anat/sub-A_T1w.nii.gz")
    put("sub-A/anat/sub-A_ce-gadolinium_T1w.nii.gz")
    after = Contrast(name="T1c", suffix="T1w", entities={"ce": "gadolinium"})
    found = index_scans(bids, [T1W, after])["sub-A"]
    assert found.images["T1w"].name == "sub-A_T1w.nii.gz"
    assert found.images["T1c"].name == "sub-A_ce-gadolinium_T1w.nii.gz"


def test_a_missing_contrast_is_named_with_what_is_there(bids: Path, put: Put) -> None:
    put("sub-A/anat/sub-A_FLAIR.nii.gz")
    put("sub-B/anat/sub-B_acq-mprage_T1w.nii.gz")
    scans = index_scans(bids, [T1W, NDI])
    assert scans["sub-A"].images == {}
    assert scans["sub-A"].problems[0] == "sub-A: contrast T1w (T1w) is missing; there are: FLAIR"
    assert "NDI (model-noddi_param-ICVF_dwimap) is missing" in scans["sub-A"].problems[1]
    assert list(scans["sub-B"].images) == ["T1w"]


@pytest.mark.parametrize(
    "names", [("sub-A_run-1_T1w.nii.gz", "sub-A_run-2_T1w.nii.gz"), ("sub-A_T1w.nii", "sub-A_T1w.nii.gz")]
)
def test_a_doubled_contrast_names_both_files(bids: Path, put: Put, names: tuple[str, str]) -> None:
    for name in names:
        put(f"sub-A/anat/{name}")
    found = index_scans(bids, [T1W])["sub-A"]
    assert found.images == {}
    assert "is doubled" in found.problems[0]
    assert all(name in found.problems[0] for name in names)


def test_entities_tell_doubled_files_apart(bids: Path, put: Put) -> None:
    put("sub-A/anat/sub-A_run-01_T1w.nii.gz")
    put("sub-A/anat/sub-A_run-02_T1w.nii.gz")
    second = Contrast(name="T1w", suffix="T1w", entities={"run": "2"})
    assert index_scans(bids, [second])["sub-A"].images["T1w"].name == "sub-A_run-02_T1w.nii.gz"


def test_sidecars_inherit_and_the_nearest_wins(bids: Path, put: Put) -> None:
    put("sub-A/ses-1/anat/sub-A_ses-1_T1w.nii.gz")
    put("T1w.json", '{"Units": "a.u.", "FieldStrength": 3, "Name": "root"}')
    put("FLAIR.json", '{"Wrong": 1}')
    put("ce-gadolinium_T1w.json", '{"Wrong": 2}')
    put("sub-A/sub-A_T1w.json", '{"Name": "person"}')
    put("sub-A/ses-1/anat/sub-A_ses-1_T1w.json", '{"Name": "own"}')
    found = index_scans(bids, [T1W])["sub-A_ses-1"]
    assert found.sidecars["T1w"] == {"Units": "a.u.", "FieldStrength": 3, "Name": "own"}


@pytest.mark.parametrize("text", ["{broken", "[1, 2]"])
def test_a_sidecar_that_cannot_be_read(bids: Path, put: Put, text: str) -> None:
    put("sub-A/anat/sub-A_T1w.nii.gz")
    put("sub-A/anat/sub-A_T1w.json", text)
    assert "sub-A_T1w.json: " in index_scans(bids, [T1W])["sub-A"].problems[0]


def test_one_scan_is_found_as_in_the_whole_index(bids: Path, put: Put) -> None:
    put("T1w.json", '{"Units": "a.u."}')
    for label in ("1", "10"):
        for session in ("1", "2"):
            put(f"sub-{label}/ses-{session}/anat/sub-{label}_ses-{session}_T1w.nii.gz")
    assert find_scan(bids, "sub-1_ses-2", [T1W]) == index_scans(bids, [T1W])["sub-1_ses-2"]
    with pytest.raises(DatasetError, match=r"no image of scan sub-1_ses-9; known for sub-1: sub-1_ses-1"):
        find_scan(bids, "sub-1_ses-9", [T1W])
    with pytest.raises(DatasetError, match="sub-2: no such folder"):
        find_scan(bids, "sub-2", [T1W])
    with pytest.raises(ValueError, match="not a scan name"):
        find_scan(bids, "../elsewhere", [T1W])


@pytest.mark.parametrize("name", ["sub-A_old/anat/sub-A_T1w.nii.gz", "sub-A b/anat/sub-A b_T1w.nii.gz"])
def test_an_unsafe_folder(bids: Path, put: Put, name: str) -> None:
    put("sub-B/anat/sub-B_T1w.nii.gz")
    put(name)
    unsafe, good = index_scans(bids, [T1W]).values()
    assert (unsafe.scan, unsafe.participant_id, unsafe.images) == (f"{name.split('/')[0]}/", name.split("/")[0], {})
    assert "letters and digits" in unsafe.problems[0]
    assert (good.scan, good.problems) == ("sub-B", [])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sub-A/ses-1.5/anat/sub-A_ses-1.5_T1w.nii.gz", "letters and digits"),
        ("sub-A/anat/sub-B_T1w.nii.gz", "named sub-B but lies in sub-A"),
        ("sub-A/ses-1/anat/sub-A_ses-2_T1w.nii.gz", "named ses-2 but lies in ses-1"),
    ],
)
def test_an_unsafe_or_misplaced_file(bids: Path, put: Put, name: str, said: str) -> None:
    put(name)
    put("sub-A/ses-3/anat/sub-A_ses-3_T1w.nii.gz")
    found = index_scans(bids, [T1W])
    assert set(found) == {name, "sub-A_ses-3"}
    assert (found[name].participant_id, found[name].images, len(found[name].problems)) == ("sub-A", {}, 1)
    assert said in found[name].problems[0]
    assert not found["sub-A_ses-3"].problems
    with pytest.raises(ValueError, match="not a scan name"):
        find_scan(bids, name, [T1W])


def test_linked_folders_and_a_folder_with_a_dot(bids: Path, put: Put) -> None:
    """Data managers link people's folders and name datasets `study.v2`."""
    put("sub-A/anat/sub-A_T1w.nii.gz")
    elsewhere = bids.parent / "study.v2"
    (elsewhere / "sub-A").mkdir(parents=True)
    (elsewhere / "sub-A" / "anat").symlink_to(bids / "sub-A" / "anat")
    found = index_scans(elsewhere, [T1W])
    assert found["sub-A"].images == {"T1w": elsewhere / "sub-A/anat/sub-A_T1w.nii.gz"}


def test_not_a_dataset(bids: Path, put: Put) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        index_scans(bids / "nowhere", [T1W])
    with pytest.raises(DatasetError, match=r"no sub-\* folders"):
        index_scans(bids, [T1W])
    (bids / "sub-A").mkdir()
    with pytest.raises(DatasetError, match="named by BIDS"):
        index_scans(bids, [T1W])


def test_real_datasets(data: Path) -> None:
    assert len(index_scans(data / "oasis1", [T1W])) == 150
    found = index_scans(data / "open-ms-longitudinal", [T1W, Contrast(name="FLAIR", suffix="FLAIR")])
    assert list(found) == ["sub-12_ses-1", "sub-12_ses-2"]
    assert not found["sub-12_ses-1"].problems
