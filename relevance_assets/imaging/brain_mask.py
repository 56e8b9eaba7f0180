"""Where the brain is in an image of a head, and whether an image holds only brain already.

Belongs here: masks by the template or by a program of the user's, recognising what the input is. Does not belong
here: the registration itself (`registration.py`), how good a mask is (`quality.py`).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from relevance_assets.imaging.grid import Grid, resample, same_grid
from relevance_assets.imaging.intensity import binarise
from relevance_assets.imaging.registration import affine, rigid
from relevance_assets.imaging.template import moved_by, template
from relevance_assets.imaging.volumes import Image, ScanError, read_image

__all__ = ["MaskResult", "Stripped", "command_mask", "foreground", "is_stripped",
           "template_mask"]  # fmt: skip

SEEN_MM = 2.0  # how far around the template's brain images are compared
SEARCH_MM = 4  # voxel size of the search for a start
RADIUS_MM = 8  # of the neighbourhoods in which images are correlated
LEVELS = "50x10"  # half and full resolution: at a quarter, scalp and skull are the brain's rim, and it grew to the head
TYPICAL_SCALE = 0.92  # of an adult brain to the template, which is larger than most: (1.47 / 1.88 litres) ** (1 / 3)
BRAIN_LITRES = (0.8, 2.0)  # of the template's brain after registration; beyond, it was fitted to something else
BACKGROUND = 0.01  # of the image's range; values closer to the background's belong to it
STRIPPED_BORDER = 0.9  # share of border voxels that are background
STRIPPED_LITRES = (0.5, 2.5)  # a stripped brain, and its fluid; an adult head has more


@dataclass(frozen=True, eq=False)
class MaskResult:
    """A brain mask and how it was found.

    Attributes
    ----------
    mask : ndarray (x, y, z), bool
        On the image's grid.
    from_template : ndarray (4, 4), float64
        Points of the template (RAS+ mm) to points of the image.
    """

    mask: np.ndarray
    from_template: np.ndarray


def template_mask(
    image: Image, *, dilate_mm: float = 2.0, resolution_mm: int = 2, threads: int = 1, name: str = "image"
) -> MaskResult:
    """Brain of a T1w head, by affine registration of the template's brain.

    A search at 4 mm puts the template, scaled to the size of a typical brain, onto the head; affine registration
    follows. Both maximise the normalised cross-correlation in neighbourhoods of 8 mm: by mutual information some
    brains were blown up to the whole head, or thrown off it. The template's mask is then moved onto the image's grid,
    dilated, and its holes are filled. No surface is fitted: the mask follows the template's outline, and holds the
    fluid around the brain and some meninges.

    Made for T1w with voxels of about 1 to 2 mm. Of clinical scans, FLAIR of 3 mm slices has worked in 2 of 2, of 7 mm
    in 1 of 2, spin-echo T1w in 1 of 2, T2w never; the others were recognised by the brain's volume and refused.

    Parameters
    ----------
    image : Image
        A whole head, on any grid.
    dilate_mm : float
        How far the mask extends beyond the template's.
    resolution_mm : int
        Voxel size that the affine registration sees.
    threads : int
        Of the registration.
    name : str
        Of the scan, in errors.

    Raises
    ------
    ScanError
        No transform was found, or the brain's volume came out beyond 0.8 to 2.0 litres.
    """
    space, grid = template(resolution_mm), Grid(image.data.shape, image.affine)
    try:
        start = _search(image, threads)
        matrix = _register(affine, image, resolution_mm, np.eye(4), start=start, iterations=LEVELS, threads=threads)
    except ValueError as error:
        raise ScanError(f"{name}: no brain mask by the template ({error}); give one, or a command for it") from None
    gain = float(np.linalg.det(matrix[:3, :3]))
    litres = gain * float(space.brain.sum()) * resolution_mm**3 / 1e6
    # distances in the template grow with the affine; what is outside its field of view becomes 0: not brain
    depth = dilate_mm / np.cbrt(gain) - _distance_mm(space.brain, resolution_mm)
    mask = moved_by(depth.astype(np.float32), space.grid, matrix, grid) > 0
    if not (BRAIN_LITRES[0] <= litres <= BRAIN_LITRES[1] and mask.any()):
        raise ScanError(
            f"{name}: the template's brain was fitted to {litres:.2f} litres at the wrong place or of the wrong size; "
            "look at the scan, and give a mask or a command for it"
        )
    return MaskResult(ndimage.binary_fill_holes(mask), matrix)


def _search(image: Image, threads: int) -> np.ndarray:
    """Where a brain of typical size lies in the head: template to image, (4, 4)."""
    scale = np.diag([TYPICAL_SCALE, TYPICAL_SCALE, TYPICAL_SCALE, 1.0])
    return _register(rigid, image, SEARCH_MM, scale, search=True, threads=threads) @ scale


def _register(method: Any, image: Image, size_mm: int, scale: np.ndarray, **options: Any) -> np.ndarray:
    """The scaled template to the image, both at this voxel size."""
    space = template(size_mm)
    return method(
        Image(space.t1w, scale @ space.grid.affine),
        _isotropic(image, float(size_mm)),
        metric=f"NCC {'x'.join([str(max(1, RADIUS_MM // size_mm))] * 3)}",
        fixed_mask=_distance_mm(space.brain, size_mm) <= SEEN_MM,
        **options,
    )


def _distance_mm(mask: np.ndarray, size_mm: float) -> np.ndarray:
    """Signed distance of voxel centres to the mask's surface on cubic voxels, mm; negative inside."""
    outside = ndimage.distance_transform_edt(~mask) - 0.5
    return np.where(mask, 0.5 - ndimage.distance_transform_edt(mask), outside) * size_mm


