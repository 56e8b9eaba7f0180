"""A study in a home folder: what is known of it, what has been done, and where everything lies.

Belongs here: names of derivative files, records of finished work (table `runs`), and reading back what earlier
stages wrote. Does not belong here: doing the work (the stages), Dagster.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import polars as pl

from relevance_assets.cohort.watch import Folder, look, look_at
from relevance_assets.files import write_json
from relevance_assets.home import TEMPLATE_SPACE, Home, split_scan
from relevance_assets.study import Contrast, Coregister, Resample, Study
from relevance_assets.tables.cache import Gathered
from relevance_assets.tables.schema import TABLES
from relevance_assets.tables.store import Store, stored_path

__all__ = ["ALL", "COMBINED", "PLANTED", "Snapshot", "Workspace", "camel"]

ALL = "all"  # the one item, and the one partition, of what belongs to the whole cohort
COMBINED = "combined"
TRUTH = "truth"
PLANTED = "disability"  # the region of the synthetic cohort in which the tissue changes with EDSS

# Names that BIDS 1.11 does not know; everything else in a derivative folder passes the validator.
IGNORED_BY_BIDS = ("*_relmap.*", "*_dwimap.*", "*_xfm.*", "models", "figures", "template")


def camel(*words: str) -> str:
    """`lrp_attention`, `qT1` -> `lrpAttentionQT1`: a BIDS label has letters and digits only."""
    parts = [part for word in words for part in word.split("_") if part]
    return parts[0] + "".join(part[0].upper() + part[1:] for part in parts[1:])


Built = TypeVar("Built")
HALFWAY = "halfway"  # between the visits of a person
MapGrid = Literal["prepared", "native", "template"]


class Known(NamedTuple):
    """What later stages ask of an item's record."""

    outcome: str
    result: str  # where the outcome is ok
    reason: str | None
    fingerprint: str | None


