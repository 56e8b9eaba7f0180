"""Deliberate faults of the engine, and for each the quick checks that fail because of it.

Belongs here: faults as data, checks in closed form. A fault that no check notices is a hole in the tests; a rule or a
cache that is added to the engine brings its fault along. Does not belong here: thorough tests (the rest of this folder,
`tests/oracles/`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import nn

from relevance_assets.relevance import (
    Explainer,
    Inner,
    brain,
    canonizers,
    composites,
    engine,
    explain,
    graph,
    layer,
    passes,
    plan,
    recording,
    rules,
    structure,
    weighted_rules,
)

pytestmark = pytest.mark.filterwarnings("ignore:sample .* is unexplained:RuntimeWarning")


# ------------------------------------------------------------------------------------------------------------- checks
CHECKS: list[Callable[[], None]] = []


def check(function):
    """The function below is a check: it fails with an AssertionError."""
    CHECKS.append(function)
    return function


class Call(nn.Module):
    """A function of modules and inputs as a network."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, *inputs):
        return self.function(*self.parts, *inputs)


def same(found, expected):
    found, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (found, expected))
    torch.testing.assert_close(found.flatten(), expected.flatten(), rtol=1e-11, atol=1e-12)


def dense(*rows, bias=None):
    module = nn.Linear(len(rows[0]), len(rows), bias=bias is not None).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(rows, dtype=torch.float64))
        if bias is not None:
            module.bias.copy_(torch.tensor(bias))
    return module


def conv(*weights, **options):
    """One channel in, one out, one axis."""
    module = nn.Conv1d(1, 1, len(weights), bias=False, **options).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weights).view(1, 1, -1))
    return module


def batch_norm(gamma, beta, mean, variance, eps=1.0):
    norm = nn.BatchNorm1d(1, eps=eps).double().eval()
    for tensor, value in zip((norm.weight, norm.bias, norm.running_mean, norm.running_var),
                             (gamma, beta, mean, variance), strict=True):  # fmt: skip
        tensor.data.fill_(value)
    return norm


def ask(network, inputs, composite, start=None, **options):
    """Relevance of the first input, and of the ledger the sum of a column where one is asked for."""
    network = network if isinstance(network, nn.Module) else Call(network)
    given = [torch.as_tensor(x, dtype=torch.float64) for x in inputs]
    start = torch.as_tensor(start, dtype=torch.float64) if isinstance(start, list) else start
    return explain(network.double().eval(), given, composite, start, dtype=torch.float64, **options)


EPSILON = {"rule": "epsilon", "epsilon": 0.1}
ZERO = {"rule": "epsilon", "epsilon": 0.0}
EXACT = {"stabiliser": 0.0}


@check
def epsilon():
    """z = 4 - 1."""
    found = ask(dense([1.0, 1.0], bias=[-1.0]), [[[1.0, 3.0]]], [EPSILON], [[1.0]])
    same(found.relevance[0], [1 / 3.1, 3 / 3.1])
    same(found.ledger["stabiliser"][0], 0.1 / 3.1)


@check
def sign_of_nothing():
    found = ask(dense([1.0, -1.0]), [[[1.0, 1.0]]], [EPSILON], [[1.0]])
    same(found.relevance[0], [10, -10])


@check
def sign_below_zero():
    found = ask(dense([1.0, -1.0]), [[[1.0, 3.0]]], [EPSILON], [[1.0]])
    same(found.relevance[0], [-1 / 2.1, 3 / 2.1])


@check
def unsigned_epsilon_near_minus_z():
    """z = 100: z - 100 is stabilised by 1e-6, of which z + (1e-6 - 100) would keep no more than eight digits."""
    rule = {"rule": "epsilon", "epsilon": -100.0, "signed": False}
    same(ask(dense([60.0, 40.0]), [[[1.0, 1.0]]], [rule], [[1.0]]).relevance[0], [6e7, 4e7])


