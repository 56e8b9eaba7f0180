"""Bad input of every kind, through the real stages: one clear line each, the other scans as if it were not there.

The oracle of a value is the array that `generate.py` wrote, that of a prepared volume a dataset without bad input.
"""

from __future__ import annotations

import os
import signal
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from generate import AFFINE, GOOD, SHAPE, Case, brain, cases, image, put, write_dataset

from relevance_assets.assets.cohort import cohort_stages
from relevance_assets.assets.stages import ALL, run_items
from relevance_assets.assets.workspace import Workspace
from relevance_assets.cohort.bids import DatasetError, index_scans
from relevance_assets.cohort.participants import read_participants
from relevance_assets.home import Home
from relevance_assets.imaging.geometry import Geometry, to_prepared_labels
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.volumes import ScanError, load_volume, read_image
from relevance_assets.study import Study

CASES = cases()
IDS = [ascii(case.key)[1:41] for case in CASES]
HANGS_S = 60  # a pipe that is waited for, a link that is followed for ever
SMALL_MB = 20  # no case is larger than some kB, whatever it claims


@pytest.fixture(autouse=True, scope="module")
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {HANGS_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="module")
def no_permission() -> Iterator[None]:
    """Two places that may not be read; simulated, because root may read all."""
    with pytest.MonkeyPatch.context() as patch:
        real_open, real_scandir = Path.open, os.scandir

        def opened(self: Path, *arguments: Any, **more: Any) -> Any:
            if self.name == "sub-unreadable_T1w.nii.gz" and arguments == ("rb",):
                raise PermissionError(13, "Permission denied", str(self))
            return real_open(self, *arguments, **more)

        def listed(folder: Any = ".") -> Any:
            if str(folder).endswith("sub-locked"):
                raise PermissionError(13, "Permission denied", str(folder))
            return real_scandir(folder)

        patch.setattr(Path, "open", opened)
        patch.setattr(os, "scandir", listed)
        patch.setattr("relevance_assets.cohort.bids.scandir", listed)
        yield


def study(bids: Path) -> Study:
    return Study.model_validate(
        {
            "name": "corpus",
            "title": "t",
            "question": "q",
            "citation": "c",
            "contrasts": [{"name": "T1w", "suffix": "T1w", "scale": {"rule": "percentile"}}],
            "cohort": {"bids": str(bids), "target": {"column": "edss", "kind": "regression"}},
            "preparation": [
                {"step": "reorient"},
                {"step": "brain_mask"},
                {"step": "resample", "voxel_size_mm": [4, 4, 4]},
                {"step": "crop_or_pad", "shape": [12, 12, 12]},
                {"step": "scale"},
            ],
            "model": {"name": "mrinet"},
            "methods": {"lrp": {"composite": "any"}},
        }
    )


@dataclass(frozen=True)
class Ran:
    """What the stages left."""

    workspace: Workspace

    @property
    def bids(self) -> Path:
        return self.workspace.bids

    def image(self, case: Case) -> Path:
        path = self.bids / f"sub-{case.name}" / "anat" / f"sub-{case.name}_T1w.nii.gz"
        return path if path.exists() else path.with_suffix("")

    def prepared(self, name: str) -> list[Path]:
        scan, contrast = f"sub-{name}", self.workspace.study.contrasts[0]
        return [self.workspace.prepared_path(scan, contrast), self.workspace.mask_path(scan)]


def run(folder: Path, chosen: list[Case]) -> Ran:
    """The stages as a run makes them, each over the items that it has by then."""
    write_dataset(folder / "bids", chosen)
    workspace = Workspace(study(folder / "bids"), Home(folder / "home"))
    for stage in cohort_stages(workspace)[:3]:
        run_items(workspace, stage, stage.items(), run_id="r")
    return Ran(workspace)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, no_hang: None, no_permission: None) -> Ran:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELEVANCE_WORKERS", "1")
        return run(tmp_path_factory.mktemp("all"), CASES)


@pytest.fixture(scope="module")
def scans(ran: Ran) -> pl.DataFrame:
    return ran.workspace.read("scans")


