"""Steps of a recipe that move things, and what a recipe may say: planted moves are found, needless steps say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from relevance_assets import study
from relevance_assets.configuration import DEFINITIONS, load_studies, read_settings, remember
from relevance_assets.home import Home
from relevance_assets.imaging.alignment import align, quality_of
from relevance_assets.imaging.atlas import Atlas
from relevance_assets.imaging.geometry import Alignment, Geometry, to_native, to_prepared_labels
from relevance_assets.imaging.layers import Visits
from relevance_assets.imaging.limits import beyond, check
from relevance_assets.imaging.recipe import prepare
from relevance_assets.imaging.template import template
from relevance_assets.imaging.volumes import Image, ScanError

Write = Callable[..., Path]
SIZES = (4.0, 4.0, 4.0)


def turned(degrees: float, shift: tuple[float, float, float]) -> np.ndarray:
    """A rotation about the z axis and a shift, (4, 4)."""
    angle, matrix = np.radians(degrees), np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = shift
    return matrix


def brain(write: Write, name: str, move: np.ndarray) -> Path:
    """The template's brain at 4 mm, its grid moved: the same voxels elsewhere."""
    space = template(4)
    return write(space.t1w, move @ space.grid.affine, name=name)


def contrasts(*names: str) -> list[study.Contrast]:
    scale = study.Scale(rule="percentile")
    return [study.Contrast(name=name, suffix=name, scale=scale) for name in names]


def recipe(*steps: study.Step) -> list[study.Step]:
    return [study.Reorient(), *steps, study.ScaleStep()]


def test_contrasts_come_together_and_are_interpolated_once(write: Write) -> None:
    paths = [brain(write, "a.nii.gz", np.eye(4)), brain(write, "b.nii.gz", turned(6, (5, -7, 4)))]
    steps = recipe(study.Coregister(), study.BrainMask(), study.Resample(voxel_size_mm=SIZES))
    prepared = prepare(paths, contrasts("a", "b"), steps)
    first, second = prepared.images
    inside = prepared.mask
    assert np.corrcoef(first[inside], second[inside])[0, 1] > 0.97
    assert [row["resampled"] for row in prepared.quality] == [False, True]
    apart = prepare(paths, contrasts("a", "b"), recipe(study.BrainMask(), study.Resample(voxel_size_mm=SIZES)))
    both = apart.mask
    assert np.corrcoef(apart.images[0][both], apart.images[1][both])[0, 1] < 0.8


def test_visits_meet_half_way_on_one_grid_whoever_asks(write: Write) -> None:
    paths = (brain(write, "v1.nii.gz", np.eye(4)), brain(write, "v2.nii.gz", turned(8, (6, 4, -6))))
    steps = recipe(study.Halfway(), study.BrainMask(), study.Resample(voxel_size_mm=SIZES))
    one, two = (prepare([paths[own]], contrasts("a"), steps, Visits(paths, own)) for own in (0, 1))
    assert one.images.shape == two.images.shape
    np.testing.assert_array_equal(one.affine, two.affine)
    inside = one.mask | two.mask
    assert np.corrcoef(one.images[0][inside], two.images[0][inside])[0, 1] > 0.97
    moves = [prepared.geometry.moved for prepared in (one, two)]
    # each is moved by half of what lies between them: there and on is the whole way
    points = np.array([[0, 0, 0], [30, 0, 0], [0, 30, 20.0]])
    between = moves[0] @ np.linalg.inv(moves[1])  # visit 2's place of the brain to visit 1's, in half-way space
    shift = np.linalg.norm(points @ between[:3, :3].T + between[:3, 3] - points, axis=1)
    planted = turned(8, (6, 4, -6))
    wanted = np.linalg.norm(points @ planted[:3, :3].T + planted[:3, 3] - points, axis=1)
    np.testing.assert_allclose(shift.mean(), wanted.mean(), rtol=0.35)
    back = to_native(two.mask, two.geometry, order=0)
    assert 2 * (back & template(4).brain).sum() / (back.sum() + template(4).brain.sum()) > 0.95
    alone = prepare([paths[0]], contrasts("a"), steps)
    assert [row["done"] for row in alone.steps if row["step"] == "halfway"] == [False]


