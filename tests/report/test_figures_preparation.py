"""Figures of a preparation: the right planes, the right way round, outlines where the masks' edges are."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture
from PIL import ImageDraw
from scipy import ndimage

from relevance_assets.imaging.displacement import Displacement
from relevance_assets.imaging.geometry import Alignment, Geometry
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.recipe import Prepared
from relevance_assets.imaging.template import template
from relevance_assets.imaging.volumes import Image, read_image
from relevance_assets.report import drawing, figures_preparation
from relevance_assets.report.figures_preparation import mosaic_path, preparation_figure

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ORANGE = drawing.COLOURS[drawing.MASK - 1]
NOTE = "moved by 3.2 mm " * 40 + "x" * 300


def affine_of(codes="RAS", sizes=(4.0, 4.0, 4.0), origin=(-70.0, -100.0, -60.0), turn=0.0):
    """Voxels of these sizes along the given directions, turned about z by degrees."""
    out = np.eye(4)
    out[:3, :3] = 0
    for axis, code in enumerate(codes):
        world, sign = ("RAS".index(code), 1) if code in "RAS" else ("LPI".index(code), -1)
        out[world, axis] = sign * sizes[axis]
    out[:3, 3] = [o if out[w, :3].sum() > 0 else -o for w, o in enumerate(origin)]
    angle = np.deg2rad(turn)
    about_z = np.eye(4)
    about_z[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return about_z @ out


def places(grid):
    return np.indices(grid.shape).reshape(3, -1).T @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def box(grid, low, high):
    points = places(grid)
    return ((points >= low) & (points <= high)).all(axis=1).reshape(grid.shape)


def made(values, affine, mask, prepared=None, *, contrasts=1, resampled=False, moved=None, alignment=None, **known):
    """A scan as its file has it and as it was prepared, on the same grid unless another is given."""
    native = Grid(values.shape, affine)
    prepared = prepared or native
    images = np.stack([np.where(mask, 0.5, 0).astype(np.float32)] * contrasts)
    geometry = Geometry(native, prepared, resampled, np.eye(4) if moved is None else moved)
    row = {"brain_volume_mm3": 1.4e6, "share_clipped": 0.01, **known}
    rows = [{"image": f"contrast{i}", **row} for i in range(contrasts)]
    steps = [{"step": "reorient", "done": True, "note": ""}, {"step": "denoise", "done": False, "note": NOTE}]
    before = Image(values.astype(np.float32), affine)
    return Prepared(images, mask, prepared.affine, geometry, alignment, rows, steps, before, (np.eye(4),))


def box_scan(affine=None, shape=(36, 45, 32), low=(-50, -80, -30), high=(50, 60, 50), **more):
    """A box of brain, of value 1, twice as bright in the person's right, front and upper eighth."""
    affine = affine_of() if affine is None else affine
    grid = Grid(shape, affine)
    mask = box(grid, low, high)
    centre = np.add(low, high) / 2
    values = np.where(mask, 1.0, 0) + box(grid, centre, high)
    return made(values, affine, mask, **more)


def pixels(path):
    return np.asarray(Picture.open(path).convert("RGB")).astype(int)


def outlines(page, colour=ORANGE):
    """Boxes of the outlines of one colour in reading order, legends left out: (rows, columns)."""
    found, _ = ndimage.label((page == colour).all(axis=-1), np.ones((3, 3)))
    boxes = [b for b in ndimage.find_objects(found) if b[0].stop - b[0].start > 3]
    return sorted(boxes, key=lambda b: (round((b[0].start + b[0].stop) / 60), b[1].start))


# ------------------------------------------------------------------------------------------------------- drawing
def test_a_plane_is_turned_and_stretched_by_nearest_neighbour():
    plane = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)  # a: right, b: up
    grey = drawing.tile(plane, [], (4, 3))[..., 0]
    np.testing.assert_array_equal(grey, [[6, 6, 3, 3], [5, 5, 2, 2], [4, 4, 1, 1]])