@pytest.fixture(scope="module")
def runs(ran: Ran) -> pl.DataFrame:
    return ran.workspace.read("runs")


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 40
    assert len({case.key for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_outcome_and_the_one_line(case: Case, scans: pl.DataFrame, runs: pl.DataFrame) -> None:
    lines = scans.filter(pl.col("scan") == case.key).rows(named=True)
    assert len(lines) == 1, f"{case.what}: not in table scans"
    records = runs.filter((pl.col("item") == case.key) & (pl.col("outcome") == "failed")).rows(named=True)
    if case.where == "scans":
        assert lines[0]["status"] == "failed"
        reason = lines[0]["reason"]
        assert case.key not in set(runs["item"])
    else:
        assert (lines[0]["status"], lines[0]["reason"]) == ("ok", None)
        assert [record["asset"] for record in records] == ([] if case.where == "read" else [case.where])
        reason = records[0]["reason"] if records else ""
    if case.where == "read":
        return
    assert "\n" not in reason
    assert "Traceback" not in reason
    for words in case.words:
        assert words in reason
    assert case.key.rstrip("/").split("/")[-1] in reason


def test_nobody_else_is_told_of(scans: pl.DataFrame, runs: pl.DataFrame, ran: Ran) -> None:
    """One line per case, none besides: no good scan has one, and no person has two."""
    bad = {case.key for case in CASES if case.where != "read"}
    told = [*scans.filter(pl.col("status") != "ok")["scan"], *runs.filter(pl.col("outcome") != "ok")["item"]]
    assert sorted(told) == sorted(bad)
    assert ran.workspace.record("participants", ALL)["outcome"] == "ok"


def test_good_scans_are_as_without_the_bad_ones(ran: Ran, tmp_path: Path) -> None:
    alone = run(tmp_path, [])
    for name in GOOD:
        for here, there in zip(ran.prepared(name), alone.prepared(name), strict=True):
            assert here.read_bytes() == there.read_bytes()


READ = [case for case in CASES if case.where == "read"]


@pytest.mark.parametrize("case", READ, ids=[case.key for case in READ])
def test_what_is_read_has_exactly_these_values(case: Case, ran: Ran) -> None:
    found = read_image(ran.image(case))
    np.testing.assert_array_equal(found.data, case.values)
    np.testing.assert_allclose(found.affine, case.affine, atol=1e-5)


def test_orientation_does_not_matter(ran: Ran) -> None:
    """The same brain as RAS, LAS and PSR is the same prepared volume, in every byte."""
    plain = [path.read_bytes() for path in ran.prepared("plain")]
    for name in ("leftward", "sagittal", "nifti2", "bigEndian", "annex", "twoParts"):
        assert [path.read_bytes() for path in ran.prepared(name)] == plain


def test_values_of_odd_rows(scans: pl.DataFrame) -> None:
    rows = {row["scan"]: row for row in scans.rows(named=True)}
    assert (rows["sub-quoted"]["edss"], rows["sub-quoted"]["other"]) == (2.5, '{"site": "a \\"b\\""}')
    assert "Z\\u00fcrich" in rows["sub-unicodeRow"]["other"]
    assert rows["sub-noAge"]["age"] is None


def test_what_may_pass_is_tried_again(ran: Ran) -> None:
    assert ran.workspace.known("raw_scans", "sub-unreadable").fingerprint is None
    assert ran.workspace.known("raw_scans", "sub-truncated").fingerprint is not None


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_memory_stays_small(case: Case, ran: Ran) -> None:
    """What a header claims, or a gzip holds, is never allocated."""
    tracemalloc.start()
    try:
        read_image(ran.image(case))
    except (ScanError, PermissionError, OSError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < SMALL_MB * 2**20


def test_nothing_is_written_beside_the_dataset(ran: Ran) -> None:
    """A label that is a path led nowhere; the dataset itself is as it was."""
    home = ran.workspace.home.root
    assert {path.name for path in home.parent.iterdir()} == {"bids", "home", "elsewhere"}
    derivatives = {path.name for path in ran.workspace.home.derivatives("corpus").glob("sub-*")}
    assert derivatives == {f"sub-{name}" for name in [*GOOD, *(case.name for case in READ)]}


# ------------------------------------------------------------------------------------------ tables of people
HEADER = "participant_id\tedss\tage\tsite\n"
TABLES = {
    "zero bytes": (b"", "no column participant_id; columns: none"),
    "missing": (None, "participants.tsv: no such file; list the participants there"),
    "a header only": (HEADER.encode(), "lists no participant"),
    "UTF-16": (HEADER.encode("utf-16"), "save it as UTF-8 text with tabs"),
    "Latin-1": (f"{HEADER}sub-good1\t1\t2\tZürich\n".encode("latin-1"), "save it as UTF-8 text with tabs"),
    "commas": (HEADER.replace("\t", ",").encode(), "separate columns by tabs"),
    "no participant_id": (b"subject\tedss\nsub-good1\t1\n", "no column participant_id; columns: subject, edss"),
    "a column twice": (b"participant_id\tedss\tedss\nsub-good1\t1\t1\n", "occurs twice"),
    "no target": (b"participant_id\tage\nsub-good1\t1\n", "no column 'edss'"),
    "ids without sub-": (f"{HEADER}good1\t1\t2\t\n".encode(), "must be sub-<label>"),
    "all rows short": (f"{HEADER}sub-good1\t1\n".encode(), "line 2 has 2 cells, the header 4"),
    "a folder": ("folder", "save it as UTF-8 text with tabs"),
    "a pipe": ("pipe", "save it as UTF-8 text with tabs"),
    "a circle": ("circle", "no such file"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_spoils_the_dataset_is_one_line_and_nothing_is_done(name: str, tmp_path: Path) -> None:
    content, said = TABLES[name]
    write_dataset(tmp_path / "bids", [])
    table = tmp_path / "bids" / "participants.tsv"
    table.unlink()
    if content == "folder":
        table.mkdir()
    elif content == "pipe":
        os.mkfifo(table)
    elif content == "circle":
        table.symlink_to(table)
    elif content is not None:
        table.write_bytes(content)
    workspace = Workspace(study(tmp_path / "bids"), Home(tmp_path / "home"))
    participants, raw_scans, *_ = cohort_stages(workspace)
    (outcome,) = run_items(workspace, participants, [ALL])
    assert outcome.outcome == "failed"
    assert said in outcome.reason
    assert "participants.tsv" in outcome.reason
    assert "\n" not in outcome.reason
    assert raw_scans.items() == []


def test_line_ends_and_byte_order_marks(tmp_path: Path) -> None:
    rows = []
    for number, (start, end) in enumerate([(b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n"), (b"", b"\r")]):
        folder = tmp_path / str(number)
        put(start + end.join([b"participant_id\tedss", b"sub-A\t1", b"sub-B\t2", b""]))(folder / "participants.tsv")
        rows.append(read_participants(folder)[0].rows())
    assert rows[0] == rows[1] == rows[2] == [("sub-A", None, "1"), ("sub-B", None, "2")]


def test_what_is_no_dataset(tmp_path: Path) -> None:
    contrasts = study(tmp_path).contrasts
    with pytest.raises(DatasetError, match=r"no sub-\* folders"):
        index_scans(tmp_path, contrasts)
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="no such folder"):
        index_scans(tmp_path / "file", contrasts)


# ------------------------------------------------------------------------------------------------------ masks
BOX = (slice(3, 7), slice(5, 9), slice(2, 6))
GEOMETRY = Geometry(Grid(SHAPE, AFFINE), Grid(SHAPE, AFFINE), False)


def box(value: float = 1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.float32)
    mask[BOX] = value
    return mask


def finer() -> tuple[np.ndarray, np.ndarray]:
    """The box on a grid of 2 mm: each voxel as eight; the first centre lies 1 mm before the coarse one's."""
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = AFFINE[:3, 3] - 1
    return np.repeat(np.repeat(np.repeat(box(), 2, 0), 2, 1), 2, 2), affine


def several_labels() -> np.ndarray:
    mask = box(255)
    mask[3] = box(1)[3]
    return mask


LEFTWARD = AFFINE @ np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("mask", "affine"),
    [(box(), AFFINE), (several_labels(), AFFINE), (box()[::-1].copy(), LEFTWARD), finer()],
    ids=["same grid", "labels 0, 1, 255", "LAS beside RAS", "2 mm grid"],
)
def test_masks_lie_where_they_lie(mask: np.ndarray, affine: np.ndarray, tmp_path: Path) -> None:
    image(mask.astype(np.uint8), affine)(tmp_path / "mask.nii.gz")
    found = to_prepared_labels(tmp_path / "mask.nii.gz", GEOMETRY) > 0
    np.testing.assert_array_equal(found, box() > 0)


def test_an_empty_mask_and_a_mask_of_one_voxel(tmp_path: Path) -> None:
    one = np.zeros(SHAPE, np.uint8)
    image(one)(tmp_path / "mask.nii.gz")
    assert not to_prepared_labels(tmp_path / "mask.nii.gz", GEOMETRY).any()
    one[2, 3, 4] = 1
    image(one)(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.argwhere(to_prepared_labels(tmp_path / "mask.nii.gz", GEOMETRY)), [[2, 3, 4]])


@pytest.mark.parametrize(
    ("mask", "shift", "said"),
    [(box(0.5), 0, "needs a threshold"), (box(np.nan), 0, "NaN"), (box(), 500, "lies beside the scan")],
)
def test_masks_that_are_refused(mask: np.ndarray, shift: float, said: str, tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 3] += shift
    image(mask, affine)(tmp_path / "mask.nii.gz")
    with pytest.raises(ScanError, match=said) as caught:
        to_prepared_labels(tmp_path / "mask.nii.gz", GEOMETRY)
    assert str(caught.value).startswith(f"{tmp_path}/mask.nii.gz: ")


def test_the_reader_gives_what_the_stages_stored(ran: Ran) -> None:
    """A prepared volume, read back by the same reader, is whole and in [0, 1]."""
    values, _ = load_volume(ran.prepared("good1")[0])
    assert values.shape == (12, 12, 12)
    assert 0 == values.min() < values.max() <= 1
    assert brain(1).max() > 1
