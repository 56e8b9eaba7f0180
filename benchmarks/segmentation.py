"""What a small attention U-Net segments: synthetic people it never saw, and real ones left out one at a time.

    python benchmarks/segmentation.py                                # synthetic, then ../shared/data/ms-deepbrain
    python benchmarks/segmentation.py --parts synthetic --scans 24   # one part, fewer people

Belongs here: sets of scans, settings, tables of Dice per scan. Does not belong here: training and metrics themselves.

Settings were fixed before the first result and are the same in all parts but for the number of epochs, since sets
differ in size. Figures of real people come from very few of them: they are told as they are. None can be spared to
validate on, so that the training's loss chooses the epoch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from relevance_assets.cohort.synthetic import synthesise
from relevance_assets.imaging.brain_mask import foreground
from relevance_assets.imaging.volumes import load_volume, read_image
from relevance_assets.segmentation.data import LabelledScan, Patches, load, merge_masks
from relevance_assets.segmentation.fit import Fitted, Settings, fit
from relevance_assets.segmentation.metrics import pooled, pooled_counts, scan_metrics
from relevance_assets.segmentation.predict import Segmenter
from relevance_assets.study import Augmentation

REAL = Path(__file__).resolve().parents[1] / "../shared/data/ms-deepbrain"
PARTS = ("synthetic", "real", "both")
SHOWN = ("dice", "recall", "precision", "lesion_f1", "hd95_mm", "volume_difference_mm3")
VOXEL_MM = 2.0
AUGMENTATION = Augmentation(flip_axes=[0], rotate_degrees=10, scale_share=0.1, translate_voxels=4, noise_sd=0.1)
CLINICAL = Patches(
    (192, 224, 1), foreground_share=0.5, augmentation=AUGMENTATION, intensity_scale=0.1, intensity_shift=0.1
)
SETTINGS = Settings(
    network={"widths": [16, 32, 64, 128], "norm": "instance"},
    patches=replace(CLINICAL, size=(96, 112, 1)),
    normalisation="volume",
    loss="dice_ce",
    learning_rate=1e-3,
)


def synthetic_scans(folder: Path, count: int, voxel_mm: float) -> list[LabelledScan]:
    """The first session of each synthetic person; made where they are missing."""
    synthesise(folder, scans=count, voxel_size_mm=voxel_mm, seed=0)
    found = []
    for image in sorted(folder.glob("sub-*/ses-1/anat/*_FLAIR.nii.gz")):
        person, scan = image.parts[-4], image.name.removesuffix("_FLAIR.nii.gz")
        truth = folder / "derivatives/truth" / person / "ses-1/anat"
        masks = tuple(truth / f"{scan}_label-{label}_mask.nii.gz" for label in ("ventricles", "lesion"))
        found.append(LabelledScan(scan, person, image, masks, truth / f"{scan}_desc-brain_mask.nii.gz"))
    return found


def real_scans(folder: Path) -> list[LabelledScan]:
    """MS-DeepBrain's people with manual masks, which mix 1 and 255 (`> 0`). Intensities are scaled in the whole head.

    Their skulls stay on: the template's brain could not be fitted to one of the two given FLAIRs.
    """
    found = []
    for image in sorted(folder.glob("sub-*/anat/*_FLAIR.nii.gz")):
        person = image.parts[-3]
        masks = folder / "derivatives/manual" / person / "anat"
        labels = tuple(masks / f"{person}_label-{label}_mask.nii.gz" for label in ("ventricles", "WMH"))
        found.append(LabelledScan(person, person, image, labels, foreground(read_image(image))))
    return found


def as_clinical(scan: LabelledScan) -> LabelledScan:
    """A synthetic scan with slices of 6 mm and pixels of 1 mm: means of three slices, pixels doubled."""
    assert isinstance(scan.image, Path)
    assert isinstance(scan.labels, tuple)
    image = load_volume(scan.image)[0]
    parts = [image, *(load_volume(path)[0] for path in (*scan.labels, scan.brain) if isinstance(path, Path))]
    depth = image.shape[2] // 3
    thick = [part[:, :, : 3 * depth].reshape(*part.shape[:2], depth, 3).mean(axis=3) for part in parts]
    image, ventricles, lesion, brain = (part.repeat(2, axis=0).repeat(2, axis=1) for part in thick)
    labels = merge_masks([ventricles >= 0.5, lesion >= 0.5])
    return LabelledScan(scan.name, scan.participant, image * (brain >= 0.5), labels, brain >= 0.5)


def evaluate(console: Console, title: str, fitted: Fitted, scans: Sequence[LabelledScan]) -> None:
    """Table of each scan, their means, and the paper's pooled Dice."""
    segment, frames, counts = Segmenter(fitted.path), [], []
    for scan in scans:
        assert isinstance(scan.image, Path)
        given = load(scan, SETTINGS.normalisation, len(SETTINGS.classes))
        labels = segment(given.image, given.brain, scan.name).labels
        counts.append(pooled_counts(labels, given.labels))
        size = np.linalg.norm(load_volume(scan.image)[1][:3, :3], axis=0)
        frames.append(scan_metrics(labels, given.labels, size).with_columns(scan=pl.lit(scan.name)))
    every = pl.concat(frames)
    table = Table("scan", "class", *SHOWN, title=title, title_justify="left")
    for (scan, name), rows in every.group_by("scan", "class", maintain_order=True):
        value = dict(rows.select("metric", "value").rows())
        table.add_row(str(scan), str(name), *(_shown(value[metric]) for metric in SHOWN))
    for (name,), rows in every.group_by("class", maintain_order=True):
        means = {metric: rows.filter(metric=metric)["value"].mean() for metric in SHOWN}
        table.add_row("mean over scans", str(name), *(_shown(means[metric]) for metric in SHOWN))
    console.print(table)
    dice = pooled(pl.concat(counts)).filter(metric="dice")
    console.print("pooled over all pixels:", *(f"{name} {value:.3f}" for name, _, value in dice.rows()))
    best = fitted.epochs.row(fitted.best_epoch - 1, named=True)
    console.print(
        f"{fitted.parameters:,} parameters, {fitted.device}, best epoch {fitted.best_epoch} of {fitted.epochs.height}, "
        f"{fitted.epochs['seconds'].sum():.0f} s; validation loss {_shown(best['validation_loss'])}\n"
    )


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"


