"""Predictions against the network called by hand, one scan at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from relevance_assets.models import registry
from relevance_assets.training.checkpoint import Description, save
from relevance_assets.training.data import Samples, TrainingError, Volumes
from relevance_assets.training.predict import predict

MakeSamples = Callable[..., Samples]
SMALL = {"channels": [4, 4], "dense": 8}


def mrinet(**settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    given = {"shape": (8, 8, 8), "contrasts": 1, "covariates": 1, "options": SMALL} | settings
    return registry.build("mrinet", **given)  # type: ignore[arg-type]


def test_outputs_are_the_networks_in_the_order_of_the_samples(make_samples: MakeSamples) -> None:
    samples, network = make_samples(5), mrinet(target_mean=50.0)
    found = predict(network, samples, batch_size=2)
    network.eval()
    for row in range(5):
        image = torch.from_numpy(Volumes(0)(samples.images[row]).copy())[None]
        with torch.no_grad():
            expected = network(image, torch.from_numpy(samples.covariates[row : row + 1])).item()
        assert found.outputs[row] == pytest.approx(expected, rel=1e-5)
    assert found.outputs.dtype == np.float64
    assert found.attention is None


def test_the_network_is_left_as_it_was(make_samples: MakeSamples) -> None:
    network = mrinet().double().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    predict(network, make_samples(2))
    assert network.training
    assert next(network.parameters()).dtype == torch.float64
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not torch.are_deterministic_algorithms_enabled()


def test_attention_weights_come_along(make_samples: MakeSamples) -> None:
    torch.manual_seed(0)
    network = registry.build("gated_attention", shape=(16, 16, 16), contrasts=2, covariates=1, options={})
    found = predict(network, make_samples(3, contrasts=2, shape=(16, 16, 16)), batch_size=2)
    assert found.attention is not None
    assert found.attention.shape == (3, 2)
    np.testing.assert_allclose(found.attention.sum(axis=1), 1, atol=1e-6)


def test_no_scans_give_no_predictions(make_samples: MakeSamples) -> None:
    samples = make_samples(1)
    empty = Samples((), (), np.zeros((0, 1)), np.zeros(0), np.zeros(0))
    assert predict(mrinet(), empty).outputs.shape == (0,)
    assert len(samples) == 1


def test_what_does_not_suit_the_model_is_named(make_samples: MakeSamples, tmp_path: Path) -> None:
    description = Description("mrinet", SMALL, (8, 8, 8), 1, 1, "regression", 0.0, 0)
    path = tmp_path / "model.pt"
    save(path, description, description.build().state_dict())
    samples = make_samples(2)
    assert predict(path, samples).outputs.shape == (2,)
    with pytest.raises(TrainingError, match=r"model\.pt: was trained with 1 covariates, the scans have 0"):
        predict(path, replace(samples, covariates=np.zeros((2, 0))))
    with pytest.raises(TrainingError, match="was trained on 1 contrasts"):
        predict(path, make_samples(2, contrasts=2))
    save(path, description, {name: value * np.nan for name, value in description.build().state_dict().items()})
    with pytest.raises(TrainingError, match="output for sub-000 is not finite"):
        predict(path, samples)
