"""Baselines against loops and scikit-learn; what they learn, they learn from training data only."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from relevance_assets.statistics.baselines import coarsen, fit_mean, fit_ridge


def cohort(n: int = 40, seed: int = 0, noise: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Ages, and images of which a corner depends on age; some voxels never vary."""
    random = np.random.default_rng(seed)
    age = random.uniform(20, 80, n)
    images = random.normal(size=(n, 2, 4, 4, 3)) * noise
    images[:, 0, :2, :2] += age[:, None, None, None] / 10
    images[:, 1, 0] = 7.7
    return images, age


# ------------------------------------------------------------------------------------------------- coarsen
@pytest.mark.parametrize("factor", [2, 3, (1, 2, 3), 9])
def test_coarsen_is_the_mean_of_each_block(factor) -> None:
    volume = np.random.default_rng(0).normal(size=(2, 5, 6, 7))
    fx, fy, fz = (factor,) * 3 if isinstance(factor, int) else factor
    result = coarsen(volume, factor)
    assert result.dtype == np.float32
    assert result.shape == (2, -(-5 // fx), -(-6 // fy), -(-7 // fz))
    for c, i, j, k in np.ndindex(result.shape):
        block = volume[c, i * fx : (i + 1) * fx, j * fy : (j + 1) * fy, k * fz : (k + 1) * fz]
        assert result[c, i, j, k] == pytest.approx(block.mean(), abs=1e-6)


def test_coarsen_by_one_changes_nothing_and_nonsense_is_refused() -> None:
    volume = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    assert np.array_equal(coarsen(volume, 1), volume)
    for factor in (0, -1, (2, 2)):
        with pytest.raises(ValueError, match="coarsen: factor"):
            coarsen(volume, factor)
    with pytest.raises(ValueError, match="2 axes"):
        coarsen(volume[0], 2)


# --------------------------------------------------------------------------------------------- the mean
def test_the_mean_baseline() -> None:
    assert fit_mean(np.array([20.0, 30, 70]), "regression") == 40.0
    assert fit_mean(np.array([1.0, 0, 0, 0]), "binary") == pytest.approx(np.log(1 / 3))
    assert fit_mean(np.zeros(4), "binary") == pytest.approx(np.log((1 / 8) / (7 / 8)))


# --------------------------------------------------------------------------------------------------- ridge
@pytest.mark.parametrize("penalty", [0.1, 10.0, 1e4])
def test_ridge_is_that_of_scikit_learn_on_standardised_voxels(penalty: float) -> None:
    images, age = cohort()
    model = fit_ridge(images[:30], age[:30], penalties=[penalty])
    assert model.penalty == penalty
    scaler = StandardScaler().fit(images[:30].reshape(30, -1))
    reference = Ridge(alpha=penalty).fit(scaler.transform(images[:30].reshape(30, -1)), age[:30])
    expected = reference.predict(scaler.transform(images[30:].reshape(10, -1)))
    assert model.predict(images[30:]) == pytest.approx(expected, abs=1e-8)


def test_the_penalty_is_the_one_that_cross_validation_prefers() -> None:
    images, age = cohort(30)
    grid = [1.0, 100.0, 1e4, 1e6]
    model = fit_ridge(images, age, penalties=grid, folds=30)
    # thirty folds of thirty people: leave one out, by the plainest loop
    loss = []
    for penalty in grid:
        errors = []
        for i in range(30):
            kept = np.arange(30) != i
            scaler = StandardScaler().fit(images[kept].reshape(29, -1))
            fitted = Ridge(alpha=penalty).fit(scaler.transform(images[kept].reshape(29, -1)), age[kept])
            errors.append((fitted.predict(scaler.transform(images[i].reshape(1, -1)))[0] - age[i]) ** 2)
        loss.append(np.mean(errors))
    assert model.penalty == grid[int(np.argmin(loss))]


def test_ridge_beats_the_mean_where_there_is_something_to_learn() -> None:
    images, age = cohort(80)
    model = fit_ridge(images[:60], age[:60])
    ours = np.abs(model.predict(images[60:]) - age[60:]).mean()
    assert ours < 0.8 * np.abs(fit_mean(age[:60], "regression") - age[60:]).mean()


def test_binary_targets_are_fitted_as_minus_one_and_one() -> None:
    images, age = cohort(60, noise=2.0)
    old = (age > 50).astype(float)
    output = fit_ridge(images, old, kind="binary", penalties=[50.0]).predict(images)
    standardised = StandardScaler().fit_transform(images.reshape(60, -1))
    reference = Ridge(alpha=50.0).fit(standardised, np.where(age > 50, 1.0, -1.0))
    assert output == pytest.approx(reference.predict(standardised), abs=1e-8)
    assert ((output >= 0) == old).mean() > 0.9
    with pytest.raises(ValueError, match="must be 0 or 1"):
        fit_ridge(images, age, kind="binary")


def test_scans_of_a_person_stay_in_one_inner_fold() -> None:
    # every person scanned twice with pure noise: leaking twins would choose the least penalty
    random = np.random.default_rng(1)
    images = np.repeat(random.normal(size=(20, 50)), 2, axis=0) + 1e-3 * random.normal(size=(40, 50))
    age = np.repeat(random.uniform(20, 80, 20), 2)
    people = np.repeat(np.arange(20), 2)
    together = fit_ridge(images, age, participants=people)
    apart = fit_ridge(images, age)
    assert together.penalty > 100 * apart.penalty


def test_voxels_that_do_not_vary_have_no_say() -> None:
    images, age = cohort()
    model = fit_ridge(images[:30], age[:30])
    changed = images[30:].copy()
    changed[:, 1, 0] = -1e6
    assert np.array_equal(model.predict(changed), model.predict(images[30:]))
    assert np.all(np.isfinite(model.weights))


def test_same_seed_same_bits_and_order_of_people_is_free() -> None:
    images, age = cohort()
    a, b = fit_ridge(images, age, seed=3), fit_ridge(images, age, seed=3)
    assert np.array_equal(a.weights, b.weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, a: (i, a[:-1], None), "40 images, 39 targets"),
        (lambda i, a: (i, a, ["same"] * 40), "at least two people"),
        (lambda i, a: (i * np.nan, a, None), "not finite"),
        (lambda i, a: (i * 0, a, None), "no voxel varies"),
    ],
)
def test_wrong_input_is_refused(change, words: str) -> None:
    images, age, people = change(*cohort())
    with pytest.raises(ValueError, match=words):
        fit_ridge(images, age, participants=people)


def test_images_of_another_size_are_refused() -> None:
    images, age = cohort()
    with pytest.raises(ValueError, match="images of 24 voxels, trained on 96"):
        fit_ridge(images, age).predict(images[:, :, :1])
