"""A planted bias field is found, none is found where none is; denoising against closed forms and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from relevance_assets.imaging.bias import correct_bias, denoise
from relevance_assets.imaging.volumes import Image, ScanError

SHAPE = (44, 52, 40)
FOUR_MM = np.diag([-4.0, 4.0, 4.0, 1.0])
WHITE = 110.0


def phantom(noise: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A brain of three tissues in thick folds, its mask, and its white matter."""
    random = np.random.default_rng(0)
    x, y, z = (np.linspace(-1, 1, n) for n in SHAPE)
    brain = (x[:, None, None] / 0.8) ** 2 + (y[None, :, None] / 0.85) ** 2 + (z / 0.8) ** 2 < 1
    folds = ndimage.gaussian_filter(random.normal(size=SHAPE), 1.6)
    tissue = np.digitize(folds, np.quantile(folds[brain], [0.12, 0.55]))  # CSF, grey, white matter
    values = np.array([30.0, 70.0, WHITE])[tissue] + random.normal(0, noise, SHAPE)
    return np.where(brain, values, 0.0), brain, brain & (tissue == 2)


def planted_field() -> np.ndarray:
    """Smooth, between about 0.7 and 1.4."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return np.exp(0.25 * x - 0.2 * y * y + 0.15 * z * x + 0.1 * z)


def image(values: np.ndarray, affine: np.ndarray = FOUR_MM) -> Image:
    return Image(values.astype(np.float32), affine)


def variation(values: np.ndarray) -> float:
    return float(values.std() / values.mean())


# ---------------------------------------------------------------------------------------------------- bias field
def test_a_planted_field_is_found() -> None:
    values, brain, white = phantom()
    truth = planted_field()
    biased = image(values * truth)
    corrected, field = correct_bias(biased, brain, shrink=1)
    assert field.dtype == corrected.data.dtype == np.float32
    assert np.corrcoef(np.log(field[brain]), np.log(truth[brain]))[0, 1] > 0.98
    before, after, without = (variation(v[white]) for v in (biased.data, corrected.data, values))
    assert before > 5 * without
    assert after < 2 * without
    # up to a constant: what is left of the field varies little
    assert variation(field[brain] / truth[brain]) < 0.03


def test_image_is_corrected_times_field_whose_geometric_mean_is_one() -> None:
    values, brain, _ = phantom()
    biased = image(values * planted_field() * 5)
    corrected, field = correct_bias(biased, brain, shrink=2)
    np.testing.assert_allclose(corrected.data * field, biased.data, rtol=1e-6)
    assert np.exp(np.log(field[brain].astype(np.float64)).mean()) == pytest.approx(1, abs=1e-6)
    assert corrected.data[brain].mean() == pytest.approx(biased.data[brain].mean(), rel=0.05)  # units keep their size
    np.testing.assert_array_equal(corrected.affine, FOUR_MM)


def test_where_no_field_is_none_is_found() -> None:
    values, brain, _ = phantom()
    _, field = correct_bias(image(values), brain, shrink=1)
    assert np.abs(np.log(field[brain])).max() < 0.05


def test_equal_bits_twice_and_with_two_threads() -> None:
    values, brain, _ = phantom()
    biased = image(values * planted_field())
    fields = [correct_bias(biased, brain, shrink=2, threads=threads)[1] for threads in (1, 1, 2)]
    assert fields[0].tobytes() == fields[1].tobytes() == fields[2].tobytes()


def test_voxels_without_a_logarithm_take_no_part() -> None:
    values, brain, white = phantom()
    holes = np.random.default_rng(1).random(SHAPE) < 0.03
    broken = values * planted_field()
    broken[holes] = np.where(np.random.default_rng(2).random(int(holes.sum())) < 0.5, 0.0, -400.0)
    corrected, field = correct_bias(image(broken), brain, shrink=1)
    assert np.corrcoef(np.log(field[brain]), np.log(planted_field()[brain]))[0, 1] > 0.97
    assert variation(corrected.data[white & ~holes]) < 2.5 * variation(values[white])
    assert (corrected.data[holes & (broken == 0)] == 0).all()
    assert (corrected.data[holes & (broken < 0)] < 0).all()


@pytest.mark.parametrize("codes", ["RAS", "PSR"])
def test_thick_oblique_slices(oblique, codes: str) -> None:  # type: ignore[no-untyped-def]
    """Voxels of 4 x 4 x 12 mm: the long axis is not shrunk."""
    values, brain, white = phantom()
    thick = slice(1, None, 3)
    biased = image((values * planted_field())[:, :, thick], oblique((4.0, 4.0, 12.0), 20.0, codes))
    corrected, _ = correct_bias(biased, brain[:, :, thick], shrink=2)
    tissue = white[:, :, thick]
    assert variation(corrected.data[tissue]) < 0.5 * variation(biased.data[tissue])


def test_masks_that_are_no_brain() -> None:
    values, brain, _ = phantom()
    for mask, words in [
        (np.zeros(SHAPE, bool), "no positive voxel"),
        (~brain, "no positive voxel"),  # zeros only
        (brain[1:], "not on the image's grid"),
    ]:
        with pytest.raises(ScanError, match=words) as caught:
            correct_bias(image(values), mask, name="sub-1_T1w.nii.gz")
        assert str(caught.value).startswith("sub-1_T1w.nii.gz: ")
    one = np.zeros(SHAPE, bool)
    one[20, 20, 20] = True
    _, field = correct_bias(image(values), one, shrink=1)
    assert field[one] == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------ denoising
def test_median_is_scipys() -> None:
    values = np.random.default_rng(3).normal(size=(9, 8, 7)).astype(np.float32)
    expected = ndimage.median_filter(values, size=3, mode="nearest")
    np.testing.assert_array_equal(denoise(image(values), "median").data, expected)
    wide = ndimage.median_filter(values, size=5, mode="nearest")
    np.testing.assert_array_equal(denoise(image(values), "median", radius=2).data, wide)


def test_curvature_flow_leaves_planes_alone() -> None:
    x, y, z = np.meshgrid(*(np.arange(n) for n in (12, 10, 8)), indexing="ij")
    plane = 3.0 * x - 2.0 * y + 0.5 * z
    flowed = denoise(image(plane), iterations=1).data
    np.testing.assert_allclose(flowed[1:-1, 1:-1, 1:-1], plane[1:-1, 1:-1, 1:-1], atol=1e-4)


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_curvature_flow_shrinks_spheres_as_it_must(size: float) -> None:
    """Spheres shrink at 2 / r, the sum of both curvatures: r(x, t) = sqrt(r^2 + 4 t) where r(x, 0) = r."""
    centred = [(np.arange(31) - 15) * size] * 3
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*centred, indexing="ij")))
    flowed = denoise(image(radius, np.diag([size, size, size, 1])), iterations=8).data
    time = 8 / 16 * size**2
    shell = (radius > 6 * size) & (radius < 12 * size)
    np.testing.assert_allclose(flowed[shell], np.sqrt(radius[shell] ** 2 + 4 * time), atol=0.01 * size)
    assert (flowed[shell] - radius[shell]).min() > 0.07 * size


@pytest.mark.parametrize("method", ["curvature_flow", "median"])
def test_noise_goes_and_edges_stay(method: str) -> None:
    random = np.random.default_rng(4)
    step = np.where(np.arange(24) < 12, 50.0, 100.0)[:, None, None] * np.ones((1, 20, 20))
    noisy = image(step + random.normal(0, 3, step.shape), FOUR_MM)
    calm = denoise(noisy, method).data  # type: ignore[arg-type]
    assert calm.tobytes() == denoise(noisy, method, threads=2).data.tobytes()  # type: ignore[arg-type]
    for half, value in ((slice(0, 10), 50), (slice(14, 24), 100)):
        assert calm[half].std() < 0.6 * noisy.data[half].std()
        assert calm[half].mean() == pytest.approx(value, abs=0.3)
    middle = calm.mean(axis=(1, 2))
    assert middle[11] == pytest.approx(50, abs=5)
    assert middle[12] == pytest.approx(100, abs=5)


def test_a_method_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="curvature_flow, median"):
        denoise(image(np.ones((3, 3, 3))), "blur")  # type: ignore[arg-type]