@dataclass(frozen=True)
class Workspace:
    """One study in one home folder."""

    study: Study
    home: Home
    _built: dict[Any, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def store(self) -> Store:
        return Store(self.home.tables)

    @property
    def bids(self) -> Path:
        """The raw dataset: the user's, or the synthetic cohort; of a study of slices their folder."""
        if self.study.slices:
            return self.study.slices.folder or self.home.root / "slices"
        return self.study.cohort.bids or self.home.bids

    # ------------------------------------------------------------------------------------------------- tables
    def read(self, table: str, partition: str | None = None) -> pl.DataFrame:
        return self.store.read(table, self.study.name, partition)

    def parts(self, table: str) -> Iterator[pl.DataFrame]:
        """All rows of a table, some hundred thousand at once and in no particular order; at least one frame."""
        yield TABLES[table].empty()
        with self.gathered(table) as gathered:
            for batch in gathered.batches():
                yield batch.frame

    def gathered(self, table: str) -> AbstractContextManager[Gathered]:
        """All rows of a table, in pieces that are not read yet."""
        return self.store.gather_now(table, self.study.name)

    def write(self, table: str, partition: str, frame: pl.DataFrame) -> None:
        self.store.write(table, self.study.name, partition, frame)

    def delete(self, table: str, partition: str) -> None:
        self.store.delete(table, self.study.name, partition)

    def has(self, table: str, partition: str) -> bool:
        return bool(self.store.files(table, self.study.name, partition))

    def record(self, asset: str, item: str) -> dict[str, Any] | None:
        """The row of table `runs` for this item, if any."""
        frame = self.read("runs", f"{asset}__{item}")
        return frame.row(0, named=True) if frame.height else None

    def known(self, asset: str, item: str) -> Known | None:
        """What matters of this item's record, if any."""
        record = self.record(asset, item)
        return Known(*(record[name] for name in Known._fields)) if record else None

    def recorded(self, asset: str) -> set[str]:
        """The items of an asset that have a record, whatever came of them."""
        return self.recorded_by_asset().get(asset, set())

    def recorded_by_asset(self) -> dict[str, set[str]]:
        """Every asset that has records, with its items."""
        found: dict[str, set[str]] = {}
        for name in self.store.partitions("runs", self.study.name):
            asset, _, item = name.partition("__")
            found.setdefault(asset, set()).add(item)
        return found

    def results(self, asset: str) -> dict[str, str]:
        """What each finished item of an asset came to (a content hash), by item."""
        frame = self.read("runs").filter((pl.col("asset") == asset) & (pl.col("outcome") == "ok"))
        return dict(frame.sort("item").select("item", "result").iter_rows())

    def known_scans(self) -> pl.DataFrame:
        """Rows of table `scans` that may be worked on (status `ok`)."""
        return self.read("scans").filter(pl.col("status") == "ok").sort("scan")

    def derived(self, table: str, name: Any, build: Callable[[pl.DataFrame], Built]) -> Built:
        """What `build` makes of a table of the whole cohort; made again only when the table's file is another."""
        stamp = self.store.stamp(table, self.study.name, ALL)
        known = self._built.get((table, name))
        if known is None or known[0] != stamp:
            known = (stamp, build(self.read(table)))
            self._built[table, name] = known
        return known[1]

    @property
    def sides(self) -> dict[str, tuple[str, int | None]]:
        """Set and fold of every scan that is in the split."""
        return self.derived("splits", "sides", _sides)

    # -------------------------------------------------------------------------------------------------- raw files
    def folder(self) -> Folder:
        """What lies in the BIDS folder, or among the slices, now."""
        if self.study.slices:
            from relevance_assets.cohort.slices import look_slices

            return look_slices(self.slice_index(), self.bids)
        return look(self.bids)

    def slice_index(self) -> pl.DataFrame:
        """The slices that lie there now, as many of them as the study takes."""
        from relevance_assets.cohort.slices import index_slices

        assert self.study.slices is not None
        index = index_slices(self.bids, block=self.study.slices.block)
        return index.gather_every(self.study.slices.every)

    def signature(self, scan: str) -> str:
        """Of a raw scan's files as they are now."""
        return look_at(self.bids, scan)

    # -------------------------------------------------------------------------------------------------- files
    def relative(self, path: Path) -> str:
        """As stored in tables: relative to the home folder."""
        return stored_path(path, self.home.root)

    @cached_property
    def space(self) -> str | None:
        """Where prepared volumes lie, as BIDS names it; None where the first contrast's file lies."""
        steps = {step.step: step for step in self.study.preparation}
        resample, coregister = steps.get("resample"), steps.get("coregister")
        if isinstance(resample, Resample) and resample.space == "template":
            return TEMPLATE_SPACE
        if "halfway" in steps:
            return HALFWAY
        if isinstance(coregister, Coregister):
            names = {contrast.name: contrast.suffix for contrast in self.study.contrasts}
            return names[coregister.reference or self.study.contrasts[0].name]
        return None

    @cached_property  # asked for several files of every scan
    def _prepared(self) -> str:
        return f"space-{self.space}_res-prepared" if self.space else "res-prepared"

    def within(self, path: Path) -> Path:
        """A derivative's path inside its dataset, as BIDS URIs name it."""
        return path.relative_to(self.home.derivatives(self.study.name))

    def prepared_path(self, scan: str, contrast: Contrast) -> Path:
        entities = "".join(f"{key}-{value}_" for key, value in contrast.entities.items())
        return self._image(scan, f"{entities}{self._prepared}_desc-preproc_{contrast.suffix}")

    def prepared_paths(self, scan: str) -> tuple[Path, ...]:
        return tuple(self.prepared_path(scan, contrast) for contrast in self.study.contrasts)

    def mask_path(self, scan: str) -> Path:
        return self._image(scan, f"{self._prepared}_desc-brain_mask")

    def map_path(self, scan: str, method: str, contrast: str, grid: MapGrid = "prepared") -> Path:
        entities = {"prepared": f"{self._prepared}_", "native": "", "template": f"space-{TEMPLATE_SPACE}_"}[grid]
        return self._image(scan, f"{entities}desc-{camel(method, contrast)}_relmap")

    def quantiles_path(self, scan: str, method: str, contrast: str, *, negative: bool = False) -> Path:
        return self._image(
            scan, f"{self._prepared}_desc-{camel(method, contrast)}{'Negative' if negative else ''}Quantiles_dseg"
        )

    def segmented_path(self, scan: str, source: str, mask: str) -> Path:
        """A mask of the study's network, on the native grid; `mask` as in `lesions.sources`."""
        return self._image(scan, f"label-{mask}_desc-{source}_mask")

    def tumour_path(self, scan: str) -> Path:
        """The mask of truth of a slice, on the prepared grid."""
        return self._image(scan, f"{self._prepared}_label-tumour_mask")

    def truth_path(self, scan: str, region: str) -> Path:
        """The planted truth of a synthetic scan, on its native grid."""
        participant, session = split_scan(scan)
        folder = self.bids / "derivatives" / TRUTH / participant
        if session:
            folder /= session
        return folder / "anat" / f"{scan}_label-{region}_mask.nii.gz"

    def map_contrasts(self, method: str) -> list[str]:
        """The maps that a method gives: one per contrast, and the combined one where it has that."""
        names = [contrast.name for contrast in self.study.contrasts]
        return [*names, COMBINED] if self.study.has_combined(method) else names

    def figure_path(self, name: str) -> Path:
        """A figure of the whole study."""
        return self.home.derivatives(self.study.name) / "figures" / f"{name}.png"

    def scan_figure_path(self, scan: str, name: str) -> Path:
        """A figure of one scan."""
        return self._image(scan, "").parents[1] / "figures" / f"{scan}_{name}.png"

    def alignment_paths(self, scan: str) -> tuple[Path, Path, Path]:
        """Of the first contrast's file: the field to the template, the field back, the matrix to the template."""
        name = self.study.contrasts[0].name
        there, back = (name, TEMPLATE_SPACE), (TEMPLATE_SPACE, name)
        return self._transform_path(scan, *there), self._transform_path(scan, *back), self._matrix_path(scan, *there)

    def coregistration_path(self, scan: str, contrast: Contrast) -> Path:
        """The transform of another contrast's file to the first contrast's."""
        return self._matrix_path(scan, contrast.name, self.study.contrasts[0].name)

    def _transform_path(self, scan: str, source: str, target: str) -> Path:
        """It takes images from `source` to `target`: it leads from points of the target to points of the source."""
        return self._image(scan, f"from-{camel(source)}_to-{camel(target)}_mode-image_xfm")

    def _matrix_path(self, scan: str, source: str, target: str) -> Path:
        path = self._transform_path(scan, source, target)
        return path.with_name(path.name.replace(".nii.gz", ".txt"))

    def _image(self, scan: str, name: str) -> Path:
        return self.home.image(self.study.name, scan, name)

    def set_aside(self, scan: str) -> None:
        """Move a scan's derivatives to `removed/<study>/<scan>`, in place of what an earlier removal left there."""
        folder, figures = self._image(scan, "").parent, self.scan_figure_path(scan, "").parent
        place = self.home.removed(self.study.name) / scan
        if folder.exists() or figures.exists():
            shutil.rmtree(place, ignore_errors=True)
        for found, there in ((folder, place), (figures, place / figures.name)):
            if found.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(found, there)
        for empty in (folder.parent, folder.parent.parent):
            if empty != self.home.derivatives(self.study.name) and empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()

    def describe_dataset(self) -> None:
        """Write `dataset_description.json` and `.bidsignore` of the study's derivatives."""
        folder = self.home.derivatives(self.study.name)
        description, ignored = folder / "dataset_description.json", folder / ".bidsignore"
        names = "\n".join(IGNORED_BY_BIDS) + "\n"
        if description.exists() and ignored.exists() and ignored.read_text() == names:
            return
        folder.mkdir(parents=True, exist_ok=True)
        ignored.write_text(names)
        write_json(
            description,
            {
                "Name": self.study.title,
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "relevance-assets", "Version": version("relevance-assets")}],
                "DatasetLinks": {"raw": self.bids.resolve().as_uri()},
            },
        )


