"""Registration against planted transforms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.registration import affine, deformable, halfway, rigid
from relevance_assets.imaging.transforms import pull, read_affine
from relevance_assets.imaging.volumes import Image, read_image


def turned(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    a, b, c = np.deg2rad(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = z @ y @ x, shift
    return matrix


@pytest.fixture(scope="module")
def template() -> Image:
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=4)
    return Image(np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64))


def seen_from(image: Image, to_moving: np.ndarray, shape: tuple[int, int, int], grid: np.ndarray) -> Image:
    """What `image` shows after its points were moved by `to_moving`, on another grid."""
    to_voxels = np.linalg.inv(image.affine) @ np.linalg.inv(to_moving) @ grid
    values = ndimage.affine_transform(image.data, to_voxels[:3, :3], to_voxels[:3, 3], output_shape=shape, order=1)
    return Image(values.astype(np.float32), grid)


# Every matrix is rounded to nine decimals. Of R R' - I a place changes by 0.5e-9 (|row i| + |row j|), sums of three
# numbers whose squares add up to 1. Where a planted transform is to be found within 1 mm, that is the limit for
# the median of real scans (acceptance 2), here for the worst point unless a median is named.
ROUNDED = 0.5e-9
ORTHOGONAL = ROUNDED * 2 * np.sqrt(3)


def brain_points(image: Image) -> np.ndarray:
    return np.argwhere(image.data > 0.3) @ image.affine[:3, :3].T + image.affine[:3, 3]


def apart(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> float:
    """Greatest distance in mm between the images of the points."""
    difference = points @ (a - b)[:3, :3].T + (a - b)[:3, 3]
    return float(np.linalg.norm(difference, axis=1).max())


GRIDS = {
    "LAS": ((50, 60, 50), (4.0, 4.0, 4.0)),
    "PSR": ((60, 50, 50), (4.0, 4.0, 4.0)),
    "RAS": ((52, 64, 30), (4, 4, 7)),
}


def grid_around(points: np.ndarray, shape: tuple, axes: np.ndarray) -> np.ndarray:
    """The affine with these axes whose middle is the points' middle."""
    grid = axes.copy()
    grid[:3, 3] = points.mean(axis=0) - axes[:3, :3] @ ((np.array(shape) - 1) / 2)
    return grid


@pytest.mark.parametrize("codes", list(GRIDS))
def test_a_planted_rigid_transform_is_found(template: Image, oblique: Callable[..., np.ndarray], codes: str) -> None:
    """On oblique grids of other orientations, and with thick slices; the contrast is turned round as well."""
    shape, sizes = GRIDS[codes]
    truth = turned((6, -4, 8), (6, -5, 4))
    points = brain_points(template)
    grid = grid_around(points + truth[:3, 3], shape, oblique(sizes, 8.0, codes))
    moving = seen_from(template, truth, shape, grid)
    inverted = Image(np.where(moving.data > 0.05, 1.2 - moving.data, 0).astype(np.float32), grid)
    found = rigid(template, inverted, start=np.eye(4))
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), rtol=0, atol=ORTHOGONAL)
    np.testing.assert_array_equal(found[3], [0, 0, 0, 1])
    assert apart(np.eye(4), truth, points) > 10
    assert apart(found, truth, points) < 1.0


def test_a_planted_affine_transform_is_found_and_twice_the_same(template: Image) -> None:
    truth = turned((6, -4, 8), (6, -5, 4)) @ np.diag([1.05, 0.95, 1.03, 1])
    moving = seen_from(template, truth, template.data.shape, template.affine)
    found = affine(template, moving, fixed_mask=template.data > 0.1)
    assert apart(found, truth, brain_points(template)) < 1.0
    again = affine(template, moving, fixed_mask=template.data > 0.1)
    assert found.tobytes() == again.tobytes()


