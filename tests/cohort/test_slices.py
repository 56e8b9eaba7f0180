"""The index of a folder of slices: both layouts, people, and one line for each fault that leaves the others alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
from matlab_slices import write_mat
from PIL import Image
from scipy.io import savemat

from relevance_assets.cohort.bids import DatasetError, is_scan
from relevance_assets.cohort.slices import SCHEMA, index_slices, read_mask, read_slice, slice_order

GREY = np.zeros((4, 4), dtype=np.uint8)


def plain(folder: Path, lines: list[str], columns: str = "slice_id,class,image,mask") -> Path:
    """A folder with files a.png, b.png (4 x 4), wide.png (6 x 4), and this index."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(GREY).save(folder / name)
    Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(folder / "wide.png")
    (folder / "index.csv").write_text("\n".join([columns, *lines]) + "\n")
    return folder


def problem(frame: pl.DataFrame, row: int) -> str:
    text = frame["problem"][row]
    assert isinstance(text, str)
    assert "\n" not in text
    assert not is_scan(frame["scan"][row])
    return text


def test_a_plain_folder(tmp_path: Path) -> None:
    folder = plain(tmp_path / "t", ["12,glioma,a.png,b.png", "007,pituitary,b.png,a.png"])
    frame = index_slices(folder, block=10)
    assert frame.schema == SCHEMA
    a, b = str(folder / "a.png"), str(folder / "b.png")
    assert frame.rows() == [
        ("sub-block000_ses-7", "sub-block000", "ses-7", "7", None, "pituitary", b, a, None, None),
        ("sub-block001_ses-12", "sub-block001", "ses-12", "12", None, "glioma", a, b, None, None),
    ]


def test_patients_in_the_index(tmp_path: Path) -> None:
    lines = ["2b,glioma,a.png,b.png,MR-04 1", "2a,glioma,a.png,b.png,MR-04 1", "x,glioma,a.png,b.png,7"]
    frame = index_slices(plain(tmp_path, lines, "slice_id,class,image,mask,patient"))
    assert frame["scan"].to_list() == ["sub-MR041_ses-2a", "sub-MR041_ses-2b", "sub-7_ses-x"]
    assert frame["patient"].to_list() == ["MR-04 1", "MR-04 1", "7"]
    assert frame["problem"].null_count() == 3


