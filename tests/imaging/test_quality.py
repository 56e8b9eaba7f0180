"""Measures of quality and their limits, against counting, closed forms and plain NumPy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from relevance_assets.imaging.alignment import quality_of, shift_mm
from relevance_assets.imaging.geometry import Alignment
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.limits import beyond, check
from relevance_assets.imaging.quality import (
    brain_volume_mm3,
    coefficient_of_variation,
    dice,
    grid_columns,
    signal_to_noise,
    volume_row,
    white_matter,
)
from relevance_assets.imaging.template import template
from relevance_assets.imaging.volumes import Image, ScanError
from relevance_assets.study import Limits

Affine = Callable[..., np.ndarray]


def box(shape: tuple[int, int, int], low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def shifted(*mm: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = mm
    return matrix


# ------------------------------------------------------------------------------------------------ volumes and rows
@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSR"])
def test_a_volume_is_its_voxels_times_the_product_of_their_sizes(oblique: Affine, codes: str) -> None:
    """Whatever the turn and the handedness of the axes."""
    affine = oblique((0.9, 1.1, 7.0), 25.0, codes)
    mask = box((9, 8, 7), (2, 1, 0), (5, 3, 4))
    assert brain_volume_mm3(mask, affine) == pytest.approx(3 * 2 * 4 * 0.9 * 1.1 * 7.0, rel=1e-12)
    one = box((9, 8, 7), (8, 7, 6), (9, 8, 7))
    assert brain_volume_mm3(one, affine) == pytest.approx(0.9 * 1.1 * 7.0, rel=1e-12)
    assert brain_volume_mm3(one.astype(np.uint8) * 255, affine) == brain_volume_mm3(one, affine)
    assert brain_volume_mm3(np.zeros((9, 8, 7), bool), affine) == 0.0


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSR"])
def test_a_row_tells_the_grid_and_the_brain_alone(oblique: Affine, codes: str) -> None:
    grid = Grid((4, 5, 6), oblique((1.25, 2.0, 3.5), 12.0, codes))
    columns = {"shape_x": 4, "shape_y": 5, "shape_z": 6}
    columns |= {"voxel_x_mm": 1.25, "voxel_y_mm": 2.0, "voxel_z_mm": 3.5, "orientation": codes}
    assert grid_columns(grid) == columns
    values = np.full(grid.shape, 1e6, np.float32)  # outside the brain: must not count
    mask = box(grid.shape, (1, 1, 1), (3, 2, 3))
    values[mask] = [-1.0, 2.0, 2.0, 5.0]
    row = volume_row("T1w", values, mask, grid, resampled=True, share_clipped=0.25)
    assert row == columns | {
        "image": "T1w",
        "resampled": True,
        "brain_voxels": 4,
        "brain_volume_mm3": pytest.approx(4 * 1.25 * 2.0 * 3.5, rel=1e-12),
        "minimum": -1.0,
        "maximum": 5.0,
        "mean": 2.0,
        "standard_deviation": pytest.approx(math.sqrt(4.5), rel=1e-12),  # of all voxels: divided by n
        "share_clipped": 0.25,
    }
    one = box(grid.shape, (0, 0, 0), (1, 1, 1))
    row = volume_row("T1w", values, one, grid, resampled=False, share_clipped=0.0)
    assert (row["mean"], row["standard_deviation"], row["brain_voxels"]) == (1e6, 0.0, 1)
    values[0, 0, 0] = np.nan
    row = volume_row("T1w", values, one, grid, resampled=False, share_clipped=0.0)
    assert math.isnan(row["mean"]), "not hidden"


def test_dice_of_boxes_by_counting() -> None:
    first = box((10, 9, 8), (0, 0, 0), (4, 4, 4))
    second = box((10, 9, 8), (2, 1, 3), (6, 5, 8))
    common = 2 * 3 * 1
    assert dice(first, second) == 2 * common / (4**3 + 4 * 4 * 5)
    assert dice(first * np.uint8(7), second * np.float32(0.2)) == dice(second, first), "what is not 0 is inside"
    assert dice(first, first) == 1.0
    assert dice(first, box((10, 9, 8), (4, 4, 4), (10, 9, 8))) == 0.0
    nothing = np.zeros((10, 9, 8), bool)
    assert dice(first, nothing) == dice(nothing, first) == 0.0
    assert dice(nothing, nothing) is None
    with pytest.raises(ValueError, match=r"\(10, 9, 8\) and \(1, 9, 8\) differ"):
        dice(first, second[:1])  # would broadcast


# ----------------------------------------------------------------------------------------------- spread and noise
def test_the_coefficient_of_variation_of_a_planted_spread() -> None:
    """Half of the voxels a standard deviation above the mean, half below."""
    values = np.full((10, 10, 4), 1e9, np.float32)
    mask = box(values.shape, (0, 0, 0), (10, 10, 1))
    values[mask] = 500.0 + 35.0 * np.resize([1, -1], 100)
    assert coefficient_of_variation(values, mask) == pytest.approx(35 / 500, rel=1e-12)
    mask[0, 0, 0] = False
    assert coefficient_of_variation(values, mask) is None, "99 voxels"
    mask[0, 0, 0] = True
    assert coefficient_of_variation(values - np.float32(500), mask) is None, "a mean of 0"
    assert coefficient_of_variation(-values, mask) is None, "a negative mean"
    assert coefficient_of_variation(np.ones_like(values), mask) == 0.0
    assert coefficient_of_variation(values, np.zeros(values.shape, bool)) is None
    values[0, 0, 0] = np.nan
    assert math.isnan(coefficient_of_variation(values, mask)), "not hidden"  # type: ignore[arg-type]


SIGNAL, SIGMA = 1000.0, 20.0
LOW, HIGH = (14, 12, 8), (22, 22, 13)


def gap_mm(shape: tuple[int, int, int], sizes: tuple[float, float, float]) -> np.ndarray:
    """Distance of each voxel's centre from the nearest of the box from LOW to HIGH."""
    each = [
        np.maximum(0, np.maximum(low - np.arange(n), np.arange(n) - (high - 1))) * size
        for n, low, high, size in zip(shape, LOW, HIGH, sizes, strict=True)
    ]
    return np.sqrt(each[0][:, None, None] ** 2 + each[1][:, None] ** 2 + each[2] ** 2)


