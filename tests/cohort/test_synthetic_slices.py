"""Three kinds of tumours that look and lie as said, the same bytes for a seed, a folder that is continued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import ndimage

from relevance_assets.cohort.slices import index_slices, read_mask, read_slice
from relevance_assets.cohort.synthetic.cohort import SyntheticCohortError
from relevance_assets.cohort.synthetic.slices import PER_PATIENT, make_slice, synthesise_slices
from relevance_assets.cohort.synthetic.template import load_template
from relevance_assets.cohort.synthetic.tumours import KINDS, RADIUS_MM, depth, draw_tumour
from relevance_assets.files import sha256

SIZE, SEED, PATIENTS = 80, 4, 6


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha256(path) for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("slices") / "synthetic"
    synthesise_slices(out, slices=PER_PATIENT * PATIENTS, size=SIZE, seed=SEED)
    return out


@pytest.fixture(scope="module")
def slices(folder: Path) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Kind to pictures and masks."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {kind: [] for kind in KINDS}
    for kind, image, mask in index_slices(folder).select("class", "image", "mask").iter_rows():
        found[kind].append((read_slice(Path(image)).data[..., 0], read_mask(Path(mask))))
    return found


def test_the_index_reads_it(folder: Path) -> None:
    frame = index_slices(folder)
    assert frame["problem"].null_count() == frame.height == PER_PATIENT * PATIENTS
    assert frame["scan"][0] == "sub-P0001_ses-1"
    assert frame["participant_id"].n_unique() == PATIENTS
    assert dict(frame["class"].value_counts().iter_rows()) == dict.fromkeys(KINDS, PER_PATIENT * PATIENTS // 3)
    assert frame.group_by("participant_id").agg(pl.col("class").n_unique())["class"].max() == 1


def test_every_slice_has_a_tumour_in_a_head(slices: dict[str, list[tuple[np.ndarray, np.ndarray]]]) -> None:
    for each in slices.values():
        for picture, mask in each:
            assert picture.shape == mask.shape == (SIZE, SIZE)
            assert 0.0005 < mask.mean() < 0.12
            head = ndimage.binary_fill_holes(picture > 25)
            assert head[mask].mean() > 0.95
            assert 0.05 < head.mean() < 0.8
            assert picture[[0, -1], :].mean() < 40


def test_kinds_differ(slices: dict[str, list[tuple[np.ndarray, np.ndarray]]]) -> None:
    """Brightness against the head's median, of the middle and of the rim, area, and roundness, by kind."""
    middle, rim, area, fill = ({kind: [] for kind in KINDS} for _ in range(4))
    for kind, each in slices.items():
        for picture, mask in each:
            inside = ndimage.distance_transform_edt(mask)
            reference = float(np.median(picture[(picture > 25) & ~mask]))
            middle[kind].append(picture[inside > 0.6 * inside.max()].mean() / reference)
            rim[kind].append(picture[mask & (inside <= max(1.0, 0.4 * inside.max()))].mean() / reference)
            area[kind].append(mask.mean())
            x, y = np.nonzero(mask)
            reach = np.hypot(x - x.mean(), y - y.mean()).max() + 0.5
            fill[kind].append(mask.sum() / (np.pi * reach**2))
    median = {
        name: {kind: float(np.median(values[kind])) for kind in KINDS}
        for name, values in (("middle", middle), ("rim", rim), ("area", area), ("fill", fill))
    }
    assert median["middle"]["meningioma"] > 1.3
    assert median["middle"]["pituitary"] > 1.2
    assert median["middle"]["glioma"] < 0.8 * median["rim"]["glioma"]
    assert median["area"]["pituitary"] < 0.5 * min(median["area"]["meningioma"], median["area"]["glioma"])
    assert median["fill"]["meningioma"] > median["fill"]["glioma"] + 0.1


def test_places_of_tumours() -> None:
    """Distance of the tumour's surface from the brain's rim, and its middle's from the midline, in the template."""
    template = load_template(2)
    brain = template.channel("brain").reshape(template.grid.shape) > 0.5
    from_rim = ndimage.distance_transform_edt(brain, sampling=2.0)
    for kind in KINDS:
        for number in range(8):
            tumour = draw_tumour(template, np.random.default_rng(number), kind)
            x, _, z = tumour.centre_mm
            voxel = tuple(np.rint((tumour.centre_mm - template.grid.origin_mm) / 2).astype(int))
            radius = float(np.prod(tumour.semi_axes_mm) ** (1 / 3))
            assert RADIUS_MM[kind][0] <= radius <= RADIUS_MM[kind][1]
            if kind == "meningioma":
                assert from_rim[voxel] < radius  # its surface reaches the rim
            elif kind == "glioma":
                assert abs(x) >= 20
                assert from_rim[voxel] > 16
            else:
                assert abs(x) < 5
                assert -35 < z < -15


def test_depth_is_one_at_an_even_ellipsoid_s_surface() -> None:
    tumour = draw_tumour(load_template(2), np.random.default_rng(0), "meningioma")
    directions = np.random.default_rng(1).normal(size=(4000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    surface = depth(tumour, tumour.centre_mm + directions * tumour.semi_axes_mm)
    assert abs(surface.mean() - 1) < 0.1
    assert surface.std() < 0.1


def test_equal_seeds_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    synthesise_slices(tmp_path / "short", slices=8, size=SIZE, seed=SEED)
    before = contents(tmp_path / "short")
    assert all(before[name] == digest for name, digest in contents(folder).items() if name in before and "/" in name)
    synthesise_slices(tmp_path / "short", slices=13, size=SIZE, seed=SEED)  # continued
    after = contents(tmp_path / "short")
    assert len(after) == len(before) + 10
    assert all(after[name] == digest for name, digest in before.items() if "/" in name)
    other, _ = make_slice(1, size=SIZE, seed=SEED + 1)
    assert not np.array_equal(other, make_slice(1, size=SIZE, seed=SEED)[0])


def test_a_second_call_makes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr("relevance_assets.cohort.synthetic.slices.make_slice", None)
    synthesise_slices(folder, slices=PER_PATIENT * PATIENTS, size=SIZE, seed=SEED)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_a_kill_left_is_continued(tmp_path: Path) -> None:
    synthesise_slices(tmp_path, slices=3, size=48, seed=0)
    whole = contents(tmp_path)
    (tmp_path / "index.csv").unlink()
    (tmp_path / "images" / "2.png").unlink()
    synthesise_slices(tmp_path, slices=3, size=48, seed=0)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"slices": 0}, "at least 1"),
        ({"size": 47}, "from 48 to 1024"),
        ({"size": 1025}, "from 48 to 1024"),
        ({"seed": -1}, "0 or larger"),
        ({"seed": 1}, "another size, seed or version"),
        ({"size": 64}, "another size, seed or version"),
        ({"slices": 1}, "more slices than asked for"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, change: dict[str, int], says: str) -> None:
    synthesise_slices(tmp_path, slices=2, size=48, seed=0)
    before = contents(tmp_path)
    with pytest.raises(SyntheticCohortError, match=says):
        synthesise_slices(tmp_path, **({"slices": 2, "size": 48, "seed": 0} | change))
    assert contents(tmp_path) == before


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("mine")
    with pytest.raises(SyntheticCohortError, match="holds no synthetic slices"):
        synthesise_slices(tmp_path, slices=2, size=48, seed=0)
    assert contents(tmp_path).keys() == {"index.csv"}
