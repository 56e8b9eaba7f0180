"""Composites as data: which rule an operation gets, and what is refused in one clear line.

Belongs here: selection and validation. Does not belong here: what rules do.
"""

import pytest
import torch
from torch import nn

from relevance_assets.relevance import COMPOSITES, Composite, check_model, explain
from relevance_assets.relevance.composites import composite_of


def network():
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))


X = torch.rand(1, 1, 6, 6)


def rules(composite):
    """Rule by layer."""
    table = check_model(network(), X, composite)
    return {row["layer"]: row["rule"] for row in table.to_dicts() if row["kind"] not in ("move", "activation")}


DEFAULTS = {"0": "epsilon", "2": "epsilon", "4": "epsilon(1e-06)", "6": "epsilon", "8": "epsilon"}


def test_what_nothing_names_has_the_first_rule_of_its_kind():
    assert rules([]) == rules({"layers": []}) == DEFAULTS


@pytest.mark.parametrize(
    ("entry", "changed"),
    [
        ({"kind": "convolution"}, ["0", "2"]),
        ({"kind": "linear"}, ["6", "8"]),
        ({"name": "2"}, ["2"]),
        ({"name": "[26]"}, ["2", "6"]),
        ({"name": "*"}, ["0", "2", "6", "8"]),
        ({"place": "first"}, ["0"]),
        ({"place": "last"}, ["8"]),
        ({"place": [1, 3]}, ["2", "6"]),
        ({"place": (3, 99)}, ["8"]),
        ({"kind": "convolution", "place": [1, 9]}, ["2"]),
        ({"kind": "linear", "place": "first"}, []),
        ({}, ["0", "2", "6", "8"]),
    ],
)
def test_all_that_is_given_must_match(entry, changed):
    assert rules([{**entry, "rule": "gamma"}]) == DEFAULTS | dict.fromkeys(changed, "gamma")


def test_the_first_entry_that_matches_wins():
    first, second = {"kind": "convolution", "rule": "gamma"}, {"place": "first", "rule": "flat"}
    assert rules([first, second])["0"] == "gamma"
    assert rules([second, first])["0"] == "flat"
    assert rules([second, first])["2"] == "gamma"


def test_a_rule_without_a_kind_is_for_all_kinds_that_have_it():
    """z+ of weighted operations and of averages, each by its own definition."""
    assert rules([{"rule": "z_plus"}]) == dict.fromkeys("0268", "z_plus") | {"4": "z_plus"}
    assert rules([{"rule": "epsilon", "epsilon": 0.5}]) == dict.fromkeys("0268", "epsilon(epsilon=0.5)") | {
        "4": "epsilon(0.5)"
    }
    assert rules([{"kind": "average", "rule": "norm"}]) == DEFAULTS


def test_the_bias_of_a_composite_is_that_of_its_rules_unless_they_say():
    composite = composite_of(
        {"layers": [{"rule": "gamma"}, {"rule": "epsilon", "bias": "keep"}, {"rule": "box"}], "bias": "distribute"}
    )
    assert [assignment.rule.bias for assignment in composite.layers] == ["distribute", "keep", "keep", "drop"]


def test_names_data_and_objects_are_one():
    named = COMPOSITES["gamma_box"]
    data = [{"place": "first", "rule": "box"}, {"kind": "convolution", "rule": "gamma"}]
    assert isinstance(named, Composite)
    found = [
        explain(network().eval().requires_grad_(False), X, c, torch.ones(1, 2)) for c in ("gamma_box", named, data)
    ]
    assert all(one.ledger["rule"].to_list() == found[0].ledger["rule"].to_list() for one in found)


def test_named_composites_say_what_they_are():
    assert {name: composite.name for name, composite in COMPOSITES.items()} == {name: name for name in COMPOSITES}
    assert rules("gamma_box") == {"0": "box", "2": "gamma", "4": "epsilon(1e-06)", "6": "epsilon", "8": "epsilon"}
    assert rules("epsilon_plus_flat") == DEFAULTS | {"0": "flat", "2": "z_plus"}
    assert rules("epsilon_plus") == rules("epsilon_alpha1_beta0") == DEFAULTS | {"0": "z_plus", "2": "z_plus"}
    assert rules("gamma") == DEFAULTS | dict.fromkeys("0268", "gamma")
    assert rules("z_plus") == dict.fromkeys("02468", "z_plus")
    assert rules("alpha_beta") == rules("epsilon_alpha2_beta1")
    assert rules("disability")["4"] == "z_plus"
    assert rules("preset_a")["6"] == "epsilon(epsilon=0.1)"


