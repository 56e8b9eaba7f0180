"""Stages of a study of slices before its model: which slices, are they sound, prepared, divided into sets.

Belongs here: `participants`, `raw_scans`, `prepared_volumes`, `splits` of such a study; a slice is a scan of a person.
Does not belong here: how a folder of slices is read and divided (`cohort/slices.py`, `slice_splits.py`), models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import held_back, refuse_many_gone, upstream
from relevance_assets.assets.spaces import stamp
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint, sha256, sidecar, write_json

if TYPE_CHECKING:
    import numpy as np

    from relevance_assets.study import Slices

__all__ = ["slice_stages", "slices_of"]

MASK = "mask"  # its name beside the contrast's


def slice_stages(workspace: Workspace) -> list[Stage]:
    return [_participants(workspace), _raw_scans(workspace), _prepared_volumes(workspace), _splits(workspace)]


def slices_of(workspace: Workspace) -> Slices:
    settings = workspace.study.slices
    assert settings is not None
    return settings


# ------------------------------------------------------------------------------------------------ participants
def _participants(workspace: Workspace) -> Stage:
    study, settings = workspace.study, slices_of(workspace)
    own = settings.model_dump(mode="json", include={"block", "every"})
    synthetic = settings.model_dump(mode="json", include={"synthetic", "synthetic_size", "seed"})

    def inputs(_: str) -> Any:
        given: Any = synthetic
        if settings.folder:
            folder = workspace.folder()
            given = folder.without(held_back(workspace, folder)).signature
        return [given, own, study.target.model_dump(mode="json")]

    def make(_: str) -> Done:
        from relevance_assets.cohort.bids import DatasetError
        from relevance_assets.cohort.participants import SCHEMA
        from relevance_assets.cohort.slices import look_slices

        if settings.folder is None:
            from relevance_assets.cohort.synthetic.slices import synthesise_slices

            synthesise_slices(
                workspace.bids, slices=settings.synthetic, size=settings.synthetic_size, seed=settings.seed
            )
        index = workspace.slice_index()
        index = index.filter(~pl.col("scan").is_in(sorted(held_back(workspace, look_slices(index, workspace.bids)))))
        sound = index.filter(pl.col("problem").is_null())
        if sound.is_empty():
            raise DatasetError(f"{workspace.bids}: no usable slice; {index['problem'][0]}")
        classes = study.target.classes
        unknown = sorted(set(sound["class"]) - set(classes))
        if unknown:
            raise DatasetError(f"{workspace.bids}: class {unknown[0]} is not among cohort.target.classes; add it there")
        place = pl.col("class").replace_strict(
            {name: float(number) for number, name in enumerate(classes)}, default=None, return_dtype=pl.Float64
        )
        bad = pl.col("problem").is_not_null()
        scans = index.with_columns(
            target=pl.when(~bad).then(place),
            status=pl.when(bad).then(pl.lit("failed")).otherwise(pl.lit("ok")),
            reason=pl.col("problem"),
            other=pl.lit("{}"),
        )
        rows = pl.concat([pl.DataFrame(schema=SCHEMA), scans], how="diagonal_relaxed").select(*SCHEMA)
        refuse_many_gone(workspace, rows, "index.csv")
        people = sound.select("participant_id").unique().sort("participant_id")
        kept = ["scan", "slice_id", "class", "patient", "fold"]
        paths = [pl.col(name).str.strip_prefix(f"{workspace.bids}/") for name in ("image", "mask")]
        counts = dict(sound.group_by("class").len().sort("class").iter_rows())
        return Done(
            tables={
                "participants": people.with_columns(other=pl.lit("{}")),
                "scans": rows.sort("scan"),
                "slices": sound.select(*kept, *paths).sort("scan"),
            },
            result=fingerprint(rows.sort("scan").rows(), sound.select(*kept).sort("scan").rows()),
            metadata={f"slices_{name}": count for name, count in counts.items()}
            | {"people": people.height, "failed": index.height - sound.height},
        )

    return Stage(
        name="participants",
        version="slices-1",
        description="Which slices there are, of whom and of which class; a slice is a scan of a person, where no "
        "patient is known of its block of neighbouring numbers.",
        tables=("participants", "scans", "slices"),
        lasting=True,
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        kinds=frozenset({"polars"}),
    )


# --------------------------------------------------------------------------------------------------- raw scans
def _files(workspace: Workspace, scan: str) -> tuple[Path, Path]:
    """Picture and mask of a slice; NotReady where it is not in the cohort."""
    known = workspace.derived("slices", "files", _paths)
    if scan not in known:
        raise NotReady(f"{scan}: no slice of the cohort: participants")
    image, mask = known[scan]
    return workspace.bids / image, workspace.bids / mask


def _paths(slices: pl.DataFrame) -> dict[str, tuple[str, str]]:
    return {scan: (image, mask) for scan, image, mask in slices.select("scan", "image", "mask").iter_rows()}


def _raw_scans(workspace: Workspace) -> Stage:
    name = workspace.study.contrasts[0].name

    def inputs(scan: str) -> Any:
        upstream(workspace, "participants", ALL)
        return [stamp(path) if path.exists() else None for path in _files(workspace, scan)]

    def make(scan: str) -> Done:
        from relevance_assets.cohort.slices import read_mask, read_slice
        from relevance_assets.imaging.grid import Grid
        from relevance_assets.imaging.quality import grid_columns
        from relevance_assets.imaging.volumes import ScanError

        image, mask = _files(workspace, scan)
        picture, inside = read_slice(image), read_mask(mask)
        if picture.data.min() == picture.data.max():
            raise ScanError(
                f"{image}: all pixels are {picture.data.min():g}, so nothing is to be seen; export it again"
            )
        if picture.data.shape[:2] != inside.shape:
            raise ScanError(
                f"{mask}: mask of {inside.shape} on a picture of {picture.data.shape[:2]}; export both again"
            )
        grid = grid_columns(Grid(picture.data.shape, picture.affine))
        rows = [
            {
                "image": kind,
                "path": str(path.relative_to(workspace.bids)),
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
                "sidecar": json.dumps({}),
                **grid,
            }
            for kind, path in ((name, image), (MASK, mask))
        ]
        frame = pl.DataFrame(rows).with_columns(scan=pl.lit(scan))
        pixels = f"{picture.data.shape[0]} x {picture.data.shape[1]}"
        return Done(
            tables={"raw_scans": frame},
            result=fingerprint(frame.select("image", "sha256").rows()),
            metadata={"pixels": pixels, "tumour_share": float(inside.mean())},
        )

    return Stage(
        name="raw_scans",
        version="slices-1",
        description="Each slice's picture and mask as found: hash and size. What cannot be read stops here.",
        tables=("raw_scans",),
        items=lambda: workspace.known_scans()["scan"].to_list(),
        inputs=inputs,
        work=each(make),
        partition="scan",
        parallel=True,
        needs=("participants",),
        group="imaging",
    )


# -------------------------------------------------------------------------------------------- prepared volumes
def _prepared_volumes(workspace: Workspace) -> Stage:
    study, settings = workspace.study, slices_of(workspace)
    contrast = study.contrasts[0]

    def inputs(scan: str) -> Any:
        return [upstream(workspace, "raw_scans", scan), list(settings.size), contrast.name]

    def make(scan: str) -> Done:
        import numpy as np

        from relevance_assets.cohort.slices import read_mask, read_slice
        from relevance_assets.imaging.grid import Grid
        from relevance_assets.imaging.quality import volume_row
        from relevance_assets.imaging.volumes import save_volume

        image, mask = _files(workspace, scan)
        picture = read_slice(image)
        tumour = read_mask(mask)
        values, inside = _resized(picture.data[..., 0], settings.size), _resized(tumour, settings.size) > 0.5
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
        steps = np.array(
            [*(before / now for before, now in zip(picture.data.shape[:2], settings.size, strict=True)), 1]
        )
        affine = picture.affine @ np.diag([*steps, 1.0])
        affine[:3, 3] = picture.affine[:3, 3] + picture.affine[:3, :3] @ ((steps - 1) / 2)
        path, truth = workspace.prepared_path(scan, contrast), workspace.tumour_path(scan)
        save_volume(path, scaled[..., None], affine)
        save_volume(truth, inside[..., None], affine, "uint8")
        about = {
            "Sources": [f"bids:raw:{one.relative_to(workspace.bids)}" for one in (image, mask)],
            "Range": [low, high],
        }
        for one, kind in ((path, {}), (truth, {"Type": "Lesion"})):
            write_json(sidecar(one), about | kind)
        grid = Grid((*scaled.shape, 1), affine)
        row = volume_row(
            contrast.name,
            values[..., None],
            (scaled > 0)[..., None],
            grid,
            resampled=picture.data.shape[:2] != settings.size,
            share_clipped=0.0,
        )
        row |= {"scan": scan, "path": workspace.relative(path), "sha256": sha256(path)}
        return Done(
            tables={"volumes": pl.DataFrame([row], infer_schema_length=None)},
            result=fingerprint(row["sha256"], sha256(truth)),
            metadata={
                "tumour_pixels": int(inside.sum()),
                "tumour_lost_in_resizing": bool(tumour.any() and not inside.any()),  # then it is not scored
            },
        )

    return Stage(
        name="prepared_volumes",
        version="slices-1",
        description="Slices on one grid, each scaled from its least to its greatest value to [0, 1], as published; the "
        "mask where more than half of the pixel is tumour.",
        tables=("volumes",),
        items=lambda: list(workspace.results("raw_scans")),
        inputs=inputs,
        work=each(make),
        outputs=lambda scan: [workspace.prepared_path(scan, contrast), workspace.tumour_path(scan)],
        partition="scan",
        parallel=True,
        needs=("raw_scans",),
        kinds=frozenset({"nifti", "pytorch"}),
        group="imaging",
    )


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(x, y) bilinearly to another size, with antialiasing, as torchvision's Resize does it."""
    import numpy as np
    import torch

    if values.shape == size:
        return np.asarray(values, dtype=np.float32)
    given = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    found = torch.nn.functional.interpolate(given, size=size, mode="bilinear", antialias=True, align_corners=False)
    return found[0, 0].numpy()