@check
def relative_size():
    """Mean |z| of each sample: 3 and 30."""
    rule = EPSILON | {"relative": True}
    found = ask(dense([4.0], [-2.0]), [[[1.0], [10.0]]], [rule], [[1.0, 0.0], [1.0, 0.0]])
    same(found.relevance[0], [4 / 4.3, 40 / 43])


@check
def bias_in_the_ledger():
    found = ask(dense([1.0, 1.0], bias=[-1.0]), [[[1.0, 3.0]]], [EPSILON], [[1.0]])
    same(found.ledger["bias"][0], -1 / 3.1)
    same(found.ledger["unexplained"][0], 0)


@check
def z_plus():
    """z = (2, 6, -2), and of the bias -9 nothing."""
    rule = {"rule": "z_plus", **EXACT}
    found = ask(dense([1.0, -1.0, 2.0], bias=[-9.0]), [[[2.0, -6, -1]]], [rule], [[1.0]])
    same(found.relevance[0], [0.25, 0.75, 0])


@check
def alpha_beta():
    rule = {"rule": "alpha_beta", "alpha": 3, "beta": 2, **EXACT}
    found = ask(dense([1.0, -1.0, 2.0], bias=[-3.0]), [[[2.0, -6, -1]]], [rule], [[1.0]])
    same(found.relevance[0], [0.75, 2.25, -2 * 2 / 5])


@check
def gamma():
    """z = 6 - 2 = 4 above 0, 2 - 6 = -4 below: the sign of the output is favoured."""
    rule = {"rule": "gamma", **EXACT}
    found = ask(dense([3.0, 2.0], [1.0, 6.0]), [[[2.0, -1]]], [rule], [[1.0, 0.0]])
    same(found.relevance[0], [7.5 / 5.5, -2 / 5.5])
    found = ask(dense([3.0, 2.0], [1.0, 6.0]), [[[2.0, -1]]], [rule], [[0.0, 1.0]])
    same(found.relevance[0], [2 / -5.5, -7.5 / -5.5])


@check
def box():
    found = ask(dense([-0.4, -0.4, 0.6]), [[[0, 1, 0.5]]], [{"rule": "box", **EXACT}], [[1.0]])
    same(found.relevance[0], [4 / 7, 0, 3 / 7])


@check
def box_twice():
    """Two pairs of bounds in one explainer, and each again."""
    explainer = Explainer(dense([1.0, -2.0]))
    x, start = torch.tensor([[0.5, 0.5]]).double(), torch.ones(1, 1)
    bounds = [(0.0, 1.0), (-1.0, 3.0)]
    tensors = [(torch.tensor(low), torch.tensor(high)) for low, high in bounds]
    for _ in range(2):
        for low, high in (*bounds, *tensors):
            rule = {"rule": "box", "low": low, "high": high, **EXACT}
            parts = torch.tensor([0.5 - float(low), (0.5 - float(high)) * -2], dtype=torch.float64)
            same(explainer.several(x, [([rule], start)])[0].relevance, parts / parts.sum())


@check
def flat_at_the_border():
    """Three voxels under a kernel of three, of which the outer outputs see two: padding is no input."""
    found = ask(conv(1.0, 1.0, 1.0, padding=1), [[[[5.0, 0.0, 1.0]]]], [{"rule": "flat", **EXACT}], [[[2.0, 3.0, 2.0]]])
    same(found.relevance[0], [2, 3, 2])


@check
def replicated_border():
    """x = (1, 2): outputs 1 + 1 + 2 and 1 + 2 + 2; copies count for the voxel that was copied."""
    layer = conv(1.0, 1.0, 1.0, padding=1, padding_mode="replicate")
    found = ask(layer, [[[[1.0, 2.0]]]], [ZERO], [[[4.0, 5.0]]])
    same(found.relevance[0], [3, 6])


@check
def first_match():
    composite = [{"place": "first", "rule": "flat", **EXACT}, {"rule": "gamma", **EXACT}]
    same(ask(dense([1.0, 3.0]), [[[1.0, 1.0]]], composite, [[1.0]]).relevance[0], [0.5, 0.5])