def _isotropic(image: Image, size_mm: float) -> Image:
    """The image along its own axes with cubic voxels: thick slices would vanish in registration's coarse levels."""
    grid = Grid(image.data.shape, image.affine)
    factors = size_mm / np.array(grid.voxel_sizes_mm)
    shape = np.maximum(1, np.rint(np.array(grid.shape) / factors)).astype(int)
    matrix = image.affine.copy()
    matrix[:3, :3] = image.affine[:3, :3] * factors
    matrix[:3, 3] = grid.corners_mm().mean(axis=0) - matrix[:3, :3] @ ((shape - 1) / 2)
    target = Grid((int(shape[0]), int(shape[1]), int(shape[2])), matrix)
    return Image(resample(image.data, grid, target), matrix)


# ------------------------------------------------------------------------------------------------ other programs
def command_mask(image_path: Path, command: Sequence[str], *, timeout_seconds: float = 3600) -> np.ndarray:
    """Brain mask by a program of the user's (deepbet, HD-BET, SynthStrip), run without a shell.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; `{image}` in them becomes the image's path and `{mask}` that of the mask, a `.nii.gz`
        which the program must write on the image's grid. Weights are named by their path.

    Returns
    -------
    ndarray (x, y, z), bool
        Where the program's mask is > 0.

    Raises
    ------
    ScanError
        The program is missing, fails, takes too long, or writes no mask, an empty one or one on another grid.
    ValueError
        A command without `{image}` or `{mask}`.
    """
    together = " ".join(command)
    if "{image}" not in together or "{mask}" not in together:
        raise ValueError(f"the brain mask's command needs {{image}} and {{mask}} among its arguments: {together!r}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.nii.gz"
        filled = [part.replace("{image}", str(image_path.resolve())).replace("{mask}", str(path)) for part in command]
        failed = _failure(filled, folder, timeout_seconds)
        if failed:
            raise ScanError(f"{image_path}: the brain mask's command {failed}")
        if not path.is_file():
            raise ScanError(f"{image_path}: the brain mask's command {filled[0]} wrote no mask to {{mask}}; correct it")
        try:
            found = read_image(path)
        except ScanError as error:
            said = str(error).removeprefix(f"{path}: ")
            raise ScanError(f"{image_path}: the brain mask that {filled[0]} wrote is unusable: {said}") from None
    image = read_image(image_path)
    if not same_grid(Grid(found.data.shape, found.affine), Grid(image.data.shape, image.affine)):
        raise ScanError(
            f"{image_path}: {filled[0]} wrote a mask of shape {found.data.shape} on another grid than the image's "
            f"{image.data.shape}; let it write the mask in the image's space"
        )
    mask = binarise(found.data)
    if not mask.any():
        raise ScanError(f"{image_path}: {filled[0]} found no brain (the mask is empty); look at the image")
    return mask


def _failure(command: list[str], folder: str, timeout_seconds: float) -> str:
    """Run it; what went wrong in one line, or nothing."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=timeout_seconds, check=False
        )
    except FileNotFoundError:
        return f"names a program that is not here: {command[0]}; install it or give its whole path"
    except OSError as error:
        return f"cannot be run: {command[0]}: {error.strerror}; check the program"
    except subprocess.TimeoutExpired:
        return f"took longer than {timeout_seconds:g} s: {command[0]}; check the program"
    if done.returncode == 0:
        return ""
    lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
    return f"failed with status {done.returncode}: {command[0]}: {lines[-1]}"


# ------------------------------------------------------------------------------------ what the input already is
@dataclass(frozen=True)
class Stripped:
    """Whether an image holds only brain, and the numbers that decided.

    Attributes
    ----------
    stripped : bool
    reason : str
        One line.
    border_background : float
        Share of the voxels at the border of the field of view that are background.
    litres : float
        Volume of the largest object, holes filled.
    """

    stripped: bool
    reason: str
    border_background: float
    litres: float


def _is_background(image: Image) -> np.ndarray:
    """Voxels within 1 % of the image's range (99.5th percentile) of the border's median."""
    values = image.data
    border = np.concatenate([values.take([0, -1], axis).ravel() for axis in range(3)])
    distance = np.abs(values - np.median(border))
    return distance <= BACKGROUND * np.percentile(distance, 99.5)


def foreground(image: Image) -> np.ndarray:
    """The largest object before a constant background, holes filled: the brain, where an image is stripped.

    Background is what lies within 1 % of the image's range of the border's median, so that neither its value (0, or
    below) nor ripples of an interpolation matter.

    Returns
    -------
    ndarray (x, y, z), bool
    """
    labels, count = ndimage.label(~_is_background(image))
    if count == 0:
        return np.zeros(image.data.shape, dtype=bool)
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    return ndimage.binary_fill_holes(labels == largest)


def is_stripped(image: Image) -> Stripped:
    """Whether an image holds only brain: a constant background up to the border, and no more volume than a brain has.

    Compactness does not tell: an ellipsoid of equal moments holds 0.93 to 0.98 of a brain's volume and of a head's.
    A small head whose background was set to a constant can pass for a brain: state the mask's source where that
    matters.
    """
    background = _is_background(image)
    border = np.concatenate([background.take([0, -1], axis).ravel() for axis in range(3)])
    share = float(border.mean())
    litres = float(foreground(image).sum()) * abs(float(np.linalg.det(image.affine[:3, :3]))) / 1e6
    numbers = f"{share:.0%} of the border is background, {litres:.2f} litres are not"
    if share < STRIPPED_BORDER:
        return Stripped(False, f"no constant background: {numbers}", share, litres)
    if not STRIPPED_LITRES[0] <= litres <= STRIPPED_LITRES[1]:
        return Stripped(False, f"not the volume of a brain: {numbers}", share, litres)
    return Stripped(True, f"brain only: {numbers}", share, litres)