def scan_with_air(seed: int, affine: np.ndarray, sizes: tuple[float, float, float], sigma: float = SIGMA) -> Image:
    """A brain of SIGNAL, complex noise of `sigma` around; up to 12 mm from the brain ringing that must not count."""
    random, shape = np.random.default_rng(seed), (36, 34, 20)
    values = np.abs(random.normal(0, sigma, shape) + 1j * random.normal(0, sigma, shape))
    gap = gap_mm(shape, sizes)
    values[gap <= 12] = random.choice([0.0, 0.09 * SIGNAL], int((gap <= 12).sum()))
    values[box(shape, LOW, HIGH)] = SIGNAL
    return Image(values.astype(np.float32), affine)


@pytest.mark.parametrize(("codes", "sizes"), [("RAS", (4.0, 4.0, 4.0)), ("PSR", (3.0, 4.0, 7.0))])
def test_planted_noise_is_found(oblique: Affine, codes: str, sizes: tuple[float, float, float]) -> None:
    affine, seeds = oblique(sizes, 15.0, codes), 20
    image = scan_with_air(0, affine, sizes)
    brain = box(image.data.shape, LOW, HIGH)
    found = [signal_to_noise(scan_with_air(seed, affine, sizes), brain) for seed in range(seeds)]
    # the SD of n values has a relative standard error of sqrt((kurtosis - 1) / 4n); Rayleigh's kurtosis is 3.245.
    # The cut at a tenth of the signal, 5 SDs of the noise, leaves out exp(-12.5), 4e-6, of it
    voxels = int((gap_mm(image.data.shape, sizes) > 12).sum())
    assert np.mean(found) == pytest.approx(SIGNAL / SIGMA, rel=4 * math.sqrt(2.245 / (4 * voxels * seeds)))
    half = box(image.data.shape, (14, 12, 8), (18, 22, 13))
    assert signal_to_noise(image, half) == found[0], "the head is what is bright, not the mask"


