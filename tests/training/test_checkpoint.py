"""`model.pt`: what goes in comes out; anything else is one clear line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from relevance_assets.training.checkpoint import (
    CheckpointError,
    Description,
    describe,
    load,
    save,
    transfer,
    write_tensors,
)

DESCRIPTION = Description(
    name="mrinet",
    options={"dense": 8, "channels": [4, 4]},
    shape=(8, 8, 8),
    contrasts=2,
    covariates=1,
    target_kind="regression",
    target_mean=51.5,
    seed=3,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = DESCRIPTION.build()
    save(tmp_path / "model.pt", DESCRIPTION, network.state_dict())
    return tmp_path / "model.pt"


def test_the_network_comes_back(model: Path) -> None:
    torch.manual_seed(0)
    network = DESCRIPTION.build().eval()
    found = load(model)
    assert not found.training
    images, covariates = torch.rand(3, 2, 8, 8, 8), torch.rand(3, 1)
    assert torch.equal(found(images, covariates), network(images, covariates))
    assert describe(model) == DESCRIPTION


def test_equal_contents_give_equal_bytes(model: Path, tmp_path: Path) -> None:
    state = load(model).to(memory_format=torch.channels_last_3d).state_dict()
    save(tmp_path / "deeper" / "another_name.pt", replace(DESCRIPTION), state)
    assert (tmp_path / "deeper" / "another_name.pt").read_bytes() == model.read_bytes()


def test_a_truncated_file_is_named(model: Path) -> None:
    whole = model.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 100):
        model.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.pt: damaged or not a model file; delete") as caught:
            load(model)
        assert "\n" not in str(caught.value)


def test_a_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Intruder:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit",)

    torch.save({"format": Intruder()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="damaged or not a model file"):
        load(tmp_path / "model.pt")


def test_foreign_and_incomplete_contents_are_named(model: Path) -> None:
    content = torch.load(model, weights_only=True)
    write_tensors(model, {"state_dict": content["state_dict"]})
    with pytest.raises(CheckpointError, match="not a model of this version"):
        load(model)
    write_tensors(model, {key: value for key, value in content.items() if key != "shape"})
    with pytest.raises(CheckpointError, match="lacks 'shape'"):
        load(model)
    write_tensors(model, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="not a model of this version"):
        load(model)


@pytest.mark.parametrize("change", [{"options": {"dense": 9}}, {"name": "unheard_of"}, {"options": {"no": 1}}])
def test_weights_that_do_not_fit_are_named(model: Path, change: dict[str, object]) -> None:
    write_tensors(model, torch.load(model, weights_only=True) | change)
    with pytest.raises(CheckpointError, match=r"model\.pt: weights do not fit .*; train again") as caught:
        load(model)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such model"):
        load(tmp_path / "absent.pt")


def test_weights_are_taken_where_they_fit(model: Path) -> None:
    """From two contrasts to three: the first convolution is another, the rest is the same."""
    torch.manual_seed(1)
    network = replace(DESCRIPTION, contrasts=3).build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    taken = transfer(model, network)
    trained, after = load(model).state_dict(), network.state_dict()
    other = "features.conv1.weight"
    assert torch.equal(after[other], before[other])
    assert all(torch.equal(after[name], trained[name]) for name in after if name != other)
    assert taken == sum(each.numel() for each in network.parameters()) - before[other].numel()


def test_weights_of_another_network_are_refused(model: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing in it fits a Linear; take the same network and grid"):
        transfer(model, torch.nn.Linear(2, 3))


def test_classes_are_named_only_where_there_are_any(tmp_path: Path) -> None:
    """So that other models keep their bytes, and those written before there were classes can be read."""
    path = tmp_path / "model.pt"
    save(path, DESCRIPTION, DESCRIPTION.build().state_dict())
    assert "classes" not in torch.load(path, weights_only=True)
    slices = Description("vgg16", {"width": 1 / 64}, (32, 32, 1), 1, 0, "classes", 0.0, 3, ("a", "b"))
    save(path, slices, slices.build().state_dict())
    assert describe(path) == slices
    assert load(path)(torch.rand(2, 1, 32, 32, 1), torch.zeros(2, 0)).shape == (2, 2)
