"""One fold of slices in three classes: it learns, in phases, and a killed run goes on in the right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from relevance_assets.imaging.volumes import save_volume
from relevance_assets.models.registry import build
from relevance_assets.study import Augmentation, Model, Phase, Target, Training
from relevance_assets.training.checkpoint import describe, load
from relevance_assets.training.data import Samples, TrainingError, Volumes
from relevance_assets.training.fit import Fitted, fit
from relevance_assets.training.loop import switches
from relevance_assets.training.optimiser import arrange, begin_epoch, learning_rate, optimizer
from relevance_assets.training.predict import Predictor, predict

KINDS = Target(column="class", kind="classes", classes=["meningioma", "glioma", "pituitary"])
NARROW = Model(name="vgg16", options={"width": 1 / 32, "dropout": 0.2})
ALL = Phase(epochs=2, learning_rate=1e-3)
CLASSIFIER = Phase(epochs=2, train="classifier", learning_rate=2e-3)
FOUR = Training(
    phases=[CLASSIFIER, ALL],
    batch_size=4,
    optimiser="adam",
    monitor="last",
    class_weights="balanced",
    augmentation=Augmentation(flip_axes=[0, 1]),
)


class Stopped(Exception):
    """Stands for whatever ends a run from outside."""


def slices(folder: Path, n: int, first: int = 0, targets: list[int] | None = None) -> Samples:
    """Slices of 32 x 32 with a spot whose size is the class."""
    found = np.array(targets or [number % 3 for number in range(first, first + n)])
    images = []
    for number, kind in zip(range(first, first + n), found, strict=True):
        random = np.random.default_rng(number)
        image = 0.1 * random.random((32, 32, 1))
        x, y = random.integers(2, 12, size=2)
        image[x : x + 4 + 6 * kind, y : y + 4 + 6 * kind] += 0.8
        images.append((folder / f"slice-{number:03d}_{kind}.nii.gz",))
        save_volume(images[-1][0], image, np.eye(4))
    names = tuple(f"slice-{number:03d}" for number in range(first, first + n))
    return Samples(names, tuple(images), np.zeros((n, 0)), found, np.ones(n))


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Samples, Samples]:
    return slices(tmp_path / "images", 9), slices(tmp_path / "images", 6, first=9)


def run(folder: Path, sets: tuple[Samples, Samples], training: Training = FOUR, **more: Any) -> Fitted:
    given: dict[str, Any] = {"model": NARROW, "target": KINDS, "fold": 0} | more
    return fit(training=training, train=sets[0], validation=sets[1], folder=folder, **given)


def stop_after(last: int) -> Callable[[int, int, dict], None]:
    def progress(epoch: int, epochs: int, row: dict) -> None:
        if epoch == last:
            raise Stopped

    return progress


def test_it_learns_three_classes_and_says_how(tmp_path: Path) -> None:
    sets = slices(tmp_path / "images", 24), slices(tmp_path / "images", 9, first=24)
    training = Training(
        epochs=25, batch_size=8, learning_rate=2e-3, optimiser="adam", monitor="accuracy", balanced_sampler=True
    )
    model = Model(name="vgg16", options={"width": 1 / 16, "dropout": 0.0})
    fitted = run(tmp_path / "model", sets, training, model=model)
    assert fitted.epochs["validation_metric"].max() > 0.6  # by chance a third
    found = predict(fitted.checkpoint, sets[1])
    assert found.outputs.shape == (9, 3)
    assert found.outputs.dtype == np.float64
    assert found.attention is None
    accuracy = np.mean(found.outputs.argmax(axis=1) == sets[1].targets)
    assert accuracy == fitted.epochs["validation_metric"][fitted.best_epoch - 1]
    description = describe(fitted.checkpoint)
    assert description.classes == ("meningioma", "glioma", "pituitary")
    assert (description.target_kind, description.target_mean) == ("classes", 0.0)


def test_outputs_are_the_networks(sets: tuple[Samples, Samples]) -> None:
    torch.manual_seed(0)
    network = build("vgg16", shape=(32, 32, 1), contrasts=1, covariates=0, options=NARROW.options, classes=3).eval()
    images = torch.from_numpy(np.stack([Volumes(0)(paths) for paths in sets[0].images]))
    with torch.no_grad():
        expected = network(images, torch.zeros(9, 0)).numpy()
    predictor = Predictor(network)
    np.testing.assert_allclose(predictor(sets[0], batch_size=4).outputs, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(predictor.outputs([images.numpy()], np.zeros(0)), expected, rtol=1e-4, atol=1e-6)
    nobody = Samples((), (), np.zeros((0, 0)), np.zeros(0), np.zeros(0))
    assert predictor(nobody).outputs.shape == predictor.outputs([], np.zeros(0)).shape == (0, 3)
    with torch.no_grad():
        network.classifier[6].bias[1] = np.nan
    with pytest.raises(TrainingError, match="output for slice-000 is not finite"):
        predict(network, sets[0])


def test_a_phase_leaves_the_other_weights_alone(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    one = FOUR.model_copy(update={"phases": [CLASSIFIER]})
    begun = run(tmp_path / "a", sets, one.model_copy(update={"phases": [Phase(epochs=1, learning_rate=1e-30)]}))
    states = {}
    for part in ("classifier", "features", "all"):
        training = one.model_copy(update={"phases": [CLASSIFIER.model_copy(update={"train": part})]})
        fitted = run(tmp_path / part, sets, training)
        state, first = load(fitted.checkpoint).state_dict(), load(begun.checkpoint).state_dict()
        moved = {name.split(".")[0] for name in first if (state[name] - first[name]).abs().max() > 1e-6}
        assert moved == ({"classifier", "features"} if part == "all" else {part})
        states[part] = fitted.parameters
    assert states["classifier"] + states["features"] == states["all"]
    assert run(tmp_path / "four", sets).parameters == states["all"]


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_a_stopped_run_goes_on_in_the_right_phase(sets: tuple[Samples, Samples], tmp_path: Path, last: int) -> None:
    undisturbed = run(tmp_path / "a", sets)
    with pytest.raises(Stopped):
        run(tmp_path / "b", sets, progress=stop_after(last))
    seen: list[tuple[int, int]] = []
    resumed = run(tmp_path / "b", sets, progress=lambda epoch, epochs, _: seen.append((epoch, epochs)))
    assert seen == [(epoch, 4) for epoch in range(last + 1, 5)]
    assert resumed.checkpoint.read_bytes() == undisturbed.checkpoint.read_bytes()
    assert resumed.epochs.drop("seconds").equals(undisturbed.epochs.drop("seconds"))
    assert resumed.parameters == undisturbed.parameters
    assert resumed.best_epoch == 4  # monitor: last


def test_phases_are_two_adams_one_after_the_other() -> None:
    """Against torch's own Adam over the classifier, then a new one over all weights; on a network without dropout."""
    torch.manual_seed(0)
    networks = [
        build("vgg16", shape=(32, 32, 1), contrasts=1, covariates=0, options={"width": 1 / 32, "dropout": 0}, classes=3)
        for _ in "ab"
    ]
    networks[1].load_state_dict(networks[0].state_dict())
    images, targets = torch.rand(6, 1, 32, 32, 1), torch.arange(6) % 3
    ours = optimizer(networks[0], FOUR, "classes", 1.0)
    theirs = torch.optim.Adam(networks[1].classifier.parameters(), lr=2e-3)  # type: ignore[arg-type]
    for epoch in range(1, 5):
        if epoch == 3:
            theirs = torch.optim.Adam(networks[1].parameters(), lr=1e-3)
        begin_epoch(networks[0], ours, FOUR, epoch)
        for group in ours.param_groups:
            group["lr"] = learning_rate(FOUR, epoch)
        for _ in range(3):
            for network, steps in zip(networks, (ours, theirs), strict=True):
                steps.zero_grad()
                torch.nn.functional.cross_entropy(network(images, torch.zeros(6, 0)), targets).backward()
                steps.step()
        for name, value in networks[0].state_dict().items():
            torch.testing.assert_close(value, networks[1].state_dict()[name], rtol=1e-5, atol=1e-7)
    assert [learning_rate(FOUR, epoch) for epoch in range(1, 5)] == [2e-3, 2e-3, 1e-3, 1e-3]