@pytest.mark.parametrize(
    ("composite", "message"),
    [
        ("lrp", "composite 'lrp' is not known; choose one of .*alpha_beta"),
        (3, "a composite is a name, a list of rules or a mapping, not int"),
        (None, "a composite is a name, a list of rules or a mapping, not NoneType"),
        ([{"rule": "lrp"}], "no rule 'lrp'; choose one of .*epsilon"),
        ([{"kind": "convolution"}], "no rule 'None' for convolution; choose one of .*epsilon"),
        ([{"kind": "conv", "rule": "flat"}], "kind 'conv' is not known; choose one of convolution, linear"),
        ([{"kind": "convolution", "rule": "winner"}], "no rule 'winner' for convolution"),
        ([{"kind": "max_pool", "rule": "gamma"}], "no rule 'gamma' for max_pool; choose one of .*proportional"),
        (
            [{"kind": "product", "rule": "signal"}],
            "no rule 'signal' for product; choose one of abs, all, .*proposed",
        ),
        ([{"rule": "epsilon", "eps": 1}], "rule epsilon has no parameter 'eps'; it has .*epsilon"),
        ([{"rule": "gamma", "epsilon": 1}], "rule gamma has no parameter 'epsilon'"),
        ([{"kind": "average", "rule": "z_plus", "gamma": 1}], "rule z_plus has no parameter 'gamma'"),
        ([{"rule": "gamma", "bias": "none"}], "bias must be keep, drop, distribute or both, not 'none'"),
        ([{"rule": "alpha_beta", "alpha": 2, "beta": 2}], "alpha_beta needs alpha - beta = 1 and beta >= 0, not 2, 2"),
        ([{"rule": "alpha_beta", "alpha": 0.5, "beta": -0.5}], "alpha_beta needs alpha - beta = 1 and beta >= 0"),
        ({"layer": []}, "no parameter 'layer'; it has bias, fold, layers, name"),
        ({"layers": [], "fold": ["up"]}, "fold holds 'left' and 'right'"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(composite, message):
    with pytest.raises(ValueError, match=message) as caught:
        explain(network(), X, composite)
    assert "\n" not in str(caught.value)


def test_only_rules_that_the_kind_has_are_offered():
    with pytest.raises(ValueError, match="no rule 'gamma' for max_pool; choose one of proportional, winner"):
        explain(network(), X, [{"kind": "max_pool", "rule": "gamma"}])


@pytest.mark.parametrize(
    "composite",
    [
        ["epsilon"],
        [{"rule": "epsilon", "place": "middle"}],
        [{"rule": "epsilon", "place": 1}],
        [{"rule": "epsilon", "epsilon": "small"}],
        [{"rule": "epsilon", "stabiliser": -1.0}],
        {"layers": "epsilon"},
        {"layers": [], "bias": "none"},
    ],
    ids=str,
)
def test_data_of_the_wrong_type_is_refused_in_one_line(composite):
    with pytest.raises(ValueError, match=r"^(a )?composite") as caught:
        explain(network(), X, composite)
    assert "\n" not in str(caught.value)


def test_rules_that_an_operation_cannot_have_are_refused():
    model = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="0: an adaptive maximum pool has no rule 'proportional'; use 'winner'"):
        explain(model, X, [{"kind": "max_pool", "rule": "proportional"}])
    with pytest.raises(ValueError, match=r"rule 'block' is for ReLUs, not aten\.tanh; use 'pass'"):
        explain(nn.Sequential(nn.Flatten(), nn.Tanh()), X, [{"kind": "activation", "rule": "block"}])
    with pytest.raises(ValueError, match="log-softmax has no rule 'gradient'; use 'pass'"):
        explain(nn.Sequential(nn.Flatten(), nn.LogSoftmax(1)), X, [{"kind": "softmax", "rule": "gradient"}])
