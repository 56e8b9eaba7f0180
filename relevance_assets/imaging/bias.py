"""Bias field and noise: what the scanner adds to an image, taken out on the image's own grid.

Belongs here: N4 bias field correction and denoising, both by SimpleITK. Does not belong here: units and limits of
values (`intensity.py`), how even white matter is before and after (`quality.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from nibabel.affines import voxel_sizes

from relevance_assets.imaging.volumes import Image, ScanError

__all__ = ["correct_bias", "denoise"]

DIFFUSION = 1 / 16  # stable step of curvature flow in 3D, in squared voxels: 1 / 2^(3 + 1)


def correct_bias(
    image: Image,
    mask: np.ndarray,
    *,
    shrink: int = 4,
    iterations: Sequence[int] = (50, 50, 50, 50),
    threads: int = 1,
    name: str = "image",
) -> tuple[Image, np.ndarray]:
    """Divide an image by its bias field, found by N4 in the brain.

    The field is fitted to a shrunken image and evaluated at full resolution. Its geometric mean inside the mask is
    1, so that the image keeps its unit. Voxels of the mask that are not positive have no logarithm: they take no
    part in the fit, and are divided like all others.

    Parameters
    ----------
    image : Image
    mask : ndarray (x, y, z), bool
        The brain.
    shrink : int
        Factor per axis. Along an axis with long voxels it is smaller, so that no voxel of the shrunken image is
        longer than `shrink` times the shortest voxel, or than itself.
    iterations : sequence of int
        At most so many per level; each level halves the distance of the B-spline's knots.
    threads : int
        Results are reproducible to the bit for one number of threads.
    name : str
        Of the scan, in errors.

    Returns
    -------
    corrected : Image
    field : ndarray (x, y, z), float32
        Positive; `image.data = corrected.data * field`.

    Raises
    ------
    ScanError
        A mask on another grid, or without a voxel that is positive after shrinking; a fit that fails.

    Notes
    -----
    Tustison et al., N4ITK: improved N3 bias correction, IEEE TMI 29:1310 (2010).
    """
    if mask.shape != image.data.shape:
        raise ScanError(f"{name}: the mask {mask.shape} is not on the image's grid {image.data.shape}; resample it")
    import SimpleITK as sitk

    usable = mask & np.isfinite(image.data) & (image.data > 0)
    sizes = voxel_sizes(image.affine)
    factors = [max(1, int(factor)) for factor in np.floor(shrink * sizes.min() / sizes + 1e-6)]
    # N4's splines live on the box of voxels: directions and origin do not matter, and may be sheared
    full = _to_itk(np.where(usable, image.data, np.float32(1)), sizes)
    small, small_mask = sitk.Shrink(full, factors), sitk.Shrink(_to_itk(usable.astype(np.uint8), sizes), factors)
    if not sitk.GetArrayViewFromImage(small_mask).any():
        raise ScanError(f"{name}: no positive voxel is left in the brain mask to fit a bias field to; check the mask")
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([int(n) for n in iterations])
    n4.SetNumberOfThreads(threads)
    n4.SetNumberOfWorkUnits(threads)
    n4.Execute(small, small_mask)
    log_field = _from_itk(n4.GetLogBiasFieldAsImage(full)).astype(np.float64)
    field = np.exp(log_field - log_field[mask].mean()).astype(np.float32)
    if not (np.isfinite(field).all() and (field > 0).all()):
        raise ScanError(f"{name}: N4 found no bias field; check the brain mask or leave the step out")
    return Image(image.data / field, image.affine), field


def denoise(
    image: Image,
    method: Literal["curvature_flow", "median"] = "curvature_flow",
    *,
    iterations: int = 5,
    radius: int = 1,
    threads: int = 1,
) -> Image:
    """Less noise, on the same grid.

    Parameters
    ----------
    method : str
        `curvature_flow`: surfaces of equal value move with their mean curvature, in steps of 1/16 of the shortest
        voxel's square; flat edges stay. `median`: over a cube of 2 `radius` + 1 voxels, edge values repeated.
    iterations : int
        Steps of the curvature flow.

    Raises
    ------
    ValueError
        Another method.

    Notes
    -----
    Sethian, Level Set Methods and Fast Marching Methods (1999), chapter 16, as ITK has it.
    """
    import SimpleITK as sitk

    sizes = voxel_sizes(image.affine)
    if method == "median":
        median = sitk.MedianImageFilter()
        median.SetRadius(radius)
        chosen: Any = median
    elif method == "curvature_flow":
        flow = sitk.CurvatureFlowImageFilter()
        flow.SetTimeStep(float(DIFFUSION * sizes.min() ** 2))
        flow.SetNumberOfIterations(iterations)
        chosen = flow
    else:
        raise ValueError(f"denoise: no method {method!r}; there are curvature_flow, median")
    chosen.SetNumberOfThreads(threads)
    return Image(_from_itk(chosen.Execute(_to_itk(image.data, sizes))), image.affine)


def _to_itk(array: np.ndarray, sizes: np.ndarray) -> Any:
    """The array as ITK's image, first axis first; voxel sizes in mm."""
    import SimpleITK as sitk

    values = array if array.dtype == np.uint8 else array.astype(np.float32)
    converted = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    converted.SetSpacing([float(size) for size in sizes])
    return converted


def _from_itk(image: Any) -> np.ndarray:
    import SimpleITK as sitk

    return np.ascontiguousarray(sitk.GetArrayFromImage(image).T)
