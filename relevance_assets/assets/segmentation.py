"""Stages of a study whose own networks segment ventricles and lesions.

Belongs here: who learns from whom, masks of every scan by networks that never saw its person, and how good they are.
Does not belong here: networks, losses, training, measures (`segmentation/`), what is measured of masks (`lesions.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.mask_sources import has_masks, load_labels, mask_files, native_image, stamps
from relevance_assets.assets.models import folds
from relevance_assets.assets.stages import ALL, Done, Stage, Work, each, tick
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint, sha256, sidecar, write_json
from relevance_assets.home import split_scan

if TYPE_CHECKING:
    import numpy as np

    from relevance_assets.imaging.volumes import Image
    from relevance_assets.segmentation import fit
    from relevance_assets.segmentation.data import LabelledScan
    from relevance_assets.segmentation.predict import Segmenter
    from relevance_assets.study import Segmentation

__all__ = ["segmentation_stages"]

log = logging.getLogger(__name__)

MODEL = "attention_unet"
TOOLS = ("relevance-assets", "torch", "nibabel", "scipy")  # that values depend on
CLASSES = {1: "ventricle", 2: "wmh"}
MASKS = {"ventricle": "ventricles", "wmh": "lesions"}  # class: what `lesions.sources` calls its mask


def segmentation_stages(workspace: Workspace) -> list[Stage]:
    if not workspace.study.segmentation:
        return []
    return [_trained_models(workspace), _segmentations(workspace)]


def settings_of(workspace: Workspace) -> Segmentation:
    settings = workspace.study.segmentation
    assert settings is not None
    return settings


def networks_for(workspace: Workspace, scan: str) -> list[str]:
    """Folds whose networks never saw the scan's person: the one that left them out, or all where none knows them."""
    sides = workspace.derived("splits", "people", _people)
    fold = sides.get(split_scan(scan)[0])
    return folds(workspace) if fold is None else [str(fold)]


def _people(splits: pl.DataFrame) -> dict[str, int | None]:
    return dict(splits.select("participant_id", "fold").unique().iter_rows())


