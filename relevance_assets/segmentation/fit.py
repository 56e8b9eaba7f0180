"""Train a segmentation network: epochs under Lightning, the best epoch's weights kept.

Belongs here: settings, the loop, learning rate and early stopping. Does not belong here: boxes (`data.py`), losses,
whole scans (`predict.py`).

As in `training.loop`, the epoch's number and the losses before it decide everything: boxes, changes, dropout, rate.
A killed training therefore goes on where it was, and two trainings with one seed are the same bit for bit on a CPU.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import polars as pl
import torch

from relevance_assets.files import fingerprint, sha256
from relevance_assets.precision import has_gpu
from relevance_assets.segmentation import losses, weights
from relevance_assets.segmentation.data import LabelledScan, Loaded, Normalisation, Patches, Place, check_people, load
from relevance_assets.training.augment import Change
from relevance_assets.training.data import TrainingError, generator, seed_of
from relevance_assets.training.loop import interrupts, quiet, switches, trainer
from relevance_assets.training.resume import Progress

__all__ = ["Fitted", "Settings", "fit", "is_over", "learning_rate", "memory_format"]

STATE = "segmentation-resume.pt"
MODEL = "segmentation.pt"
FOLD = 0  # of `seed_of`: who is in which set is in the scans, not in the seed
Report = Callable[[int, int, dict[str, Any]], None]
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How a network is trained. Adam 1e-4, batch 8, 30 epochs, patience 15 and 10, cross-entropy are as published.

    Attributes
    ----------
    network : dict
        Keyword arguments of `AttentionUNet`.
    patches : Patches
        With `dims` 2 in `network`, z of its size is 1.
    classes : tuple of str
    normalisation : "slice" (as published) or "volume"
    loss, loss_options, class_weights
        See `losses.loss`.
    epochs, batch_size : int
    learning_rate, lowest_rate : float
        Adam's rate is halved after `plateau` epochs without a lower validation loss, down to `lowest_rate`.
    stop_after : int
        Training ends after so many epochs without a lower validation loss.
    seed : int
    """

    network: dict[str, Any]
    patches: Patches
    classes: tuple[str, ...] = ("background", "ventricle", "wmh")
    normalisation: Normalisation = "slice"
    loss: str = "cross_entropy"
    loss_options: dict[str, Any] = field(default_factory=dict)
    class_weights: tuple[float, ...] | None = None
    epochs: int = 30
    batch_size: int = 8
    learning_rate: float = 1e-4
    lowest_rate: float = 1e-7
    plateau: int = 10
    stop_after: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.plateau, self.stop_after) < 1 or self.learning_rate <= 0:
            raise TrainingError("epochs, batch_size, plateau and stop_after must be at least 1, learning_rate above 0")
        if (int(self.network.get("dims", 2)) == 2) != (self.patches.size[2] == 1):
            raise TrainingError(
                f"a 2D network takes patches of one slice, a 3D one of several, not {self.patches.size}"
            )
        if self.class_weights is not None and len(self.class_weights) != len(self.classes):
            raise TrainingError(f"class_weights: {len(self.classes)} are needed, one for each of {self.classes}")


@dataclass(frozen=True)
class Fitted:
    """A trained network and how it came about.

    Attributes
    ----------
    path : Path
        `segmentation.pt` of the best epoch, for `weights.load` and `predict`.
    sha256 : str
    parameters, best_epoch : int
        Trained numbers; epochs count from 1.
    device : str
    epochs : polars.DataFrame
        epoch, loss (mean over the training's boxes, while weights change), validation_loss (mean over the validation's
        boxes), dice_<class> (pooled over the validation's voxels, null where neither has the class), learning_rate,
        seconds.
    """

    path: Path
    sha256: str
    parameters: int
    device: str
    best_epoch: int
    epochs: pl.DataFrame


def learning_rate(settings: Settings, losses: Sequence[float]) -> float:
    """Rate of the epoch after those with these validation losses (torch's ReduceLROnPlateau with threshold 0)."""
    rate, best, bad = settings.learning_rate, math.inf, 0
    for value in losses:
        best, bad = (value, 0) if value < best else (best, bad + 1)
        if bad > settings.plateau:
            rate, bad = max(0.5 * rate, settings.lowest_rate), 0
    return rate