def test_the_same_phase_twice_begins_twice() -> None:
    training = Training(phases=[ALL, ALL])
    assert [epoch for epoch in range(1, 5) if training.begins_phase(epoch)] == [1, 3]
    assert training.total_epochs == 4
    assert Training(epochs=7).total_epochs == 7


def test_weights_of_a_file_are_where_training_begins(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    path, moved = tmp_path / "vgg16.pth", tmp_path / "elsewhere.pth"
    torch.manual_seed(5)
    network = build("vgg16", shape=(32, 32, 1), contrasts=1, covariates=0, options=NARROW.options, classes=3)
    torch.save(network.state_dict(), path)
    still = Training(phases=[Phase(epochs=1, learning_rate=1e-30)], batch_size=4)
    model = Model(name="vgg16", options=NARROW.options | {"weights": str(path)})
    fitted = run(tmp_path / "a", sets, still, model=model)
    moved.write_bytes(path.read_bytes())
    path.unlink()
    for name, value in load(fitted.checkpoint).state_dict().items():  # without the file, which is gone
        torch.testing.assert_close(value, network.state_dict()[name])
    again = Model(name="vgg16", options=NARROW.options | {"weights": str(moved)})
    assert run(tmp_path / "b", sets, still, model=again).sha256 == fitted.sha256  # where it lay does not matter
    with pytest.raises(TrainingError, match=r"model\.options\.weights: .*vgg16\.pth: no such file"):
        run(tmp_path / "c", sets, still, model=model)


def test_another_file_of_weights_begins_anew(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    path = tmp_path / "vgg16.pth"
    model = Model(name="vgg16", options=NARROW.options | {"weights": str(path)})
    for seed in range(2):
        torch.manual_seed(seed)
        network = build("vgg16", shape=(32, 32, 1), contrasts=1, covariates=0, options=NARROW.options, classes=3)
        torch.save(network.state_dict(), path)
        seen: list[int] = []
        if seed:
            run(tmp_path / "a", sets, model=model, progress=lambda epoch, *_, to=seen: to.append(epoch))
            assert seen == [1, 2, 3, 4]
        else:
            with pytest.raises(Stopped):
                run(tmp_path / "a", sets, model=model, progress=stop_after(2))


def test_class_weights_are_weights_of_samples(tmp_path: Path) -> None:
    """n / (classes x n_c), of the training set's classes, in the training's and in the validation's loss."""
    sets = (
        slices(tmp_path / "images", 8, targets=[0, 0, 0, 0, 1, 1, 1, 2]),
        slices(tmp_path / "images", 4, first=8, targets=[0, 1, 2, 2]),
    )
    plain = FOUR.model_copy(update={"class_weights": "none"})
    by_hand = np.array([8 / 12, 8 / 9, 8 / 3])
    weighted = (replace(sets[0], weights=by_hand[sets[0].targets.astype(int)]),
                replace(sets[1], weights=by_hand[sets[1].targets.astype(int)]))  # fmt: skip
    rows = [run(tmp_path / "a", sets).epochs, run(tmp_path / "b", weighted, plain).epochs]
    assert rows[0].drop("seconds").equals(rows[1].drop("seconds"))
    assert not rows[0].drop("seconds").equals(run(tmp_path / "c", sets, plain).epochs.drop("seconds"))


def test_two_devices_are_as_one(sets: tuple[Samples, Samples], tmp_path: Path) -> None:
    training = Training(epochs=2, batch_size=4, monitor="balanced_accuracy")
    model = Model(name="vgg16", options={"width": 1 / 32, "dropout": 0.0})
    sets = sets[0], slices(tmp_path / "images", 5, first=9)  # of which one process has a row more
    alone = run(tmp_path / "one", sets, training, model=model)
    both = training.model_copy(update={"devices": 2, "strategy": "ddp_fork"})
    together = run(tmp_path / "two", sets, both, model=model)
    for column in ("loss", "validation_loss", "validation_metric"):
        np.testing.assert_allclose(together.epochs[column], alone.epochs[column], rtol=1e-4)


def test_every_gradient_is_deterministic_and_layouts_agree() -> None:
    """Adaptive pools that enlarge (32 x 40 pixels become 1 x 1, then 7 x 7) and that cover unevenly are among them."""
    for shape in ((32, 40, 1), (256, 288, 1)):
        gradients = []
        for laid_out in (True, True, False):
            torch.manual_seed(0)
            network = build("vgg16", shape=shape, contrasts=1, covariates=0, options={"width": 1 / 64}, classes=3)
            if laid_out:
                arrange(network, torch.device("cpu"))
                assert network.features[2].weight.is_contiguous(memory_format=torch.channels_last)
            with switches():  # an operation without a deterministic kernel is an error there
                torch.manual_seed(1)
                network(torch.rand(2, 1, *shape), torch.zeros(2, 0))[:, 1].sum().backward()
            gradients.append(torch.cat([value.grad.flatten() for value in network.parameters()]))
        assert torch.equal(gradients[0], gradients[1])
        torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-3, atol=1e-5 * gradients[2].abs().max().item())


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([0, 0, 0], [0, 1], "every scan of the training set is meningioma, so that nothing can be learned"),
        ([0, 1, 2], [2, 2], "every scan of the validation set is pituitary"),
        ([0, 2, 2], [0, 1], "no scan of the training set is glioma; use fewer folds"),
        ([0, 1, 3], [0, 1], "targets must be 0 to 2; the training set has 3"),
    ],
)
def test_sets_without_all_classes_are_named(tmp_path: Path, train: list, validation: list, message: str) -> None:
    sets = slices(tmp_path, 3, targets=train), slices(tmp_path, 2, first=3, targets=validation)
    with pytest.raises(TrainingError, match=f"^fold 0: {message}"):
        run(tmp_path, sets)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Training(monitor="auc"), "monitor: auc is not defined for a target of classes; use one of accuracy, bal"),
        (FOUR.model_copy(update={"devices": 2}), "phases: weights that do not learn cannot be shared out"),
    ],
)
def test_settings_that_do_not_suit_classes_are_named(
    sets: tuple[Samples, Samples], tmp_path: Path, training: Training, message: str
) -> None:
    with pytest.raises(TrainingError, match=f"training.{message}"):
        run(tmp_path, sets, training)