def train(
    settings: Settings, train_scans: Sequence[LabelledScan], validation: Sequence[LabelledScan], folder: Path
) -> Fitted:
    def say(epoch: int, epochs: int, row: dict) -> None:
        print(
            f"epoch {epoch}/{epochs}: loss {row['loss']:.3f}, validation {_shown(row['validation_loss'])}, "
            f"Dice {_shown(row['dice_ventricle'])} {_shown(row['dice_wmh'])}, {row['seconds']:.1f} s",
            flush=True,
        )

    return fit(settings, train_scans, validation, folder, progress=say)


def shares(scans: Sequence[LabelledScan]) -> tuple[list[LabelledScan], list[LabelledScan], list[LabelledScan]]:
    """By person, in the order of their names: 60 % train, 15 % validate, the others test."""
    n = len(scans)
    a, b = round(0.6 * n), round(0.75 * n)
    return list(scans[:a]), list(scans[a:b]), list(scans[b:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument(
        "--epochs",
        type=int,
        default=8,
        help="2 to 3 minutes each on one thread, over all slices of 20 synthetic people",
    )
    parser.add_argument("--boxes", type=int, default=400, help="slices per epoch of the parts with real people")
    parser.add_argument("--cohort", type=Path, help="where the synthetic cohort is or will be")
    arguments = parser.parse_args()
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.perf_counter()
        made = arguments.cohort or folder / "cohort"
        wanted = {"synthetic", "both"} & set(arguments.parts)
        groups = shares(synthetic_scans(made, arguments.scans, VOXEL_MM)) if wanted else ([], [], [])
        if "synthetic" in arguments.parts:
            settings = replace(SETTINGS, epochs=arguments.epochs)
            fitted = train(settings, groups[0], groups[1], folder / "synthetic")
            sizes = " + ".join(str(len(group)) for group in groups)
            evaluate(console, f"Synthetic, {VOXEL_MM:g} mm, {sizes} people, the last never seen", fitted, groups[2])
        real = real_scans(REAL) if REAL.is_dir() else []
        if not real:
            console.print(f"{REAL} is not here: no real people")
        for part in [part for part in ("real", "both") if part in arguments.parts]:
            more = [as_clinical(scan) for scan in groups[0]] if part == "both" and real else []
            for left_out in real:
                others = [scan for scan in real if scan is not left_out]
                patches = replace(CLINICAL, per_epoch=arguments.boxes)
                settings = replace(SETTINGS, patches=patches, epochs=arguments.epochs, stop_after=arguments.epochs)
                fitted = train(settings, [*others, *more], [], folder / f"{part}-{left_out.name}")
                title = f"Real, {left_out.name} left out; trained on {len(others)} real, {len(more)} synthetic people"
                evaluate(console, title, fitted, [left_out])
        console.print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
