"""Several processes that train one fold together do what one would do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relevance_assets.study import Augmentation, Model, Target, Training
from relevance_assets.training.data import Batches, Samples, TrainingError, Volumes
from relevance_assets.training.fit import fit
from relevance_assets.training.predict import predict

MakeSamples = Callable[..., Samples]
AGE = Target(column="age", kind="regression")
MODEL = Model(name="mrinet", options={"channels": [4, 8], "dense": 8, "dropout": 0.0})
TRAINING = Training(
    epochs=3, batch_size=5, learning_rate=3e-3, monitor="mae", augmentation=Augmentation(flip_axes=[1], noise_sd=0.05)
)


def train(samples: tuple[Samples, Samples], folder: Path, **more: Any) -> Any:
    given = {"model": MODEL, "training": TRAINING, "target": AGE, "fold": 0} | more
    return fit(train=samples[0], validation=samples[1], folder=folder, **given)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_two_processes_learn_what_one_learns(make_samples: MakeSamples, tmp_path: Path, strategy: str) -> None:
    """13 scans in batches of 5, 4 and 4, validated on 5: neither number is even, so parts differ in size.

    Without dropout the sums are the same but for the order of summation; the weights are compared through what the
    models say.
    """
    samples = make_samples(13), make_samples(5, first=13)
    seen: list[tuple[int, int]] = []
    alone = train(samples, tmp_path / "one")
    together = train(
        samples,
        tmp_path / "two",
        training=TRAINING.model_copy(update={"devices": 2, "strategy": strategy}),
        progress=lambda epoch, epochs, row: seen.append((epoch, epochs)),
    )
    columns = ["loss", "validation_loss", "validation_metric"]
    np.testing.assert_allclose(together.epochs.select(columns), alone.epochs.select(columns), rtol=1e-4)
    assert together.best_epoch == alone.best_epoch
    assert together.parameters == alone.parameters
    said = [predict(fitted.checkpoint, samples[1]).outputs for fitted in (alone, together)]
    np.testing.assert_allclose(said[1], said[0], rtol=1e-4)
    assert not np.array_equal(said[0], np.full(5, said[0][0]))
    assert seen[-1] == (3, 3), "epochs that other processes finish are told here"
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["model.pt"]


def test_a_killed_training_goes_on_with_more_devices(make_samples: MakeSamples, tmp_path: Path) -> None:
    """Where and how fast a model is trained is not part of what it depends on."""
    samples = make_samples(8), make_samples(4, first=8)

    def stop(epoch: int, epochs: int, row: dict) -> None:
        if epoch == 2:
            raise KeyError("stopped")

    with pytest.raises(KeyError):
        train(samples, tmp_path / "model", progress=stop)
    two = TRAINING.model_copy(update={"devices": 2, "strategy": "ddp_fork"})
    went_on = train(samples, tmp_path / "model", training=two)
    whole = train(samples, tmp_path / "whole")
    assert went_on.epochs["loss"][:2].to_list() == whole.epochs["loss"][:2].to_list()
    np.testing.assert_allclose(went_on.epochs["loss"], whole.epochs["loss"], rtol=1e-4)


def test_an_error_in_one_process_is_one_line(make_samples: MakeSamples, tmp_path: Path) -> None:
    wild = TRAINING.model_copy(update={"devices": 2, "strategy": "ddp_fork", "learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"^fold 0, epoch \d: the \w+ loss is \w+; lower training.learning_rate"):
        train((make_samples(8), make_samples(4, first=8)), tmp_path, training=wild)


@pytest.mark.parametrize(
    ("model", "training", "scans", "message"),
    [
        ("gated_attention", {"devices": 2}, (8, 4), "batch norms can be shared between GPUs only"),
        ("mrinet", {"devices": 2}, (8, 1), "a batch has 4 scans and the validation set 1; use fewer devices"),
        ("mrinet", {"devices": 3, "batch_size": 2}, (8, 4), "a batch has 2 scans"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_what_cannot_be_shared_is_refused(
    make_samples: MakeSamples, tmp_path: Path, model: str, training: dict, scans: tuple[int, int], message: str
) -> None:
    options: dict[str, Any] = {"blocks": [2]} if model == "gated_attention" else MODEL.options
    samples = make_samples(scans[0], shape=(16, 16, 16)), make_samples(scans[1], first=scans[0], shape=(16, 16, 16))
    settings = TRAINING.model_copy(update=training)
    with pytest.raises(TrainingError, match=message):
        train(samples, tmp_path, model=Model(name=model, options=options), training=settings)


def test_processes_share_out_every_batch(make_samples: MakeSamples) -> None:
    samples = make_samples(11)
    order = np.random.default_rng(0).permutation(11)
    whole = list(Batches(samples, Volumes(1), 4, order))
    parts = [list(Batches(samples, Volumes(1), 4, order, None, rank, 3)) for rank in range(3)]
    for number, batch in enumerate(whole):
        shared = sorted(float(value) for part in parts for value in part[number].targets)
        assert shared == sorted(batch.targets.tolist())