def test_settings_that_suit_classes_only_are_named(tmp_path: Path) -> None:
    volumes = [(tmp_path / f"{i}.nii.gz",) for i in range(6)]
    for number, (path,) in enumerate(volumes):
        save_volume(path, np.random.default_rng(number).random((15, 15, 15)), np.eye(4))
    both = Samples(tuple("abcdef"), tuple(volumes), np.zeros((6, 0)), np.arange(6) % 2, np.ones(6))
    sets = (
        replace(both, scans=both.scans[:4], images=both.images[:4], covariates=both.covariates[:4],
                targets=both.targets[:4], weights=both.weights[:4]),
        replace(both, scans=both.scans[4:], images=both.images[4:], covariates=both.covariates[4:],
                targets=both.targets[4:], weights=both.weights[4:]),
    )  # fmt: skip
    age, severe = Target(column="age", kind="regression"), Target(column="edss", kind="binary", threshold=5)
    with pytest.raises(TrainingError, match="class_weights: balances classes; a regression target has none"):
        run(tmp_path / "a", sets, Training(class_weights="balanced"), target=age)
    with pytest.raises(TrainingError, match="monitor: accuracy is not defined for a binary target"):
        run(tmp_path / "a", sets, Training(monitor="accuracy"), target=severe)
    attention = Model(name="gated_attention", options={"blocks": [1], "init_features": 4})
    with pytest.raises(TrainingError, match="a GatedAttentionNet has no features to train apart; use train: all"):
        run(tmp_path / "a", sets, Training(phases=[CLASSIFIER]), target=severe, model=attention)
    with pytest.raises(ValueError, match="vgg16: is for a target of classes"):
        run(tmp_path / "a", sets, Training(), target=severe)
    three = slices(tmp_path, 3), slices(tmp_path, 3, first=3)
    with pytest.raises(ValueError, match="gated_attention: is for a target of one number, not of classes; take vgg16"):
        run(tmp_path / "a", three, Training(), model=attention)