# --------------------------------------------------------------------------------------------------- trained_models
def _trained_models(workspace: Workspace) -> Stage:
    study, settings = workspace.study, settings_of(workspace)

    def divided(fold: str) -> pl.DataFrame:
        """Scan, person and role of all scans with masks that are in the split, sorted by scan."""
        number, count = int(fold), study.split.folds
        validates = (number + 1) % count if settings.validate_with == "next_fold" and count > 2 else -1  # no fold
        role = (
            pl.when(pl.col("fold") == number)
            .then(pl.lit("test"))
            .when(pl.col("fold") == validates)
            .then(pl.lit("validation"))
            .otherwise(pl.lit("train"))
        )
        frame = workspace.read("splits").filter(pl.col("set") == "train").sort("scan")
        labelled = [has_masks(workspace, scan, settings.learn_from) for scan in frame["scan"]]
        return frame.filter(pl.Series(labelled, dtype=pl.Boolean)).select("scan", "participant_id", role.alias("set"))

    def inputs(fold: str) -> Any:
        upstream(workspace, "splits", ALL)
        frame = divided(fold).filter(pl.col("set") != "test")
        volumes = workspace.results("prepared_volumes")
        known = [(volumes.get(scan), stamps(workspace, scan, settings.learn_from)) for scan in frame["scan"]]
        return [fold, frame.rows(), known]

    def make(fold: str) -> Done:
        from relevance_assets.segmentation.fit import fit

        frame, left_out = divided(fold), []
        sets: dict[str, list[tuple[LabelledScan, np.ndarray]]] = {"train": [], "validation": []}
        for scan, role in frame.filter(pl.col("set").is_in(list(sets))).select("scan", "set").iter_rows():
            try:
                sets[role].append(_labelled(workspace, scan))
            except ValueError as error:  # a scan with a bad mask fails by itself in `segmentations`
                left_out.append(scan)
                log.warning("trained_models fold %s: left out: %s", fold, " ".join(str(error).split()))
        frame = frame.filter(~pl.col("scan").is_in(left_out))
        fitted = fit(
            _training(settings, sets["train"]),
            [scan for scan, _ in sets["train"]],
            [scan for scan, _ in sets["validation"]],
            workspace.home.model(study.name, int(fold)),
            progress=lambda epoch, epochs, _: tick(epoch / epochs, f"fold {fold}, epoch {epoch} of {epochs}"),
        )
        keyed = {"model": pl.lit(MODEL), "fold": pl.lit(fold)}
        seconds = float(fitted.epochs["seconds"].sum())
        model = {
            "path": workspace.relative(fitted.path),
            "sha256": fitted.sha256,
            "parameters": fitted.parameters,
            "device": fitted.device,
            "seconds": seconds,
            "seed": settings.seed,
            "best_epoch": fitted.best_epoch,
        }
        dice = [pl.col(f"dice_{name}") for name in CLASSES.values()]
        epochs = fitted.epochs.select(
            "epoch", "loss", "validation_loss", pl.mean_horizontal(dice).alias("validation_metric"), "seconds"
        )
        best = fitted.epochs.row(by_predicate=pl.col("epoch") == fitted.best_epoch, named=True)
        return Done(
            tables={
                "models": pl.DataFrame([model]).with_columns(**keyed),
                "training_epochs": epochs.with_columns(**keyed),
                "training_scans": frame.with_columns(**keyed),
            },
            result=fitted.sha256,
            metadata={
                "parameters": fitted.parameters,
                "device": fitted.device,
                "best_epoch": fitted.best_epoch,
                **{f"validation_dice_{name}": best[f"dice_{name}"] for name in CLASSES.values()},
                "seconds": round(seconds, 1),
                "scans_train": len(sets["train"]),
                "scans_validation": len(sets["validation"]),
                **({"left_out": ", ".join(left_out)} if left_out else {}),
            },
        )

    return Stage(
        name="trained_models",
        version="1",
        description="One segmentation network per fold of people, which it never sees. Trained when there is none, or "
        "when somebody asks; scans that come later are segmented by the networks there are.",
        tables=("models", "training_epochs", "training_scans"),
        items=lambda: folds(workspace),
        settings=[
            settings.trained(),
            [step.model_dump(mode="json") for step in study.preparation],
            study.contrasts[0].model_dump(mode="json"),
        ],
        inputs=inputs,
        work=each(make),
        outputs=lambda fold: [workspace.home.model(study.name, int(fold)) / "segmentation.pt"],
        partition="fold",
        needs=("splits", "prepared_volumes"),
        kinds=frozenset({"pytorch"}),
        group="model",
        pool="gpu",
        lasting=True,  # days of a GPU are in it
    )


def _training(settings: Segmentation, scans: list[tuple[LabelledScan, Any]]) -> fit.Settings:
    """The study's words as those of the training; what they leave open follows from the training's scans."""
    import numpy as np

    from relevance_assets.segmentation.data import Patches
    from relevance_assets.segmentation.fit import Settings
    from relevance_assets.segmentation.networks import kernels_and_pools

    if not scans:
        raise ValueError("no scan to learn from; take fewer folds or add masks")
    network: dict[str, Any] = settings.model_dump(include={"dims", "widths", "norm", "gates", "dropout_scale"})
    if settings.dims == 3:
        size_mm = np.median([size for _, size in scans], axis=0)
        network["kernels"], network["pools"] = kernels_and_pools(size_mm, len(settings.widths))
    largest = np.max([scan.image.shape for scan, _ in scans if isinstance(scan.image, np.ndarray)], axis=0)
    return Settings(
        network=network,
        patches=Patches(
            settings.size or (int(largest[0]), int(largest[1]), 1),
            **{
                name: getattr(settings, name)
                for name in ("foreground_share", "per_epoch", "augmentation", "intensity_scale", "intensity_shift")
            },
        ),
        **{
            name: getattr(settings, name)
            for name in (
                "normalisation",
                "loss",
                "loss_options",
                "class_weights",
                "epochs",
                "batch_size",
                "learning_rate",
                "lowest_rate",
                "plateau",
                "stop_after",
                "seed",
            )
        },
    )