@pytest.mark.parametrize("ratio", [300.0, 40.0, 25.0, 20.0, 15.0])
def test_low_and_high_ratios_are_found(ratio: float) -> None:
    """Within four standard errors, by the information on log SD in a Rayleigh distribution that is cut off."""
    sizes = (4.0, 4.0, 4.0)
    image = scan_with_air(0, np.diag([*sizes, 1.0]), sizes, SIGNAL / ratio)
    r = np.linspace(0, min(ratio / 10, 12), 100_001)
    weight = r * np.exp(-(r**2) / 2) / (r * np.exp(-(r**2) / 2)).sum()
    information = (weight * r**4).sum() - (weight * r**2).sum() ** 2
    kept = 1 - math.exp(-((ratio / 10) ** 2) / 2)
    voxels = kept * (gap_mm(image.data.shape, sizes) > 12).sum()
    found = signal_to_noise(image, box(image.data.shape, LOW, HIGH))
    assert found == pytest.approx(ratio, rel=4 / math.sqrt(voxels * information))


def likeliest(air: np.ndarray, cut: float) -> float:
    """SD of a Rayleigh distribution cut off at `cut`, by looking for the greatest likelihood."""

    def unlikely(sd: float) -> float:
        inside = 1 - math.exp(-(cut**2) / (2 * sd**2))
        return 2 * air.size * math.log(sd) + (air**2).sum() / (2 * sd**2) + air.size * math.log(inside)

    return float(minimize_scalar(unlikely, bounds=(1e-3 * cut, cut), method="bounded", options={"xatol": 1e-9}).x)