@pytest.mark.parametrize("size", [(17, 23), (40, 9), (1, 1)])
def test_the_outline_is_the_masks_outermost_pixels(size):
    mask = np.random.default_rng(1).random((17, 23)) > 0.3
    block = drawing.tile(np.zeros((17, 23), np.uint8), [(mask, 2)], size)
    width, height = size
    shown = np.zeros((height, width), bool)
    for y, x in itertools.product(range(height), range(width)):
        shown[y, x] = mask[int((width - 1 - x + 0.5) * 17 / width), int((height - 1 - y + 0.5) * 23 / height)]
    for y, x in itertools.product(range(height), range(width)):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inner = all(0 <= j < height and 0 <= i < width and shown[j, i] for j, i in around)
        assert block[y, x, 1] == (2 if shown[y, x] and not inner else 0)


def test_text_wraps_between_words_within_words_and_loses_nothing():
    said = "one two " * 20 + "z" * 500 + " end"
    font = drawing._font(13)
    lines = drawing._wrapped(said, font, 200)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == said.replace(" ", "")
    assert drawing.text(said, 13, 200).shape[1] == 200
    short = drawing.shortened("contrast_" * 30, 13, 100)
    assert short.endswith("…")
    assert font.getlength(short) <= 100


def test_a_letter_is_beside_what_it_names():
    block = drawing.row([np.full((50, 60, 2), 0, np.uint8), np.zeros((80, 20, 2), np.uint8)], "RLAP")[..., 0]
    assert block.shape == (80 + 28, 60 + 28 + 2 + 20)
    middle_y, middle_x = 14 + 15 + 25, 14 + 30
    for y, x in ((middle_y, 7), (middle_y, 14 + 60 + 7), (14 + 15 - 7, middle_x), (14 + 15 + 50 + 7, middle_x)):
        assert block[y - 7 : y + 7, x - 7 : x + 7].max() > 150
    assert block[29:79, 14:74].max() == 0  # nothing on the plane itself