# ---------------------------------------------------------------------------------------------------------- a scan
def _upright(workspace: Workspace, scan: str) -> tuple[Image, Image, np.ndarray]:
    """The first contrast as found; the same with axes to the right, front and top, 0 outside the brain; the brain."""
    import numpy as np

    from relevance_assets.imaging.grid import canonical
    from relevance_assets.imaging.volumes import Image

    found, brain = native_image(workspace, scan)
    inside = canonical(brain, found.affine)[0] > 0
    values, affine = canonical(found.data, found.affine)
    return found, Image(np.where(inside, values, 0).astype(np.float32), affine), inside


def _labelled(workspace: Workspace, scan: str) -> tuple[LabelledScan, np.ndarray]:
    """What a network learns of a scan, and the size of its voxels, mm."""
    from nibabel.affines import voxel_sizes

    from relevance_assets.imaging.grid import canonical
    from relevance_assets.segmentation.data import LabelledScan

    found, image, brain = _upright(workspace, scan)
    labels = canonical(load_labels(workspace, scan, settings_of(workspace).learn_from, found), found.affine)[0]
    return LabelledScan(scan, split_scan(scan)[0], image.data, labels, brain), voxel_sizes(image.affine)


# --------------------------------------------------------------------------------------------------- segmentations
def _segmentations(workspace: Workspace) -> Stage:
    study, settings = workspace.study, settings_of(workspace)
    connectivity = study.lesions.connectivity if study.lesions else 26

    def inputs(scan: str) -> Any:
        upstream(workspace, "splits", ALL)
        known = {fold: upstream(workspace, "trained_models", fold) for fold in networks_for(workspace, scan)}
        return [
            upstream(workspace, "prepared_volumes", scan),
            known,
            stamps(workspace, scan, settings.learn_from),
            settings.applied(),
            connectivity,
        ]

    @contextmanager
    def work() -> Iterator[Work]:
        with _segmenters(workspace) as segmenter:
            yield lambda scan: make(scan, segmenter)

    def make(scan: str, segmenter: Callable[[str], Segmenter]) -> Done:
        import numpy as np
        from nibabel.affines import voxel_sizes

        from relevance_assets.imaging.grid import canonical, uncanonical
        from relevance_assets.segmentation.metrics import pooled_counts, scan_metrics

        for path in workspace.segmented_path(scan, settings.name, "lesions").parent.glob(
            f"{scan}_label-*_desc-*_mask.*"
        ):
            path.unlink()  # also those of an earlier name
        found, image, brain = _upright(workspace, scan)
        chosen = networks_for(workspace, scan)
        said = sum(segmenter(fold)(image.data, brain, scan).probabilities for fold in chosen)
        size = voxel_sizes(image.affine)
        labels = _cleaned(np.asarray(said).argmax(axis=0).astype(np.uint8), size, settings, connectivity)
        by = chosen[0] if len(chosen) == 1 else "ensemble"
        key = {"scan": pl.lit(scan), "fold": pl.lit(by)}
        rows = _write_masks(workspace, scan, found, uncanonical(labels, found.affine), chosen, float(size.prod()))
        tables = {"segmentations": pl.DataFrame(rows).with_columns(**key)}
        if stamps(workspace, scan, settings.learn_from):
            truth = canonical(load_labels(workspace, scan, settings.learn_from, found), found.affine)[0]
            scores = scan_metrics(labels, truth, size, classes=CLASSES, connectivity=connectivity)
            tables["segmentation_scores"] = scores.with_columns(**key)
            tables["segmentation_counts"] = pooled_counts(labels, truth, classes=CLASSES).with_columns(
                scan=pl.lit(scan)
            )
        return Done(
            tables=tables,
            result=fingerprint(*(frame.rows() for frame in tables.values())),
            metadata={f"{row['class']}_ml": round(row["volume_mm3"] / 1000, 3) for row in rows} | {"network": by},
        )

    def outputs(scan: str) -> list[Path]:
        return list(mask_files(workspace, scan, settings.name).values())

    return Stage(
        name="segmentations",
        version="1",
        description="Ventricles and lesions of every scan on its own grid, by the network that left its person out or, "
        "of new people, by all networks; and how well they agree with the masks that were learnt from.",
        tables=("segmentations", "segmentation_scores", "segmentation_counts"),
        items=lambda: sorted(workspace.results("prepared_volumes")),
        inputs=inputs,
        work=work,
        outputs=outputs,
        partition="scan",
        parallel=True,
        needs=("prepared_volumes", "splits", "trained_models"),
        kinds=frozenset({"pytorch", "nifti"}),
        group="model",
        pool="gpu",
    )