# ---------------------------------------------------------------------------------------------------- deformable
def warped_by(image: Image, matrix: np.ndarray, seed: int, sigmas_mm: dict[float, float]) -> tuple[Image, np.ndarray]:
    """A head that shows at y what `image` has at x(y) = matrix^-1 y + smooth noise; and x(y) of every voxel.

    `sigmas_mm` holds the peak displacement (mm) by width of the Gaussian (mm).
    """
    rng, size = np.random.default_rng(seed), abs(image.affine[0, 0])
    field = np.zeros((*image.data.shape, 3))
    for sigma, peak in sigmas_mm.items():
        for axis in range(3):
            noise = ndimage.gaussian_filter(rng.normal(size=image.data.shape), sigma / size)
            field[..., axis] += noise * peak / np.abs(noise).max()
    y = np.indices(image.data.shape).reshape(3, -1).T @ image.affine[:3, :3].T + image.affine[:3, 3]
    back = np.linalg.inv(matrix)
    x = y @ back[:3, :3].T + back[:3, 3] + field.reshape(-1, 3)
    voxels = (x - image.affine[:3, 3]) @ np.linalg.inv(image.affine[:3, :3]).T
    values = ndimage.map_coordinates(image.data, voxels.T, order=1).reshape(image.data.shape)
    return Image(values.astype(np.float32), image.affine), x


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


STRETCHED = turned((6, -4, 8), (6, -5, 4)) @ np.diag([1.05, 0.95, 1.03, 1])


def test_a_planted_warp_is_found(template: Image) -> None:
    moving, truth = warped_by(template, STRETCHED, 1, {20: 6})
    mask = template.data > 0.1
    start = affine(template, moving, fixed_mask=mask)
    found = deformable(template, moving, start, fixed_mask=mask)
    y = np.indices(moving.data.shape).reshape(3, -1).T @ moving.affine[:3, :3].T + moving.affine[:3, 3]
    brain = (moving.data > 0.3).ravel()
    missed = np.linalg.norm(found.to_fixed(y[brain]) - truth[brain], axis=1)
    straight = y[brain] @ np.linalg.inv(start)[:3, :3].T + np.linalg.inv(start)[:3, 3]
    before = np.linalg.norm(straight - truth[brain], axis=1)
    print(f"4 mm: median miss {np.median(before):.2f} mm by the affine, {np.median(missed):.2f} by the warp")
    assert np.median(missed) < min(1.0, float(np.median(before)))
    away = np.linalg.norm(found.to_fixed(found.to_moving(truth[brain])) - truth[brain], axis=1)
    assert np.percentile(away, 99) < 0.4, "a tenth of a voxel: greedy's own rounding of fields, which is switched off"
    assert found.round_trip_mm[0] <= found.round_trip_mm[1] < 2, "half a voxel"
    assert 0 < found.jacobian[0] < 1 < found.jacobian[1] < 5
    again = deformable(template, moving, start, fixed_mask=mask)
    assert found.to_moving.values.tobytes() == again.to_moving.values.tobytes()
    assert found.to_fixed.values.tobytes() == again.to_fixed.values.tobytes()


def test_both_ways_on_other_grids(template: Image, oblique: Callable[..., np.ndarray]) -> None:
    """An oblique moving image in thick slices: its grid plays no part in where points go."""
    shape = (52, 30, 62)
    truth = turned((4, 2, -5), (3, 6, -4))
    points = brain_points(template)
    grid = grid_around(points + truth[:3, 3], shape, oblique((4.0, 7.0, 4.0), 8.0, "LSA"))
    moving = seen_from(template, truth, shape, grid)
    found = deformable(template, moving, truth)
    there = points @ truth[:3, :3].T + truth[:3, 3]
    assert np.median(np.linalg.norm(found.to_moving(points) - there, axis=1)) < 1.0
    away = np.linalg.norm(found.to_fixed(found.to_moving(points)) - points, axis=1)
    assert np.percentile(away, 99) < 0.4, "a tenth of a voxel, as above"
    back = pull(moving.data, Grid(shape, grid), Grid(template.data.shape, template.affine), found.to_moving)
    assert dice(back > 0.3, template.data > 0.3) >= 0.94, "the issue's limit for brains in the template"


