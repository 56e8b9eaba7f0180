"""Intensity: how the values of an image become numbers in [0, 1] that mean the same in every scan.

Belongs here: the rules that `study.Scale` names, the peak of white matter, labels made binary. Does not belong
here: what varies over the image (`bias.py`), where brain is (`brain_mask.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage, signal

from relevance_assets import study
from relevance_assets.imaging.volumes import ScanError

__all__ = ["binarise", "limits", "scale", "white_matter_peak"]

Peak = Literal["brightest", "largest", "darkest"]
BINS = 256
SMOOTHING_BINS = 4.0  # SD of the Gaussian over the histogram
PROMINENCE = 0.05  # of the histogram's maximum; a lower bump is not a tissue
TAILS_PERCENT = (0.1, 99.9)  # brain voxels beyond are left out of the histogram: vessels, spikes


def binarise(labels: np.ndarray) -> np.ndarray:
    """A label mask, whatever its labels (1, 255, several lesions), as bool: > 0.

    Raises
    ------
    ValueError
        A value that is NaN.
    """
    if np.isnan(labels).any():
        raise ValueError("a label mask holds NaN; repair the image")
    return labels > 0


def white_matter_peak(brain: np.ndarray, peak: Peak = "brightest") -> float:
    """Value of the mode of the brain's histogram that stands for white matter.

    The histogram has 256 bins between the 0.1st and the 99.9th percentile and is smoothed by a Gaussian of 4 bins; a
    mode is a maximum with a prominence of at least 5 % of the highest. A gain and an offset of the image move the
    peak along.

    Parameters
    ----------
    brain : ndarray (n,)
        Values of the brain's voxels.
    peak : str
        Which mode: `brightest` (T1w), `largest` (FLAIR), `darkest` (T2w).

    Returns
    -------
    float, in the image's unit; exact to half a bin

    Raises
    ------
    ValueError
        No values, or values that are not finite.

    Notes
    -----
    After the KDE method of Reinhold et al., Evaluating the impact of intensity normalization on MR image synthesis,
    SPIE 2019 (last mode for T1w, largest for FLAIR, first for T2w).
    """
    values = np.asarray(brain, dtype=np.float64).ravel()
    if not values.size or not np.isfinite(values).all():
        raise ValueError("the white matter peak needs finite values of at least one brain voxel")
    # values themselves, so that at least two of any sample are within
    low = np.percentile(values, TAILS_PERCENT[0], method="lower")
    high = np.percentile(values, TAILS_PERCENT[1], method="higher")
    if high <= low:
        return float(low)
    counts, edges = np.histogram(values, BINS, (low, high))
    # empty bins on both sides, so that a mode at the border is a maximum too
    padding = int(4 * SMOOTHING_BINS) + 1
    smooth = ndimage.gaussian_filter1d(np.pad(counts, padding).astype(np.float64), SMOOTHING_BINS, mode="constant")
    modes = signal.find_peaks(smooth, prominence=PROMINENCE * smooth.max())[0]
    chosen = {"brightest": modes[-1], "darkest": modes[0], "largest": smooth.argmax()}[peak]
    width = (high - low) / BINS
    return float(edges[0] + (chosen - padding + 0.5) * width)


def limits(brain: np.ndarray, rule: study.Scale, path: Path) -> tuple[float, float]:
    """The values that a contrast's rule turns into 0 and 1.

    Parameters
    ----------
    brain : ndarray (n,)
        Values of the brain's voxels.
    path : Path
        The image, as errors name it.

    Raises
    ------
    ScanError
        A percentile or a white matter peak that is not positive, a constant image with z_score.
    """
    if rule.rule == "range":
        return rule.low, rule.high
    values = np.asarray(brain, dtype=np.float64)
    if not values.size:
        raise ScanError(f"{path}: has no brain voxel to scale by; check the brain mask")
    if rule.rule == "percentile":
        top = float(np.percentile(values, rule.percentile))
        if top <= 0:
            raise ScanError(
                f"{path}: percentile {rule.percentile:g} of the brain's voxels is {top:g}, not positive; "
                "check the image or scale it by range"
            )
        return 0.0, top
    if rule.rule == "white_matter_peak":
        peak = white_matter_peak(values, rule.peak)
        if peak <= 0:
            raise ScanError(
                f"{path}: the white matter peak is at {peak:g}, not positive; check the image or scale it by z_score"
            )
        return rule.low * peak, rule.high * peak
    mean, deviation = float(values.mean()), float(values.std())
    if deviation == 0:
        raise ScanError(f"{path}: all brain voxels have the value {mean:g}; check the image or scale it by range")
    return mean + rule.low * deviation, mean + rule.high * deviation


def scale(image: np.ndarray, mask: np.ndarray, rule: study.Scale, path: Path) -> tuple[np.ndarray, float]:
    """Values by the contrast's rule, clipped to [0, 1], exactly 0 outside the brain.

    Parameters
    ----------
    image : ndarray (x, y, z)
    mask : ndarray (x, y, z), bool
        The brain; at least one voxel.

    Returns
    -------
    scaled : ndarray (x, y, z), float32
    share_clipped : float
        Share of brain voxels that lay outside [0, 1].

    Raises
    ------
    ScanError
        As `limits`.
    """
    low, high = limits(image[mask], rule, path)
    values = (image.astype(np.float64) - low) / (high - low)
    brain = values[mask]
    share_clipped = float(((brain < 0) | (brain > 1)).mean())
    return np.where(mask, np.clip(values, 0, 1), 0).astype(np.float32), share_clipped