@contextmanager
def _segmenters(workspace: Workspace) -> Iterator[Callable[[str], Segmenter]]:
    """Each fold's network, opened when it is first asked for."""
    from relevance_assets.precision import one_thread
    from relevance_assets.segmentation.predict import Segmenter

    settings, opened = settings_of(workspace), {}

    def segmenter(fold: str) -> Segmenter:
        if fold not in opened:
            path = workspace.home.model(workspace.study.name, int(fold)) / "segmentation.pt"
            opened[fold] = Segmenter(path, flips=settings.flips, overlap=settings.overlap)
        return opened[fold]

    with one_thread():
        yield segmenter


def _cleaned(labels: np.ndarray, size_mm: np.ndarray, settings: Segmentation, connectivity: int) -> np.ndarray:
    """Labels without what the study's post-processing removes; the third axis is through the slices."""
    from relevance_assets.segmentation.postprocess import INFERENCE_RADII, as_published, in_millimetres

    if settings.postprocessing != "millimetres":
        inference = settings.postprocessing == "published_inference"
        return as_published(labels, radii=INFERENCE_RADII if inference else None)
    numbers = {name: label for label, name in CLASSES.items()}
    return in_millimetres(
        labels,
        size_mm.tolist(),
        minimum_mm3={numbers[name]: least for name, least in settings.minimum_mm3.items()},
        radii_mm={numbers[name]: radius for name, radius in settings.opening_mm.items()},
        connectivity=connectivity,
    )


def _write_masks(
    workspace: Workspace, scan: str, found: Image, labels: np.ndarray, chosen: list[str], voxel_mm3: float
) -> list[dict[str, Any]]:
    """One mask per class on the image's own grid, with its sidecar; rows of table `segmentations`."""
    from relevance_assets.imaging.volumes import save_volume

    settings = settings_of(workspace)
    raw = workspace.read("raw_scans", scan).filter(image=workspace.study.contrasts[0].name).row(0, named=True)
    about = {
        "Sources": [f"bids:raw:{raw['path']}"],
        "SourceSha256": raw["sha256"],
        "SegmentedBy": {fold: upstream(workspace, "trained_models", fold) for fold in chosen},
        "Seed": settings.seed,
        "Settings": settings.applied(),
        "Software": {name: version(name) for name in TOOLS},
    }
    rows = []
    for label, tissue in CLASSES.items():
        path = mask_files(workspace, scan, settings.name)[MASKS[tissue]]
        inside = labels == label
        save_volume(path, inside, found.affine, "uint8")
        write_json(sidecar(path), {"Type": "ROI" if tissue == "ventricle" else "Lesion", **about})
        voxels = int(inside.sum())
        row = {"class": tissue, "path": workspace.relative(path), "sha256": sha256(path)}
        rows.append(row | {"voxels": voxels, "volume_mm3": voxels * voxel_mm3})
    return rows
