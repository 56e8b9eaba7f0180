"""One fold's epochs under Lightning: steps, and what happens when an epoch is done.

Belongs here: everything that knows Lightning, and the process-wide switches that hold while it runs.
Does not belong here: checks of settings and data (`fit.py`), which weights learn and how fast (`optimiser.py`), files
(`resume.py`, `checkpoint.py`).

Lightning's own checkpoints and sampler bookkeeping are not used: here the epoch's number alone decides its
order, changes and dropout, so that the state after an epoch is weights, optimiser and history.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from relevance_assets.precision import has_gpu
from relevance_assets.study import Training
from relevance_assets.training import augment, losses
from relevance_assets.training.data import (
    Batch,
    Batches,
    Samples,
    TrainingError,
    Volumes,
    epoch_changes,
    epoch_order,
    generator,
    seed_of,
)
from relevance_assets.training.optimiser import (
    begin_epoch,
    learning_rate,
    memory_format,
    optimizer,
    scale_output,
)
from relevance_assets.training.resume import Progress

__all__ = [
    "Report",
    "has_gpu",
    "interrupts",
    "learning_rate",
    "memory_format",
    "quiet",
    "run",
    "scale_output",
    "switches",
    "trainer",
]

Report = Callable[[int, int, dict[str, Any]], None]


class Fold(pl.LightningModule):
    """What Lightning calls back while it runs the epochs of one fold."""

    def __init__(
        self,
        network: nn.Module,
        training: Training,
        kind: losses.Kind,
        fold: int,
        train: Samples,
        validation: Samples,
        volumes: Volumes,
        scale: float,
        progress: Progress,
        state: Path,
        report: Report | None,
    ) -> None:
        super().__init__()
        self.network, self.settings, self.kind, self.number = network, training, kind, fold
        self.train_samples, self.validation_samples, self.volumes = train, validation, volumes
        self.scale, self.progress, self.state, self.report = scale, progress, state, report
        self.finished_before = progress.epochs
        self.outputs: list[torch.Tensor] = []
        self.total, self.started = 0.0, 0.0
        self.open = ExitStack()

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, the first one 1, whatever a killed run has done of it."""
        return self.finished_before + self.current_epoch + 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        found = optimizer(self.network, self.settings, self.kind, self.scale)
        if self.progress.optimizer:
            found.load_state_dict(self.progress.optimizer)
        return found

    def train_dataloader(self) -> Batches:
        where = (self.settings.seed, self.number, self.epoch)
        samples = self.train_samples
        order = epoch_order(samples.targets, balanced=self.settings.balanced_sampler, random=generator(*where, "order"))
        random = generator(*where, "augmentation")
        changes = epoch_changes(self.settings.augmentation, len(order), random, slices=self.volumes.slices)
        self.batches = Batches(samples, self.volumes, self.settings.batch_size, order, changes, *self._place)
        return self.batches

    def val_dataloader(self) -> Batches:
        samples = self.validation_samples
        rank, processes = self._place
        mine = np.arange(rank, len(samples), processes)
        return Batches(samples, self.volumes, max(1, self.settings.batch_size // processes), mine)

    @property
    def _place(self) -> tuple[int, int]:
        """Number of this process, and how many train this fold together."""
        return self.trainer.global_rank, self.trainer.world_size

    def on_fit_start(self) -> None:
        if self.trainer.world_size > 1:  # a process of its own, which knows nothing of the first one's switches
            self.open.enter_context(switches())

    def on_fit_end(self) -> None:
        self.open.close()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch, then change its images there."""
        images = batch.images.to(device)
        if batch.changes is not None:
            pairs = zip(batch.changes, images, strict=True)
            images = torch.stack([augment.apply(change, image) for change, image in pairs])
        images = images.contiguous(memory_format=memory_format(device))
        covariates, targets, weights = (part.to(device) for part in batch[1:4])
        return Batch(images, covariates, targets, weights, None)

    def on_train_epoch_start(self) -> None:
        self.started = time.perf_counter()
        self.total = 0.0
        begin_epoch(self.network, self.trainer.optimizers[0], self.settings, self.epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate(self.settings, self.epoch) * group["scale"]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        rank, processes = self._place
        if batch_idx == 0:  # dropout is the only thing that draws from the global generator
            torch.manual_seed(seed_of(self.settings.seed, self.number, self.epoch, "dropout") + rank)
        outputs = self.network(batch.images, batch.covariates)
        loss = losses.loss(outputs.float(), batch.targets, batch.weights, self.kind)
        self.total += self._finite(loss.item(), "training") * len(batch.targets)
        # the mean of the processes' gradients is then that of the whole batch, though their parts differ in size
        return loss * (len(batch.targets) * processes / len(self.batches.parts[batch_idx]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """float32, also where training runs in bf16: what is chosen is what will predict."""
        with torch.autocast(self.device.type, enabled=False):
            self.outputs.append(self.network(batch.images, batch.covariates).cpu())

    def on_train_epoch_end(self) -> None:
        """Validation is over by now: one row of the epochs table, and the state to go on from."""
        samples = self.validation_samples
        outputs, self.outputs = self._of_all(torch.cat(self.outputs), len(samples)), []
        total = float(self._of_all(torch.tensor([self.total], dtype=torch.float64), self._place[1]).sum())
        targets, weights = torch.from_numpy(samples.targets), torch.from_numpy(samples.weights)
        value = losses.loss(outputs.double(), targets.double(), weights.double(), self.kind).item()
        self._finite(value, "validation")
        said = outputs.numpy().astype(np.float64)
        metric = losses.metric(said, samples.targets, self.kind, self.settings.monitor)
        row = {
            "epoch": self.epoch,
            "loss": total / len(self.train_samples),
            "validation_loss": value,
            "validation_metric": metric,
            "seconds": time.perf_counter() - self.started,
        }
        if not self.trainer.is_global_zero:
            return
        is_last = self.settings.monitor == "last"  # each epoch is then better than those before it
        self.progress.add(
            row,
            (-float(self.epoch), 0.0) if is_last else losses.rank(self.settings.monitor, value, metric),
            self.network.state_dict(),
            self.trainer.optimizers[0].state_dict(),
        )
        self.progress.write(self.state)
        if self.report:
            self.report(self.progress.epochs, self.settings.total_epochs, dict(row))

    def _of_all(self, values: torch.Tensor, n: int) -> torch.Tensor:
        """The n values (or rows) of all processes, of which each has every k-th."""
        _, processes = self._place
        if processes == 1:
            return values
        missing = -(-n // processes) - len(values)
        padded = torch.nn.functional.pad(values, (0, 0) * (values.ndim - 1) + (0, missing))
        gathered: Any = self.all_gather(padded.to(self.device))
        return gathered.transpose(0, 1).flatten(0, 1)[:n].cpu()

    def _finite(self, loss: float, which: str) -> float:
        if not math.isfinite(loss):
            raise TrainingError(
                f"fold {self.number}, epoch {self.epoch}: the {which} loss is {loss}; "
                "lower training.learning_rate or check the prepared images"
            )
        return loss


def run(module: Fold, folder: Path) -> None:
    """Run the epochs that are still to be done; `module.progress` is then in its file.

    With several devices, Lightning starts a process for each: they share out every batch, and batch norms see the
    whole of it.
    """
    remaining = module.settings.total_epochs - module.finished_before
    if remaining <= 0:
        return
    devices, report = module.settings.devices, module.report
    together: dict[str, Any] = {"devices": 1}
    if devices > 1:
        # By itself Lightning would take a batch system's job for its own, and its tasks for the devices.
        together = {"devices": devices, "strategy": module.settings.strategy, "plugins": [LightningEnvironment()]}
        together["sync_batchnorm"] = has_gpu()
        module.report = None  # it belongs to this process
    with quiet(), interrupts(), _following(module.state, report if devices > 1 else None, module.settings.total_epochs):
        try:
            trainer(folder, remaining, **together).fit(module)
        except ProcessRaisedException as error:
            raise _cause(error) from None


def trainer(folder: Path, epochs: int, **options: Any) -> pl.Trainer:
    """Lightning's trainer without what we do ourselves: sampling, logs, checkpoints, progress."""
    return pl.Trainer(
        accelerator="gpu" if has_gpu() else "cpu",
        precision="bf16-mixed" if has_gpu() else "32-true",
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def _cause(error: ProcessRaisedException) -> Exception:
    """What went wrong in one of several processes, of which only the printed trace is left."""
    last = str(error).strip().splitlines()[-1]
    kind, _, message = last.partition(": ")
    return TrainingError(message) if kind.endswith("TrainingError") else RuntimeError(last)


@contextmanager
def _following(state: Path, report: Report | None, epochs: int) -> Iterator[None]:
    """Report the epochs that other processes finish, as their state is written."""
    if report is None:
        yield
        return
    over = threading.Event()

    def follow() -> None:
        seen, written, ended = 0, 0, False
        while not ended:
            ended = over.wait(1.0)  # and then a last look
            now = state.stat().st_mtime_ns if state.exists() else written
            found = Progress.read(state) if now != written else None
            written = now
            if found and found.epochs > seen:
                seen = found.epochs
                report(seen, epochs, dict(found.history[-1]))

    thread = threading.Thread(target=copy_context().run, args=(follow,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def switches() -> Iterator[None]:
    """Deterministic kernels and an own stream of random numbers; on leaving, all is as before.

    On the CPU an operation without a deterministic kernel is an error. On a GPU some backward passes of 3D
    pools and replicate padding have none: there two runs may differ in the last bits.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    with ExitStack() as stack:
        stack.callback(torch.use_deterministic_algorithms, before[0], warn_only=before[1])
        stack.callback(setattr, memory, "fill_uninitialized_memory", filled)
        stack.enter_context(torch.random.fork_rng(devices=[0] if has_gpu() else []))
        if has_gpu():
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=has_gpu())
        memory.fill_uninitialized_memory = False  # costs time, finds only faulty kernels
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's hints about workers, loggers and devices are not for the reader of a study's log."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def interrupts() -> Iterator[None]:
    """Ctrl+C stays KeyboardInterrupt: Lightning would ignore further ones and leave by SystemExit."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
