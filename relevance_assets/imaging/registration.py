"""Registration by greedy: where the points of one image lie in another.

Belongs here: rigid and affine registration of two images. Does not belong here: moving values along a transform and
its file (`transforms.py`), the choice of images, masks and settings for a study (`recipe.py`).

Every matrix is float64, RAS+ mm, and takes points of the fixed image to points of the moving image: the direction in
which values are pulled. The program is greedy (https://greedy.readthedocs.io, Yushkevich), by its Python package
picsl_greedy; its seed is set, so that the same images give the same bits. With more threads the sums run in another
order, and the last digits differ: `threads` belongs to what a result is known by.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from relevance_assets.imaging.volumes import Image

__all__ = ["affine", "rigid"]

SEED = 42
ITERATIONS = "100x50x10"  # from a quarter of the resolution to the full one
SEARCH = "-search 200 12 15"  # tries; standard deviations of the random rotation (degrees) and shift (mm)
METRICS = re.compile(r"SSD|MI|NMI|W?NCC [1-9]\d*(x[1-9]\d*x[1-9]\d*)?")
SHORTEST_AXIS = 8  # voxels; of fewer nothing is left at a quarter of the resolution
_LPS = np.diag([-1.0, -1.0, 1.0])  # ITK's axes run to left, posterior, superior
_STDOUT = threading.Lock()


def rigid(
    fixed: Image,
    moving: Image,
    *,
    metric: str = "NMI",
    fixed_mask: np.ndarray | None = None,
    start: np.ndarray | None = None,
    search: bool = False,
    iterations: str = ITERATIONS,
    threads: int = 1,
) -> np.ndarray:
    """Rotation and shift that take points of `fixed` to the same anatomy in `moving`.

    Parameters
    ----------
    fixed, moving : Image
        On grids of any kind; no image is resampled beforehand.
    metric : str
        As greedy names it: `NMI` for two contrasts, `NCC 4x4x4` (with its radius in voxels) for one.
    fixed_mask : (x, y, z) of `fixed`, optional
        Where the images are compared: above 0.
    start : (4, 4), optional
        Rigid matrix to begin with. Without it the centres of both fields of view are put on each other.
    search : bool
        200 random starts around the first one before the optimisation, for heads in very different positions.
    iterations : str
        Per level, from the coarsest to the full resolution.

    Returns
    -------
    (4, 4) float64

    Raises
    ------
    ValueError
        An image that is constant, not finite or too small, an empty mask or one on another grid, no result.
    """
    return _linear(6, fixed, moving, metric, fixed_mask, start, search, iterations, threads)


def affine(
    fixed: Image,
    moving: Image,
    *,
    metric: str = "NCC 4x4x4",
    fixed_mask: np.ndarray | None = None,
    start: np.ndarray | None = None,
    search: bool = False,
    iterations: str = ITERATIONS,
    threads: int = 1,
) -> np.ndarray:
    """As `rigid`, with scaling and shear: 12 degrees of freedom."""
    return _linear(12, fixed, moving, metric, fixed_mask, start, search, iterations, threads)


def _linear(
    freedom: int,
    fixed: Image,
    moving: Image,
    metric: str,
    fixed_mask: np.ndarray | None,
    start: np.ndarray | None,
    search: bool,
    iterations: str,
    threads: int,
) -> np.ndarray:
    images = _itk_pair(fixed, moving, fixed_mask)
    begin = "-ia-image-centers" if start is None else "-ia {start}"
    options = f"-a -dof {freedom} {begin} {SEARCH if search else ''} -n {iterations} -o result"
    found = _greedy(f"{options} {_metric(metric, images)}", threads, images, start, ("result",))["result"]
    matrix = np.array(found, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.linalg.det(matrix[:3, :3]) <= 0:
        raise ValueError("the registration found no transform; do the images show the same part of the body?")
    return matrix


def _metric(metric: str, images: dict[str, Any]) -> str:
    if not METRICS.fullmatch(metric):  # greedy takes what it does not know for the first one of its list
        raise ValueError(f"unknown metric {metric!r}; choose SSD, MI, NMI or NCC with its radius, as NCC 4x4x4")
    return f"-m {metric} {'-gm mask' if 'mask' in images else ''} -i fixed moving"


def _itk_pair(fixed: Image, moving: Image, fixed_mask: np.ndarray | None) -> dict[str, Any]:
    """The images as greedy wants them, by the names that its command line has."""
    for name, image in (("fixed", fixed), ("moving", moving)):
        if not np.isfinite(image.data).all():
            raise ValueError(f"the {name} image holds NaN or infinite values; repair it before registration")
        if image.data.min() == image.data.max():
            raise ValueError(f"the {name} image is constant; there is nothing to register")
        if min(image.data.shape) < SHORTEST_AXIS:
            raise ValueError(
                f"the {name} image has shape {image.data.shape}; registration needs {SHORTEST_AXIS} voxels per axis"
            )
    images = {"fixed": to_itk(fixed.data, fixed.affine), "moving": to_itk(moving.data, moving.affine)}
    if fixed_mask is not None:
        if fixed_mask.shape != fixed.data.shape:
            raise ValueError(f"a mask {fixed_mask.shape} is not on the grid of the fixed image {fixed.data.shape}")
        inside = fixed_mask > 0
        if not inside.any():
            raise ValueError("the mask of the fixed image is empty")
        images["mask"] = to_itk(inside, fixed.affine)
    return images


def to_itk(data: np.ndarray, affine: np.ndarray) -> Any:
    """An array (x, y, z) as SimpleITK image of doubles; the affine's shear, if any, is in its direction matrix."""
    import SimpleITK as sitk

    axes = _LPS @ affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.asarray(data, dtype=np.float64).T))
    image.SetSpacing(sizes.tolist())
    image.SetDirection((axes / sizes).ravel().tolist())
    image.SetOrigin((_LPS @ affine[:3, 3]).tolist())
    return image


def _greedy(
    options: str, threads: int, images: dict[str, Any], start: np.ndarray | None, wanted: tuple[str, ...]
) -> dict[str, Any]:
    """Run greedy on images in memory; `{start}` in the options stands for the file that the matrix goes into.

    picsl_greedy 1.4.0.3 takes images from memory, but no matrix.
    """
    from picsl_greedy import Greedy3D

    program, said = Greedy3D(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "start.mat"
        if start is not None:
            np.savetxt(file, _checked_matrix(start), fmt="%.17g")
        command = f"-d 3 -seed {SEED} -V 0 -threads {threads} {options.format(start=file)}"
        try:
            with _silent():
                program.execute(command, out=said, err=said, **images, **dict.fromkeys(wanted))
        except RuntimeError as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise ValueError(f"greedy failed ({reason}); command: {command}") from None
    return {name: program[name] for name in wanted}


def _checked_matrix(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise ValueError(f"a start must be a regular (4, 4) matrix, not {matrix.tolist()}")
    return matrix


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what the optimiser's Fortran prints past Python; one thread at a time, as the output belongs to all."""
    c = ctypes.CDLL(None)
    with _STDOUT, Path(os.devnull).open("w") as nowhere:
        sys.stdout.flush()
        c.fflush(None)
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            c.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