def _sides(splits: pl.DataFrame) -> dict[str, tuple[str, int | None]]:
    return {scan: (side, fold) for scan, side, fold in splits.select("scan", "set", "fold").iter_rows()}


class Snapshot(Workspace):
    """A study as it was at one moment: records and raw files are looked at once, for plans over all scans."""

    @cached_property
    def _runs(self) -> pl.DataFrame:
        return self.read("runs")

    @cached_property
    def _records(self) -> dict[str, dict[str, int]]:
        """Where in it the record of an asset's item is."""
        places: dict[str, dict[str, int]] = {}
        for place, (asset, item) in enumerate(self._runs.select("asset", "item").iter_rows()):
            places.setdefault(asset, {})[item] = place
        return places

    @cached_property
    def _known(self) -> list[Known]:
        """The same rows: a dict of all that is recorded takes longer than the rest of an answer, and weighs more."""
        return list(map(Known._make, self._runs.select(Known._fields).iter_rows()))

    @cached_property
    def _folder(self) -> Folder:
        return super().folder()

    @cached_property
    def _known_scans(self) -> pl.DataFrame:
        return super().known_scans()

    @cached_property
    def _gathered(self) -> dict[str, Gathered]:
        return {}

    def gathered(self, table: str) -> AbstractContextManager[Gathered]:
        if table not in self._gathered:
            self._gathered[table] = self.store.gather_now(table, self.study.name)
            weakref.finalize(self, self._gathered[table].opened.close)  # when nobody asks this snapshot any more
        return nullcontext(self._gathered[table])

    @cached_property
    def _partitions(self) -> dict[str, set[str]]:
        return {}

    def has(self, table: str, partition: str) -> bool:
        if table not in self._partitions:
            self._partitions[table] = set(self.store.partitions(table, self.study.name))
        return partition in self._partitions[table]

    def record(self, asset: str, item: str) -> dict[str, Any] | None:
        place = self._records.get(asset, {}).get(item)
        return None if place is None else self._runs.row(place, named=True)

    def known(self, asset: str, item: str) -> Known | None:
        place = self._records.get(asset, {}).get(item)
        return None if place is None else self._known[place]

    def recorded(self, asset: str) -> set[str]:
        return set(self._records.get(asset, ()))

    def recorded_by_asset(self) -> dict[str, set[str]]:
        return {asset: set(items) for asset, items in self._records.items()}

    def results(self, asset: str) -> dict[str, str]:
        found = ((item, self._known[place]) for item, place in sorted(self._records.get(asset, {}).items()))
        return {item: known.result for item, known in found if known.outcome == "ok"}

    def known_scans(self) -> pl.DataFrame:
        return self._known_scans

    def derived(self, table: str, name: Any, build: Callable[[pl.DataFrame], Built]) -> Built:
        if (table, name) not in self._built:
            self._built[table, name] = (None, build(self.read(table)))
        return self._built[table, name][1]

    def folder(self) -> Folder:
        return self._folder

    def signature(self, scan: str) -> str:
        seen = self._folder.scans.get(scan)
        return seen.signature if seen else ""
