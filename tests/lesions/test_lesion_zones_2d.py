"""The published rule: on the study's own scans to the pixel, and its limits by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from relevance_assets.imaging.volumes import read_image
from relevance_assets.lesions.published_images import csf_candidates, ellipse_mask, prepare_flair, sharpened
from relevance_assets.lesions.zones_2d import ZONES, Zones2D, published_zones

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "ms-deepbrain"
SLICES = slice(7, 15)
# pixels and objects: slices 7 to 14, then pixels of all slices; the study's area inside the skull, slices 7 to 14
REFERENCE = {
    "sub-105465": ([1219, 453, 109], [27, 8, 8], [1310, 476, 194], 162_520),
    "sub-105911": ([270, 133, 23], [11, 3, 2], [313, 133, 23], 139_217),
}


def real(subject: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not DATA.is_dir():
        pytest.skip("no ../shared/data/ms-deepbrain")
    masks = DATA / "derivatives" / "manual" / subject / "anat"
    flair = read_image(DATA / subject / "anat" / f"{subject}_FLAIR.nii.gz").data
    lesions, ventricles = (
        read_image(masks / f"{subject}_label-{name}_mask.nii.gz").data > 0 for name in ("WMH", "ventricles")
    )
    return flair, lesions, ventricles


@pytest.mark.parametrize("subject", REFERENCE)
def test_the_reference_classification_is_met_to_the_pixel(subject: str) -> None:
    flair, lesions, ventricles = real(subject)
    found = published_zones(lesions, ventricles, csf_candidates(prepare_flair(flair)))
    pixels, objects, everywhere, _ = REFERENCE[subject]
    within = found.objects.filter(found.objects["slice"].is_in(range(SLICES.start, SLICES.stop)))
    assert np.bincount(found.zones[:, :, SLICES].ravel(), minlength=4)[1:].tolist() == pixels
    assert [(within["zone"] == zone).sum() for zone in ZONES] == objects
    assert np.bincount(found.zones.ravel(), minlength=4)[1:].tolist() == everywhere
    assert found.objects["pixels"].sum() == (found.labels > 0).sum() == sum(everywhere)
    assert (found.labels[lesions] > 0).all()


@pytest.mark.parametrize("subject", REFERENCE)
def test_the_ellipse_has_the_area_of_the_shipped_mask(subject: str) -> None:
    flair, *_ = real(subject)
    slices = np.moveaxis(flair.astype(np.float64), 2, 0)[SLICES]
    assert sum(int(ellipse_mask(sharpened(image), 20).sum()) for image in slices) == REFERENCE[subject][3]


# ------------------------------------------------------------------------------------------------------ by hand
def place(
    lesion: tuple[int, int, int, int],
    ventricle: tuple[int, int, int, int] | None,
    fluid: tuple[int, int, int, int] | None,
) -> Zones2D:
    """Rectangles (row, column, rows, columns) in one slice of 100 x 100."""
    masks = []
    for box in (lesion, ventricle, fluid):
        mask = np.zeros((100, 100, 1), np.uint8)
        if box:
            row, column, rows, columns = box
            mask[row : row + rows, column : column + columns] = 255
        masks.append(mask)
    return published_zones(*masks)


@pytest.mark.parametrize(
    ("lesion", "ventricle", "fluid", "zone", "edge", "centroid", "near"),
    [
        ((50, 28, 40, 5), (50, 10, 40, 11), None, 1, 8 * 0.9, 10 * 0.9, None),
        ((50, 29, 40, 5), (50, 10, 40, 11), None, 1, 9 * 0.9, 11 * 0.9, None),  # by its centroid
        ((50, 29, 3, 19), (50, 10, 3, 11), None, 2, 9 * 0.9, 18 * 0.9, None),
        ((50, 28, 3, 21), (50, 10, 3, 11), None, 1, 8 * 0.9, 18 * 0.9, None),  # by its edge
        ((50, 60, 2, 17), None, (50, 83, 2, 2), 2, None, None, 7 * 0.9),  # 6.3 mm to fluid
        ((50, 60, 2, 17), None, (50, 82, 2, 2), 3, None, None, 6 * 0.9),  # 34 pixels, 27.54 mm2
        ((50, 60, 5, 7), None, (50, 72, 5, 2), 2, None, None, 6 * 0.9),  # 35 pixels, 28.35 mm2
        ((50, 60, 1, 1), None, (53, 64, 5, 5), 3, None, None, 5 * 0.9),
        ((50, 60, 1, 1), (53, 64, 5, 5), (50, 62, 1, 1), 1, 4.5, 4.5, 1.8),  # near both
        ((50, 60, 1, 1), None, None, 2, None, None, None),
    ],
)
def test_zones_and_distances_of_rectangles(lesion, ventricle, fluid, zone, edge, centroid, near) -> None:
    found = place(lesion, ventricle, fluid)
    (row,) = found.objects.to_dicts()
    assert row["zone"] == ZONES[zone - 1]
    assert row["pixels"] == lesion[2] * lesion[3]
    assert row["area_mm2"] == pytest.approx(row["pixels"] * 0.81)
    for name, value in (("ventricle_edge_mm", edge), ("ventricle_centroid_mm", centroid), ("cortex_edge_mm", near)):
        assert row[name] == (None if value is None else pytest.approx(value, abs=5e-4))
    assert set(np.unique(found.zones)) == {0, zone}


def test_the_centroid_is_cut_to_whole_pixels_and_vertices_are_few() -> None:
    """A block of 2 x 2 has its centroid at its first pixel; a long side has no vertex but its ends."""
    block = place((50, 60, 2, 2), (50, 40, 1, 1), None).objects.to_dicts()[0]
    assert block["ventricle_centroid_mm"] == pytest.approx(20 * 0.9)
    below = place((51, 60, 2, 2), (40, 60, 1, 1), None).objects.to_dicts()[0]
    assert below["ventricle_centroid_mm"] == pytest.approx(11 * 0.9)
    # the ventricle lies across the middle of the side, 10 pixels off it; the ends are farther
    side = place((30, 60, 41, 3), (50, 50, 1, 1), None).objects.to_dicts()[0]
    assert side["ventricle_edge_mm"] == pytest.approx(math.hypot(10, 20) * 0.9, abs=5e-4)


def test_holes_are_filled_and_diagonal_neighbours_are_one_object() -> None:
    lesions = np.zeros((40, 40, 2), bool)
    lesions[5:12, 5:12, 0] = True
    lesions[7:10, 7:10, 0] = False
    lesions[20, 20, 1] = lesions[21, 21, 1] = lesions[30, 30, 1] = True
    nothing = np.zeros_like(lesions)
    found = published_zones(lesions, nothing, nothing)
    assert sorted(zip(found.objects["slice"], found.objects["pixels"], strict=True)) == [(0, 49), (1, 1), (1, 2)]
    assert found.labels[8, 8, 0] == found.labels[5, 5, 0]
    assert found.labels[20, 20, 1] == found.labels[21, 21, 1] != found.labels[30, 30, 1]


def test_a_ventricle_in_the_next_slice_is_not_seen() -> None:
    lesions, ventricles = np.zeros((40, 40, 2), bool), np.zeros((40, 40, 2), bool)
    lesions[20, 20, 0] = ventricles[20, 20, 1] = True
    found = published_zones(lesions, ventricles, np.zeros_like(lesions)).objects.to_dicts()
    assert [(row["zone"], row["ventricle_edge_mm"]) for row in found] == [("paraventricular", None)]


def test_no_lesion_and_other_shapes() -> None:
    nothing = np.zeros((20, 20, 3))
    found = published_zones(nothing, nothing, nothing)
    assert found.objects.height == found.zones.sum() == found.labels.sum() == 0
    with pytest.raises(ValueError, match="one grid"):
        published_zones(nothing, nothing[:, :, :2], nothing)
    with pytest.raises(ValueError, match="one grid"):
        published_zones(*[nothing[0]] * 3)


# ------------------------------------------------------------------------------------------------------- images
def head(a: float = 90, b: float = 70) -> np.ndarray:
    x, y = np.ogrid[:256, :256]
    return np.where(((x - 128) / a) ** 2 + ((y - 128) / b) ** 2 <= 1, 800.0, 0.0)


def test_the_ellipse_of_an_ellipse_shrinks_by_the_diamond() -> None:
    whole = ellipse_mask(head(), 0)
    assert whole.sum() == pytest.approx(math.pi * 91 * 71, rel=0.02)  # dilated by one
    x, y = np.indices((256, 256))
    inside = np.array([abs(x - i) + abs(y - j) <= 20 for i, j in ((128, 60), (50, 128))])
    shrunk = ellipse_mask(head(), 20)
    # by the definition of erosion: a pixel stays if the diamond around it lies within
    for index, (i, j) in enumerate(((128, 60), (50, 128))):
        assert shrunk[i, j] == whole[inside[index]].all()
    for i, j in np.random.default_rng(0).integers(25, 230, (100, 2)):
        assert shrunk[i, j] == whole[abs(x - i) + abs(y - j) <= 20].all()


def test_dark_spots_of_two_pixels_are_candidates_and_of_one_are_not() -> None:
    image = np.where(head() > 0, 0.8, 0.0)
    image[128, 128] = image[128, 160] = image[128, 161] = 0.1
    image[40:43, 128] = 0.1  # within 10 pixels of the ellipse's edge
    image[50:52, 128] = 0.1  # within 20
    found = csf_candidates(image[:, :, None])[:, :, 0]
    assert np.argwhere(found).tolist() == [[50, 128], [51, 128], [128, 160], [128, 161]]


def test_dark_is_25_levels_below_a_gaussian_of_65_pixels() -> None:
    from scipy.ndimage import binary_erosion, correlate1d, label

    # stripes of 40 pixels, of which a wider Gaussian leaves less
    stripes = np.sin(np.arange(256) * 2 * np.pi / 40) * 0.3
    image = np.where(head() > 0, np.random.default_rng(8).uniform(0.4, 0.7, (256, 256)) + stripes, 0.0)
    image[0, 0] = 1
    grey = np.floor(255 * (image - image.min()) / np.ptp(image))
    sigma = 0.3 * ((65 - 1) * 0.5 - 1) + 0.8  # OpenCV's for a kernel of this size
    kernel = np.exp(-(np.arange(-32, 33) ** 2) / 2 / sigma**2)
    kernel /= kernel.sum()
    mean = correlate1d(correlate1d(grey, kernel, 0, mode="nearest"), kernel, 1, mode="nearest")
    gap = grey - (mean - 25)
    # what is within a level is a matter of rounding, and so are pieces of one pixel beside it
    sure = binary_erosion(np.abs(gap) > 1.1, np.ones((3, 3)))
    pieces, count = label(gap <= 0, np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    expected = (gap <= 0) & (sizes[pieces] >= 2) & ellipse_mask(image, 10)
    assert expected[sure].sum() > 1000
    assert (csf_candidates(image[:, :, None])[:, :, 0][sure] == expected[sure]).all()


def test_slices_without_a_head_are_blank() -> None:
    random = np.random.default_rng(0)
    flair = np.stack([np.zeros((256, 256)), head(30, 30), -np.ones((256, 256)), head()], axis=2)
    flair[:, :, 3] += random.uniform(0, 20, (256, 256))
    prepared = prepare_flair(flair)
    assert not prepared[:, :, :3].any()
    assert (prepared[:, :, 3].min(), prepared[:, :, 3].max()) == (0, 1)
    assert not csf_candidates(prepared)[:, :, :3].any()
    with pytest.raises(ValueError, match="finite"):
        prepare_flair(np.full((8, 8, 2), np.nan))


def test_sharpening_and_scaling_by_plain_numpy() -> None:
    from scipy.ndimage import correlate1d

    random = np.random.default_rng(5)
    image = head() + random.uniform(0, 100, (256, 256))
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    kernel /= kernel.sum()
    blurred = correlate1d(correlate1d(image, kernel, 0, mode="reflect"), kernel, 1, mode="reflect")
    sharp = np.clip(image + 1.5 * (image - blurred), image.min(), image.max())
    assert sharpened(image) == pytest.approx(sharp)
    outside = sharp * ~ellipse_mask(sharp, 20)
    width = (outside.max() - outside.min()) / 10
    low = outside[outside < outside.min() + width].mean()
    high = outside[outside > outside.max() - width].mean()
    expected = np.clip((sharp - low) / (high - low), 0, 1)
    assert prepare_flair(image[:, :, None])[:, :, 0] == pytest.approx(expected, abs=1e-9)