# -------------------------------------------------------------------------------------------------- native planes
@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSR", "IRP"])
def test_right_is_left_of_the_page_whatever_the_axes(tmp_path, codes):
    sizes = {"R": 4.0, "L": 4.0, "A": 3.0, "P": 3.0, "S": 5.0, "I": 5.0}
    numbers = {"R": 36, "L": 36, "A": 60, "P": 60, "S": 26, "I": 26}
    affine = affine_of(codes, tuple(sizes[c] for c in codes))
    path = tmp_path / "a.png"
    preparation_figure(box_scan(affine, tuple(numbers[c] for c in codes)), "sub-1", path)
    page = pixels(path)
    drawn = outlines(page)
    assert len(drawn) == 3 * 6 + 3 * 4
    # the upper half of the brain in the last axial plane, the front in the last coronal, the right in the last sagittal
    for place, wanted in ((5, (100, 140)), (11, (100, 80)), (17, (140, 80))):
        rows, columns = drawn[place]
        plane = page[rows, columns].mean(axis=-1)
        high, wide = plane.shape
        top_left, rest = plane[2 : high // 2 - 2, 2 : wide // 2 - 2], plane[high // 2 + 2 : -2, wide // 2 + 2 : -2]
        assert top_left.mean() > rest.mean() + 80
        assert wide / high == pytest.approx(wanted[0] / wanted[1], rel=0.08)  # millimetres, not voxels


def test_letters_on_the_page_name_the_sides(tmp_path):
    path = tmp_path / "a.png"
    scan = box_scan(affine_of("PSR"), (45, 32, 36), (-67, -73, -57), (67, 97, 61))  # as much as the file
    preparation_figure(scan, "sub-1", path)
    page = pixels(path)
    drawn = outlines(page)
    for first, letters in ((0, "RLAP"), (6, "RLSI"), (12, "APSI")):
        rows, columns = drawn[first]
        y, x = (rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2
        strips = {
            "left": (slice(y - 20, y + 20), slice(0, columns.start)),
            "right": (slice(y - 20, y + 20), slice(columns.stop, columns.stop + 45)),
            "above": (slice(rows.start - 22, rows.start), slice(x - 20, x + 20)),
            "below": (slice(rows.stop, rows.stop + 22), slice(x - 20, x + 20)),
        }
        for letter, opposite, (side, strip) in zip(letters, opposites(letters), strips.items(), strict=True):
            assert is_there(letter, page[strip]), (letter, side)
            assert not is_there(opposite, page[strip]), (letter, side)


def opposites(letters):
    return [letters[1], letters[0], letters[3], letters[2]]


def is_there(letter, part):
    """Whether a part of the page holds a letter, by comparing pixels with PIL's own drawing of it."""
    picture = Picture.new("L", (14, 14))
    ImageDraw.Draw(picture).text((7, 7), letter, fill=225, font=drawing._font(12), anchor="mm")
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(part.mean(axis=-1) > 110, 14), (14, 14))
    return (windows != (np.asarray(picture) > 110)).sum(axis=(2, 3)).min() <= 2


WAVE = 25.0


def test_the_mask_on_the_native_planes_is_the_prepared_one():
    moved = np.eye(4)
    moved[:3, 3] = 7, -5, 3
    for codes, turn, sizes in itertools.product(("RAS", "PSR", "LAS"), (0.0, 14.0), ((4.0, 4.0, 4.0), (2.0, 2.0, 9.0))):
        affine = affine_of(codes, sizes, turn=turn)
        native = Grid((40, 44, 30), affine)
        middle = moved[:3, :3] @ places(native).mean(axis=0) + moved[:3, 3]
        prepared = Grid((50, 60, 50), affine_of(sizes=(3.0, 3.0, 3.0), origin=middle - 75))
        ball = np.linalg.norm(places(prepared) - middle, axis=1).reshape(prepared.shape) < 40
        scan = made(np.ones(native.shape), affine, ball, prepared, resampled=True, moved=moved)
        planes, _ = figures_preparation._native(scan, 2)
        indices = figures_preparation._chosen(np.zeros((0, 3)), (9, 9, 9), 1)  # the order of axes
        assert [axis for axis, _ in indices] == [2, 1, 0]
        assert len(planes) == 6
        for plane in planes:
            mask = plane.outlines[0][0]
            # a ball's section is a disc: area by its share of the plane's field of view
            area = mask.mean() * plane.size_mm[0] * plane.size_mm[1]
            radius = np.sqrt(area / np.pi)
            assert 25 < radius < 41.5
            centre = (np.argwhere(mask).mean(axis=0) + 0.5) / mask.shape * plane.size_mm
            assert np.abs(centre - np.divide(plane.size_mm, 2)).max() < 3.0  # the ball is in the scan's middle


def test_without_interpolation_the_mask_is_the_same_voxels():
    affine = affine_of("PSR", (2.0, 3.0, 5.0), turn=9.0)
    rng = np.random.default_rng(0)
    mask = rng.random((20, 24, 16)) > 0.5
    turned = nib.as_closest_canonical(nib.Nifti1Image(mask.astype(np.uint8), affine))
    cut = np.asarray(turned.dataobj)[2:, 1:-1] > 0  # prepared: reoriented and cropped
    start = turned.affine.copy()
    start[:3, 3] += turned.affine[:3, :3] @ [2, 1, 0]
    scan = made(mask.astype(float), affine, cut, Grid(cut.shape, start))
    planes, _ = figures_preparation._native(scan, 1)
    whole = np.zeros(turned.shape, bool)
    whole[2:, 1:-1] = cut
    for plane in planes:
        assert any(
            np.array_equal(plane.outlines[0][0], whole.take(i, plane.axis)) for i in range(whole.shape[plane.axis])
        )
        np.testing.assert_array_equal(plane.values > 0.5, plane.values == 1)


# --------------------------------------------------------------------------------------------------- registration
def wave_alignment(matrix, native):
    """Template = matrix of the scan's point, plus a wave of 4 mm."""
    grid = Grid((64, 76, 64), affine_of(sizes=(4.0, 4.0, 4.0), origin=native.corners_mm().mean(axis=0) - 128))
    points = places(grid)
    there = points @ matrix[:3, :3].T + matrix[:3, 3] + 4 * np.sin(points[:, [1, 2, 0]] / WAVE)
    return Alignment(matrix, Displacement((there - points).reshape(*grid.shape, 3), grid), jacobian=(0.5, 2.0))


def template_scan(matrix, **more):
    """The template's brain as a scan that `matrix` leads into the template."""
    space = template(4)
    affine = np.linalg.inv(matrix) @ space.grid.affine
    return made(space.t1w, affine, space.brain, alignment=Alignment(matrix), **more)


def test_the_template_lies_over_the_scan_after_registration_and_not_before():
    matrix = affine_of(sizes=(1.05, 1.0, 0.95), origin=(14.0, -12.0, 10.0))
    scan = template_scan(matrix)
    before, after = figures_preparation._registration(scan.before, scan.alignment, (0.0, 0.5))
    scores = []
    for block in (before, after):
        front = ndimage.binary_fill_holes(block[70:, :, 1] == drawing.FRONT)
        grey = ndimage.binary_fill_holes((block[70:, :, 0] > 60) | (front & (block[70:, :, 1] > 0)))
        scores.append(2 * (front & grey).sum() / (front.sum() + grey.sum()))
    assert scores[1] > 0.93
    assert scores[0] < scores[1] - 0.05
    assert (after[..., 1] == drawing.WHITE).sum() > 100


def test_a_field_that_folds_is_said_and_the_rest_is_drawn(tmp_path):
    scan = template_scan(np.eye(4))
    grid = Grid((5, 5, 5), affine_of(sizes=(50.0, 50.0, 50.0), origin=(-100.0, -100.0, -100.0)))
    folded = Displacement((-2.5 * places(grid)).reshape(5, 5, 5, 3), grid)
    path = tmp_path / "a.png"
    preparation_figure(replace(scan, alignment=Alignment(np.eye(4), folded)), "sub-1", path)
    page = pixels(path)
    assert (page == drawing.COLOURS[drawing.FRONT - 1]).all(axis=-1).any()  # before
    assert len(outlines(page)) >= 9


# ------------------------------------------------------------------------------------------------------- the page
@pytest.mark.parametrize("contrasts", [1, 2, 3, 4, 5, 6])
def test_nothing_is_cut_or_too_large(tmp_path, contrasts):
    known = {"template_overlap": 0.95, "similarity_before": 0.1, "similarity_after": 0.9, "share_cropped": 0.02}
    known |= {"white_matter_cv_before": 0.1, "white_matter_cv_after": 0.05}
    scan = template_scan(np.eye(4), contrasts=contrasts, jacobian_minimum=0.2, jacobian_maximum=3.0, **known)
    noisy = np.random.default_rng(0).random(scan.images.shape).astype(np.float32) * scan.mask
    path = tmp_path / "sub-1_preparation.png"
    preparation_figure(replace(scan, images=noisy), "sub-1 " * 60, path)
    page = pixels(path)
    assert page[:, :8].max() == page[:, -8:].max() == page[:8].max() == page[-8:].max() == 0  # a margin all around
    assert page.shape[1] <= figures_preparation.PAGE + 60
    assert path.stat().st_size < 150_000
    assert mosaic_path(path).stat().st_size < 5_000
    first = path.read_bytes()
    preparation_figure(replace(scan, images=noisy), "sub-1 " * 60, path)
    assert path.read_bytes() == first


def test_the_caption_says_what_was_done_and_found():
    scan = box_scan(template_overlap=0.951, similarity_after=0.9, jacobian_minimum=0.25, jacobian_maximum=3.5)
    done, needless, measures = figures_preparation._caption(scan)
    assert done == "Steps: reorient."
    assert needless.startswith("Needless: denoise (moved by 3.2 mm moved")
    assert len(needless) < 130
    assert "brain 1,400 ml; overlap with the template's brain 0.951; " in measures
    assert "similarity to the template 0.90 after registration; Jacobian 0.25 to 3.50" in measures


def odd_scans():
    plain = box_scan()
    one = np.zeros_like(plain.mask)
    one[20, 20, 10] = True
    yield "one voxel", made(plain.before.data, plain.affine, one)
    yield "no brain", made(plain.before.data, plain.affine, np.zeros_like(one))
    yield "empty contrast", replace(plain, images=np.zeros_like(plain.images))
    yield "constant image", made(np.full(one.shape, 7.0), plain.affine, plain.mask)
    yield "NaN", made(np.where(one, np.nan, plain.before.data), plain.affine, plain.mask)
    yield "one plane", box_scan(shape=(36, 45, 1), low=(-50, -80, -70), high=(50, 60, 50))
    yield "one thick plane", box_scan(affine_of(sizes=(0.5, 0.5, 90.0)), (9, 9, 1), (-200,) * 3, (200,) * 3)
    yield "a needle", box_scan(affine_of(sizes=(0.1, 0.1, 9.0)), (2, 2, 40), (-200,) * 3, (200,) * 3)
    one_voxel = np.ones((1, 1, 1), bool)
    yield "a voxel in all", made(np.ones((1, 1, 1)), np.eye(4), one_voxel, alignment=Alignment(np.eye(4)))


@pytest.mark.parametrize(("name", "scan"), odd_scans(), ids=lambda value: value if isinstance(value, str) else "")
def test_odd_scans_are_drawn(tmp_path, name, scan):
    path = tmp_path / "a.png"
    preparation_figure(scan, name, path)
    orange = (pixels(path) == ORANGE).all(axis=-1).sum()
    assert (orange == 18 * 2) == (name == "no brain")  # the legend's line alone
    assert Picture.open(mosaic_path(path)).size[0] > 2


def test_the_mosaic_shows_the_mask(tmp_path):
    path = tmp_path / "a.png"
    preparation_figure(box_scan(), "sub-1", path)
    drawn = outlines(pixels(mosaic_path(path)))
    assert len(drawn) == 3
    sizes = [(columns.stop - columns.start, rows.stop - rows.start) for rows, columns in drawn]
    longest = figures_preparation.MOSAIC_TILE * 144 / 160  # 140 mm in voxels of 4, and a margin of 8 on both sides
    for (wide, high), (mm_wide, mm_high) in zip(sizes, ((104, 144), (104, 80), (144, 80)), strict=True):
        assert wide == pytest.approx(longest * mm_wide / 144, abs=2.5)
        assert high == pytest.approx(longest * mm_high / 144, abs=2.5)


def test_a_png_has_as_many_greys_as_fit():
    block = np.zeros((100, 100, 2), np.uint8)
    block[..., 0] = np.random.default_rng(0).integers(0, 256, (100, 100))
    block[3, 4, 1] = drawing.WHITE
    rich, poor = drawing.png(block, 10**6), drawing.png(block, 4_500)
    assert len(poor) <= 4_500 < len(rich)
    for data, levels in ((rich, 24), (poor, 6)):
        shown = np.asarray(Picture.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert tuple(shown[3, 4]) == drawing.COLOURS[drawing.WHITE - 1]
        grey = shown[block[..., 1] == 0]
        assert np.abs(grey[:, 0] - block[..., 0][block[..., 1] == 0]).max() <= 255 / (levels - 1) / 2 + 1


@pytest.mark.skipif(not DATA.is_dir(), reason="real scans are not here")
def test_a_real_head_is_drawn_small(tmp_path):
    image = read_image(DATA / "ixi/sub-IXI012/anat/sub-IXI012_T1w.nii.gz")
    labels = read_image(DATA / "ixi/derivatives/dlmuse/sub-IXI012/anat/sub-IXI012_desc-dlmuse_dseg.nii.gz")
    mask = ndimage.binary_fill_holes(labels.data > 0)
    scan = made(image.data, image.affine, mask, alignment=Alignment(np.eye(4)))
    path = tmp_path / "a.png"
    preparation_figure(scan, "sub-IXI012", path)
    assert path.stat().st_size < 150_000
    assert len(outlines(pixels(path))) >= 3 * 3 + 3 * 4