@pytest.mark.parametrize("byte_order_mark", [b"", b"\xef\xbb\xbf"])
def test_what_spreadsheets_write(tmp_path: Path, byte_order_mark: bytes) -> None:
    plain(tmp_path, [])
    text = byte_order_mark + b'slice_id, class ,image,mask,note\r\n1,glioma , a.png,b.png,"left, deep"\r\n'
    (tmp_path / "index.csv").write_bytes(text)
    frame = index_slices(tmp_path)
    assert frame["problem"].to_list() == [None]
    assert frame["class"].to_list() == ["glioma"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("5,glioma,a.png", "not as many cells"),
        ("5,glioma,a.png,b.png,more", "not as many cells"),
        ("5,astrocytoma,a.png,b.png", "class 'astrocytoma' is not one of meningioma, glioma, pituitary"),
        ("5,,a.png,b.png", "class '' is not one of"),
        ("5,glioma,,b.png", "image '' is no path within the folder"),
        ("5,glioma,../secret.png,b.png", "no path within the folder"),
        ("5,glioma,a.png,x/../../b.png", "mask 'x/../../b.png' is no path within"),
        ("5,glioma,/etc/passwd,b.png", "no path within the folder"),
        ("5,glioma,..\\secret.png,b.png", "no path within the folder"),
        ("5,glioma,none.png,b.png", "none.png: no such file"),
        ("5,glioma,a.png,none.png", "none.png: no such file"),
        ("5,glioma,a.png,wide.png", "wide.png: image and mask differ in size (4 x 4 and 4 x 6)"),
        ("5,glioma,a.png,index.csv", "index.csv: a slice is .jpg"),
        ("5,glioma,a.png/a.png,b.png", "png: no such file|png: cannot be read"),
        (f"5,glioma,{300 * 'a'}.png,b.png", "png: cannot be read as JPEG or PNG"),
        ("5,glioma,loop.png,b.png", "loop.png: cannot be read as JPEG or PNG"),
        ("1,glioma,a.png,b.png", "is there 2 times"),
        ("01,glioma,a.png,b.png", "is there 2 times"),
        ("5b,glioma,a.png,b.png", "'5b' is no number, and no patient is known"),
        ("5_b,glioma,a.png,b.png", "is not of letters and digits"),
        (",glioma,a.png,b.png", "is not of letters and digits"),
        ("-5,glioma,a.png,b.png", "is not of letters and digits"),
        ("٥,glioma,a.png,b.png", "is not of letters and digits"),
    ],
)
def test_a_bad_line_leaves_the_others_alone(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    frame = index_slices(plain(tmp_path, ["1,glioma,a.png,b.png", line, "9,pituitary,a.png,b.png"]))
    assert frame.height == 3
    row = frame["scan"].to_list().index(f"{tmp_path}/index.csv line 3/")
    assert any(part in problem(frame, row) for part in says.split("|"))
    good = frame.filter(pl.col("problem").is_null())["scan"].to_list()
    assert good == ["sub-block000_ses-1"] * ("times" not in says) + ["sub-block000_ses-9"]


@pytest.mark.parametrize(
    ("patients", "says"),
    [
        (["A1", "", "A2"], "line 3: has no patient, others have one"),
        (["A1", "--", "A2"], "patient '--' has no letter or digit"),
        (["A1", "B-1", "B1"], "patients 'B-1', 'B1' become one name"),
        (["A1", "b1", "B1"], "patients 'B1', 'b1' become one name"),
        (["A1", "B" * 200, "A2"], "too long a name"),
    ],
)
def test_patients_that_cannot_be_told_apart(tmp_path: Path, patients: list[str], says: str) -> None:
    lines = [f"{number},glioma,a.png,b.png,{patient}" for number, patient in enumerate(patients, 1)]
    frame = index_slices(plain(tmp_path, lines, "slice_id,class,image,mask,patient"))
    assert says in problem(frame, 1)
    assert frame["scan"][0] == "sub-A1_ses-1"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has no column slice_id, class, image, mask"),
        ("slice_id,class,image\n1,glioma,a.png\n", "has no column mask"),
        ("slice_id,class,image,mask,mask\n", "has a column twice"),
        ("slice_id,class,image,mask\n", "lists no slices"),
        ('slice_id,class,image,mask\n1,"glioma,a.png,b.png\n', "cannot be read as CSV"),
        (b"slice_id,class,image,mask\n\xff,glioma,a,b\n", "cannot be read as CSV"),
    ],
)
def test_an_index_that_cannot_be_used(tmp_path: Path, content: str | bytes, says: str) -> None:
    (tmp_path / "index.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(tmp_path, says)


def refused(folder: Path, says: str) -> None:
    with pytest.raises(DatasetError) as caught:
        index_slices(folder)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder")
    refused(tmp_path, "nothing to index")
    (tmp_path / "brainTumorDataPublic_1-766.zip").write_bytes(b"PK")
    refused(tmp_path, "only archives, unpack them")
    with pytest.raises(ValueError, match="a block of 0"):
        index_slices(tmp_path, block=0)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """Slices 2 and 10 of one patient, in two folders, and 767 of another; one is 256 x 256."""
    folder = tmp_path / "figshare"
    for number, size, label, pid in ((2, 512, 1, "100360"), (10, 256, 1, "100360"), (767, 512, 3, "MR040241B")):
        part = "brainTumorDataPublic_767-1532" if number == 767 else "brainTumorDataPublic_1-766"
        mask = np.zeros((size, size), dtype=bool)
        mask[: size // 4, : size // 8] = True  # upper left corner
        write_mat(folder / part / f"{number}.mat", np.where(mask, 2000, 100).astype(np.int16), mask, label, pid)
    return folder


def cvind(folder: Path, folds: list[float]) -> None:
    with h5py.File(folder / "cvind.mat", "w", userblock_size=512) as file:
        file["cvind"] = np.array([folds])


def test_the_published_download(download: Path) -> None:
    cvind(download, [1, 4, 1, 1, 1, 1, 1, 1, 1, 4] + [2] * 756 + [5])
    frame = index_slices(download)
    assert frame["scan"].to_list() == ["sub-100360_ses-2", "sub-100360_ses-10", "sub-MR040241B_ses-767"]
    assert frame["class"].to_list() == ["meningioma", "meningioma", "pituitary"]
    assert frame["fold"].to_list() == [4, 4, 5]
    assert frame["problem"].null_count() == 3
    assert (frame["image"] == frame["mask"]).all()
    for path in map(Path, frame["image"]):
        image, mask = read_slice(path).data[..., 0], read_mask(path)
        assert mask.sum() == mask.size // 32
        np.testing.assert_array_equal(image > 1000, mask)
        assert mask[0, -1]
        assert not mask[-1, -1]


@pytest.mark.parametrize("version", ["4", "5"])
def test_folds_of_older_matlab_files(download: Path, version: str) -> None:
    savemat(download / "cvind.mat", {"cvind": np.ones((767, 1)) * 3}, format=version)
    assert index_slices(download)["fold"].to_list() == [3, 3, 3]


def test_no_folds(download: Path) -> None:
    assert index_slices(download)["fold"].to_list() == [None, None, None]


@pytest.mark.parametrize("folds", [[1.5] * 767, [0.0] * 767, [np.nan] * 767, []])
def test_folds_that_are_none(download: Path, folds: list[float]) -> None:
    cvind(download, folds)
    refused(download, "folds are not whole numbers from 1")


def test_folds_that_cannot_be_read(download: Path) -> None:
    (download / "cvind.mat").write_bytes(b"\x89HDF\r\n\x1a\n nothing more")
    refused(download, "cvind.mat: cannot be read as folds")


def test_too_few_folds(download: Path) -> None:
    cvind(download, [1.0] * 20)
    frame = index_slices(download)
    assert frame["fold"].to_list() == [1, 1, None]
    assert "cvind.mat has no fold for it, only 20" in problem(frame, 2)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def without(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file["cjdata"][name]

    return make


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "truncated"),
        (lambda path: path.write_bytes(b"nothing"), "cannot be read as MATLAB 7.3"),
        (without("tumorMask"), "has no cjdata/tumorMask"),
        (without("PID"), "has no patient, others have one"),
        (lambda path: write_mat(path, np.zeros((4, 6)), np.zeros((4, 5))), "(4 x 6 and 4 x 5)"),
        (lambda path: write_mat(path, GREY, GREY, 4), "cjdata/label is 4"),
        (lambda path: path.rename(path.with_name("ten.mat")), "ten.mat: is not named by a slice's number"),
        (lambda path: path.rename(path.with_name("767.mat")), "is there 2 times"),
    ],
)
def test_a_bad_file_leaves_the_others_alone(download: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(download / "brainTumorDataPublic_1-766" / "10.mat")
    frame = index_slices(download)
    assert frame.height == 3
    bad = frame.filter(pl.col("problem").is_not_null())
    assert bad.height == (2 if "times" in says else 1)
    assert says in problem(bad, 0)
    assert str(download) in bad["problem"][0]
    assert frame["scan"].n_unique() == 3
    assert "sub-100360_ses-2" in frame["scan"].to_list()


def test_a_download_without_patients_is_put_into_blocks(tmp_path: Path) -> None:
    for number in (49, 50, 120):
        write_mat(tmp_path / f"{number}.mat", GREY, GREY, 2, None)
    assert index_slices(tmp_path)["participant_id"].to_list() == ["sub-block000", "sub-block001", "sub-block002"]


def test_what_macs_leave_in_archives_is_not_looked_at(download: Path) -> None:
    (download / "__MACOSX").mkdir()
    (download / "__MACOSX" / "._2.mat").write_bytes(b"\0\5\x16\7")
    assert index_slices(download).height == 3


def test_an_index_may_name_matlab_files(download: Path) -> None:
    path = "brainTumorDataPublic_1-766/2.mat"
    lines = [f"2,meningioma,{path},{path}", f"3,glioma,{path},{path}"]
    (download / "index.csv").write_text("\n".join(["slice_id,class,image,mask", *lines]))
    frame = index_slices(download)
    assert frame["scan"][0] == "sub-100360_ses-2"
    assert "class is glioma, but" in problem(frame, 1)
    assert "says meningioma" in problem(frame, 1)


def test_no_pixels_are_read_and_no_file_twice(download: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[str] = Counter()
    read: list[str] = []
    path_open, getitem = Path.open, h5py.Dataset.__getitem__

    def counting(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened[self.name] += 1
        return path_open(self, *args, **kwargs)

    def telling(self: h5py.Dataset, *args: Any, **kwargs: Any) -> Any:
        read.append(self.name)
        return getitem(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counting)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", telling)
    assert index_slices(download)["problem"].null_count() == 3
    assert opened == {"2.mat": 1, "10.mat": 1, "767.mat": 1}
    assert Counter(read) == {"/cjdata/label": 3, "/cjdata/PID": 3}


def test_order_of_slices() -> None:
    assert sorted(["10", "b", "2", "a10"], key=slice_order) == ["2", "10", "a10", "b"]


def test_real_slices(data: Path) -> None:
    frame = index_slices(data / "tumour")
    assert frame.height == 2109
    assert frame["problem"].null_count() == 2109
    assert dict(frame["class"].value_counts().iter_rows()) == {"glioma": 976, "pituitary": 654, "meningioma": 479}
    assert all(map(is_scan, frame["scan"]))
    assert frame["scan"].n_unique() == 2109
    for image, mask in frame.gather_every(300).select("image", "mask").iter_rows():
        picture, tumour = read_slice(Path(image)).data, read_mask(Path(mask))
        assert picture.shape == (512, 512, 1)
        assert tumour.shape == (512, 512)
        head = picture[..., 0] > 30
        assert 0 < tumour.mean() < 0.1
        assert head[tumour].mean() > 0.5