# -------------------------------------------------------------------------------------------------------- settings
def test_targets_say_which_classes_there_are() -> None:
    for given, message in [
        ({"kind": "classes"}, "kind classes needs classes"),
        ({"kind": "classes", "classes": ["a"]}, "two or more names, each once"),
        ({"kind": "classes", "classes": ["a", "b", "a"]}, "two or more names, each once"),
        ({"kind": "classes", "classes": ["a", "b"], "threshold": 1}, "a binary target needs a threshold"),
        ({"kind": "regression", "classes": ["a", "b"]}, "other kinds have none"),
    ]:
        with pytest.raises(ValidationError, match=message):
            Target(column="x", **given)  # type: ignore[arg-type]
    assert KINDS.model_dump()["classes"] == ["meningioma", "glioma", "pituitary"]
    assert Target(**KINDS.model_dump()) == KINDS


def test_phases_and_optimisers_without_effect_are_refused() -> None:
    for given, message in [
        ({"phases": [ALL], "epochs": 3}, "training.epochs: the phases have their own"),
        ({"phases": [ALL], "learning_rate": 0.5}, "training.learning_rate: the phases have their own"),
        ({"phases": [ALL], "schedule": "cosine"}, "phases have constant rates"),
        ({"optimiser": "adam", "weight_decay": 0.1}, "adam has none"),
    ]:
        with pytest.raises(ValidationError, match=message):
            Training(**given)  # type: ignore[arg-type]
    for training in (FOUR, Training(), Training(optimiser="adam", weight_decay=0)):
        assert Training(**training.model_dump()) == training