def is_over(settings: Settings, losses: Sequence[float]) -> bool:
    """Whether training ends after these validation losses."""
    return len(losses) >= settings.epochs or (
        len(losses) > 0 and len(losses) - 1 - int(np.argmin(losses)) >= settings.stop_after
    )


def memory_format(device: torch.device | str, dims: int) -> torch.memory_format:
    """Channels last on the CPU, where convolutions are faster with it; else row-major."""
    if torch.device(device).type != "cpu":
        return torch.contiguous_format
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def fit(
    settings: Settings,
    train: Sequence[LabelledScan],
    validation: Sequence[LabelledScan],
    folder: Path,
    *,
    progress: Report | None = None,
) -> Fitted:
    """Train on `train` and keep the epoch with the lowest loss on `validation`.

    Without validation scans (too few people to spare one) the training's loss takes the place of the validation's: for
    the rate, the end, and the epoch that is kept.

    Parameters
    ----------
    settings
    train, validation
        No participant may be in both.
    folder
        Where `segmentation.pt` is written; the state of an unfinished training lies beside it until the end.
    progress
        Called after each epoch with its number, the greatest number of epochs, and its row of the epochs table.

    Raises
    ------
    TrainingError
        No training scans, a participant in both sets, grids that differ, labels that are none, a loss not finite.
    ValueError
        A network or a loss that cannot be made from the settings.
    """
    check_people(train, validation)
    loss = losses.loss(settings.loss, weights=settings.class_weights, **settings.loss_options)
    count = len(settings.classes)
    sets = [[load(scan, settings.normalisation, count) for scan in scans] for scans in (train, validation)]
    description = weights.Description(
        settings.classes, settings.network, settings.normalisation, settings.patches.size, settings.seed
    )
    device = torch.device("cuda" if has_gpu() else "cpu")
    mark = _fingerprint(settings, sets, device)
    state = folder / STATE
    folder.mkdir(parents=True, exist_ok=True)
    done = Progress.read(state, mark)
    with switches():
        torch.manual_seed(seed_of(settings.seed, FOLD, 0, "weights"))
        network = description.build()
        if done.network:
            network.load_state_dict(done.network)
        network = network.to(memory_format=memory_format(device, description.dims))
        module = Epochs(network, settings, loss, sets[0], sets[1], done, state, progress)
        if not is_over(settings, module.history):
            _run(module, folder, settings.epochs - done.epochs)
    path = folder / MODEL
    weights.save(path, description, done.best_network)
    state.unlink(missing_ok=True)
    return Fitted(
        path=path,
        sha256=sha256(path),
        parameters=sum(each.numel() for each in network.parameters()),
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        best_epoch=done.best_epoch,
        epochs=pl.DataFrame(done.history, schema=_schema(settings)),
    )


def _run(module: Epochs, folder: Path, epochs: int) -> None:
    with quiet(), interrupts():
        trainer(folder, epochs, devices=1).fit(module)


