"""One fold: it learns, it is the same twice, a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relevance_assets.study import Augmentation, Model, Target, Training
from relevance_assets.training import fit as fit_module
from relevance_assets.training import losses
from relevance_assets.training.checkpoint import describe
from relevance_assets.training.data import Samples, TrainingError, Volumes
from relevance_assets.training.fit import Fitted, fit
from relevance_assets.training.loop import Fold, learning_rate, scale_output
from relevance_assets.training.predict import predict
from relevance_assets.training.resume import Progress

MakeSamples = Callable[..., Samples]

MODEL = Model(name="mrinet", options={"channels": [4, 8], "dense": 8, "dropout": 0.3})
AGE = Target(column="age", kind="regression")
SEVERE = Target(column="edss", kind="binary", threshold=5)
TRAINING = Training(
    epochs=5,
    batch_size=4,
    learning_rate=3e-3,
    schedule="cosine",
    monitor="mae",
    augmentation=Augmentation(flip_axes=[1], rotate_degrees=10, translate_voxels=1, noise_sd=0.05),
)


class Stopped(Exception):
    """Stands for whatever ends a run from outside."""


def run(folder: Path, train: Samples, validation: Samples, training: Training = TRAINING, **more: Any) -> Fitted:
    given: dict[str, Any] = {"model": MODEL, "target": AGE, "fold": 1} | more
    return fit(training=training, train=train, validation=validation, folder=folder, **given)


def stop_after(last: int) -> Callable[[int, int, dict], None]:
    def progress(epoch: int, epochs: int, row: dict) -> None:
        if epoch == last:
            raise Stopped

    return progress


def table(fitted: Fitted) -> list[tuple]:
    return fitted.epochs.drop("seconds").rows()


@pytest.fixture
def sets(make_samples: MakeSamples) -> tuple[Samples, Samples]:
    return make_samples(10), make_samples(5, first=10)


def test_it_learns_a_regression_and_says_how(make_samples: MakeSamples, tmp_path: Path) -> None:
    train, validation = make_samples(24), make_samples(8, first=24)
    training = Training(epochs=40, batch_size=4, learning_rate=1e-2, schedule="cosine", monitor="mae")
    calls: list[tuple[int, int, dict]] = []
    fitted = run(tmp_path, train, validation, training, progress=lambda *call: calls.append(call))

    by_the_mean = np.abs(validation.targets - train.targets.mean()).mean()
    errors = fitted.epochs["validation_metric"]
    assert errors.min() < by_the_mean / 2
    assert fitted.best_epoch == errors.arg_min() + 1
    assert [call[:2] for call in calls] == [(epoch, 40) for epoch in range(1, 41)]
    assert calls[3][2]["validation_metric"] == errors[3]
    assert fitted.parameters == 4 * 28 + 8 * 5 + 8 * 2**3 * 8 + 8 + 9 + 1  # the last is the covariate
    assert {path.name for path in tmp_path.iterdir()} == {"images", "model.pt"}

    # what was chosen is what predicts
    found = predict(fitted.checkpoint, validation, batch_size=8)
    assert losses.metric(found.outputs, validation.targets, "regression") == errors.min()


def test_it_learns_two_classes_with_attention(make_samples: MakeSamples, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"kind": "binary", "shape": (15, 15, 15), "contrasts": 2}
    train, validation = make_samples(12, **sizes), make_samples(6, first=12, **sizes)
    training = Training(epochs=12, batch_size=4, learning_rate=5e-3, monitor="auc", balanced_sampler=True)
    fitted = run(tmp_path, train, validation, training, model=Model(name="gated_attention"), target=SEVERE)
    assert fitted.epochs["validation_metric"][-3:].to_list() == [1, 1, 1]  # when it gets there differs between CPUs
    assert predict(fitted.checkpoint, validation).attention is not None
    description = describe(fitted.checkpoint)
    assert (description.contrasts, description.covariates, description.target_mean) == (2, 1, 0.0)


def test_the_output_layer_is_trained_in_the_targets_scale() -> None:
    """Standardised target, plain AdamW == raw target with the output layer's scale in weights, steps, decay."""
    random = np.random.default_rng(0)
    samples = [Samples(("sub-a",), ((Path("a"),),), np.zeros((1, 0)), np.zeros(1), np.ones(1))] * 2
    torch.manual_seed(0)
    raw, plain = (torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)) for _ in "ab")
    plain.load_state_dict(raw.state_dict())
    mean, sd = 50.0, 20.0
    scale_output(raw, sd)
    torch.nn.init.constant_(raw[2].bias, mean)
    torch.nn.init.zeros_(plain[2].bias)
    training = Training(learning_rate=1e-2, weight_decay=0.5)
    module = Fold(raw, training, "regression", 0, *samples, Volumes(0), sd, Progress(""), Path("resume.pt"), None)
    optimizer = module.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate * group["scale"]  # type: ignore[operator]
    weights, biases = ([each for each in plain.parameters() if (each.ndim > 1) == big] for big in (True, False))
    reference = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.5}, {"params": biases, "weight_decay": 0.0}], lr=1e-2
    )
    inputs, targets = torch.from_numpy(random.random((16, 3))).float(), torch.from_numpy(random.random(16)).float()
    for _ in range(20):
        for network, stepper, wanted in ((raw, optimizer, mean + sd * targets), (plain, reference, targets)):
            stepper.zero_grad()
            losses.loss(network(inputs)[:, 0], wanted, torch.ones(16), "regression").backward()
            stepper.step()
    torch.testing.assert_close(raw(inputs), mean + sd * plain(inputs), rtol=1e-4, atol=1e-3)