def test_what_older_models_depend_on_is_named_as_before() -> None:
    """Settings that came with classes would else make every model stale that there is."""
    assert list(Training().decisive()) == [
        "epochs", "batch_size", "learning_rate", "weight_decay", "schedule", "monitor", "sample_weight",
        "balanced_sampler", "augmentation", "seed", "start_from",
    ]  # fmt: skip
    assert Target(column="age", kind="regression", unit="years").model_dump(mode="json") == {
        "column": "age",
        "kind": "regression",
        "threshold": None,
        "unit": "years",
    }
    decisive = FOUR.decisive()
    assert decisive["optimiser"] == "adam"
    assert decisive["class_weights"] == "balanced"
    assert decisive["phases"][0] == {"epochs": 2, "train": "classifier", "learning_rate": 2e-3}


def test_published_regimes_can_be_written() -> None:
    """LRP-model-investigation: what learns, at which rate, for how long; section 1.2 of the specification."""
    regimes: list[list[dict[str, Any]]] = [
        [{"epochs": 45, "train": "classifier", "learning_rate": 5e-4}],
        [{"epochs": 45, "train": "all", "learning_rate": 5e-4}],
        [{"epochs": 60, "train": "all", "learning_rate": 5e-4}],
        [{"epochs": 36, "train": "classifier", "learning_rate": 1e-4}, {"epochs": 15, "learning_rate": 1e-4}],
    ]
    found = [Training(phases=phases, optimiser="adam", batch_size=32, monitor="last") for phases in regimes]  # type: ignore[arg-type]
    assert [training.total_epochs for training in found] == [45, 45, 60, 51]
    assert [found[3].phase(epoch).train for epoch in (1, 36, 37, 51)] == ["classifier", "classifier", "all", "all"]