@check
def order_of_execution():
    """Flat in the layer that runs first, which is declared last."""
    network = Call(lambda second, first, x: second(first(x)), dense([1.0]), dense([1.0, 3.0]))
    composite = [{"place": "first", "rule": "flat", **EXACT}, ZERO]
    same(ask(network, [[[1.0, 1.0]]], composite, [[1.0]]).relevance[0], [0.5, 0.5])


@check
def batch_norm_left():
    """w = 2, b = 1, then gamma -4, variance 3 + 1: scale -2, shift 5 + 2 * 3; x = 1 gives -4 - 2 + 11 = 5."""
    found = ask(nn.Sequential(dense([2.0], bias=[1.0]), batch_norm(-4, 5, 3, 3)), [[[1.0]]], [ZERO], [[5.0]])
    same(found.relevance[0], -4)
    same(found.ledger["bias"][0], 9)


@check
def batch_norm_right():
    """c = -1, d = 1.5: x = 1 has c T(x) = -1; x = 2 is held at -1.5, and relevance passes."""
    network = nn.Sequential(batch_norm(-2, 1, 0.5, 3), nn.ReLU(), dense([-2.0]))
    rule = {"rule": "z_plus", "bias": "drop", **EXACT}
    same(ask(network, [[[1.0], [2.0]]], [rule], [[1.0], [1.0]]).relevance[0], [1, 1])
    found = ask(network, [[[1.0]]], [ZERO], [[-1.0]])
    same(found.relevance[0], 2)
    same(found.ledger.filter(layer="2")["bias"][0], -3)


@check
def batch_norm_before_zeros():
    """d = 2 under three ones: 4 at the ends, 6 in the middle."""
    network = nn.Sequential(batch_norm(1, 2, 0, 0), nn.ReLU(), conv(1.0, 1.0, 1.0, padding=1))
    x = torch.tensor([[[1.0, 2.0, 3.0]]]).double()
    z = [[7.0, 12.0, 9.0]]
    for place, bias in enumerate((4, 6, 4)):
        start = [[[value if at == place else 0.0 for at, value in enumerate(z[0])]]]
        found = ask(network, [x], [{"kind": "convolution", **ZERO}], start)
        same(found.ledger.filter(layer="2")["bias"][0], bias)
        same(found.relevance[0].sum(), z[0][place] - bias)


@check
def first_of_equals():
    found = ask(nn.MaxPool1d(4), [[[[1.0, 3, 3, 2]]]], [], [[[7.0]]])
    same(found.relevance[0], [0, 7, 0, 0])


@check
def gate():
    """The sigmoid's part is the gate, wherever it stands."""
    for product in (lambda s, g: s * torch.sigmoid(g), lambda s, g: torch.sigmoid(g) * s):
        found = ask(product, [[[3.0]], [[-1.0]]], [{"kind": "product", "rule": "all"}], [[4.0]])
        same(found.relevance[0], 4)
        same(found.relevance[1], 0)


@check
def proposed_product():
    found = ask(torch.mul, [[[0.5, -0.25, 0]], [[0.5, 0.75, 0.2]]], [{"kind": "product", "rule": "proposed"}],
                [[1.0, -2, 3]])  # fmt: skip
    same(found.relevance[0], [0.5, -0.5, 0])


@check
def addition():
    found = ask(lambda a, b: a + b, [[[1.0, 4.0]], [[2.0, -2.0]]], [{"kind": "add", **ZERO}], [[6.0, 1.0]])
    same(found.relevance[0], [2, 2])


@check
def skip():
    """Both readers of a tensor send relevance back: x + 3 x."""
    network = Call(lambda layer, x: x + layer(x), dense([3.0]))
    same(ask(network, [[[2.0]]], [ZERO], [[8.0]]).relevance[0], 8)