class Boxes:
    """The batches of one epoch; iterating twice gives the same twice."""

    def __init__(
        self,
        settings: Settings,
        scans: Sequence[Loaded],
        places: Sequence[Place],
        changes: Sequence[tuple[Change, float, float]] | None = None,
    ) -> None:
        self.settings, self.scans, self.places, self.changes = settings, scans, places, changes
        size = settings.batch_size
        self.parts = np.array_split(np.arange(len(places)), -(-len(places) // size)) if places else []

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        classes = len(self.settings.classes)
        for part in self.parts:
            pairs = []
            for index in part:
                place, change = self.places[index], self.changes[index] if self.changes else None
                pairs.append(self.settings.patches.box(self.scans[place.scan], place.start, classes, change))
            yield torch.stack([image for image, _ in pairs]), torch.stack([labels for _, labels in pairs])


class Epochs(lightning.LightningModule):
    """What Lightning calls back while it runs the epochs."""

    def __init__(
        self,
        network: torch.nn.Module,
        settings: Settings,
        loss: losses.Loss,
        train: Sequence[Loaded],
        validation: Sequence[Loaded],
        done: Progress,
        state: Path,
        report: Report | None,
    ) -> None:
        super().__init__()
        self.network, self.settings, self.loss = network, settings, loss
        self.train_scans, self.validation_scans = train, validation
        self.done, self.state, self.report = done, state, report
        self.dims = int(settings.network.get("dims", 2))
        self.begin()

    def begin(self) -> None:
        """Counters of an epoch."""
        self.started = time.perf_counter()
        self.sums: dict[str, list[float]] = {"training": [0.0, 0], "validation": [0.0, 0]}
        self.counts = np.zeros((3, len(self.settings.classes)), dtype=np.int64)  # both, predicted, true

    @property
    def history(self) -> list[float]:
        """What decides: the validation's losses of the finished epochs, or the training's where there is none."""
        return [row["validation_loss" if self.validation_scans else "loss"] for row in self.done.history]

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, the first one 1, whatever a killed run has done of it."""
        return self.done.epochs + 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.settings.learning_rate)
        if self.done.optimizer:
            optimizer.load_state_dict(self.done.optimizer)
        return optimizer

    def train_dataloader(self) -> Boxes:
        patches, seed = self.settings.patches, self.settings.seed
        places = patches.places(self.train_scans, generator(seed, FOLD, self.epoch, "order"))
        random = generator(seed, FOLD, self.epoch, "augmentation")
        return Boxes(self.settings, self.train_scans, places, [patches.draw_change(random) for _ in places])

    def val_dataloader(self) -> Boxes:
        return Boxes(self.settings, self.validation_scans, self.settings.patches.tiles(self.validation_scans))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        images, labels = batch
        return images.to(device).contiguous(memory_format=memory_format(device, self.dims)), labels.to(device)

    def on_train_epoch_start(self) -> None:
        self.begin()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate(self.settings, self.history)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        if batch_idx == 0:  # dropout is the only thing that draws from the global generator
            torch.manual_seed(seed_of(self.settings.seed, FOLD, self.epoch, "dropout"))
        images, labels = batch
        loss = self.loss(self.network(images).float(), labels)
        self._add("training", loss, len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """float32, also where training runs in bf16: what is chosen is what will predict."""
        images, labels = batch
        with torch.autocast(self.device.type, enabled=False):
            logits = self.network(images)
            self._add("validation", self.loss(logits, labels), len(labels))
        truth, predicted = labels.cpu().numpy().ravel(), logits.argmax(dim=1).cpu().numpy().ravel()
        for row, values in enumerate((truth[truth == predicted], predicted, truth)):
            self.counts[row] += np.bincount(values, minlength=len(self.settings.classes))

    def on_train_epoch_end(self) -> None:
        """Validation is over by now: one row of the epochs table, and the state to go on from."""
        both, predicted, true = self.counts
        total = predicted + true
        names = self.settings.classes[1:]
        dice = {f"dice_{name}": _ratio(2 * both[k], total[k]) for k, name in enumerate(names, start=1)}
        mean = {name: value / count if count else None for name, (value, count) in self.sums.items()}
        row = {
            "epoch": self.epoch,
            "loss": mean["training"],
            "validation_loss": mean["validation"],
            **dice,
            "learning_rate": learning_rate(self.settings, self.history),
            "seconds": time.perf_counter() - self.started,
        }
        state = self.trainer.optimizers[0].state_dict()
        decisive = mean["validation" if self.validation_scans else "training"]
        self.done.add(row, (decisive or 0.0, 0.0), self.network.state_dict(), state)
        self.done.write(self.state)
        self.trainer.should_stop = is_over(self.settings, self.history)
        if self.report:
            self.report(self.done.epochs, self.settings.epochs, dict(row))

    def _add(self, which: str, loss: torch.Tensor, boxes: int) -> None:
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"epoch {self.epoch}: the {which} loss is {value}; lower the rate or check the images")
        self.sums[which][0] += value * boxes
        self.sums[which][1] += boxes


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _schema(settings: Settings) -> dict[str, Any]:
    names = ("loss", "validation_loss", *(f"dice_{name}" for name in settings.classes[1:]), "learning_rate", "seconds")
    return {"epoch": pl.Int64, **dict.fromkeys(names, pl.Float64)}


def _fingerprint(settings: Settings, sets: Sequence[Sequence[Loaded]], device: torch.device) -> str:
    """Of everything that the result depends on."""
    marks = [[hashlib.sha256(part.tobytes()).hexdigest() for part in scan[1:]] for scans in sets for scan in scans]
    plain = asdict(settings) | {"patches": str(settings.patches)}
    where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return fingerprint(weights.FORMAT, plain, [len(scans) for scans in sets], marks, where, torch.__version__)
