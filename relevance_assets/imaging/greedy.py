"""The program greedy, by its Python package: images in memory in, matrices and fields out.

Belongs here: what greedy can be asked, in which words, and that it neither crashes nor prints. Does not belong here:
what is registered with what (`registration.py`).

The program: https://greedy.readthedocs.io, Yushkevich. Its seed is set.
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

__all__ = ["SEED", "checked_matrix", "field_values", "greedy", "itk_pair", "levels", "metric_option"]

SEED = 42
METRICS = re.compile(r"SSD|MI|NMI|W?NCC [1-9]\d*(x[1-9]\d*x[1-9]\d*)?")
LEVELS = re.compile(r"[0-9]+(x[0-9]+)*")
SHORTEST_AXIS = 8  # voxels; of fewer nothing is left at a quarter of the resolution
_LPS = np.diag([-1.0, -1.0, 1.0])  # ITK's axes run to left, posterior, superior
_STDOUT = threading.Lock()


def levels(iterations: str, fewest: int) -> str:
    """greedy crashes where a linear registration starts with a level of 0, and takes `-5` and `5x` for something."""
    if not LEVELS.fullmatch(iterations) or int(iterations.split("x")[0]) < fewest:
        wanted = "whole numbers joined by x, as 100x50x10" + ", the first one above 0" * fewest
        raise ValueError(f"iterations {iterations!r} cannot be used; give {wanted}")
    return f"-n {iterations}"


def metric_option(metric: str, images: dict[str, Any]) -> str:
    if not METRICS.fullmatch(metric):  # greedy takes what it does not know for the first one of its list
        raise ValueError(f"unknown metric {metric!r}; choose SSD, MI, NMI or NCC with its radius, as NCC 4x4x4")
    return f"-m {metric} {'-gm mask' if 'mask' in images else ''} -i fixed moving"


def itk_pair(fixed: Image, moving: Image, fixed_mask: np.ndarray | None) -> dict[str, Any]:
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
    images = {"fixed": _to_itk(fixed.data, fixed.affine), "moving": _to_itk(moving.data, moving.affine)}
    if fixed_mask is not None:
        if fixed_mask.shape != fixed.data.shape:
            raise ValueError(f"a mask {fixed_mask.shape} is not on the grid of the fixed image {fixed.data.shape}")
        inside = fixed_mask > 0
        if not inside.any():
            raise ValueError("the mask of the fixed image is empty")
        images["mask"] = _to_itk(inside, fixed.affine)
    return images


def _to_itk(data: np.ndarray, affine: np.ndarray) -> Any:
    """An array (x, y, z) as SimpleITK image of doubles; the affine's shear, if any, is in its direction matrix."""
    import SimpleITK as sitk

    axes = _LPS @ affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.asarray(data, dtype=np.float64).T))
    image.SetSpacing(sizes.tolist())
    image.SetDirection((axes / sizes).ravel().tolist())
    image.SetOrigin((_LPS @ affine[:3, 3]).tolist())
    return image


def field_values(field: Any) -> np.ndarray:
    """A vector image as (x, y, z, 3), along RAS+."""
    import SimpleITK as sitk

    return np.moveaxis(sitk.GetArrayFromImage(field), (0, 1, 2), (2, 1, 0)) @ _LPS


def greedy(
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
            np.savetxt(file, checked_matrix(start), fmt="%.17g")
        command = f"-d 3 -seed {SEED} -V 0 -threads {threads} {options.format(start=file)}"
        try:
            with _silent():
                program.execute(command, out=said, err=said, **images, **dict.fromkeys(wanted))
        except RuntimeError as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise ValueError(f"greedy failed ({reason}); command: {command}") from None
    return {name: program[name] for name in wanted}


def checked_matrix(matrix: np.ndarray) -> np.ndarray:
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