@check
def skip_around_a_relu():
    """z = -2 and ReLU(z) of one convolution: what the ReLU reads is read by the sum too."""
    network = Call(lambda layer, x: (lambda z: z + torch.relu(z) + 5)(layer(x)), conv(-2.0))
    found = ask(network, [[[[1.0]]]], [ZERO], [[[3.0]]])
    same(found.output, 3)
    same(found.ledger.filter(kind="add")["bias"].sum(), 5)


@check
def units_that_are_off():
    """Relevance on an output that the ReLU behind it hides: z = 2 and -4."""
    network = nn.Sequential(dense([2.0, 0.0], [0.0, -4.0]), nn.ReLU(), dense([1.0, 1.0]))
    composite = [{"name": "2", "rule": "flat", **EXACT}, EPSILON]
    same(ask(network, [[[1.0, 1.0]]], composite, [[2.0]]).relevance[0], [2 / 2.1, 4 / 4.1])


@check
def several_rules():
    """Weights of one rule are not those of the next, nor one start's relevance another's."""
    explainer = Explainer(dense([1.0, -2.0], bias=[3.0]))
    x, one, two = torch.tensor([[1.0, 1.0]]).double(), torch.ones(1, 1), torch.full((1, 1), 2.0)
    z = {"rule": "z_plus", **EXACT}
    found = explainer.several(x, [([ZERO], one), ([z], one), ([{"rule": "w_square", **EXACT}], two), ([z], two)])
    for one, expected in zip(found, ([0.5, -1], [0.25, 0], [1 / 14 * 2, 4 / 14 * 2], [0.5, 0]), strict=True):
        same(one.relevance, expected)


@check
def inner_start():
    network = nn.Sequential(dense([1.0, 2.0], [3.0, 4.0]), nn.ReLU(), dense([1.0, 1.0]))
    found = ask(network, [[[1.0, 1.0]]], [ZERO], Inner("0", index=1))
    same(found.relevance[0], [3, 4])


@check
def mask():
    inside = torch.tensor([True, True, False])
    found = ask(conv(1.0, 1.0, 1.0), [[[[1.0, 2, 5]]]], [ZERO], [[[6.0]]], mask=inside)
    same(found.relevance[0], [2, 4, 0])


@check
def permuted():
    """Three axes, so that a permutation is not its own inverse."""
    x = torch.arange(1.0, 7.0).view(1, 1, 2, 3)
    found = ask(lambda x: x.permute(0, 2, 3, 1) * 2, [x], [ZERO], x.permute(0, 2, 3, 1).tolist())
    same(found.relevance[0], x)


@check
def softmax():
    x = torch.tensor([[2.0, 1, 3]]).double().log()
    found = ask(nn.Softmax(1), [x], [{"kind": "softmax", "rule": "gradient"}], [[1.0, 2, -2]])
    same(found.relevance[0], x[0] * torch.tensor([1 - 1 / 3, 2 - 1 / 6, -2 - 1 / 2], dtype=torch.float64))


@check
def matrix_product():
    found = ask(torch.bmm, [[[[1.0, 2]]], [[[3.0], [4]]]], [{"kind": "matmul", "rule": "half", "epsilon": 0.0}],
                [[[22.0]]])  # fmt: skip
    same(found.relevance[0], [3, 8])


@check
def averages():
    rule = {"kind": "average", "rule": "z_plus"}
    same(ask(nn.AvgPool1d(2), [[[[3.0, -1]]]], [rule], [[[6.0]]]).relevance[0], [6, 0])


@check
def unknown():
    with pytest.raises(ValueError, match="cumsum"):
        ask(lambda x: x.cumsum(1), [[[1.0, 2.0]]], [], [[1.0, 1.0]])


@check
def written_behind_its_back():
    """The memory that a view shares was written to: an error, never the old numbers."""

    def function(x):
        z = x * 2
        z[:, :1].mul_(0)
        return z + 0

    with pytest.raises(ValueError, match="written to under another name"):
        ask(function, [[[1.0, 2.0]]], [], [[1.0, 1.0]])