@pytest.mark.parametrize(
    ("there", "back", "message"),
    [
        (lambda x: 30 * np.sin(x / 12), lambda x: 0 * x, r"folds: the Jacobian is -.*kind: affine"),
        (lambda x: 0 * x + 8, lambda x: 0 * x + 8, "way back misses by up to 28 mm"),  # 16 sqrt 3
        (lambda x: 0 * x + 900, lambda x: 0 * x - 900, "led out of the moving image"),
    ],
)
def test_fields_that_cannot_be_used(template: Image, monkeypatch: pytest.MonkeyPatch, there, back, message) -> None:
    import SimpleITK as sitk

    points = np.indices(template.data.shape).reshape(3, -1).T @ template.affine[:3, :3].T + template.affine[:3, 3]

    def planted(*_: object) -> dict[str, sitk.Image]:
        fields = {name: make(points).reshape(*template.data.shape, 3) * (-1, -1, 1) for name, make in both.items()}
        return {k: sitk.GetImageFromArray(v.transpose(2, 1, 0, 3), isVector=True) for k, v in fields.items()}

    both = {"there": there, "back": back}
    monkeypatch.setattr("relevance_assets.imaging.registration.greedy", planted)
    with pytest.raises(ValueError, match=message):
        deformable(template, template, np.eye(4))


@pytest.mark.slow
def test_tissue_overlap_at_2_mm() -> None:
    """The acceptance of issue 6: the template, warped as in specs/imaging_ecosystem.md §1.1, comes back."""
    from nilearn import datasets

    template, grey, white = (
        Image(np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64))
        for image in (
            datasets.load_mni152_template(resolution=2),
            datasets.load_mni152_gm_template(resolution=2),
            datasets.load_mni152_wm_template(resolution=2),
        )
    )
    rng = np.random.default_rng(0)
    warp = {14: 8, 7: 3}
    moving, _ = warped_by(template, STRETCHED, 11, warp)
    bias = ndimage.gaussian_filter(rng.normal(size=moving.data.shape), 20)
    values = np.clip(moving.data, 0, None) ** 0.8 * (1 + 0.3 * bias / np.abs(bias).max())
    moving = Image((values + rng.normal(0, 0.02, values.shape)).astype(np.float32), moving.affine)
    start = affine(template, moving)
    found = deformable(template, moving, start)
    grid = Grid(template.data.shape, template.affine)
    for name, tissue in (("GM", grey), ("WM", white)):
        assert tissue.data.shape == template.data.shape
        native = warped_by(tissue, STRETCHED, 11, warp)[0].data
        none, linear, full = (
            dice(pull(native, grid, grid, m) > 0.5, tissue.data > 0.5) for m in (np.eye(4), start, found.to_moving)
        )
        print(f"{name}: Dice {none:.3f} before, {linear:.3f} affine, {full:.3f} deformable")
        assert full >= 0.90
    print(f"Jacobian {found.jacobian[0]:.2f} to {found.jacobian[1]:.2f}, round trip {found.round_trip_mm}")


# ------------------------------------------------------------------------------------------------------ half-way
def test_half_way_of_one_and_of_none(template: Image) -> None:
    np.testing.assert_array_equal(halfway([template]), [np.eye(4)])
    np.testing.assert_array_equal(halfway([template, template]), [np.eye(4)] * 2)
    with pytest.raises(ValueError, match="an image per visit"):
        halfway([])
    with pytest.raises(ValueError, match="a mask per image"):
        halfway([template], masks=[])


