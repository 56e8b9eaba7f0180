"""Scaling rules against the formulas written out, peaks against planted mixtures, and what a gain must not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from relevance_assets import study
from relevance_assets.imaging.intensity import binarise, limits, scale, white_matter_peak
from relevance_assets.imaging.volumes import ScanError

HERE = Path("sub-1_T1w.nii.gz")


def mixture(means: tuple[float, ...], shares: tuple[float, ...], sd: float = 6.0, n: int = 60_000) -> np.ndarray:
    random = np.random.default_rng(1)
    return np.concatenate([random.normal(m, sd, int(n * s)) for m, s in zip(means, shares, strict=True)])


T1W = mixture((30, 70, 110), (0.15, 0.5, 0.35))  # CSF, grey and white matter
FLAIR = mixture((15, 80, 130), (0.1, 0.87, 0.03))  # CSF, brain, lesions
T2W = mixture((60, 90, 200), (0.35, 0.5, 0.15))  # white and grey matter, CSF


def image(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values as brain, in a background of 1000."""
    volume = np.full((len(values), 1, 2), 1000.0, np.float32)
    volume[:, 0, 0] = values
    return volume, np.stack([np.ones((len(values), 1), bool), np.zeros((len(values), 1), bool)], axis=2)


# ------------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({}, 0, 1),
        ({"rule": "range", "high": 2500}, 0, 2500),
        ({"rule": "percentile", "percentile": 99}, 0, 1),
        ({"rule": "white_matter_peak"}, 0, 1.5),
        ({"rule": "white_matter_peak", "high": 2.5}, 0, 2.5),
        ({"rule": "z_score"}, -3, 3),
        ({"rule": "z_score", "low": -2}, -2, 3),
    ],
)
def test_limits_that_are_not_given_follow_from_the_rule(given: dict[str, object], low: float, high: float) -> None:
    rule = study.Scale.model_validate(given)
    assert (rule.low, rule.high) == (low, high)
    assert study.Scale.model_validate(rule.model_dump(mode="json")) == rule  # as a sidecar keeps it


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValidationError, match=r"high \(1\.0\) must be above low \(2\.0\)"):
        study.Scale(rule="z_score", low=2, high=1)
    with pytest.raises(ValidationError):
        study.Scale(rule="min_max")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- rules
def test_limits_are_the_formulas() -> None:
    brain = np.array([1, 2, 3, 4, 10], np.float32)
    assert limits(brain, study.Scale(low=-1, high=7), HERE) == (-1, 7)
    assert limits(brain, study.Scale(rule="percentile", percentile=75), HERE) == (0, 4)
    low, high = limits(brain, study.Scale(rule="z_score", low=-1, high=2), HERE)
    sd = np.sqrt(((brain.astype(float) - 4) ** 2).sum() / 5)
    assert (low, high) == (pytest.approx(4 - sd, rel=1e-14), pytest.approx(4 + 2 * sd, rel=1e-14))
    peak = white_matter_peak(T1W)
    assert limits(T1W, study.Scale(rule="white_matter_peak", low=0.5, high=2), HERE) == (0.5 * peak, 2 * peak)


@pytest.mark.parametrize("rule", ["range", "percentile", "white_matter_peak", "z_score"])
def test_scaled_is_linear_clipped_and_zero_outside(rule: str) -> None:
    volume, mask = image(T1W)
    chosen = study.Scale.model_validate({"rule": rule, "percentile": 90} | ({"high": 100} if rule == "range" else {}))
    scaled, share_clipped = scale(volume, mask, chosen, HERE)
    assert scaled.dtype == np.float32
    assert not scaled[~mask].any()
    low, high = limits(volume[mask], chosen, HERE)
    expected = [(float(x) - low) / (high - low) for x in volume[mask]]
    np.testing.assert_allclose(scaled[mask], [min(max(x, 0), 1) for x in expected], atol=1e-7)
    assert share_clipped == pytest.approx(sum(x < 0 or x > 1 for x in expected) / len(expected), abs=1e-12)
    assert {"range": 0.31, "percentile": 0.1, "white_matter_peak": 0, "z_score": 0}[rule] == pytest.approx(
        share_clipped, abs=0.03
    )


@pytest.mark.parametrize("gain", [0.013, 1.0, 300.0])
def test_white_matter_peak_does_not_see_a_gain(gain: float) -> None:
    volume, mask = image(T1W)
    rule = study.Scale(rule="white_matter_peak")
    np.testing.assert_allclose(
        scale(volume.astype(np.float64) * gain, mask, rule, HERE)[0], scale(volume, mask, rule, HERE)[0], atol=1e-6
    )


@pytest.mark.parametrize(("gain", "offset"), [(0.013, 0.0), (7.0, -2000.0), (300.0, 5.0)])
def test_z_score_sees_neither_gain_nor_offset(gain: float, offset: float) -> None:
    volume, mask = image(T1W)
    rule = study.Scale(rule="z_score")
    np.testing.assert_allclose(
        scale(volume.astype(np.float64) * gain + offset, mask, rule, HERE)[0],
        scale(volume, mask, rule, HERE)[0],
        atol=1e-6,
    )


def test_what_cannot_be_scaled_is_one_line_that_names_the_image() -> None:
    flat = np.full(9, 5.0)
    cases = [
        (flat, study.Scale(rule="z_score"), "all brain voxels have the value 5"),
        (-T1W, study.Scale(rule="white_matter_peak"), "white matter peak is at .* not positive"),
        (-T1W, study.Scale(rule="percentile"), "not positive"),
        (flat[:0], study.Scale(rule="z_score"), "no brain voxel"),
        (flat[:0], study.Scale(rule="percentile"), "no brain voxel"),
    ]
    for brain, rule, words in cases:
        with pytest.raises(ScanError, match=words) as caught:
            limits(brain, rule, HERE)
        assert str(caught.value).startswith("sub-1_T1w.nii.gz: ")
        assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------- white matter's peak
@pytest.mark.parametrize(
    ("brain", "peak", "truth"),
    [
        (T1W, "brightest", 110),
        (T1W, "largest", 70),
        (T1W, "darkest", 30),
        (FLAIR, "largest", 80),
        (T2W, "darkest", 60),
        (T2W, "brightest", 200),
    ],
)
def test_peak_is_the_planted_mode(brain: np.ndarray, peak: str, truth: float) -> None:
    assert white_matter_peak(brain, peak) == pytest.approx(truth, abs=2)  # type: ignore[arg-type]


def test_lesions_vessels_and_spikes_are_no_peak() -> None:
    bright = np.concatenate([T1W, np.full(30, 5000.0), np.linspace(140, 400, 600)])
    assert white_matter_peak(bright) == pytest.approx(110, abs=2)


def test_peak_of_few_values() -> None:
    assert white_matter_peak(np.array([7.0])) == 7
    assert white_matter_peak(np.full(5, -3.0)) == -3
    assert 1 <= white_matter_peak(np.array([1.0, 9.0])) <= 9
    with pytest.raises(ValueError, match="at least one brain voxel"):
        white_matter_peak(np.array([]))
    with pytest.raises(ValueError, match="finite"):
        white_matter_peak(np.array([1.0, np.nan]))


# ------------------------------------------------------------------------------------------------------ label masks
def test_labels_become_binary() -> None:
    assert binarise(np.array([0, 1, 255, -1, 3])).tolist() == [False, True, True, False, True]
    assert binarise(np.array([0.0, 0.2])).dtype == bool
    with pytest.raises(ValueError, match="NaN"):
        binarise(np.array([np.nan, 1]))
