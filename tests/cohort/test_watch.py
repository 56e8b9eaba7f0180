"""One look at a BIDS folder: what counts as a scan, and what counts as a change."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from relevance_assets.cohort.watch import look, look_at


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    root = tmp_path / "bids"
    put(root / "participants.tsv", b"participant_id\n")
    put(root / "T1w.json", b"{}")
    put(root / "dataset_description.json", b"{}")
    put(root / "sub-A" / "anat" / "sub-A_T1w.nii.gz")
    put(root / "sub-B" / "ses-1" / "anat" / "sub-B_ses-1_T1w.nii.gz")
    put(root / "sub-B" / "ses-2" / "anat" / "sub-B_ses-2_T1w.nii.gz")
    put(root / "sub-B" / "sub-B_sessions.tsv", b"session_id\n")
    put(root / "sub-empty" / "anat" / ".part")
    put(root / "sub-b_d" / "anat" / "x.nii.gz")
    put(root / "derivatives" / "sub-C" / "anat" / "sub-C_T1w.nii.gz")
    return root


def changed(bids: Path, act: object) -> set[str]:
    """Scans whose signature another state of the folder changes."""
    before = look(bids).scans
    act()  # type: ignore[operator]
    after = look(bids).scans
    for scan, seen in after.items():
        assert look_at(bids, scan) == seen.signature
    return {scan for scan in before.keys() | after.keys() if before.get(scan) != after.get(scan)}


def test_scans_are_folders_with_files(bids: Path) -> None:
    assert list(look(bids).scans) == ["sub-A", "sub-B_ses-1", "sub-B_ses-2"]


def test_a_changed_image_changes_its_scan_alone(bids: Path) -> None:
    image = bids / "sub-B" / "ses-1" / "anat" / "sub-B_ses-1_T1w.nii.gz"
    assert changed(bids, lambda: put(image, b"other")) == {"sub-B_ses-1"}
    assert changed(bids, lambda: os.utime(image, (1, 1))) == {"sub-B_ses-1"}
    assert changed(bids, lambda: image.rename(image.with_name("sub-B_ses-1_FLAIR.nii.gz"))) == {"sub-B_ses-1"}


def test_tables_of_people_change_no_scan_but_the_folder(bids: Path) -> None:
    whole = look(bids).signature
    assert not changed(bids, lambda: put(bids / "participants.tsv", b"participant_id\tage\n"))
    assert look(bids).signature != whole
    whole = look(bids).signature
    assert not changed(bids, lambda: put(bids / "sub-B" / "sub-B_sessions.tsv", b"session_id\tage\n"))
    assert look(bids).signature != whole


def test_an_inherited_sidecar_changes_who_may_inherit_it(bids: Path) -> None:
    assert changed(bids, lambda: put(bids / "T1w.json", b'{"Units": "ms"}')) == {"sub-A", "sub-B_ses-1", "sub-B_ses-2"}
    assert changed(bids, lambda: put(bids / "sub-B" / "sub-B_T1w.json")) == {"sub-B_ses-1", "sub-B_ses-2"}
    assert not changed(bids, lambda: put(bids / "dataset_description.json", b'{"Name": "n"}'))


def test_a_folder_that_is_moved_has_not_changed(bids: Path) -> None:
    before = look(bids)
    shutil.move(bids, bids.with_name("elsewhere"))
    after = look(bids.with_name("elsewhere"))
    assert after.signature == before.signature


def test_a_file_on_its_way_is_a_change_of_now(bids: Path) -> None:
    now = time.time()
    assert not look(bids).changed_after(now + 1)
    hidden = put(bids / "sub-A" / "anat" / ".sub-A_T1w.nii.gz.Xk3")  # as rsync does it
    assert "sub-A" in look(bids).changed_after(hidden.stat().st_ctime - 1e-3)


def test_what_is_named_wrongly_changes_the_folder_but_no_scan(bids: Path) -> None:
    """Else nobody would see that it was renamed or removed."""
    put(bids / "sub-A b" / "anat" / "sub-A b_T1w.nii.gz")
    put(bids / "sub-B" / "ses-1.5" / "anat" / "x.nii.gz")
    for name in ("sub-A b", "sub-B/ses-1.5"):
        before = look(bids)
        shutil.rmtree(bids / name)
        after = look(bids)
        assert before.scans == after.scans
        assert before.signature != after.signature


def test_links_that_lead_back_end(bids: Path) -> None:
    before = look(bids).scans
    for folder in (bids / "sub-A", bids / "sub-A" / "anat", bids / "sub-B" / "ses-1" / "anat"):
        for name, target in {"self": ".", "up": "../..", "twice": "twice", "disk": "/"}.items():
            (folder / name).symlink_to(target)
    after = look(bids).scans
    assert list(after) == list(before)
    assert after["sub-B_ses-2"].signature == before["sub-B_ses-2"].signature


def test_content_that_git_annex_brings_is_a_change(bids: Path) -> None:
    image = bids / "sub-A" / "anat" / "sub-A_FLAIR.nii.gz"
    assert changed(bids, lambda: image.symlink_to("../../.git/annex/key")) == {"sub-A"}
    assert changed(bids, lambda: put(bids / ".git" / "annex" / "key")) == {"sub-A"}
    assert changed(bids, image.unlink) == {"sub-A"}


def test_a_folder_that_may_not_be_read(bids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One person's is empty; the dataset's is an error, for it would look as if all had left."""
    real = os.scandir

    def listed(folder: str) -> object:
        if str(folder) in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", listed)
    closed = {str(bids / "sub-A")}
    assert list(look(bids).scans) == ["sub-B_ses-1", "sub-B_ses-2"]
    closed = {str(bids)}
    with pytest.raises(PermissionError):
        look(bids)


def test_what_is_not_there(bids: Path) -> None:
    assert look_at(bids, "sub-Z") == ""
    assert look_at(bids, "sub-A_ses-9") == ""
    with pytest.raises(ValueError, match="no such folder; name a BIDS dataset"):
        look(bids / "nowhere")
