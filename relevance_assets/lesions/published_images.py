"""What MS-DeepBrain-Study makes of a FLAIR before it looks at lesions: sharpened, normalised, an ellipse, dark pixels.

Belongs here: those steps as they reproduce the study's files, faults included. Does not belong here: a brain mask
(`imaging.brain_mask`), intensities for other studies (`imaging.intensity`), the lesions' zones (`zones_2d.py`).

Source: github Mahdi-Bashiri/MS-DeepBrain-Study @ ff8574d8, `preprocessing_flair.py` and `core_processing.py`. Slices
lie along the last axis, arrays as they are stored in the file: the study turned nothing and resampled nothing. cv2's
cross of 3 x 3 pixels, n times, is their diamond of radius n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["csf_candidates", "ellipse_mask", "prepare_flair", "sharpened"]

Slice = NDArray[np.floating]
Mask = NDArray[np.bool_]
SIGMA, ALPHA = 1.0, 1.5  # pixels; of the unsharp mask
PADDING, THRESHOLD = 28, 25  # pixels; of 255 times the share of the slice's maximum
MASK_EROSION, CSF_EROSION = 20, 10  # pixels, of the ellipse: for the study's brain mask, and for dark pixels
FEWEST_PIXELS, BINS = 2800, 10  # a slice with no larger brain is blanked; of the histogram outside the brain
BLOCK, BELOW, SMALLEST = 65, 25, 2  # pixels, grey levels, pixels


def prepare_flair(flair: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each slice sharpened by an unsharp mask, and scaled to 0 to 1 by what lies outside the ellipse.

    Minimum and maximum are the means of the lowest and the highest of ten histogram bins outside the ellipse, eroded
    by 20 pixels, with 0 inside. A slice whose ellipse has no more than 2,800 pixels is blank, and one that has one
    value outside it.

    Parameters
    ----------
    flair : (X, Y, slices)
        As scanned.

    Raises
    ------
    ValueError
        If it is no volume, or not finite.
    """
    if flair.ndim != 3 or not np.isfinite(flair).all():
        raise ValueError("the FLAIR must be a volume of finite values; replace NaN before")
    prepared = np.zeros(flair.shape)
    for index in range(flair.shape[2]):
        sharp = sharpened(np.asarray(flair[:, :, index], np.float64))
        ellipse = ellipse_mask(sharp, MASK_EROSION)
        if ellipse.sum() > FEWEST_PIXELS:
            prepared[:, :, index] = _normalised(sharp, ellipse)
    return prepared


def sharpened(image: Slice) -> Slice:
    """A slice plus 1.5 times what a Gaussian of one pixel takes from it, within its own range; blank if nothing is
    above 0, where the study divides by 0."""
    top = image.max()
    if top <= 0:
        return np.zeros_like(image)
    image = image / top
    sharp = image + ALPHA * (image - ndimage.gaussian_filter(image, SIGMA))
    return np.clip(sharp, image.min(), image.max()) * top


def _normalised(image: Slice, ellipse: Mask) -> Slice:
    outside = np.where(ellipse, 0.0, image)
    if outside.max() <= outside.min():
        return np.zeros_like(image)  # nor can the study scale by what does not vary
    edges = np.histogram_bin_edges(outside, BINS)
    low, high = outside[outside < edges[1]].mean(), outside[outside > edges[-2]].mean()
    return (np.clip(image, low, high) - low) / (high - low)


def ellipse_mask(image: Slice, erode: int = MASK_EROSION) -> Mask:
    """The ellipse around a head in one slice, shrunk; the study's "brain mask".

    More than 25 of 255 of the maximum, opened and closed by diamonds; the ellipse of least squares through the
    vertices of the largest outline; eroded by a diamond.

    Parameters
    ----------
    image : (X, Y)
    erode
        Radius of the diamond, pixels: the study takes 20, and 10 where it looks for fluid.

    Returns
    -------
    (X, Y) bool; empty where nothing is bright, or the outline has fewer than five vertices
    """
    import cv2

    top = image.max()
    if top <= 0:
        return np.zeros(image.shape, bool)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    mask: np.ndarray = (np.pad(255 * (image / top), PADDING) > THRESHOLD).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, cross)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cross)
    mask = cv2.morphologyEx(cv2.dilate(mask, cross), cv2.MORPH_CLOSE, cross, iterations=4)
    outlines = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    largest = max(outlines, key=cv2.contourArea, default=np.empty((0, 1, 2), np.int32))
    ellipse: np.ndarray = np.zeros_like(mask)
    if len(largest) >= 5:
        cv2.ellipse(ellipse, cv2.fitEllipse(largest), 1, thickness=-1)
    if erode:
        ellipse = cv2.erode(ellipse, cross, iterations=erode)
    return np.asarray(ellipse[PADDING:-PADDING, PADDING:-PADDING], bool)


def csf_candidates(prepared: NDArray[np.floating]) -> Mask:
    """Dark pixels, which the study takes for fluid near the cortex.

    Each slice in 8 bits: at least 25 levels below the Gaussian mean of 65 x 65 pixels, in pieces of two pixels or
    more (8 neighbours), within the ellipse eroded by 10. Ventricles are among them, as they are in the study.

    Parameters
    ----------
    prepared : (X, Y, slices)
        Of `prepare_flair`.
    """
    import cv2

    dark = np.zeros(prepared.shape, bool)
    for index in range(prepared.shape[2]):
        image = np.ascontiguousarray(prepared[:, :, index], np.float64)
        if image.max() <= image.min():
            continue
        grey = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)  # type: ignore[call-overload]
        kind = cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY_INV
        below = cv2.adaptiveThreshold(grey, 255, *kind, BLOCK, BELOW)
        _, pieces, found, _ = cv2.connectedComponentsWithStats(below, connectivity=8)
        keep = found[:, cv2.CC_STAT_AREA] >= SMALLEST
        keep[0] = False
        dark[:, :, index] = keep[pieces] & ellipse_mask(image, CSF_EROSION)
    return dark
