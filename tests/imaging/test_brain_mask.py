"""Masks against planted heads and a small program; recognising stripped images on planted and on real ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from relevance_assets.imaging.brain_mask import (
    command_mask,
    is_stripped,
    template_mask,
)
from relevance_assets.imaging.grid import Grid, resample
from relevance_assets.imaging.template import moved_by, template
from relevance_assets.imaging.volumes import Image, ScanError, read_image

Affine = Callable[..., np.ndarray]
Write = Callable[..., Path]
# points of the template to points of the head: turned, shifted, a smaller brain than the template's
TRUTH = np.array([[0.93, -0.07, 0.05, 6.0], [0.06, 0.9, 0.08, -8.0], [-0.04, -0.09, 0.88, 14.0], [0, 0, 0, 1]])


def head(grid: Grid, noise: float = 0.01) -> tuple[Image, np.ndarray]:
    """The template's brain in dark skull and bright scalp, moved by TRUTH; and the true brain on the grid."""
    space = template(4)
    depth = ndimage.distance_transform_edt(np.pad(~space.brain, 6, constant_values=True)) * 4
    source = Grid(
        depth.shape, space.grid.affine @ np.array([[1, 0, 0, -6], [0, 1, 0, -6], [0, 0, 1, -6], [0, 0, 0, 1]])
    )
    values = np.pad(space.t1w, 6)
    values = np.where((depth > 10) & (depth < 20), 0.9, values).astype(np.float32)
    moved = moved_by(values, source, TRUTH, grid)
    random = np.random.default_rng(0)
    moved = np.abs(moved + random.normal(0, noise, grid.shape)).astype(np.float32)
    brain = moved_by(space.brain.astype(np.float32), space.grid, TRUTH, grid) >= 0.5
    return Image(moved * 800, grid.affine), brain


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def grid_of(codes: str, oblique: Affine, sizes: tuple[float, float, float] = (4.0, 4.0, 4.0)) -> Grid:
    """About 240 mm along each axis, oblique, around the head."""
    affine = oblique(sizes, 8.0, codes)
    shape = tuple(round(248 / size) for size in sizes)
    affine[:3, 3] = np.array([6, -25, 20]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- by the template
@pytest.mark.parametrize(("codes", "sizes"), [("LAS", (4, 4, 4)), ("PSR", (3, 3, 6))])
def test_a_planted_head(oblique: Affine, codes: str, sizes: tuple[float, float, float]) -> None:
    """Its scalp is shaped like the brain, and brighter: registration must not grow the brain to it."""
    image, brain = head(grid_of(codes, oblique, sizes))
    found = template_mask(image, dilate_mm=0, resolution_mm=4)
    assert found.mask.shape == image.data.shape
    assert found.mask.dtype == bool
    assert overlap(found.mask, brain) > 0.95
    space = template(4)
    points = np.argwhere(space.brain) @ space.grid.affine[:3, :3].T + space.grid.affine[:3, 3]
    off = found.from_template - TRUTH
    assert np.linalg.norm(points @ off[:3, :3].T + off[:3, 3], axis=1).mean() < 3
    again = template_mask(image, dilate_mm=0, resolution_mm=4)
    assert again.mask.tobytes() == found.mask.tobytes()


@pytest.mark.parametrize("scale", [1.15, 0.6, 900.0])
def test_a_brain_of_impossible_size_or_place_is_refused(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    matrix = np.diag([scale, scale, scale, 1.0]) if scale < 2 else np.eye(4) + np.eye(4, k=3) * scale
    monkeypatch.setattr("relevance_assets.imaging.brain_mask._search", lambda *_: matrix)
    monkeypatch.setattr("relevance_assets.imaging.brain_mask.affine", lambda *_, **__: matrix)
    space = template(4)
    with pytest.raises(ScanError, match=r"^sub-1: the template's brain was fitted to .* litres") as caught:
        template_mask(space.image, resolution_mm=4, name="sub-1")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_registered_names_the_scan() -> None:
    with pytest.raises(ScanError, match=r"^sub-1: no brain mask by the template \("):
        template_mask(Image(np.full((60, 60, 60), 7, np.float32), np.diag([4.0, 4, 4, 1])), name="sub-1")


@pytest.mark.slow
def test_ixi_against_automatic_labels(data: Path) -> None:
    """Dice against (DLMUSE labels > 0, filled) on native grids: median >= 0.94, minimum >= 0.90."""
    found = {}
    for path in sorted((data / "ixi").glob("sub-*/anat/*_T1w.nii.gz")):
        person = path.name.split("_")[0]
        labels = data / f"ixi/derivatives/dlmuse/{person}/anat/{person}_desc-dlmuse_dseg.nii.gz"
        truth = ndimage.binary_fill_holes(read_image(labels).data > 0)
        found[person] = overlap(template_mask(read_image(path), name=path.name).mask, truth)
    print({person: round(value, 4) for person, value in found.items()})
    assert len(found) == 10
    assert np.median(list(found.values())) >= 0.94
    assert min(found.values()) >= 0.90


# --------------------------------------------------------------------------------------------------- by a program
PROGRAM = """
import sys, nibabel as nib, numpy as np
image, mask, what = sys.argv[1:4]
read = nib.load(image)
values = (np.asarray(read.dataobj) > 5).astype(np.uint8) * 255
affine = read.affine
if what == "fails":
    print("warming up"); sys.exit("no weights at /weights\\n")
if what == "slow":
    import time; time.sleep(30)
if what == "moved":
    affine = affine + np.eye(4, k=3)
if what == "empty":
    values[:] = 0
if what == "text":
    open(mask, "w").write("not an image" * 50)
elif what != "nothing":
    nib.save(nib.Nifti1Image(values, affine), mask)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], list[str]]:
    script = tmp_path / "strip it.py"
    script.write_text(PROGRAM)
    return lambda what: [sys.executable, str(script), "{image}", "{mask}", what]


@pytest.fixture
def scan(write: Write, oblique: Affine) -> Path:
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5) % 11
    return write(values, oblique((1.0, 2.0, 3.0), 10.0, "LPS"), "a scan; with $HOME.nii.gz")


def test_a_program_makes_the_mask(scan: Path, program: Callable[[str], list[str]]) -> None:
    before = set(scan.parent.iterdir())
    mask = command_mask(scan, program("works"))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, read_image(scan).data > 5)
    assert set(scan.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("fails", "failed with status 1: .*: no weights at /weights"),
        ("nothing", "wrote no mask"),
        ("empty", "found no brain"),
        ("moved", "on another grid"),
        ("text", "is unusable"),
    ],
)
def test_a_program_that_does_not(scan: Path, program: Callable[[str], list[str]], what: str, words: str) -> None:
    with pytest.raises(ScanError, match=words) as caught:
        command_mask(scan, program(what))
    assert str(caught.value).startswith(f"{scan}: ")
    assert "\n" not in str(caught.value)


def test_programs_that_cannot_run(scan: Path, tmp_path: Path, program: Callable[[str], list[str]]) -> None:
    with pytest.raises(ScanError, match="not here: hd-bet-absent; install it"):
        command_mask(scan, ["hd-bet-absent", "{image}", "{mask}"])
    with pytest.raises(ScanError, match="cannot be run"):
        command_mask(scan, [str(tmp_path), "{image}", "{mask}"])
    with pytest.raises(ScanError, match=r"took longer than 0\.5 s"):
        command_mask(scan, program("slow"), timeout_seconds=0.5)
    with pytest.raises(ValueError, match=r"needs \{image\} and \{mask\}"):
        command_mask(scan, ["hd-bet", "{image}"])


# -------------------------------------------------------------------------------------- what the input already is
def stripped_image(background: float = 0.0, grid: Grid | None = None) -> Image:
    space = template(4)
    values = np.where(space.brain, 200 + 800 * space.t1w, background).astype(np.float32)
    if grid is None:
        return Image(values, space.grid.affine)
    return Image(resample(values, space.grid, grid), grid.affine)


def test_a_brain_cut_to_its_bounding_box_is_stripped() -> None:
    image = stripped_image()
    box = ndimage.find_objects(template(4).brain.astype(int))[0]
    assert is_stripped(Image(image.data[box], image.affine)).stripped


def test_real_scans_are_recognised(data: Path) -> None:
    stripped = [
        "oasis1/sub-OAS10002/ses-1/anat/sub-OAS10002_ses-1_T1w.nii.gz",
        "open-ms/sub-26/anat/sub-26_FLAIR.nii.gz",
    ]
    heads = [
        "ixi/sub-IXI012/anat/sub-IXI012_T1w.nii.gz",
        "open-ms-longitudinal/sub-12/ses-1/anat/sub-12_ses-1_FLAIR.nii.gz",
        "ms-deepbrain/sub-105465/anat/sub-105465_FLAIR.nii.gz",
    ]
    for name in stripped + heads:
        verdict = is_stripped(read_image(data / name))
        assert verdict.stripped == (name in stripped), f"{name}: {verdict.reason}"
