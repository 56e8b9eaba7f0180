"""Regions by name: an atlas that a user gives as NIfTI and TSV, or rough regions of our own in MNI space.

Belongs here: reading and checking an atlas, putting it on a grid, what a map holds in each region. Does not
belong here: the shapes of the built-in regions (`regions.py`), where maps come from.

Every atlas is in the space of the maps it names (`MNI152NLin2009aSym` by default); nothing is registered here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from relevance_assets.imaging.grid import Grid, resample
from relevance_assets.imaging.regions import approximate_labels
from relevance_assets.imaging.volumes import ScanError, read_image

__all__ = ["APPROXIMATE", "Atlas", "approximate_atlas", "load_atlas", "region_table"]

#: Name of the built-in atlas, as tables and captions give it.
APPROXIMATE = "approximate"
LARGEST_LABEL = 1 << 24  # images are read as float32, which holds whole numbers exactly up to here
_SIDE = re.compile(r"(?i)(?<![a-z])(left|right|lh|rh|l|r)(?![a-z])")
_MEASURES = ("mean", "peak", "peak_x_mm", "peak_y_mm", "peak_z_mm", "share_above")
_SCHEMA = {
    **dict.fromkeys(("atlas", "group", "region"), pl.String),
    "voxels": pl.Int64,
    "volume_mm3": pl.Float64,
    **dict.fromkeys(_MEASURES, pl.Float64),
}


@dataclass(frozen=True, eq=False)
class Atlas:
    """Regions on a grid; no voxel is in two of them.

    Attributes
    ----------
    name : str
        `approximate` for the built-in regions: rough shapes by coordinates, not anatomy.
    labels : (x, y, z) int32
        0 is no region.
    affine : (4, 4) float64
    names : dict of int to str
        By label, in the order of tables.
    """

    name: str
    labels: np.ndarray
    affine: np.ndarray
    names: Mapping[int, str]

    def on_grid(self, shape: tuple[int, int, int], affine: np.ndarray) -> Atlas:
        """The same regions on another grid, by nearest neighbour."""
        source, target = Grid(self.labels.shape, self.affine), Grid(shape, np.asarray(affine, dtype=np.float64))
        return Atlas(self.name, resample(self.labels, source, target, 0), target.affine, self.names)

    def contains(self, points: np.ndarray, regions: Sequence[str]) -> np.ndarray:
        """Which points lie in one of the regions, by nearest neighbour; `cerebellum` means both of its sides.

        Parameters
        ----------
        points : (n, 3)
            RAS+ mm, in the atlas's space.

        Raises
        ------
        ValueError
            A region that the atlas does not have.
        """
        chosen = []
        for region in regions:
            sides = (region, f"{region}_left", f"{region}_right")
            found = [label for label, name in self.names.items() if name in sides]
            if not found:
                raise ValueError(
                    f"atlas {self.name} has no region {region!r}; there are {', '.join(self.names.values())}"
                )
            chosen += found
        to_voxels = np.linalg.inv(self.affine)
        voxels = np.rint(points @ to_voxels[:3, :3].T + to_voxels[:3, 3]).astype(int)
        inside = ((voxels >= 0) & (voxels < self.labels.shape)).all(axis=1)
        result = np.zeros(len(points), dtype=bool)
        result[inside] = np.isin(self.labels[tuple(voxels[inside].T)], chosen)
        return result


def approximate_atlas(shape: tuple[int, int, int], affine: np.ndarray) -> Atlas:
    """The built-in regions on a grid in MNI space. They are approximate: see `regions.py` for what they are."""
    affine = np.asarray(affine, dtype=np.float64)
    labels, names = approximate_labels(shape, affine)
    return Atlas(APPROXIMATE, labels, affine, names)


def load_atlas(image: Path, table: Path, name: str | None = None) -> Atlas:
    """A user's atlas: labels in a NIfTI image, their names in a BIDS `dseg.tsv`.

    Parameters
    ----------
    image : Path
        3D NIfTI of whole numbers; 0 is background.
    table : Path
        TSV with the columns `index` and `name`; further columns are ignored, and so is index 0.
    name : str, optional
        The image's file name without its ending if not given.

    Raises
    ------
    ScanError
        An image that `read_image` refuses; labels that are no whole numbers, negative or above 2^24; a table without
        those columns, with an index or name twice or a label missing; left and right that look exchanged.
    """
    read = read_image(image)
    if read.data.min() < 0 or read.data.max() >= LARGEST_LABEL:
        raise ScanError(f"{image}: labels must be between 0 and {LARGEST_LABEL - 1}; renumber them")
    labels = np.rint(read.data).astype(np.int32)
    if not np.array_equal(labels, read.data):
        raise ScanError(f"{image}: labels must be whole numbers; a probability map needs a threshold first")
    names = _read_names(table)
    present = np.unique(labels)
    absent = [str(label) for label in present if label and int(label) not in names]
    if absent:
        more = " …" if len(absent) > 5 else ""
        raise ScanError(f"{table}: no name for labels {', '.join(absent[:5])}{more} of {image.name}; add their rows")
    if not present.any():
        raise ScanError(f"{image}: holds no label above 0; is it the atlas?")
    atlas = Atlas(name or image.name.split(".nii")[0], labels, read.affine, names)
    _check_sides(atlas, image)
    return atlas


def _read_names(table: Path) -> dict[int, str]:
    """Names by index, as the TSV orders them."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except FileNotFoundError:
        raise ScanError(f"{table}: no such file; an atlas needs a TSV with the columns index and name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScanError(f"{table}: cannot be read as TSV ({error}); save it as UTF-8 text") from None
    if not rows or not {"index", "name"} <= set(rows[0]):
        raise ScanError(f"{table}: needs rows under the tab-separated columns index and name")
    names: dict[int, str] = {}
    for line, row in enumerate(rows, start=2):
        index, region = (row["index"] or "").strip(), (row["name"] or "").strip()
        if not index.isdecimal():
            raise ScanError(f"{table}, line {line}: index {index!r} must be a whole number, 0 or more")
        if int(index) in names:
            raise ScanError(f"{table}, line {line}: index {index} is there twice; keep one row")
        if not region or region in names.values():
            raise ScanError(
                f"{table}, line {line}: name {region!r} is {'there twice' if region else 'empty'}; change it"
            )
        names[int(index)] = region
    names.pop(0, None)
    return names


def _check_sides(atlas: Atlas, image: Path) -> None:
    """Atlases with exchanged sides are in circulation: a left region must lie left of its right partner."""
    centre = {name: _mean_x(atlas, label) for label, name in atlas.names.items()}
    for left, right in _pairs(list(centre)):
        if centre[left] > centre[right]:
            raise ScanError(
                f"{image}: {left} lies at x = {centre[left]:.0f} mm and {right} at {centre[right]:.0f}, so left and "
                "right seem exchanged; correct the names, or the affine"
            )


def _pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """Names that differ in nothing but left and right: `Putamen_L`, `left thalamus`, `ctx-lh-insula`."""
    sides: dict[str, dict[str, str]] = {}
    for name in names:
        spaced = name.replace("_", " ")
        found = _SIDE.findall(spaced)
        if len(found) == 1:
            sides.setdefault(_SIDE.sub("*", spaced), {})[found[0][0].lower()] = name
    for both in sides.values():
        if len(both) == 2:
            yield both["l"], both["r"]


def _mean_x(atlas: Atlas, label: int) -> float:
    """Mean x of a region in mm; NaN, which no comparison holds for, where it has no voxel."""
    voxels = np.argwhere(atlas.labels == label)
    return float((voxels @ atlas.affine[0, :3]).mean() + atlas.affine[0, 3]) if len(voxels) else float("nan")


def region_table(maps: Mapping[str, np.ndarray], atlas: Atlas, threshold: float) -> pl.DataFrame:
    """What each map holds in each region.

    Give the difference of two groups as a map of its own, `severe - mild` say: its mean is then the difference
    of the means, its peak the greatest difference in size with its sign.

    Parameters
    ----------
    maps : dict of (x, y, z), on the atlas's grid
        By group: frequency of the masks, or a difference of two.
    atlas : Atlas
    threshold : float
        For `share_above`: the share of the region's voxels of at least this value, in size.

    Returns
    -------
    One row per group and region, in the order of both: atlas, group, region, voxels, volume_mm3, mean, peak (the value
    of greatest size, sign kept), peak_x_mm, peak_y_mm, peak_z_mm (its voxel's centre; of ties the first),
    share_above. The measures are null where a region has no voxel on this grid.

    Raises
    ------
    ValueError
        A map on another grid, or one that is not finite.
    """
    for group, values in maps.items():
        if values.shape != atlas.labels.shape:
            raise ValueError(f"map {group} {values.shape} is not on the atlas's grid {atlas.labels.shape}; use on_grid")
        if not np.isfinite(values).all():
            raise ValueError(f"map {group} holds NaN or infinite values")
    voxel_mm3 = float(abs(np.linalg.det(atlas.affine[:3, :3])))
    places = {label: np.flatnonzero(atlas.labels == label) for label in atlas.names}
    rows = []
    for group, values in maps.items():
        flat = values.ravel().astype(np.float64)
        for label, region in atlas.names.items():
            row: dict[str, object] = {"atlas": atlas.name, "group": group, "region": region}
            row |= {"voxels": len(places[label]), "volume_mm3": len(places[label]) * voxel_mm3}
            rows.append(row | _measures(flat, places[label], atlas, threshold))
    return pl.DataFrame(rows, schema=_SCHEMA)


def _measures(flat: np.ndarray, voxels: np.ndarray, atlas: Atlas, threshold: float) -> dict[str, float | None]:
    if not len(voxels):
        return dict.fromkeys(_MEASURES)
    inside = flat[voxels]
    top = int(np.abs(inside).argmax())
    index = np.array(np.unravel_index(voxels[top], atlas.labels.shape))
    x, y, z = (float(value) for value in atlas.affine[:3, :3] @ index + atlas.affine[:3, 3])
    measures: dict[str, float | None] = {"mean": float(inside.mean()), "peak": float(inside[top])}
    measures |= {"peak_x_mm": x, "peak_y_mm": y, "peak_z_mm": z}
    return measures | {"share_above": float((np.abs(inside) >= threshold).mean())}