def test_the_template_is_reached_and_left_again(write: Write, tmp_path: Path) -> None:
    planted = turned(7, (9, -6, 5)) @ np.diag([1.05, 0.95, 1.0, 1.0])
    path = brain(write, "moved.nii.gz", planted)
    register = study.Register(kind="affine", voxel_size_mm=4)
    steps = recipe(study.BrainMask(), register, study.Resample(voxel_size_mm=SIZES, space="template"))
    prepared = prepare([path], contrasts("a"), steps)
    quality = prepared.quality[0]
    assert quality["template_overlap"] > 0.95
    space = template(4)
    truth = quality_of(Alignment(np.linalg.inv(planted)), Image(space.t1w, planted @ space.grid.affine), space.brain)
    assert quality["similarity_after"] > truth["similarity_after"] - 0.05 > quality["similarity_before"] + 0.4
    label = np.zeros(template(4).brain.shape, np.float32)
    label[18:26, 20:30, 20:28] = 1
    labels = write(label, planted @ template(4).grid.affine, name="label.nii.gz")
    geometry = Geometry.from_dict(json.loads(json.dumps(prepared.geometry.to_dict())))
    there = to_prepared_labels(labels, geometry)
    back = to_native(there, geometry, order=0)
    assert 2 * (back * label).sum() / (back.sum() + label.sum()) > 0.85
    again = prepare([path], contrasts("a"), steps)
    assert again.images.tobytes() == prepared.images.tobytes()


@pytest.mark.parametrize("turned_round", [False, True])
def test_a_brain_is_registered_whatever_its_contrast(turned_round: bool) -> None:
    """A known affine, in the template's own contrast and with white matter dark."""
    space = template(4)
    planted = turned(-12, (25, 15, -20)) @ np.diag([1.05, 0.95, 1.0, 1.0])
    values = np.where(space.brain, 1.05 * space.t1w.max() - space.t1w, 0) if turned_round else space.t1w
    image = Image(values.astype(np.float32), planted @ space.grid.affine)
    points = np.argwhere(space.brain) @ space.grid.affine[:3, :3].T + space.grid.affine[:3, 3]
    wanted = points @ planted[:3, :3].T + planted[:3, 3]
    for deformable, close in ((False, 1.0), (True, 1.5)):
        found = align(image, space.brain, voxel_size_mm=4, deformable=deformable)
        missed = np.linalg.norm(found.to_scan(points) - wanted, axis=1)
        assert missed.mean() < close, f"mm, of a shift of {np.linalg.norm(wanted - points, axis=1).mean():.0f}"


def test_what_lies_in_the_template_is_not_registered(write: Write) -> None:
    path = brain(write, "sub-1_space-MNI152NLin2009aSym_T1w.nii.gz", np.eye(4))
    near = brain(write, "near.nii.gz", turned(0, (1, 0, 0)))
    for image, said in ((path, "by its name"), (near, "but for")):
        prepared = prepare([image], contrasts("a"), recipe(study.BrainMask(), study.Register(kind="affine")))
        row = next(row for row in prepared.steps if row["step"] == "register")
        assert not row["done"]
        assert said in row["note"]
        np.testing.assert_array_equal(prepared.alignment.matrix, np.eye(4))  # type: ignore[union-attr]


def test_a_region_is_taken_out_of_the_brain(write: Write) -> None:
    path = brain(write, "sub-1_space-MNI152NLin2009aSym_T1w.nii.gz", np.eye(4))
    removed = study.Remove(regions=["cerebellum"])
    whole = prepare([path], contrasts("a"), recipe(study.BrainMask(), study.Register()))
    rest = prepare([path], contrasts("a"), recipe(study.BrainMask(), study.Register(), removed))
    gone = whole.mask & ~rest.mask
    places = np.argwhere(gone) @ whole.affine[:3, :3].T + whole.affine[:3, 3]
    assert 60 < gone.sum() * 64 / 1000 < 200, "ml"
    assert (places[:, 1] < -30).all()
    assert (places[:, 2] < 0).all()
    assert not rest.images[0][gone].any()
    assert rest.quality[0]["native_brain_mm3"] == whole.quality[0]["native_brain_mm3"]