# ------------------------------------------------------------------------------------------------------------- faults
@dataclass(frozen=True)
class Fault:
    """A change of the engine, made by `patch`, that every check of `noticed` fails because of."""

    name: str
    patch: Callable[[pytest.MonkeyPatch], None]
    noticed: tuple[Callable[[], None], ...]


FAULTS: list[Fault] = []


def fault(*noticed):
    """The function below makes this fault."""

    def keep(patch):
        FAULTS.append(Fault(patch.__name__, patch, noticed))
        return patch

    return keep


def wrap(monkeypatch, owner, name, change):
    """owner.name becomes change(what it was)."""
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))


@fault(first_match)
def the_last_match_wins(monkeypatch):
    wrap(monkeypatch, composites.Composite, "rule",
         lambda true: lambda self, *given: true(replace(self, layers=self.layers[::-1]), *given))  # fmt: skip


@fault(order_of_execution)
def the_first_layer_is_the_last(monkeypatch):
    def change(true):
        def places(*given):
            return {i: replace(p, first=p.last, last=p.first) for i, p in true(*given).items()}

        return places

    wrap(monkeypatch, plan, "weighted_places", change)


@fault(epsilon, sign_of_nothing)
def epsilon_dropped(monkeypatch):
    monkeypatch.setattr(weighted_rules.Epsilon, "extra", lambda self, total, size: None)


@fault(sign_of_nothing)
def sign_of_0_is_0(monkeypatch):
    monkeypatch.setattr(rules.WeightedRule, "_signed", lambda self, total, size: size * torch.sign(total))


@fault(sign_below_zero)
def stabiliser_always_positive(monkeypatch):
    monkeypatch.setattr(rules.torch, "copysign", lambda size, total: size.abs().expand_as(total))


@fault(unsigned_epsilon_near_minus_z)
def unsigned_epsilon_by_way_of_a_difference(monkeypatch):
    monkeypatch.setattr(weighted_rules.Epsilon, "denominator", rules.WeightedRule.denominator)


@fault(relative_size)
def one_scale_for_the_whole_batch(monkeypatch):
    for module in (rules, structure):
        monkeypatch.setattr(module, "mean_size", lambda total, samples: total.abs().mean())


@fault(bias_in_the_ledger)
def bias_forgotten_in_the_ledger(monkeypatch):
    wrap(monkeypatch, layer.WeightedLayer, "absorbed", lambda true: lambda *given: 0 * true(*given))


@fault(z_plus)
def z_plus_keeps_the_whole_bias(monkeypatch):
    wrap(monkeypatch, rules.WeightedRule, "kept", lambda true: lambda self, layer, sign=0: true(self, layer))


@fault(z_plus)
def negative_inputs_with_negative_weights_forgotten(monkeypatch):
    monkeypatch.setattr(
        weighted_rules, "_parts", lambda layer, positive, negative: [rules.Part(layer.x.clamp(min=0), positive)]
    )


@fault(z_plus)
def inputs_taken_for_non_negative(monkeypatch):
    monkeypatch.setattr(plan, "_nonnegative", lambda *given: True)


@fault(alpha_beta)
def alpha_and_beta_swapped(monkeypatch):
    def change(true):
        def shares(self, *given):
            for share in true(self, *given):
                yield replace(share, coefficient=self.beta if share.coefficient > 0 else -self.alpha)

        return shares

    wrap(monkeypatch, weighted_rules.AlphaBeta, "shares", change)


@fault(gamma)
def gamma_favours_the_other_sign(monkeypatch):
    def change(true):
        return lambda weight, key: true(weight, (*key[:2], -key[2]) if isinstance(key, tuple) else key)

    wrap(monkeypatch, engine, "prepare", change)