def test_half_way_is_in_the_middle_whoever_asks(template: Image) -> None:
    truths = [np.eye(4), turned((6, -4, 8), (6, -5, 4)), turned((-3, 5, 2), (-4, 2, 7))]
    visits = [seen_from(template, truth, template.data.shape, template.affine) for truth in truths]
    points = brain_points(template)
    masks = [visit.data > 0.1 for visit in visits[:2]]
    two = halfway(visits[:2], masks=masks)
    rounded = ROUNDED * (np.sqrt(3) + np.abs(two[1][:3, 3]).sum() + 1)  # of the shift of the product
    np.testing.assert_allclose(two[0] @ two[1], np.eye(4), rtol=0, atol=rounded, err_msg="not each other's inverse")
    assert apart(two[1] @ np.linalg.inv(two[0]), truths[1], points) < 1.0
    three = halfway(visits)
    other = halfway([visits[2], visits[0], visits[1]])
    assert [a.tobytes() for a in three] == [other[number].tobytes() for number in (1, 2, 0)]
    for i in range(3):
        np.testing.assert_allclose(three[i][:3, :3] @ three[i][:3, :3].T, np.eye(3), rtol=0, atol=ORTHOGONAL)
        assert apart(three[i] @ np.linalg.inv(three[0]), truths[i], points) < 1.0


