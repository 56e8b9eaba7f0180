"""The preparation recipe: a scan's images, step by step, onto one grid and into [0, 1].

Belongs here: the order of the steps that `study.preparation` names, what each of them took, and what is known of the
scan at the end. Does not belong here: the steps themselves (`steps.py`), the way back (`geometry.py`), where results
are written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relevance_assets import study
from relevance_assets.imaging import steps
from relevance_assets.imaging.alignment import on_native_grid
from relevance_assets.imaging.displacement import move, sampled
from relevance_assets.imaging.geometry import Alignment, Geometry
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.intensity import scale
from relevance_assets.imaging.layers import Layers, Visits, read_layers
from relevance_assets.imaging.quality import volume_row
from relevance_assets.imaging.steps import NEEDLESS
from relevance_assets.imaging.template import template
from relevance_assets.imaging.volumes import Image
from relevance_assets.usage import peak_mb

__all__ = ["Prepared", "prepare"]


FIELD_MM = 2.0  # between the vectors of a stored field


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan that is ready for a network.

    Attributes
    ----------
    images : ndarray (contrast, x, y, z), float32
        In [0, 1]; exactly 0 outside `mask`.
    mask : ndarray (x, y, z), bool
        The brain.
    affine : ndarray (4, 4), float64
    geometry : Geometry
        The way back to the native grid.
    alignment : Alignment or None
        From the first contrast's native space to the template and back, where the recipe has the step `register`.
    quality : list of dict
        One row of table `volumes` per contrast, without study, scan, path and hash.
    steps : list of dict
        One row of table `preparation_steps` per step, without study and scan.
    before : Image
        The first contrast as its file has it, for figures.
    moves : tuple of ndarray (4, 4)
        Of each contrast, from its file's millimetres to those of the scan: co-registration, half-way space.
    """

    images: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    geometry: Geometry
    alignment: Alignment | None
    quality: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    before: Image
    moves: tuple[np.ndarray, ...]


def prepare(
    paths: Sequence[Path],
    contrasts: Sequence[study.Contrast],
    recipe: Sequence[study.Step],
    visits: Visits | None = None,
) -> Prepared:
    """Read a scan's images and put them through the study's recipe.

    The prepared grid is the first contrast's: reoriented, resampled, cropped or padded as the steps say. A contrast on
    another grid is interpolated onto it once, whether or not there is a step `resample`.

    Parameters
    ----------
    paths : sequence of Path
        One NIfTI file per contrast, in the order of `contrasts`.
    recipe : sequence of Step
        In the order that `study.Study` asks for; brain_mask and scale are among them.
    visits : Visits, optional
        The person's visits, for the step `halfway`.

    Raises
    ------
    ScanError
        A file that `read_image` refuses, no brain voxel, a registration that finds nothing, values that a rule cannot
        scale.
    """
    if len(paths) != len(contrasts):
        raise ValueError(f"{len(paths)} files for {len(contrasts)} contrasts")
    if not {"brain_mask", "scale"} <= {step.step for step in recipe}:
        raise ValueError("preparation: the steps brain_mask and scale are needed")
    layers = read_layers(paths, [contrast.name for contrast in contrasts])
    native, before = layers.grids[0], layers.image(0)
    visits = visits or Visits((paths[0],), 0)
    done: list[dict[str, Any]] = []
    on_one_grid = False
    for step in recipe:
        begun, worked = time.perf_counter(), time.process_time()
        if step.step in ("crop_or_pad", "scale") and not on_one_grid:
            layers, _ = steps.onto_one_grid(layers)
        on_one_grid = on_one_grid or step.step in ("resample", "crop_or_pad", "scale")
        if isinstance(step, study.Halfway):
            layers, said = steps.halfway(layers, step, visits)
        elif isinstance(step, study.ScaleStep):
            said = ", ".join(f"{c.name} by {c.scale.rule}" for c in contrasts)
        else:
            layers, said = ACTS[step.step](layers, step)
        done.append(
            {
                "step": step.step,
                "done": not said.startswith(NEEDLESS),
                "note": said.removeprefix(NEEDLESS),
                "seconds": time.perf_counter() - begun,
                "cpu_seconds": time.process_time() - worked,
                "peak_mb": peak_mb(),
            }
        )
    return _scaled(layers, native, contrasts, before, done)


ACTS: dict[str, Callable[[Layers, Any], steps.Result]] = {
    "reorient": steps.reorient,
    "denoise": steps.denoise,
    "coregister": steps.coregister,
    "brain_mask": steps.brain_mask,
    "bias_field": steps.bias_field,
    "register": steps.register,
    "remove": steps.remove,
    "resample": steps.onto_one_grid,
    "crop_or_pad": steps.crop_or_pad,
}


def _scaled(
    layers: Layers, native: Grid, contrasts: Sequence[study.Contrast], before: Image, done: list[dict[str, Any]]
) -> Prepared:
    """The last step's values, and what is known of the scan by then."""
    grid, mask = layers.grids[0], layers.mask
    assert mask is not None  # prepare() asks for the step
    scaled, rows = [], []
    measures = steps.measured(layers)
    for index, contrast in enumerate(contrasts):
        values, share_clipped = scale(layers.images[index], mask, contrast.scale, layers.paths[index])
        scaled.append(values)
        row = volume_row(
            contrast.name,
            layers.images[index],
            mask,
            grid,
            resampled=layers.resampled[index],
            share_clipped=share_clipped,
        )
        rows.append(row | {"share_cropped": 0.0} | layers.measures | measures.get(contrast.name, {}))
    alignment = _from_native(layers, native)
    geometry = Geometry(native, grid, layers.resampled[0], layers.moves[0])
    if layers.in_template and alignment:
        affine = alignment.forward is None
        moved = alignment.matrix if affine else np.eye(4)
        geometry = Geometry(native, grid, layers.resampled[0], moved, None if affine else alignment, in_template=True)
    return Prepared(np.stack(scaled), mask, grid.affine, geometry, alignment, rows, done, before, layers.moves)


def _from_native(layers: Layers, native: Grid) -> Alignment | None:
    """The way from the first contrast's file to the template; None where the recipe asks for none."""
    if layers.alignment is None:
        return None
    matrix = layers.alignment.matrix @ layers.moves[0]
    if layers.alignment.forward is None:
        return Alignment(matrix)
    forward = on_native_grid(layers.alignment, native, layers.moves[0], FIELD_MM)
    back, unmoved = layers.alignment.to_scan, np.linalg.inv(layers.moves[0])
    return Alignment(
        matrix, forward, sampled(lambda p: move(unmoved, back(p)), template().grid), layers.alignment.jacobian
    )
