"""The account of an explanation: its rows, its sums, and the warning where something is missing.

Belongs here: the ledger's form. Does not belong here: its values for each rule (`test_rules.py`, `tests/oracles/`).
"""

import math
import warnings

import polars as pl
import pytest
import torch
from hard_networks import account, randomise
from torch import nn

from relevance_assets.relevance import explain

SCHEMA = {
    "sample": pl.Int64,
    "layer": pl.String,
    "kind": pl.String,
    "rule": pl.String,
    "relevance_in": pl.Float64,
    "relevance_out": pl.Float64,
    "bias": pl.Float64,
    "stabiliser": pl.Float64,
    "dead": pl.Float64,
    "clamped": pl.Float64,
    "unexplained": pl.Float64,
}


def network():
    torch.manual_seed(0)
    layers = [
        nn.Conv3d(1, 3, 3, padding=1),
        nn.BatchNorm3d(3),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.BatchNorm3d(3),
        nn.ReLU(),
    ]
    return randomise(nn.Sequential(*layers, nn.Conv3d(3, 2, 1), nn.AvgPool3d(2), nn.Flatten()), last_scale=0.4)


X = torch.rand(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()


def test_one_row_per_operation_and_sample_in_the_order_of_execution():
    ledger = explain(network(), X).ledger
    assert dict(ledger.schema) == SCHEMA
    first = ledger.filter(sample=0)
    assert first["layer"].to_list() == ["0", "2", "3", "4", "5", "6", "7"]
    kinds = ["convolution", "activation", "max_pool", "batch_norm", "activation", "convolution", "average"]
    assert first["kind"].to_list() == kinds
    assert first["rule"].to_list() == [
        "z_plus, with 1",
        "pass",
        "winner",
        "pass: in 6",
        "pass",
        "z_plus",
        "epsilon(1e-06)",
    ]
    assert ledger["sample"].to_list() == [sample for sample in range(3) for _ in kinds]
    for sample in range(3):
        assert (
            ledger.filter(sample=sample).select("layer", "kind", "rule").equals(first.select("layer", "kind", "rule"))
        )


@pytest.mark.parametrize("composite", ["epsilon", "gamma_box", "alpha_beta", "disability", "preset_a"])
def test_rows_add_up(composite):
    """In a chain, what an operation hands on is what the one before it is given; losses are all that is missing."""
    start = torch.tensor([[1.0, -0.25], [0.5, 2], [-1, -1]]).double()
    found = explain(network(), X, composite, start)
    losses = pl.sum_horizontal("relevance_out", "bias", "stabiliser", "dead", "clamped", "unexplained")
    for sample in range(3):
        rows = found.ledger.filter(sample=sample)
        assert rows.select(losses).to_series().to_list() == pytest.approx(rows["relevance_in"].to_list(), abs=1e-15)
        assert rows["relevance_out"][1:].to_list() == pytest.approx(rows["relevance_in"][:-1].to_list(), abs=1e-13)
        assert rows["relevance_in"][-1] == pytest.approx(start[sample].sum().item(), abs=1e-15)
        assert rows["relevance_out"][0] == pytest.approx(found.total[sample].item(), abs=1e-15)
        assert rows["unexplained"].abs().max() < 1e-13
    assert account(found) == pytest.approx((found.start.sum() - found.relevance.sum()).item(), abs=1e-13)


def test_float32_keeps_its_account_too():
    model = network().float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(model, X.float())
    assert found.ledger["unexplained"].abs().max() < 1e-4 * found.start.abs().sum().item()


def test_operations_that_move_values_have_no_row():
    found = explain(
        nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 32)), nn.Linear(32, 2), nn.Flatten()), X.float(), start=0
    )
    assert found.ledger.filter(sample=0)["layer"].to_list() == ["2"]


def test_a_network_that_only_moves_has_an_empty_ledger():
    found = explain(nn.Flatten(), X, start=3)
    assert found.ledger.height == 0
    assert dict(found.ledger.schema) == SCHEMA
    assert torch.equal(found.relevance.flatten(1), found.start)


class Cancels(nn.Module):
    """sum_i x_i w_i with terms of 1e12 that cancel to 1."""

    def __init__(self):
        super().__init__()
        self.fine, self.cancels = nn.Linear(2, 2), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.fine.weight.copy_(torch.eye(2)), self.fine.bias.zero_()
            self.cancels.weight.copy_(torch.tensor([[1e12 / 3, -1e12 / 3]]))

    def forward(self, x):
        return self.cancels(self.fine(x))


def test_a_warning_names_the_layer_where_most_is_missing():
    x = torch.tensor([[1.0, 3.0], [1.1, 1.1 - 3e-12]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"sample 1: relevance of .* is unexplained .*most at cancels") as caught:
        explain(Cancels().double(), x, [{"rule": "epsilon", "epsilon": 1e-12}], torch.full((2, 1), 0.7))
    assert "use a larger epsilon, another rule" in str(caught[-1].message)


def test_what_is_not_finite_is_warned_of():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1e30)
    with pytest.warns(RuntimeWarning, match="is unexplained"):
        found = explain(model, torch.tensor([[1e30]]))
    assert not math.isfinite(found.ledger["relevance_in"][0])


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("start", [[[1.0, -1.0]] * 3, [[0.0, 0.0]] * 3])
def test_relevance_that_sums_to_nothing_is_no_leak(start):
    """One class against another."""
    found = explain(network(), X, "epsilon_plus", torch.tensor(start).double())
    assert found.ledger["unexplained"].abs().max() < 1e-14