# ------------------------------------------------------------------------------------------------------ splits
def _splits(workspace: Workspace) -> Stage:
    settings = slices_of(workspace)

    def usable() -> pl.DataFrame:
        """Prepared slices as the split takes them."""
        prepared = list(workspace.results("prepared_volumes"))
        people = workspace.known_scans().select("scan", "participant_id")
        return people.join(workspace.read("slices"), on="scan").filter(pl.col("scan").is_in(prepared)).sort("scan")

    def inputs(_: str) -> Any:
        frame = usable()
        if frame.is_empty():
            raise NotReady("no prepared slice yet: prepared_volumes")
        return frame.select("scan", "participant_id", "class", "fold").rows()

    def make(_: str) -> Done:
        from relevance_assets.cohort.slice_splits import resolve_split

        slices = usable()
        how = resolve_split(slices, settings.split.how)
        # Whether it was asked for or found: the same split, so a study keeps its own where only the word changes.
        drawn = fingerprint(settings.split.model_dump(mode="json") | {"how": how})
        before = workspace.read("splits").filter(pl.col("draw").str.starts_with(drawn))
        if before.is_empty():
            frame, draw = _divided(slices, settings), f"{drawn}-{fingerprint(slices['scan'].to_list())[:8]}"
        else:
            frame, draw = _continued(before, slices), before["draw"][0]
        counts = {
            "train": frame.filter((pl.col("set") == "train") & pl.col("fold").is_null()).height,
            "validation": frame["fold"].count(),
            **{name: frame.filter(set=name).height for name in ("test", "buffer", "new")},
        }
        return Done(
            tables={"splits": frame.with_columns(draw=pl.lit(draw))},
            result=draw,
            metadata={f"slices_{name}": count for name, count in counts.items()} | {"split_by": how},
        )

    return Stage(
        name="splits",
        version="slices-1",
        description="Who trains, validates (fold 0) and tests: by patient, by blocks of neighbouring slices with "
        "buffers, or slice by slice as published, which leaks. Drawn once: what comes later is new.",
        tables=("splits",),
        lasting=True,
        items=lambda: [ALL],
        settings=settings.split.model_dump(mode="json"),
        inputs=inputs,
        work=each(make),
        needs=("participants", "prepared_volumes"),
        kinds=frozenset({"scikitlearn", "polars"}),
        group="model",
        resets=lambda: next(iter(workspace.read("splits")["draw"]), None),
    )


