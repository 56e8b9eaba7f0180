"""How well real scans are prepared, against labels and transforms that others made: whole recipes, limits stated.

Belongs here: the comparisons and their limits. Does not belong here: what preparing costs (`preparation.py`).

Brain masks and registration on `ixi` against its automatic labels; visits and contrasts of `open-ms-longitudinal`
against its published transforms; the lesions of `open-ms`, laid into each scan of `ixi`, to the template and back.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from preparation import RECIPE, prepared
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from relevance_assets.assets.spaces import geometry_of
from relevance_assets.assets.workspace import Workspace
from relevance_assets.imaging.displacement import move, read_displacement
from relevance_assets.imaging.geometry import Alignment, to_native, to_prepared_labels
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.quality import dice
from relevance_assets.imaging.template import template
from relevance_assets.imaging.transforms import pull, read_affine
from relevance_assets.imaging.volumes import load_volume, read_image, save_volume

NATIVE = [step for step in RECIPE if step["step"] not in ("resample", "crop_or_pad")]
TEMPLATE = [*NATIVE[:-1], {"step": "resample", "space": "template", "voxel_size_mm": [2, 2, 2]}, NATIVE[-1]]
VISITS: list[dict[str, Any]] = [
    {"step": "reorient"},
    {"step": "coregister", "reference": "FLAIR"},
    {"step": "halfway", "contrast": "FLAIR"},
    {"step": "brain_mask", "source": "template", "contrast": "T1w"},
    {"step": "bias_field"},
    {"step": "resample", "voxel_size_mm": [1, 1, 1]},
    {"step": "scale"},
]
LESION_MM3 = 100.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that has ixi, open-ms, open-ms-longitudinal")
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        for check in (brains, lesions, visits):
            console.print(check(given.data.resolve(), Path(folder) / check.__name__))


# ------------------------------------------------------------------------------------------------------ brains
def brains(data: Path, home: Path) -> Table:
    """Masks on the native grid, and on the template, all of `ixi`."""
    workspace, *_ = prepared(data / "ixi", home, 2, preparation=NATIVE)
    volumes = {row["scan"]: row for row in workspace.read("volumes").iter_rows(named=True)}
    table = Table("scan", "mask Dice", "in MNI", "labels in MNI", "similarity", "Jacobian", title="ixi")
    found: dict[str, list[float]] = {"mask": [], "template": [], "labels": []}
    for scan, row in sorted(volumes.items()):
        geometry = geometry_of(workspace, scan)
        labels = read_image(data / f"ixi/derivatives/dlmuse/{scan}/anat/{scan}_desc-dlmuse_dseg.nii.gz")
        brain = ndimage.binary_fill_holes(labels.data > 0)
        mask = to_native(load_volume(workspace.mask_path(scan))[0].astype(np.uint8), geometry, 0)
        way = alignment_of(workspace, scan)
        there = pull(brain.astype(np.float32), Grid(brain.shape, labels.affine), template().grid, way.to_scan) >= 0.5
        figures = dice(mask, brain), row["template_overlap"], dice(there, template().brain)
        for values, figure in zip(found.values(), figures, strict=True):
            values.append(figure)
        jacobian = f"{row['jacobian_minimum']:.2f} to {row['jacobian_maximum']:.2f}"
        similarity = f"{row['similarity_before']:.2f} to {row['similarity_after']:.2f}"
        table.add_row(scan, *(f"{figure:.3f}" for figure in figures), similarity, jacobian)
    medians = [f"{np.median(values):.3f}" for values in found.values()]
    table.add_row("median", *medians, end_section=True)
    table.add_row("least", *(f"{min(values):.3f}" for values in found.values()))
    table.caption = f"{len(volumes)} scans; limits: mask median 0.94, least 0.90; in MNI median 0.94. " + verdict(
        len(volumes) == len(list((data / "ixi").glob("sub-*")))
        and np.median(found["mask"]) >= 0.94
        and min(found["mask"]) >= 0.90
        and np.median(found["template"]) >= 0.94
    )
    return table


# ----------------------------------------------------------------------------------------------------- lesions
def lesions(data: Path, home: Path) -> Table:
    """Lesions of `open-ms` over 100 mm3 in the native grid (2 mm) of each `ixi` scan, to the template and back.

    At 2 mm by the stages' own functions; through the template at 1 mm by the same transforms.
    """
    workspace, *_ = prepared(data / "ixi", home, 2, preparation=TEMPLATE)
    drawn = read_image(next((data / "open-ms" / "derivatives").rglob("*lesion*_mask.nii.gz")))
    table = Table("scan", "lesions", "all, 2 mm", "median of each", "least", "all, 1 mm", "least of each")
    table.title = "open-ms lesions, native to MNI to native, Dice"
    together: list[float] = []
    each: dict[int, list[float]] = {2: [], 1: []}
    for scan in sorted(workspace.results("prepared_volumes")):
        geometry, way = geometry_of(workspace, scan), alignment_of(workspace, scan)
        native = geometry.native
        planted = pull(drawn.data > 0, Grid(drawn.data.shape, drawn.affine), native, way.to_template, 0)
        numbers, _ = ndimage.label(planted, np.ones((3, 3, 3)))
        sizes = np.bincount(numbers.ravel()) * abs(np.linalg.det(native.affine[:3, :3]))
        numbers[np.isin(numbers, np.flatnonzero(sizes <= LESION_MM3))] = 0
        file = home / f"{scan}_dseg.nii.gz"
        save_volume(file, numbers, native.affine, np.uint8)
        fine = template(1).grid
        backs = {
            2: to_native(to_prepared_labels(file, geometry), geometry, 0),
            1: pull(pull(numbers, native, fine, way.to_scan, 0), fine, native, way.to_template, 0),
        }
        cells = []
        for size, back in backs.items():
            single = [dice(back == number, numbers == number) or 0.0 for number in np.unique(numbers) if number]
            each[size] += single
            cells.append((dice(back > 0, numbers > 0) or 0.0, float(np.median(single)), min(single)))
        together.append(cells[0][0])
        figures = (*cells[0], cells[1][0], cells[1][2])
        table.add_row(scan, str(len(np.unique(numbers)) - 1), *(f"{figure:.3f}" for figure in figures))
    spread = "; ".join(
        f"{size} mm: {len(values)} single lesions, median {np.median(values):.3f}, 5th percentile "
        f"{np.quantile(values, 0.05):.3f}, least {min(values):.3f}"
        for size, values in each.items()
    )
    table.caption = (
        f"{spread}. Limit of a scan's lesions together at 2 mm: 0.90, least {min(together):.3f}. "
        + verdict(min(together) >= 0.9)
        + f" Of each alone: {verdict(min(each[2]) >= 0.9)}"
    )
    return table


# ------------------------------------------------------------------------------------------------------ visits
def visits(data: Path, home: Path) -> Table:
    """Both visits from native space, every contrast, against the transforms that were published with them."""
    root = data / "open-ms-longitudinal"
    contrasts = [
        {"name": name, "suffix": name, "scale": {"rule": "percentile", "percentile": 99.5}}
        for name in ("FLAIR", "T1w", "T2w")
    ]
    workspace, *_ = prepared(root, home, 2, preparation=VISITS, contrasts=contrasts)
    published = root / "derivatives" / "manual" / "sub-12"
    brain = read_image(published / "anat" / "sub-12_space-common_desc-brain_mask.nii.gz")
    common = move(brain.affine, np.argwhere(brain.data > 0)[::97])
    table = Table("pair", "median mm", "most mm", title="open-ms-longitudinal")
    medians = []
    for name, ours, theirs, points in pairs(workspace, published / "transforms", common):
        apart = np.linalg.norm(move(ours, points) - move(theirs, points), axis=1)
        medians.append(float(np.median(apart)))
        table.add_row(name, f"{medians[-1]:.2f}", f"{apart.max():.2f}")
    table.caption = "limit: median 1 mm. " + verdict(max(medians) <= 1)
    return table


def pairs(
    workspace: Workspace, transforms: Path, common: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """What is compared: our matrix, the published one, points that both start from."""
    to_flair = [read_affine(transforms / f"study{n}_FLAIR_to_common_space.txt") for n in (1, 2)]
    first, second = (geometry_of(workspace, f"sub-12_ses-{n}").moved for n in (1, 2))
    yield (
        "visit 1 to visit 2",
        np.linalg.inv(second) @ first,
        to_flair[1] @ np.linalg.inv(to_flair[0]),
        move(to_flair[0], common),
    )
    for n in (1, 2):
        for contrast in workspace.study.contrasts[1:]:
            published = read_affine(transforms / f"study{n}_{contrast.suffix.upper()}_intrastudy_to_FLAIR.txt")
            ours = read_affine(workspace.coregistration_path(f"sub-12_ses-{n}", contrast))
            yield f"visit {n}: FLAIR to {contrast.name}", ours, published, move(to_flair[n - 1], common)


# ------------------------------------------------------------------------------------------------------ shared
def alignment_of(workspace: Workspace, scan: str) -> Alignment:
    """As it was stored."""
    to_template, to_scan, _ = workspace.alignment_paths(scan)
    return Alignment(np.eye(4), read_displacement(to_scan), read_displacement(to_template))


def verdict(kept: bool) -> str:
    return "Kept." if kept else "MISSED."


if __name__ == "__main__":
    pl.Config.set_tbl_rows(50)
    main()
