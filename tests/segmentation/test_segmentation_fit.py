"""Training learns, is the same twice, goes on after a kill, and drops its rate as torch does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from squares import squares

from relevance_assets.segmentation import weights
from relevance_assets.segmentation.data import Patches
from relevance_assets.segmentation.fit import Fitted, Settings, fit, is_over, learning_rate
from relevance_assets.study import Augmentation
from relevance_assets.training.checkpoint import CheckpointError
from relevance_assets.training.data import TrainingError

FLIPS = Augmentation(flip_axes=[0], rotate_degrees=10, noise_sd=0.05)
SETTINGS = Settings(
    network={"widths": [4, 8, 12]},
    patches=Patches((20, 18, 1), augmentation=FLIPS, intensity_scale=0.1, intensity_shift=0.1),
    loss="dice_ce",
    learning_rate=1e-2,
    batch_size=4,
    epochs=3,
)
TRAIN, VALIDATION = [squares(n) for n in range(4)], [squares(n) for n in range(8, 10)]


class Stopped(Exception):
    """Stands for whatever ends a run from outside."""


def state(fitted: Fitted) -> dict[str, Any]:
    return torch.load(fitted.path, weights_only=True)["state_dict"]


def test_it_learns_squares_and_says_how(tmp_path: Path) -> None:
    calls: list[tuple[int, int, dict]] = []
    fitted = fit(replace(SETTINGS, epochs=60), TRAIN, VALIDATION, tmp_path, progress=lambda *call: calls.append(call))
    best = fitted.epochs.row(fitted.best_epoch - 1, named=True)
    assert best["dice_ventricle"] > 0.85
    assert best["dice_wmh"] > 0.85
    assert best["validation_loss"] == fitted.epochs["validation_loss"].min()
    assert [call[0] for call in calls] == fitted.epochs["epoch"].to_list()
    assert [path.name for path in tmp_path.iterdir()] == ["segmentation.pt"]
    _, network = weights.load(fitted.path)
    assert sum(each.numel() for each in network.parameters()) == fitted.parameters


def test_twice_is_the_same_and_another_seed_is_not(tmp_path: Path) -> None:
    first, again = (fit(SETTINGS, TRAIN, VALIDATION, tmp_path / name) for name in ("a", "b"))
    assert first.sha256 == again.sha256
    assert first.epochs.drop("seconds").equals(again.epochs.drop("seconds"))
    other = fit(replace(SETTINGS, seed=1, epochs=1), TRAIN, VALIDATION, tmp_path / "c")
    assert other.epochs["loss"][0] != first.epochs["loss"][0]


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def stop(epoch: int, epochs: int, row: dict) -> None:
        if epoch == 2:
            raise Stopped

    whole = fit(SETTINGS, TRAIN, VALIDATION, tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(SETTINGS, TRAIN, VALIDATION, tmp_path / "parts", progress=stop)
    seen: list[int] = []
    parts = fit(SETTINGS, TRAIN, VALIDATION, tmp_path / "parts", progress=lambda epoch, *_: seen.append(epoch))
    assert seen == [3]
    assert parts.sha256 == whole.sha256
    assert parts.epochs.drop("seconds").equals(whole.epochs.drop("seconds"))


def test_three_dimensions_train_on_patches(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS,
        network={"widths": [2, 4], "dims": 3, "norm": "instance", "pools": [[2, 2, 1]]},
        patches=Patches((12, 12, 3), foreground_share=0.7, per_epoch=6),
        normalisation="volume",
        epochs=2,
    )
    first, again = (fit(settings, TRAIN, VALIDATION, tmp_path / name) for name in ("a", "b"))
    assert first.sha256 == again.sha256
    assert first.epochs.height == 2


def test_a_class_that_nobody_has_gives_null(tmp_path: Path) -> None:
    train, validation = (
        [replace(scan, labels=np.zeros_like(scan.labels)) for scan in scans] for scans in (TRAIN[:1], VALIDATION[:1])
    )
    fitted = fit(replace(SETTINGS, epochs=8, learning_rate=0.05), train, validation, tmp_path)
    assert fitted.epochs["dice_wmh"][-1] is None


@pytest.mark.parametrize("seed", range(3))
def test_the_rate_falls_as_torch_lets_it_fall(seed: int) -> None:
    settings = replace(SETTINGS, plateau=2, learning_rate=1.0, lowest_rate=0.1)
    losses = np.random.default_rng(seed).integers(0, 6, size=30).astype(float).tolist()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0, min_lr=0.1, eps=0
    )
    for n, value in enumerate(losses, start=1):
        plateau.step(value)
        assert learning_rate(settings, losses[:n]) == optimizer.param_groups[0]["lr"]


def test_it_stops_early_or_at_the_last_epoch() -> None:
    settings = replace(SETTINGS, epochs=10, stop_after=2)
    assert not is_over(settings, [])
    assert not is_over(settings, [3, 2, 2])
    assert is_over(settings, [3, 2, 2, 2])
    assert is_over(settings, list(range(10, 0, -1)))


def test_without_validation_the_training_loss_decides(tmp_path: Path) -> None:
    epochs = fit(SETTINGS, TRAIN, [], tmp_path / "a").epochs
    assert epochs["validation_loss"].null_count() == epochs["dice_wmh"].null_count() == 3
    assert fit(SETTINGS, TRAIN, [], tmp_path / "b").best_epoch == 1 + epochs["loss"].arg_min()  # type: ignore[operator]


def test_what_cannot_end_well_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="sub-01 is in the training and in the validation set; split by part"):
        fit(SETTINGS, TRAIN, [squares(1)], tmp_path)
    with pytest.raises(TrainingError, match="the training set has no scans"):
        fit(SETTINGS, [], VALIDATION, tmp_path)
    with pytest.raises(TrainingError, match="a 2D network takes patches of one slice"):
        replace(SETTINGS, network={"dims": 3})
    with pytest.raises(TrainingError, match="class_weights: 3 are needed"):
        replace(SETTINGS, class_weights=(1.0, 2.0))


def test_files_that_are_no_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: no such model"):
        weights.load(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match=r"bad\.pt: damaged"):
        weights.load(tmp_path / "bad.pt")
