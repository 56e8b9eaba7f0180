"""Fit one fold: check what is asked, train or go on training, keep the best epoch's model.

Belongs here: the one function that an asset calls, and the checks before anything is computed.
Does not belong here: the epochs themselves (`loop.py`), scores of the study (`statistics`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from relevance_assets import study
from relevance_assets.files import fingerprint, sha256
from relevance_assets.models.registry import FILES
from relevance_assets.training import augment, checkpoint, loop, losses, optimiser
from relevance_assets.training.checkpoint import Description
from relevance_assets.training.data import Samples, TrainingError, Volumes, seed_of
from relevance_assets.training.resume import Progress

__all__ = ["Fitted", "fit"]

STATE = "resume.pt"
EPOCHS = {
    "epoch": pl.Int64,
    "loss": pl.Float64,
    "validation_loss": pl.Float64,
    "validation_metric": pl.Float64,
    "seconds": pl.Float64,
}


@dataclass(frozen=True)
class Fitted:
    """A fold's model and how it came about.

    Attributes
    ----------
    checkpoint : Path
        `model.pt` of the best epoch, for `checkpoint.load`.
    sha256 : str
    parameters : int
        Trained numbers; those that no phase trains are not counted.
    device : str
        `cpu`, or the GPU's name.
    seconds : float
        Sum over the epochs, those before a kill included.
    seed, best_epoch : int
        Epochs count from 1.
    epochs : polars.DataFrame
        epoch, loss (mean over the epoch's training scans, while weights change), validation_loss,
        validation_metric (`losses.metric`), seconds.
    """

    checkpoint: Path
    sha256: str
    parameters: int
    device: str
    seconds: float
    seed: int
    best_epoch: int
    epochs: pl.DataFrame


def fit(
    model: study.Model,
    training: study.Training,
    target: study.Target,
    train: Samples,
    validation: Samples,
    folder: Path,
    *,
    fold: int,
    start: Path | None = None,
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> Fitted:
    """Train a network on `train`, choose its epoch by `training.monitor` on `validation`.

    After each epoch the state is written to `folder/resume.pt`; a call with the same settings, scans and
    targets goes on from there. On a CPU the model and the epochs (but for `seconds`) are then bit for bit
    those of a run that nobody disturbed. The state is removed at the end.

    Parameters
    ----------
    model, training, target
        Settings of the study.
    train, validation
        Scans of this fold.
    folder
        Where `model.pt` is written; nothing else remains there.
    fold
        Its number: part of the seed, and named in errors.
    start
        A trained model to begin with: its weights are taken where name and shape are the same, others are drawn.
    progress
        Called after each epoch with its number, the number of epochs, and its row of the epochs table.

    Raises
    ------
    TrainingError
        No scans; a set with one class; a monitor, sampler, class weights, phases or augmentation that do not suit
        the target, the network or the grid; images of different shapes; a loss that is not finite.
    ValueError
        A network that cannot be built (`models.registry.build`).
    """
    _check(training, target, train, validation, fold)
    volumes = Volumes(training.cache_gb)
    contrasts, *grid = volumes(train.images[0]).shape
    shape = (grid[0], grid[1], grid[2])
    try:
        augment.check(training.augmentation, shape)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    files = {name: model.options[name] for name in FILES if model.options.get(name) is not None}
    description = Description(
        name=model.name,
        options={name: value for name, value in model.options.items() if name not in FILES},
        shape=shape,
        contrasts=contrasts,
        covariates=train.covariates.shape[1],
        target_kind=target.kind,
        target_mean=float(train.targets.mean(dtype=np.float64)) if target.kind == "regression" else 0.0,
        seed=training.seed,
        classes=tuple(target.classes),
    )
    state_path = folder / STATE
    for name, path in files.items():
        if not Path(path).is_file():
            raise TrainingError(f"model.options.{name}: {path}: no such file")
    mark = _fingerprint(description, training, train, validation, fold, start, files)
    state = Progress.read(state_path, mark)

    if training.class_weights == "balanced":
        weights = losses.class_weights(train.targets)
        train, validation = (
            replace(samples, weights=samples.weights * weights[samples.targets.astype(int)])
            for samples in (train, validation)
        )
    scale = float(train.targets.std(dtype=np.float64)) if target.kind == "regression" else 1.0
    device = torch.device("cuda" if loop.has_gpu() else "cpu")
    with loop.switches():
        torch.manual_seed(seed_of(training.seed, fold, 0, "weights"))
        network = description.build(**files)
        if target.kind != "classes":
            loop.scale_output(network, scale)
        if start is not None:
            checkpoint.transfer(start, network)
        if state.network:
            network.load_state_dict(state.network)
        optimiser.arrange(network, device)
        learning = _learning(training, network)
        _check_devices(training, network, train, validation, fold)
        module = loop.Fold(
            network, training, target.kind, fold, train, validation, volumes, scale, state, state_path, progress
        )
        loop.run(module, folder)
    state = Progress.read(state_path, mark)  # other processes may have written it
    path = folder / "model.pt"
    checkpoint.save(path, description, state.best_network)
    state_path.unlink(missing_ok=True)
    epochs = pl.DataFrame(state.history, schema=EPOCHS)
    return Fitted(
        checkpoint=path,
        sha256=sha256(path),
        parameters=sum(each.numel() for name, each in network.named_parameters() if name in learning),
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        seconds=float(epochs["seconds"].sum()),
        seed=training.seed,
        best_epoch=state.best_epoch,
        epochs=epochs,
    )


def _check(training: study.Training, target: study.Target, train: Samples, validation: Samples, fold: int) -> None:
    """Raise TrainingError for what cannot end well, before any image is read."""
    for name, samples in (("training", train), ("validation", validation)):
        if not len(samples):
            raise TrainingError(f"fold {fold}: the {name} set is empty; use fewer folds or more scans")
        if target.kind != "regression":
            _check_classes(samples.targets, name, fold, target)
    if target.kind == "regression" and np.ptp(train.targets) == 0:
        raise TrainingError(f"fold {fold}: every training scan has target {train.targets[0]:g}; nothing to learn")
    if shared := sorted(set(train.scans) & set(validation.scans)):
        raise TrainingError(f"fold {fold}: {shared[0]} is in the training and in the validation set")
    if train.covariates.shape[1] != validation.covariates.shape[1]:
        raise TrainingError(f"fold {fold}: training and validation scans have different numbers of covariates")
    if training.monitor not in losses.MONITORS[target.kind]:
        wanted = ", ".join(losses.MONITORS[target.kind])
        kind = "target of classes" if target.kind == "classes" else f"{target.kind} target"
        raise TrainingError(f"training.monitor: {training.monitor} is not defined for a {kind}; use one of {wanted}")
    balances = {"balanced_sampler": training.balanced_sampler, "class_weights": training.class_weights != "none"}
    if target.kind == "regression" and any(balances.values()):
        setting = next(name for name, asked in balances.items() if asked)
        raise TrainingError(f"training.{setting}: balances classes; a regression target has none")


def _learning(training: study.Training, network: torch.nn.Module) -> set[str]:
    """Names of the parameters that learn in some phase; TrainingError where phases do not suit the network."""
    parts = {phase.train for phase in training.phases} - {"all"}
    if parts and training.devices > 1:
        raise TrainingError("training.phases: weights that do not learn cannot be shared out; set devices: 1")
    if parts and not any(name.startswith("features.") for name, _ in network.named_parameters()):
        raise TrainingError(
            f"training.phases: a {type(network).__name__} has no features to train apart; use train: all"
        )
    phases = training.phases or [training.phase(1)]
    return set().union(*(optimiser.learns(network, phase) for phase in phases))


def _check_devices(
    training: study.Training, network: torch.nn.Module, train: Samples, validation: Samples, fold: int
) -> None:
    """Raise TrainingError where several devices cannot share the work."""
    devices = training.devices
    if devices == 1:
        return
    if loop.has_gpu() and training.strategy == "ddp_fork":
        raise TrainingError("training.strategy: a process that has used a GPU cannot be forked; use ddp_spawn")
    if loop.has_gpu() and devices > torch.cuda.device_count():
        raise TrainingError(f"training.devices: {devices} asked for, {torch.cuda.device_count()} GPUs found")
    norms = any(isinstance(each, torch.nn.modules.batchnorm._BatchNorm) for each in network.modules())
    if norms and not loop.has_gpu():
        raise TrainingError(
            "training.devices: batch norms can be shared between GPUs only; without a GPU set devices: 1"
        )
    least = len(train) // -(-len(train) // training.batch_size)
    if min(least, len(validation)) < devices:
        raise TrainingError(
            f"fold {fold}: training.devices is {devices}, but a batch has {least} scans and the validation set "
            f"{len(validation)}; use fewer devices or a larger training.batch_size"
        )


def _check_classes(targets: np.ndarray, name: str, fold: int, target: study.Target) -> None:
    found = np.unique(targets)
    if target.kind == "classes":
        _check_named_classes(found, name, fold, target.classes)
        return
    if not np.isin(found, (0, 1)).all():
        raise TrainingError(f"fold {fold}: binary targets must be 0 or 1; the {name} set has {found[-1]}")
    if len(found) < 2:
        raise TrainingError(
            f"fold {fold}: every scan of the {name} set has target {found[0]:g}, so that nothing can be "
            "learned or ranked; use fewer folds, more scans or another threshold"
        )


def _check_named_classes(found: np.ndarray, name: str, fold: int, classes: list[str]) -> None:
    count = len(classes)
    if not np.isin(found, range(count)).all():
        odd = found[~np.isin(found, range(count))][0]
        raise TrainingError(f"fold {fold}: targets must be 0 to {count - 1}; the {name} set has {odd:g}")
    if len(found) < 2:
        raise TrainingError(
            f"fold {fold}: every scan of the {name} set is {classes[int(found[0])]}, so that nothing can be learned "
            "or told apart; use fewer folds or more scans"
        )
    absent = [each for index, each in enumerate(classes) if index not in found]
    if name == "training" and absent:
        raise TrainingError(
            f"fold {fold}: no scan of the {name} set is {absent[0]}; use fewer folds, more scans or leave the class "
            "out of target.classes"
        )


def _fingerprint(
    description: Description,
    training: study.Training,
    train: Samples,
    validation: Samples,
    fold: int,
    start: Path | None,
    files: dict[str, Any],
) -> str:
    """Of everything that the result depends on; where the images lie and how many are cached is not."""
    sets = [
        [
            samples.scans,
            [[sha256(path) for path in paths] for paths in samples.images],
            *(values.tolist() for values in (samples.covariates, samples.targets, samples.weights)),
        ]
        for samples in (train, validation)
    ]
    device = torch.cuda.get_device_name() if loop.has_gpu() else "cpu"
    begun = sha256(start) if start else None
    settings = [description.plain(), training.decisive()]
    if files:
        settings.append({name: sha256(Path(path)) for name, path in files.items()})
    return fingerprint(checkpoint.FORMAT, *settings, fold, sets, begun, device, torch.__version__)