@fault(box, box_twice)
def box_bounds_swapped(monkeypatch):
    def shares(self, layer, relevance):
        high, low = (bound.expand_as(layer.x) for bound in layer.bounds(self.low, self.high))
        total = layer.contributions() - layer.apply(low, "positive") - layer.apply(high, "negative")
        yield rules.Share(1.0, [rules.Part(layer.x - low, "positive"), rules.Part(layer.x - high, "negative")], total)

    monkeypatch.setattr(weighted_rules.Box, "shares", shares)


@fault(box_twice)
def box_denominators_of_other_bounds(monkeypatch):
    wrap(monkeypatch, layer.WeightedLayer, "constant",
         lambda true: lambda self, weight, x=None, name=None: true(self, weight, x))  # fmt: skip


@fault(several_rules)
def weights_of_another_rule(monkeypatch):
    def change(true):
        first = cache(lambda explainer: [])

        def prepared(self, step, key):
            first(self).append(key)
            return true(self, step, first(self)[0])

        return prepared

    wrap(monkeypatch, engine.Explainer, "prepared", change)


@fault(flat_at_the_border)
def padding_counted_as_input(monkeypatch):
    def change(true):
        def constant(self, weight, *given, **named):
            made = true(self, weight, *given, **named)
            return torch.full_like(made, made.max().item()) if weight == "ones" else made

        return constant

    wrap(monkeypatch, layer.WeightedLayer, "constant", change)


@fault(replicated_border)
def adjoint_of_padding_dropped(monkeypatch):
    def change(true):
        def adjoint(op, args, *given):
            if "pad" not in str(op):
                return true(op, args, *given)
            before, after = args[1][0], args[1][1]
            return [given[-1][..., before : given[-1].shape[-1] - after]]

        return adjoint

    wrap(monkeypatch, structure, "adjoint", change)


@fault(permuted)
def permutations_not_inverted(monkeypatch):
    def change(true):
        def adjoint(op, args, *given):
            return [given[-1].permute(*args[1])] if "permute" in str(op) else true(op, args, *given)

        return adjoint

    wrap(monkeypatch, structure, "adjoint", change)


def other_affine(monkeypatch, change):
    for module in (canonizers, engine, layer, structure):
        wrap(monkeypatch, module, "affine", change)


@fault(batch_norm_left)
def epsilon_of_the_batch_norm_forgotten(monkeypatch):
    """The scale alone; the shift keeps it, so that the output's account is off."""

    def change(true):
        def affine(node):
            scale, shift = true(node)
            variance, eps = node.args[4], node.args[-1]
            return scale * (variance + eps).sqrt() / variance.sqrt(), shift

        return affine

    other_affine(monkeypatch, change)


@fault(batch_norm_left)
def sign_of_the_batch_norms_scale_forgotten(monkeypatch):
    other_affine(monkeypatch, lambda true: lambda node: (true(node)[0].abs(), true(node)[1]))


@fault(batch_norm_right, batch_norm_before_zeros)
def shift_of_the_batch_norm_forgotten(monkeypatch):
    wrap(monkeypatch, passes.Backward, "shift", lambda true: lambda self, *given: 0 * true(self, *given))


@fault(batch_norm_before_zeros)
def one_shift_for_all_places(monkeypatch):
    """As without padding, where every place sees the whole kernel."""

    def moved(self):
        shift = self.backward.shift(self.step.source, self.raw).flatten()
        return self.operation.weight.flatten(2).sum(2) @ shift

    monkeypatch.setattr(layer.WeightedLayer, "_moved", moved)


@fault(first_of_equals)
def the_last_of_equals_wins(monkeypatch):
    def change(true):
        def compute(self, node, values, *given):
            true(self, node, values, *given)
            if node.kind == "max_pool":
                turned = values[node.refs[0]].flip(-1)
                places = node.op(turned, *node.args[1:], **node.kwargs)[1]
                values[graph.Ref(node.index, 1)] = turned.shape[-1] - 1 - places.flip(-1)

        return compute

    wrap(monkeypatch, graph.Graph, "compute", change)