def _divided(slices: pl.DataFrame, settings: Slices) -> pl.DataFrame:
    """Rows of table `splits`: who validates is of the training set and in fold 0, as in other studies."""
    from relevance_assets.cohort.slice_splits import split_slices

    split = settings.split
    found = split_slices(
        slices, split.how, shares=split.shares, seed=split.seed, buffer=split.buffer, folds=split.folds
    )
    validates = pl.col("set") == "validation"
    return found.select(
        "scan",
        "participant_id",
        "leaking",
        set=pl.when(validates).then(pl.lit("train")).otherwise(pl.col("set")),
        fold=pl.when(validates).then(pl.lit(0, pl.Int64)),
    )


def _continued(before: pl.DataFrame, slices: pl.DataFrame) -> pl.DataFrame:
    """The same split for the slices of today: people who came later are new, later slices of others in no set."""
    cohort = slices.select("scan", "participant_id").sort("scan")
    joined = cohort.join(before.select("scan", "set", "fold", "leaking"), on="scan", how="left", maintain_order="left")
    met = pl.col("participant_id").is_in(before["participant_id"].unique().to_list())
    later = pl.when(met).then(pl.lit("buffer")).otherwise(pl.lit("new"))
    return joined.with_columns(pl.col("set").fill_null(later))