def test_a_constant_target_is_named(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    train, validation = sets
    with pytest.raises(TrainingError, match="fold 1: every training scan has target 40; nothing to learn"):
        run(tmp_path, replace(train, targets=np.full(10, 40.0)), validation)


def test_the_output_starts_at_the_training_mean(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    fitted = run(tmp_path, *sets, TRAINING.model_copy(update={"epochs": 1}))
    assert describe(fitted.checkpoint).target_mean == pytest.approx(sets[0].targets.astype(float).mean())


def test_same_seed_same_bits_whatever_was_drawn_before(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    first = run(tmp_path / "a", *sets)
    torch.rand(7), np.random.rand(7)  # noqa: NPY002  the global generators must not matter
    generator = torch.get_rng_state()
    second = run(tmp_path / "b", *sets)
    assert first.sha256 == second.sha256
    assert table(first) == table(second)
    assert torch.equal(torch.get_rng_state(), generator)
    assert run(tmp_path / "c", *sets, TRAINING.model_copy(update={"seed": 1})).sha256 != first.sha256
    assert run(tmp_path / "d", *sets, fold=2).sha256 != first.sha256
    uncached = run(tmp_path / "e", *sets, TRAINING.model_copy(update={"cache_gb": 0.0}))
    assert uncached.sha256 == first.sha256


@pytest.mark.parametrize("last", [1, 3, 5])
def test_a_stopped_run_goes_on_to_the_same_bits(sets: tuple[Samples, Samples], tmp_path: Path, last: int) -> None:
    undisturbed = run(tmp_path / "a", *sets)
    with pytest.raises(Stopped):
        run(tmp_path / "b", *sets, progress=stop_after(last))
    assert (tmp_path / "b" / "resume.pt").exists()
    seen: list[int] = []
    resumed = run(tmp_path / "b", *sets, progress=lambda epoch, *_: seen.append(epoch))
    assert seen == list(range(last + 1, 6))
    assert resumed.checkpoint.read_bytes() == undisturbed.checkpoint.read_bytes()
    assert table(resumed) == table(undisturbed)
    assert resumed.best_epoch == undisturbed.best_epoch
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["model.pt"]


def test_a_stopped_run_keeps_batch_statistics_and_the_balanced_order(make_samples: MakeSamples, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"kind": "binary", "shape": (8, 8, 8), "contrasts": 2}
    sets = make_samples(6, **sizes), make_samples(4, first=6, **sizes)
    training = Training(
        epochs=3, batch_size=3, monitor="auc", balanced_sampler=True, augmentation=Augmentation(rotate90=True)
    )
    more: dict[str, Any] = {
        "model": Model(name="gated_attention", options={"blocks": [1, 1], "init_features": 4}),
        "target": SEVERE,
    }
    undisturbed = run(tmp_path / "a", *sets, training, **more)
    with pytest.raises(Stopped):
        run(tmp_path / "b", *sets, training, progress=stop_after(2), **more)
    resumed = run(tmp_path / "b", *sets, training, **more)
    assert resumed.checkpoint.read_bytes() == undisturbed.checkpoint.read_bytes()
    assert table(resumed) == table(undisturbed)


def test_a_state_of_something_else_is_left_aside(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    train, validation = sets
    others: list[tuple[Samples, Training, int]] = [
        (train, TRAINING.model_copy(update={"learning_rate": 1e-3}), 1),
        (replace(train, targets=train.targets + 1), TRAINING, 1),
        (replace(train, images=train.images[::-1]), TRAINING, 1),
        (train, TRAINING, 2),
    ]
    for number, (samples, training, fold) in enumerate(others):
        folder = tmp_path / str(number)
        with pytest.raises(Stopped):
            run(folder, train, validation, progress=stop_after(2))
        seen: list[int] = []
        run(
            folder,
            samples,
            validation,
            training,
            fold=fold,
            progress=lambda epoch, *_, to=seen: to.append(epoch),
        )
        assert seen == [1, 2, 3, 4, 5]


def test_a_damaged_state_is_left_aside(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "a", *sets)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "resume.pt").write_bytes(b"not a state")
    assert run(tmp_path / "b", *sets).sha256 == undisturbed.sha256


CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from relevance_assets.study import Model, Target, Training
from relevance_assets.training.data import Samples
from relevance_assets.training.fit import fit

given = json.loads(sys.stdin.read())
sets = [
    Samples(tuple(s["scans"]), tuple((Path(p),) for p in s["images"]), np.array(s["covariates"]),
            np.array(s["targets"]), np.array(s["weights"]))
    for s in given["sets"]
]
fit(Model(**given["model"]), Training(**given["training"]), Target(column="age", kind="regression"), *sets,
    Path(given["folder"]), fold=1, progress=lambda epoch, *_: print(epoch, flush=True))
"""


def test_sigkill_at_any_moment_changes_nothing(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "a", *sets)
    given = {
        "sets": [
            {
                "scans": samples.scans,
                "images": [str(paths[0]) for paths in samples.images],
                **{
                    name: getattr(samples, name).astype(float).tolist() for name in ("covariates", "targets", "weights")
                },
            }
            for samples in sets
        ],
        "model": MODEL.model_dump(),
        "training": TRAINING.model_dump(),
        "folder": str(tmp_path / "b"),
    }
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(given))
        child.stdin.close()
        assert [child.stdout.readline().strip() for _ in range(2)] == ["1", "2"]
        time.sleep(0.005)  # into the next epoch, or into the writing of its state
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "b" / "model.pt").exists()
    seen: list[int] = []
    resumed = run(tmp_path / "b", *sets, progress=lambda epoch, *_: seen.append(epoch))
    assert seen[0] >= 3
    assert resumed.checkpoint.read_bytes() == undisturbed.checkpoint.read_bytes()
    assert table(resumed) == table(undisturbed)


def test_nothing_is_said_and_nothing_is_left_switched(
    sets: tuple[Samples, Samples],
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("lightning.pytorch").level
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(tmp_path / "a", *sets)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "images"}
    assert logging.getLogger("lightning.pytorch").level == level
    assert signal.getsignal(signal.SIGINT) is handler
    assert not torch.are_deterministic_algorithms_enabled()


def test_ctrl_c_stays_ctrl_c(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *sets, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor": "auc"}, "monitor: auc is not defined for a regression target"),
        ({"balanced_sampler": True}, "balanced_sampler: balances classes"),
        ({"learning_rate": 1e25, "weight_decay": 0.0}, r"fold 1, epoch \d: the training loss is (nan|inf)"),
    ],
)
def test_settings_that_cannot_work_are_named(
    sets: tuple[Samples, Samples], tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        run(tmp_path, *sets, TRAINING.model_copy(update=changes))
    assert "\n" not in str(caught.value)


def test_sets_that_cannot_work_are_named(make_samples: MakeSamples, tmp_path: Path) -> None:
    train, validation = make_samples(4, kind="binary"), make_samples(4, first=4, kind="binary")
    empty = Samples((), (), np.zeros((0, 1)), np.zeros(0), np.zeros(0))
    plain = Training(epochs=1)
    for sets, message in [
        ((train, empty), "fold 1: the validation set is empty"),
        ((train, replace(validation, targets=np.ones(4))), "every scan of the validation set has target 1"),
        ((replace(train, targets=np.full(4, 3.0)), validation), "binary targets must be 0 or 1"),
        ((train, train), "sub-000 is in the training and in the validation set"),
        ((train, replace(validation, covariates=np.zeros((4, 0)))), "different numbers of covariates"),
    ]:
        with pytest.raises(TrainingError, match=message):
            run(tmp_path, *sets, plain, target=SEVERE)
    with pytest.raises(TrainingError, match="mae is not defined for a binary target"):
        run(tmp_path, train, validation, Training(epochs=1, monitor="mae"), target=SEVERE)


def test_quarter_turns_on_an_oblong_grid_are_named(make_samples: MakeSamples, tmp_path: Path) -> None:
    train, validation = make_samples(4, shape=(8, 9, 8)), make_samples(2, first=4, shape=(8, 9, 8))
    training = Training(epochs=1, augmentation=Augmentation(rotate90=True))
    with pytest.raises(TrainingError, match="rotate90 needs a grid with equal first two axes, not 8x9x8"):
        run(tmp_path, train, validation, training)


def test_scans_of_different_shapes_are_named(make_samples: MakeSamples, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="shape 8x8x9 differs from the other scans' 8x8x8"):
        run(tmp_path, make_samples(4), make_samples(2, first=4, shape=(8, 8, 9)))


def test_sample_weights_and_sampling_reach_the_training(make_samples: MakeSamples, tmp_path: Path) -> None:
    train, validation = make_samples(6, kind="binary"), make_samples(4, first=6, kind="binary")
    training = Training(epochs=1, batch_size=6)
    plain = run(tmp_path / "a", train, validation, training, target=SEVERE)
    double = run(tmp_path / "b", replace(train, weights=2 * train.weights), validation, training, target=SEVERE)
    assert double.epochs["loss"][0] == pytest.approx(2 * plain.epochs["loss"][0], rel=1e-5)
    balanced = training.model_copy(update={"balanced_sampler": True})
    assert run(tmp_path / "c", train, validation, balanced, target=SEVERE).sha256 != plain.sha256


def test_learning_rates() -> None:
    constant, cosine = (Training(epochs=4, learning_rate=2.0, schedule=name) for name in ("constant", "cosine"))
    assert [learning_rate(constant, epoch) for epoch in (1, 4)] == [2, 2]
    expected = [1 + math.cos(math.pi * done / 4) for done in range(4)]
    assert [learning_rate(cosine, epoch) for epoch in range(1, 5)] == pytest.approx(expected)


def test_the_best_epoch_is_kept_not_the_last(
    sets: tuple[Samples, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "rank", lambda monitor, loss, metric: (0.0, 0.0))  # all equal: the earliest wins
    fitted = run(tmp_path / "a", *sets)
    assert fitted.best_epoch == 1
    one = fit_module.fit(MODEL, TRAINING, AGE, *sets, tmp_path / "b", fold=1)
    assert one.sha256 == fitted.sha256


def test_training_may_begin_with_another_models_weights(make_samples: MakeSamples, tmp_path: Path) -> None:
    """One epoch at a rate of nearly nothing leaves the weights that it began with."""
    sets = make_samples(8), make_samples(4, first=8)
    before = run(tmp_path / "before", *sets, TRAINING.model_copy(update={"epochs": 2}))
    still = TRAINING.model_copy(update={"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0})
    after = run(tmp_path / "after", *sets, still, start=before.checkpoint)
    said = [predict(fitted.checkpoint, sets[1]).outputs for fitted in (before, after)]
    np.testing.assert_allclose(said[1], said[0], rtol=1e-5)
    anew = run(tmp_path / "anew", *sets, still)
    assert not np.allclose(predict(anew.checkpoint, sets[1]).outputs, said[0], rtol=1e-3)