@fault(gate)
def gate_and_signal_swapped(monkeypatch):
    for module in (structure, plan):
        wrap(monkeypatch, module, "gate_of", lambda true: lambda *given: 1 - true(*given))


@fault(proposed_product)
def products_shared_by_signed_values(monkeypatch):
    def product(context, node, rule, relevance, output):
        first, second = (context.value(ref) for ref in node.refs)
        return [relevance * first / (first + second), relevance * second / (first + second)], rules.Losses()

    monkeypatch.setitem(structure.STRUCTURE, "product", product)


@fault(addition, skip)
def terms_of_a_sum_all_get_everything(monkeypatch):
    """As the gradient has it."""

    def add(context, node, rule, relevance, output):
        return [relevance for _ in node.refs], rules.Losses()

    monkeypatch.setitem(structure.STRUCTURE, "add", add)


@fault(skip)
def the_last_reader_of_a_tensor_counts(monkeypatch):
    class Forgetful(dict):
        def setdefault(self, key, default):
            self[key] = default
            return default

    def change(true):
        def init(self, *given, **named):
            true(self, *given, **named)
            self.arrived = Forgetful(self.arrived)

        return init

    wrap(monkeypatch, passes.Backward, "__init__", change)


@fault(skip_around_a_relu)
def relus_always_in_place(monkeypatch):
    monkeypatch.setattr(
        passes.Forward, "_in_place", lambda self, node, reads: torch.relu_ if node.name == "aten.relu" else None
    )


@fault(units_that_are_off)
def relevance_taken_for_0_where_a_relu_is_off(monkeypatch):
    monkeypatch.setattr(plan, "_vanishes", lambda *given: True)


@fault(inner_start)
def inner_starts_on_all_channels(monkeypatch):
    def change(true):
        def start_values(value, start):
            return true(value, replace(start, index=None) if isinstance(start, Inner) else start)

        return start_values

    wrap(monkeypatch, engine, "start_values", change)


@fault(mask)
def mask_forgotten(monkeypatch):
    monkeypatch.setattr(brain.Inside, "at", lambda self, ref: None)


@fault(softmax)
def softmax_without_its_mixed_term(monkeypatch):
    def softmax(context, node, rule, relevance, output):
        return [relevance * context.value(node.refs[0])], rules.Losses()

    monkeypatch.setitem(structure.STRUCTURE, "softmax", softmax)


@fault(matrix_product)
def matrix_products_not_halved(monkeypatch):
    def change(true):
        def matmul(*given):
            parts, losses = true(*given)
            return [None if part is None else 2 * part for part in parts], losses

        return matmul

    monkeypatch.setitem(structure.STRUCTURE, "matmul", change(structure.STRUCTURE["matmul"]))


@fault(averages)
def averages_by_epsilon_whatever_the_rule(monkeypatch):
    wrap(monkeypatch, composites, "Plain",
         lambda true: lambda rule, **options: true("epsilon" if rule == "z_plus" else rule, **options))  # fmt: skip


@fault(unknown)
def unknown_operations_pass(monkeypatch):
    """As where automatic differentiation fills the gaps."""

    def change(true):
        return lambda *given: "activation" if true(*given) == "unknown" else true(*given)

    wrap(monkeypatch, recording, "kind_of", change)


@fault(written_behind_its_back)
def writes_through_views_not_followed(monkeypatch):
    monkeypatch.setattr(recording._Recorder, "overwrite", lambda self, func, target: None)


# -------------------------------------------------------------------------------------------------------------- tests
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_engine_passes(check):
    check()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_are_noticed(fault, monkeypatch):
    fault.patch(monkeypatch)
    missed = []
    for check in fault.noticed:
        try:
            check()
        except (AssertionError, pytest.fail.Exception):
            continue
        missed.append(check.__name__)
    assert not missed
    assert fault.noticed


def test_every_check_is_there_for_a_fault():
    """And enough of both."""
    assert len(FAULTS) >= 30
    assert {check for fault in FAULTS for check in fault.noticed} == set(CHECKS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
