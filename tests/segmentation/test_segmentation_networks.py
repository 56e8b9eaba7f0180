"""The published count of parameters, grids of any size, and what a gate computes in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from relevance_assets.segmentation.networks import PUBLISHED_WIDTHS, AttentionUNet, Gate, kernels_and_pools


def count(network: torch.nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


@pytest.mark.parametrize(("gates", "expected"), [(True, 31_380_327), (False, 31_030_723)])
def test_the_published_networks_have_the_published_number_of_parameters(gates: bool, expected: int) -> None:
    with torch.device("meta"):
        network = AttentionUNet(1, 3, widths=PUBLISHED_WIDTHS, gates=gates)
    assert count(network) == expected
    assert not [each for each in network.modules() if "Norm" in type(each).__name__]


def test_published_dropout_shares_and_inner_widths_of_gates() -> None:
    with torch.device("meta"):
        network = AttentionUNet(1, 3, widths=PUBLISHED_WIDTHS)
    shares = [[each.p for each in block.modules() if isinstance(each, torch.nn.Dropout)] for block in network.down]
    assert shares == [[0.1], [0.1], [0.2], [0.2], [0.3]]
    shares = [[each.p for each in block.modules() if isinstance(each, torch.nn.Dropout)] for block in network.merge]
    assert shares[::-1] == [[0.2], [0.2], [0.1], [0.1]]
    assert network.gate is not None
    assert [gate.psi.in_channels for gate in reversed(network.gate)] == [256, 128, 64, 32]


@pytest.mark.parametrize(("dims", "size"), [(2, (1, 1)), (2, (17, 30)), (3, (9, 12, 5)), (3, (8, 8, 8))])
@pytest.mark.parametrize("norm", ["none", "instance"])
def test_any_size_comes_back_as_it_was(dims: int, size: tuple[int, ...], norm: str) -> None:
    network = AttentionUNet(2, 3, widths=(2, 4, 6), dims=dims, norm=norm).eval()  # type: ignore[arg-type]
    if size == (1, 1) and norm == "instance":
        return  # a norm over one position has no spread
    assert network(torch.rand(2, 2, *size)).shape == (2, 3, *size)


def test_padding_repeats_the_border_and_is_cut_off_at_the_same_end() -> None:
    torch.manual_seed(0)
    network = AttentionUNet(widths=(2, 4, 6)).eval()
    image = torch.rand(1, 1, 10, 7)
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), (0, 2), (0, 1)), mode="edge"))
    assert torch.equal(network(image), network(padded)[:, :, :10, :7])


def test_a_gate_is_the_additive_attention_of_oktay() -> None:
    torch.manual_seed(1)
    gate = Gate(4, 2, 2).double()
    signal, features = torch.rand(2, 4, 3, 5).double(), torch.rand(2, 4, 3, 5).double()
    weight = {
        name: value.detach().numpy().reshape(value.shape[:2])
        for name, value in gate.named_parameters()
        if value.ndim > 1
    }
    bias = {name: value.detach().numpy() for name, value in gate.named_parameters() if value.ndim == 1}
    g = np.einsum("oc,bcxy->boxy", weight["signal.weight"], signal.numpy()) + bias["signal.bias"][:, None, None]
    x = np.einsum("oc,bcxy->boxy", weight["features.weight"], features.numpy()) + bias["features.bias"][:, None, None]
    psi = np.einsum("oc,bcxy->boxy", weight["psi.weight"], np.maximum(g + x, 0)) + bias["psi.bias"][:, None, None]
    expected = features.numpy() / (1 + np.exp(-psi))
    np.testing.assert_allclose(gate(signal, features).detach().numpy(), expected, rtol=1e-12)


def test_thick_slices_are_neither_pooled_nor_mixed() -> None:
    kernels, pools = kernels_and_pools((0.9, 0.9, 8.0), 3)
    network = AttentionUNet(widths=(2, 4, 4), dims=3, kernels=kernels, pools=pools).eval()
    image = torch.rand(1, 1, 8, 8, 4)
    changed = image.clone()
    changed[..., 2] += 1
    change = (network(image) - network(changed)).detach().abs().amax(dim=(0, 1, 2, 3))
    assert (change > 1e-4).tolist() == [False, False, True, False]
    assert change[[0, 1, 3]].max() < 1e-6


def test_pools_follow_the_voxels() -> None:
    assert kernels_and_pools((1, 1, 1), 3)[1] == ((2, 2, 2), (2, 2, 2))
    assert kernels_and_pools((1, 1, 4), 4)[1] == ((2, 2, 1), (2, 2, 1), (2, 2, 2))
    with pytest.raises(ValueError, match="must be positive"):
        kernels_and_pools((1, 0, 1), 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": 4}, "dims must be 2 or 3"),
        ({"widths": (4,)}, "at least two levels"),
        ({"widths": (3, 4)}, "even number of channels"),
        ({"norm": "batch"}, "choose none or instance"),
        ({"pools": [[2, 2]]}, "pools: 3 levels with 2 numbers each"),
        ({"kernels": [[2, 3]] * 4}, "must be odd"),
    ],
)
def test_what_makes_no_network_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionUNet(**settings)