def test_where_there_is_no_air_there_is_no_noise() -> None:
    sizes = (4.0, 4.0, 4.0)
    image = scan_with_air(0, np.diag([*sizes, 1.0]), sizes)
    brain, away = box(image.data.shape, LOW, HIGH), gap_mm(image.data.shape, sizes) > 12

    def found(background: Any) -> float | None:
        data = image.data.copy()
        data[away] = background
        return signal_to_noise(Image(data, image.affine), brain)

    voxels, noise = int(away.sum()), image.data[away]
    assert found(0) is None, "stripped"
    assert found(7) is None, "one value everywhere, as some receivers set it"
    assert found(SIGNAL) is None, "the head fills the field of view"
    assert found(np.where(np.arange(voxels) <= voxels // 2, np.float32(7), noise)) is None, "more than half one value"
    assert found(np.where(np.arange(voxels) < voxels // 2, np.float32(7), noise)) is not None, "half"
    assert signal_to_noise(image, np.ones(image.data.shape, bool)) is None


@pytest.mark.parametrize(("width", "enough"), [(9, False), (10, True)])
def test_air_is_at_least_100_voxels_more_than_12_mm_away(width: int, enough: bool) -> None:
    """A slab of head; of layers at 4, 8, 12 and 16 mm from it the last alone is air: 99 or 100 voxels."""
    data = np.zeros((6, width, 11 if width == 9 else 10), np.float32)
    data[:2] = SIGNAL
    data[2:5] = 50.0
    air = np.arange(data[5].size) % 90
    data[5] = air.reshape(data[5].shape)
    found = signal_to_noise(Image(data, np.diag([-4.0, 4.0, 4.0, 1.0])), data == SIGNAL)
    assert found == (pytest.approx(SIGNAL / likeliest(air.astype(float), SIGNAL / 10), rel=1e-4) if enough else None)


# ---------------------------------------------------------------------------------------------------- white matter
def eroded(mask: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Voxels whose two neighbours along each of the axes are inside; beyond the edge is outside."""
    result = mask.copy()
    for axis in axes:
        padded = np.pad(mask, [(1, 1) if axis == other else (0, 0) for other in range(3)])
        for start in (0, 2):
            result &= np.take(padded, range(start, start + mask.shape[axis]), axis)
    return result


def test_white_matter_of_a_scan_that_is_the_template_elsewhere(oblique: Affine) -> None:
    """Voxels coincide, so nothing is interpolated: turned round, the same voxels come out."""
    space = template()
    way = oblique((1.0, 1.0, 1.0), 20.0)  # a rotation and a shift
    expected = eroded(space.white > 0.9, (0, 1, 2)) & space.brain
    assert 100 < expected.sum() < (space.white > 0.9).sum()
    found = white_matter(space.brain, way @ space.grid.affine, way)
    np.testing.assert_array_equal(found, expected)
    left = space.brain & (np.indices(space.brain.shape)[0] > 50)
    np.testing.assert_array_equal(white_matter(left, way @ space.grid.affine, way), expected & left)
    assert not white_matter(np.zeros_like(left), way @ space.grid.affine, way).any()
    # the same voxels in the order of a PSR array: axes to the back, up, right
    psr = np.zeros((4, 4))
    psr[1, 0], psr[2, 1], psr[0, 2], psr[3, 3] = -1, 1, 1, 1
    psr[1, 3] = space.grid.shape[1] - 1
    turned = white_matter(space.brain[:, ::-1].transpose(1, 2, 0), way @ space.grid.affine @ psr, way)
    np.testing.assert_array_equal(turned, expected[:, ::-1].transpose(1, 2, 0))


def test_white_matter_is_where_the_matrix_says() -> None:
    """A scan on the template's grid whose brain lies 3 voxels to the right and 2 to the back."""
    space = template()
    moved = np.zeros_like(space.white)
    moved[3:, :-2] = space.white[:-3, 2:]
    found = white_matter(np.ones(moved.shape, bool), space.grid.affine, shifted(6, -4, 0))
    np.testing.assert_array_equal(found, eroded(moved > 0.9, (0, 1, 2)))
    away = white_matter(np.ones(moved.shape, bool), space.grid.affine, shifted(900, 0, 0))
    assert not away.any()


@pytest.mark.parametrize(("every", "axes"), [((1, 1, 2), (0, 1, 2)), ((1, 1, 3), (0, 1)), ((3, 3, 3), ())])
def test_white_matter_is_not_eroded_across_thick_slices(every: tuple[int, int, int], axes: tuple[int, ...]) -> None:
    """Slices of 4 mm are eroded, those of 6 mm are not: a voxel's centre is the centre of every third one of 2 mm."""
    space = template()
    thick = tuple(slice(None, None, step) for step in every)
    mask = space.brain[thick]
    found = white_matter(mask, space.grid.affine @ np.diag([*every, 1.0]), np.eye(4))
    np.testing.assert_array_equal(found, eroded(space.white[thick] > 0.9, axes) & mask)
    assert found.any()


# ------------------------------------------------------------------------------------------ places in the template
def test_how_far_a_matrix_moves_a_brain(oblique: Affine) -> None:
    affine = oblique((2.0, 3.0, 5.0), 20.0, "PSR")
    mask = box((6, 7, 8), (1, 2, 3), (5, 4, 7))
    assert shift_mm(np.eye(4), mask, affine) == 0.0
    assert shift_mm(shifted(2, -3, 6), mask, affine) == pytest.approx(7.0, rel=1e-12)
    # about the z axis by 90 degrees a point moves by sqrt(2) times its distance from the axis
    quarter = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    places = [affine @ [*voxel, 1.0] for voxel in np.argwhere(mask)]
    by_hand = math.fsum(math.sqrt(2) * math.hypot(x, y) for x, y, *_ in places) / len(places)
    assert shift_mm(quarter, mask, affine) == pytest.approx(by_hand, rel=1e-12)
    one = box(mask.shape, (5, 6, 7), (6, 7, 8))
    x, y, z, _ = affine @ [5, 6, 7, 1]
    growth = shift_mm(np.diag([1.1, 1.1, 1.1, 1.0]), one, affine)
    assert growth == pytest.approx(0.1 * math.hypot(x, y, z), rel=1e-9)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    return float((a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()))


def test_the_template_lies_on_itself() -> None:
    space = template()
    found = quality_of(Alignment(np.eye(4), jacobian=(0.5, 2.0)), space.image, space.brain)
    assert found == {
        "template_overlap": 1.0,
        "similarity_before": pytest.approx(1, abs=1e-9),
        "similarity_after": pytest.approx(1, abs=1e-9),
        "jacobian_minimum": 0.5,
        "jacobian_maximum": 2.0,
    }
    negative = Image(np.where(space.brain, 3 - 2 * space.t1w, 0).astype(np.float32), space.grid.affine)
    assert quality_of(Alignment(np.eye(4)), negative, space.brain)["similarity_after"] == pytest.approx(-1, abs=1e-9)


def test_the_stripped_template_elsewhere_is_known_by_its_alignment() -> None:
    """Its grid moved by whole voxels: before, the template meets neighbours; after, itself."""
    space, way = template(), shifted(4, -6, 2)  # template to scan
    image = Image(space.t1w, way @ space.grid.affine)
    moved, moved_brain = np.zeros_like(space.t1w), np.zeros_like(space.brain)
    moved[2:, :-3, 1:] = space.t1w[:-2, 3:, :-1]
    moved_brain[2:, :-3, 1:] = space.brain[:-2, 3:, :-1]
    before = pearson(moved[space.brain].astype(np.float64), space.t1w[space.brain].astype(np.float64))
    found = quality_of(Alignment(np.linalg.inv(way)), image, space.brain)
    assert found["template_overlap"] == 1.0
    assert found["similarity_before"] == pytest.approx(before, abs=1e-6)
    assert found["similarity_after"] == pytest.approx(1, abs=1e-9)
    assert found["jacobian_minimum"] is found["jacobian_maximum"] is None
    left_there = quality_of(Alignment(np.eye(4)), image, space.brain)
    common = 2 * int((moved_brain & space.brain).sum())
    assert left_there["template_overlap"] == common / int(moved_brain.sum() + space.brain.sum())
    assert left_there["similarity_after"] == left_there["similarity_before"] == found["similarity_before"]
    near = quality_of(Alignment(shifted(-0.5, 0.5, 0)), space.image, space.brain)
    assert near["template_overlap"] == 1.0, "a quarter of a voxel along two axes: 9/16 of a voxel is its own value"


def test_a_scan_that_tells_nothing_has_no_similarity() -> None:
    space = template()
    constant = Image(np.full(space.brain.shape, 7, np.float32), space.grid.affine)
    found = quality_of(Alignment(np.eye(4)), constant, space.brain)
    assert list(found.values())[:3] == [1.0, None, None]
    far = quality_of(Alignment(shifted(900, 0, 0)), space.image, space.brain)
    assert (far["template_overlap"], far["similarity_after"]) == (0.0, None), "0 everywhere"
    holed = space.t1w.copy()
    holed[tuple(np.argwhere(space.brain)[1000])] = np.nan
    found = quality_of(Alignment(np.eye(4)), Image(holed, space.grid.affine), space.brain)
    assert math.isnan(found["similarity_after"]), "not hidden as null, which no limit looks at"  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- limits
WITHIN = {
    "brain_volume_mm3": 1.2e6,
    "native_brain_mm3": 1.4e6,
    "template_overlap": 0.9,
    "similarity_after": 0.8,
    "jacobian_minimum": 0.5,
    "jacobian_maximum": 2.0,
    "share_clipped": 0.01,
    "share_cropped": 0.01,
}
LIMITS = Limits(
    brain_ml=(1000, 1500),
    template_overlap=0.85,
    similarity=0.5,
    jacobian=(0.1, 5),
    share_clipped=0.05,
    share_cropped=0.02,
)
NAN = math.nan


@pytest.mark.parametrize(
    ("measure", "within", "outside", "words"),
    [
        (
            "native_brain_mm3",
            (1e6, 1.5e6),
            (0.0, 0.999e6, 1.501e6, NAN),
            r"brain of (0|999|1501|nan) ml, not 1000 to 1500",
        ),
        ("template_overlap", (0.85, 1.0), (0.849, 0.0, NAN), r"template overlap (0.849|0.000|nan), below 0.85"),
        ("similarity_after", (0.5, -0.5, -1.0), (0.499, -0.499, NAN), r"similarity (0.499|nan), below 0.5"),
        ("jacobian_minimum", (0.101, 2.0), (0.1, -1.0, NAN), r"Jacobian from (0.1|-1|nan) to 2, not within 0.1 and 5"),
        ("jacobian_maximum", (4.99, 0.5), (5.0, 0.49, NAN), r"Jacobian from 0.5 to (5|0.49|nan), not within 0.1 and 5"),
        ("share_clipped", (0.05, 0.0), (0.0501, 1.0, NAN), r"share clipped (5.0|100.0|nan)%, above 5.0%"),
        ("share_cropped", (0.02, 0.0), (0.0201, 1.0, NAN), r"share cropped (2.0|100.0|nan)%, above 2.0%"),
    ],
)
def test_each_limit_on_both_sides_and_at_it(
    measure: str, within: tuple[float, ...], outside: tuple[float, ...], words: str
) -> None:
    """At the limit is within, but for the Jacobian; NaN is beyond; null and no limit are not looked at."""
    assert beyond(WITHIN, LIMITS) == []
    for value in within:
        assert beyond(WITHIN | {measure: value}, LIMITS) == []
    for value in outside:
        found = beyond(WITHIN | {measure: value}, LIMITS)
        assert len(found) == 1
        assert re.fullmatch(words, found[0])
        assert beyond(WITHIN | {measure: value}, Limits()) == []
    assert beyond(WITHIN | {measure: None}, LIMITS) == []


def test_the_brain_on_the_prepared_grid_counts_where_no_other_is_known() -> None:
    row = WITHIN | {"native_brain_mm3": None, "brain_volume_mm3": 0.9e6}
    assert beyond(row, LIMITS) == ["brain of 900 ml, not 1000 to 1500"]
    row["brain_volume_mm3"] = NAN
    assert beyond(row, LIMITS) == ["brain of nan ml, not 1000 to 1500"]


def test_a_scan_is_refused_in_one_line_that_says_each_thing_once() -> None:
    rows = [
        WITHIN | {"image": name, "template_overlap": 0.6, "share_clipped": share}
        for name, share in (("a", 0.2), ("b", 0.3))
    ]
    with pytest.raises(ScanError) as raised:
        check(rows, LIMITS, Path("sub-1_T1w.nii.gz"))
    assert str(raised.value) == (
        "sub-1_T1w.nii.gz: template overlap 0.600, below 0.85; share clipped 20.0%, above 5.0%; "
        "share clipped 30.0%, above 5.0%; look at its figure, mend the image or the study's quality.fail"
    )
    check([WITHIN, WITHIN], LIMITS, Path("sub-1_T1w.nii.gz"))
    check([], LIMITS, Path("sub-1_T1w.nii.gz"))