def test_half_way_by_planted_pairs(template: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations are given: what is made of them is known by hand."""
    images = [Image(template.data + number, template.affine) for number in range(3)]
    places = {0: -6.0, 1: 0.0, 2: 9.0}  # mm and degrees, along and about z: they commute

    def screw(a: float) -> np.ndarray:
        return turned((0, 0, a), (0, 0, a))

    def planted(fixed: Image, moving: Image, **_: object) -> np.ndarray:
        i, j = (round(float(image.data[0, 0, 0] - template.data[0, 0, 0])) for image in (fixed, moving))
        return screw(places[j] - places[i] + 0.5)  # every registration errs by as much, there and back

    monkeypatch.setattr("relevance_assets.imaging.registration.rigid", planted)
    close = {"rtol": 0, "atol": ROUNDED + 1e-11}  # `_midway` ends at 1e-12, of shifts of some mm
    for number, found in enumerate(halfway(images)):
        np.testing.assert_allclose(found, screw(places[number] - 1.0), **close)  # 1 is the mean of the places
    two = halfway([images[2], images[0]])
    np.testing.assert_allclose(two[0], screw(7.5), **close)
    np.testing.assert_allclose(two[1], screw(-7.5), **close)
    bits = {tuple(m.tobytes() for m in halfway([images[k] for k in (2, 0, 1)])) for _ in range(50)}
    assert len(bits) == 1


# ----------------------------------------------------------------------------------------------------- real scans
@pytest.mark.slow
def test_visits_and_contrasts_of_a_real_person(data: Path) -> None:
    """open-ms-longitudinal from native space, against the transforms that were published with it."""
    root = data / "open-ms-longitudinal"
    published = root / "derivatives" / "manual" / "sub-12"
    brain = read_image(published / "anat" / "sub-12_space-common_desc-brain_mask.nii.gz")
    common = (np.argwhere(brain.data > 0) @ brain.affine[:3, :3].T + brain.affine[:3, 3])[::97]

    def image(session: int, suffix: str) -> Image:
        return read_image(root / "sub-12" / f"ses-{session}" / "anat" / f"sub-12_ses-{session}_{suffix}.nii.gz")

    def median_mm(ours: np.ndarray, theirs: np.ndarray, points: np.ndarray) -> float:
        difference = points @ (ours - theirs)[:3, :3].T + (ours - theirs)[:3, 3]
        return float(np.median(np.linalg.norm(difference, axis=1)))

    to_flair = [read_affine(published / "transforms" / f"study{n}_FLAIR_to_common_space.txt") for n in (1, 2)]
    first, second = halfway([image(1, "FLAIR"), image(2, "FLAIR")])
    in_first = common @ to_flair[0][:3, :3].T + to_flair[0][:3, 3]
    results = {
        "visit 1 to visit 2": median_mm(
            second @ np.linalg.inv(first), to_flair[1] @ np.linalg.inv(to_flair[0]), in_first
        )
    }
    for session in (1, 2):
        native = common @ to_flair[session - 1][:3, :3].T + to_flair[session - 1][:3, 3]
        for suffix in ("T1w", "T2w"):
            ours = rigid(image(session, "FLAIR"), image(session, suffix), start=np.eye(4))
            name = f"study{session}_{suffix.upper()}_intrastudy_to_FLAIR.txt"
            results[f"visit {session}, {suffix} to FLAIR"] = median_mm(
                ours, read_affine(published / "transforms" / name), native
            )
    print(*(f"{name}: median {value:.2f} mm" for name, value in results.items()), sep="\n")
    assert max(results.values()) <= 1.0


# --------------------------------------------------------------------------------------------------------- errors
def test_nothing_is_printed(template: Image, capfd: pytest.CaptureFixture) -> None:
    print("before")
    affine(template, template, start=turned((0, 0, 1), (1, 1, 1)), iterations="5x0x0")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data * np.nan, "NaN"),
        (lambda data: np.zeros_like(data), "constant"),
        (lambda data: data[:, :, :3], "8 voxels"),
    ],
)
def test_images_that_cannot_be_registered(template: Image, spoil, message: str) -> None:
    bad = Image(spoil(template.data), template.affine)
    with pytest.raises(ValueError, match=f"fixed image.*{message}"):
        rigid(bad, template)
    with pytest.raises(ValueError, match=f"moving image.*{message}"):
        affine(template, bad)


def test_masks_and_starts_that_cannot_be(template: Image) -> None:
    with pytest.raises(ValueError, match="is empty"):
        rigid(template, template, fixed_mask=np.zeros(template.data.shape, bool))
    with pytest.raises(ValueError, match="not on the grid"):
        rigid(template, template, fixed_mask=np.ones((3, 3, 3), bool))
    with pytest.raises(ValueError, match="scales or shears"):
        rigid(template, template, start=np.diag([1.1, 1, 1, 1]))
    with pytest.raises(ValueError, match="regular"):
        deformable(template, template, np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="regular"):
        rigid(template, template, start=np.zeros((4, 4)))
    with pytest.raises(ValueError, match="unknown metric 'SAD'"):
        rigid(template, template, metric="SAD")
    with pytest.raises(ValueError, match="greedy failed"):
        deformable(template, template, np.eye(4), sigmas=("wide", "0.5vox"))


NOT_LEVELS = ["", "ten", "10x", "x10", "10xx5", "-5x5x5", "5x-5x5", "+5x5", "1.5x5", "5 5", "5X5", "5\n", "5 -V 9", "٥"]


@pytest.mark.parametrize("iterations", NOT_LEVELS)
def test_iterations_that_are_not_numbers_joined_by_x(template: Image, iterations: str) -> None:
    for call in (rigid, affine, lambda *images, **how: deformable(*images, np.eye(4), **how)):
        with pytest.raises(ValueError, match=r"iterations .* cannot be used; give whole numbers joined by x"):
            call(template, template, iterations=iterations)


@pytest.mark.parametrize("iterations", ["0", "0x0x0", "0x50x10", "0x0x5", "00x5"])
def test_a_linear_registration_that_would_crash_greedy(template: Image, iterations: str) -> None:
    """Segmentation faults of picsl_greedy 1.4.0.3: they would end the process, so they are refused beforehand."""
    for call in (rigid, affine):
        with pytest.raises(ValueError, match=f"iterations '{iterations}' cannot be used; .* the first one above 0"):
            call(template, template, iterations=iterations)


def test_levels_without_iterations_are_skipped(template: Image) -> None:
    """Where greedy bears it: beyond the first level, and anywhere in a deformable registration."""
    for iterations in ("2x0x0", "2x0x1", "2x1x0"):
        assert rigid(template, template, start=np.eye(4), iterations=iterations).shape == (4, 4)
    none = deformable(template, template, np.eye(4), iterations="0x0x0")
    assert np.abs(none.to_moving.values).max() < 1e-12  # mm: rounding of coordinates of 134 mm, eps 3e-14
    some = deformable(template, template, np.eye(4), iterations="0x2x0")
    assert np.abs(some.to_moving.values).max() > 1e-3