def test_points_in_regions_of_an_atlas() -> None:
    labels = np.zeros((3, 3, 3), np.int32)
    labels[0, 0, 0], labels[2, 2, 2] = 1, 2
    atlas = Atlas("tiny", labels, np.diag([2.0, 2.0, 2.0, 1.0]), {1: "x_left", 2: "x_right", 3: "y"})
    points = np.array([[0.9, 0, 0], [1.1, 0, 0], [4, 4, 4], [5.1, 4, 4], [-9, 0, 0]])
    assert atlas.contains(points, ["x"]).tolist() == [True, False, True, False, False]
    assert atlas.contains(points, ["x_right"]).tolist() == [False, False, True, False, False]
    with pytest.raises(ValueError, match="no region 'z'; there are x_left"):
        atlas.contains(points, ["z"])


# ------------------------------------------------------------------------------------------------- what may be said
@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"step": "scale"}], "brain_mask and scale are needed"),
        ([{"step": "scale"}, {"step": "brain_mask"}], "in the order"),
        ([{"step": "brain_mask"}, {"step": "remove", "regions": ["x"]}, {"step": "scale"}], "need the step register"),
        ([{"step": "halfway"}, {"step": "brain_mask"}, {"step": "scale"}], "halfway puts all visits on one grid"),
        ([{"step": "brain_mask", "source": "command"}, {"step": "scale"}], "source command needs command"),
        ([{"step": "brain_mask", "contrast": "T9"}, {"step": "scale"}], "no contrast 'T9'"),
        ([{"step": "brain_mask"}, {"step": "resample"}, {"step": "scale"}], "either voxel_size_mm or like"),
    ],
)
def test_a_recipe_that_cannot_be_done_is_refused(steps: list[dict], words: str, tmp_path: Path) -> None:
    given = load_studies(Home(tmp_path))["brain_age"].model_dump(mode="json") | {"preparation": steps}
    with pytest.raises(ValidationError, match=words):
        study.Study.model_validate(given)


def test_the_paper_s_recipe_can_be_read(tmp_path: Path) -> None:
    remember(Home(tmp_path), "disability", read_settings(DEFINITIONS / "disability" / "paper.yaml"))
    read = load_studies(Home(tmp_path))["disability"]
    assert read.shape == (96, 96, 112)
    assert [step.step for step in read.preparation][3:6] == ["register", "remove", "resample"]


# ------------------------------------------------------------------------------------------------------------ limits
def test_limits_name_what_is_beyond_them() -> None:
    row = {"brain_volume_mm3": 9e5, "native_brain_mm3": 5e5, "template_overlap": 0.7, "similarity_after": -0.9}
    row |= {"jacobian_minimum": 0.2, "jacobian_maximum": 3.0, "share_clipped": 0.2, "share_cropped": 0.0}
    limits = study.Limits(
        brain_ml=(600, 2000), template_overlap=0.8, similarity=0.5, jacobian=(0.1, 5), share_clipped=0.1
    )
    assert beyond(row, limits) == [
        "brain of 500 ml, not 600 to 2000",
        "template overlap 0.700, below 0.8",
        "share clipped 20.0%, above 10.0%",
    ]
    assert beyond({"brain_volume_mm3": 9e5}, limits) == [], "what is not known is not beyond"
    with pytest.raises(ScanError, match=r"^x\.nii: brain of 500 ml.*; look at its figure"):
        check([row, row], limits, Path("x.nii"))


def test_half_way_space_is_that_of_the_contrast_that_the_others_were_brought_to(tmp_path: Path) -> None:
    """Else visits would be moved by the movement between contrasts too: a few mm that nobody sees."""
    home = Home(tmp_path)
    steps = [
        {"step": "coregister", "reference": "NDI"},
        {"step": "halfway"},
        {"step": "brain_mask"},
        {"step": "resample", "voxel_size_mm": [2, 2, 2]},
        {"step": "scale"},
    ]
    remember(home, "disability", {"preparation": steps})
    with pytest.raises(ValueError, match="compares visits by qT1, but coregister brings them to NDI; write contrast"):
        load_studies(home)
    steps[1]["contrast"] = "NDI"
    remember(home, "disability", {"preparation": steps})
    assert load_studies(home)["disability"].preparation[1].step == "halfway"
