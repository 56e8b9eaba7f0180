"""Nothing a network does to its inputs goes unseen: it is explained rightly, or refused by name.

Belongs here: what is traced, names of operations, what is refused. Does not belong here: rules, folds.
"""

import pytest
import torch
from hard_networks import account
from torch import nn
from torch.nn import functional as F

from relevance_assets.relevance import Explainer, Inner, UnknownOperation, check_model, explain

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

EPSILON = [{"rule": "epsilon", "epsilon": 1e-10}]


class Function(nn.Module):
    """A function, then a dense layer."""

    def __init__(self, function, features=4):
        super().__init__()
        self.function, self.head = function, nn.Linear(features, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(1.0, 2 * features + 1).view(2, features) / 10)
            self.head.bias.fill_(0.25)

    def forward(self, *inputs):
        return self.head(self.function(*inputs))


X = torch.tensor([[1.1, -2.3, 3.7, 0.6], [0.7, 1.3, 1.9, -1.2]]).double()
START = torch.tensor([[1.0, -0.5], [2.0, 0.25]]).double()


def relevance(function, *inputs, rules=EPSILON, features=4):
    found = explain(Function(function, features).double(), inputs, rules, START)
    return found.relevance


def gradient_times_input(function, *inputs, features=4):
    """What epsilon -> 0 comes to where every operation is linear or rectified."""
    model = Function(function, features).double()
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = model(*(x.clone() for x in leaves))
    return [
        x * g
        for x, g in zip(leaves, torch.autograd.grad((output * START / output.detach()).sum(), leaves), strict=True)
    ]


def in_place_relu(x):
    x = x * 2
    torch.relu_(x)
    return x


def in_place_sum(x):
    y = x * 2
    y += x
    y.mul_(3).sub_(x)
    return y


def filled(x):
    y = x.clone()
    return y.masked_fill_(torch.tensor([True, False, False, True]), 0.0)


def an_input_changed_in_place(x):
    x.mul_(2)
    return x + 0


def written_and_returned(x):
    return (x * 2).add_(x)


IMAGE = torch.tensor([1.0, -2, 3, 0.5, 4, 1, -1, 2]).double().view(1, 2, 1, 2, 2).expand(2, -1, -1, -1, -1).clone()
LINEAR = {
    "functional relu": torch.relu,
    "method relu": lambda x: x.relu(),
    "clamp": lambda x: x.clamp(min=0),
    "leaky relu": lambda x: F.leaky_relu(x, 0.0),
    "addition": lambda x: x + x.flip(1),
    "subtraction": lambda x: x - 0.5 * x.roll(1, 1),
    "constant factor": lambda x: -2 * x * torch.tensor([1.0, 2, 3, 4]) / 3,
    "concatenation": lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    "stack": lambda x: torch.stack(list(x.unbind(1)), 1),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "indices": lambda x: x[:, torch.tensor([3, 0, 0, 1])],
    "repeat": lambda x: x[:, :2].repeat(1, 2),
    "einsum": lambda x: torch.einsum("bi,ij->bj", x, torch.arange(16.0).double().view(4, 4)),
    "matrix product": lambda x: x @ torch.arange(16.0).double().view(4, 4),
    "permuted": lambda x: x.view(2, 2, 2).permute(0, 2, 1).reshape(2, 4),
    "relu in place": in_place_relu,
    "sums in place": in_place_sum,
    "filled in place": filled,
    "input in place": an_input_changed_in_place,
    "addition in place": written_and_returned,
    "detached": lambda x: x.detach() * 2,
    "without gradient": torch.no_grad()(lambda x: x * 2),
}
IMAGES = {
    "mean over space": lambda x: torch.cat([x.mean((2, 3, 4)), x.sum((2, 3, 4))], 1),
    "average pool": lambda x: F.avg_pool3d(x, (1, 1, 2)).flatten(1),
    "adaptive pool": lambda x: F.adaptive_avg_pool3d(x, (1, 2, 1)).flatten(1),
    "interpolation": lambda x: F.interpolate(x, size=(1, 1, 2), mode="trilinear").flatten(1),
    "nearest": lambda x: F.interpolate(x, size=(1, 1, 2)).flatten(1),
    "zero padding": lambda x: F.pad(x, (1, 1))[..., 1:].mean((2, 3)).flatten(1)[:, :4],
    "replicate padding": lambda x: F.pad(x, (1, 1, 0, 0, 0, 0), mode="replicate").mean((2, 3)).flatten(1)[:, 2:6],
    "functional convolution": lambda x: (
        F.conv3d(x, torch.arange(16.0).double().view(2, 2, 1, 2, 2)).flatten(1).repeat(1, 2)
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_functions_are_seen_like_modules(name):
    found = relevance(LINEAR[name], X)[0]
    (expected,) = gradient_times_input(
        LINEAR[name] if name not in ("detached", "without gradient") else lambda x: x * 2, X
    )
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", IMAGES)
def test_functions_of_images_are_seen_like_modules(name):
    found = relevance(IMAGES[name], IMAGE)[0]
    (expected,) = gradient_times_input(IMAGES[name], IMAGE)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (lambda x: F.max_pool3d(x, (1, 1, 2)), nn.MaxPool3d((1, 1, 2))),
        (lambda x: F.avg_pool3d(x, (1, 1, 2)), nn.AvgPool3d((1, 1, 2))),
        (lambda x: F.group_norm(x, 2), nn.GroupNorm(2, 2, affine=False)),
        (lambda x: F.elu(x), nn.ELU()),
        (lambda x: x.softmax(1), nn.Softmax(1)),
        (lambda x: F.gelu(x), nn.GELU()),
        (lambda x: F.dropout(x, 0.5, training=False), nn.Dropout()),
    ],
)
@pytest.mark.parametrize("composite", ["epsilon_plus", "gamma_box", "attention", "disability"])
def test_a_function_is_what_its_module_is(function, module, composite):
    torch.manual_seed(0)
    layers = nn.Conv3d(2, 2, 1), nn.Flatten()
    image = IMAGE.sigmoid()
    features = module(image).flatten(1).shape[1]
    first = nn.Sequential(layers[0], module, layers[1], nn.Linear(features, 2)).double().eval()
    second = nn.Sequential(layers[0], Call(function), layers[1], first[3])
    torch.testing.assert_close(
        explain(first, image, composite).relevance, explain(second, image, composite).relevance, rtol=0, atol=0
    )


@pytest.mark.parametrize("composite", ["epsilon_plus", "attention"])
def test_a_functional_instance_norm_is_what_its_module_is(composite):
    torch.manual_seed(0)
    conv, image = nn.Conv3d(2, 2, 1), IMAGE.sigmoid()
    for norm in (nn.InstanceNorm3d(2), Call(F.instance_norm)):
        model = nn.Sequential(conv, norm, nn.Flatten()).double()
        found = explain(model, image, composite, torch.ones(2, 8))
        for sample in range(2):
            alone = explain(model, image[sample : sample + 1], composite, torch.ones(1, 8))
            torch.testing.assert_close(found.relevance[sample], alone.relevance[0], rtol=1e-12, atol=1e-14)
        if isinstance(norm, nn.InstanceNorm3d):
            expected = found.relevance
    assert torch.equal(found.relevance, expected)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_products_and_quotients_are_seen():
    rules = [{"kind": "product", "rule": "proposed"}, *EPSILON]
    a, b = X, X.flip(1)
    found = relevance(torch.mul, a, b, rules=rules)
    given = explain(Function(lambda x: x).double(), a * b, EPSILON, START).relevance
    torch.testing.assert_close(found[0], given * a.abs() / (a.abs() + b.abs()), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0] + found[1], given, rtol=1e-9, atol=1e-12)
    quotient = relevance(torch.div, a, b)
    given = explain(Function(lambda x: x).double(), a / b, EPSILON, START).relevance
    torch.testing.assert_close(quotient[0], given, rtol=1e-9, atol=1e-12)
    assert not quotient[1].any()


def test_indices_that_are_computed_carry_no_relevance():
    """Relevance goes to what was chosen, whatever the choice was made with."""
    x = X.abs()
    found = relevance(lambda x: torch.where(x > 1, x, 2 * x), x)[0]
    (expected,) = gradient_times_input(lambda x: torch.where(x > 1, x, 2 * x), x)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


# ------------------------------------------------------------------------------------- written to under another name
def view_then_write(x):
    z = x * 2
    z[:, :2].add_(1)
    return z


def write_into_part(x):
    z = x * 2
    z[:, :2] = x[:, 2:]
    return z


def read_view_after_write(x):
    z = x * 2
    view = z[:, :2]
    z.mul_(3)
    return torch.cat([view, view], 1)


def write_into_new(x):
    z = torch.zeros(2, 4, dtype=x.dtype)
    z[:, :2] = x[:, :2]
    return z


def copy_into_new(x):
    z = torch.empty(2, 4, dtype=x.dtype)
    z.copy_(x)
    return z


def reshape_then_write(x):
    z = x.clone()
    z.view(4, 2).mul_(2)
    return z


def write_out(x):
    z = torch.empty(2, 4, dtype=x.dtype)
    torch.mul(x, 2, out=z)
    return z


def swap_data(x):
    z = torch.zeros_like(x)
    z.data = x
    return z * 2


def index_put(x):
    z = x * 1
    z[:, torch.tensor([0, 1])] = 5.0
    return z


def write_twice_and_read_the_base(x):
    z = x * 1
    a = z.view(-1)
    b = a.view(2, 4)
    b.add_(x)
    return z


@pytest.mark.parametrize(
    "function",
    [
        view_then_write,
        write_into_part,
        read_view_after_write,
        write_into_new,
        copy_into_new,
        reshape_then_write,
        write_out,
        swap_data,
        index_put,
        write_twice_and_read_the_base,
        lambda x: torch._foreach_mul([x], 2)[0],
        lambda x: torch.zeros_like(x).scatter(1, torch.arange(4).expand(2, 4), x),
    ],
)
def test_what_is_written_to_is_explained_rightly_or_refused(function):
    """Never with what stood there before."""
    try:
        found = relevance(function, X)[0]
    except ValueError:  # UnknownOperation is one
        return
    (expected,) = gradient_times_input(function, X)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (view_then_write, "head: aten.addmm reads memory that was written to under another name; use out-of-place"),
        (write_into_part, "aten.copy_ writes in place and has no form that does not"),
        (read_view_after_write, "aten.cat reads memory that was written to under another name"),
        (write_out, r"aten.mul writes into a given tensor \(out=\)"),
    ],
)
def test_refusals_say_what_to_do(function, message):
    with pytest.raises(UnknownOperation, match=message):
        relevance(function, X)


def test_inputs_are_not_written_to():
    x = X.clone()
    relevance(an_input_changed_in_place, x)
    assert torch.equal(x, X)


# ------------------------------------------------------------------------------------------------- values that leave
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2 if x.sum().item() > 0 else x * 3,
        lambda x: x * 2 if x.sum() > 0 else x * 3,
        lambda x: x * float(x.max()),
        lambda x: x[:, : int(x.abs().sum())] if x.numel() else x,
    ],
)
def test_values_read_into_python_are_refused(function):
    with pytest.raises(UnknownOperation, match=r"_local_scalar_dense reads a computed value into Python.*torch.where"):
        relevance(function, X)


@pytest.mark.parametrize(
    "function",
    [lambda x: x + torch.tensor(x.tolist()).double(), lambda x: x + torch.from_numpy(x.detach().numpy() * 1.0)],
    ids=["tolist", "numpy"],
)
def test_values_that_leave_torch_are_refused(function):
    """They would be those of the first scan in every later one."""
    with pytest.raises(UnknownOperation):
        relevance(function, X)


def test_nothing_that_depends_on_the_input_is_refused():
    with pytest.raises(ValueError, match="nothing that depends on its inputs"):
        explain(Call(lambda x: torch.ones(1, 2)), X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.dropout(x, 0.5, training=True),
        lambda x: x * torch.rand_like(x),
        lambda x: x + torch.randn(2, 4).double(),
        lambda x: x + x.new_empty(2, 4).normal_(),
    ],
)
def test_chance_is_refused(function):
    with pytest.raises(UnknownOperation):
        relevance(function, X)


def test_selection_by_value_is_refused():
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        relevance(lambda x: x[:, x[0] > -100], X)


# ------------------------------------------------------------------------------------------------- unknown operations
UNKNOWN = {
    "sort": (lambda x: torch.sort(x, 1)[0], "sort"),
    "cumsum": (lambda x: torch.cumsum(x, 1), "cumsum"),
    "abs": (lambda x: x.abs(), "abs"),
    "power": (lambda x: x**2, "pow"),
    "exponential": (lambda x: x.exp(), "exp"),
    "maximum": (lambda x: torch.maximum(x, -x), "maximum"),
    "reciprocal": (lambda x: 1 / (x + 9), "reciprocal"),
    "scatter": (lambda x: torch.zeros(2, 4).double().scatter(1, torch.arange(4).expand(2, 4), x), "scatter"),
    "weights that are computed": (lambda x: F.linear(torch.ones(2, 3).double(), x.view(4, 2)[:, [0, 1, 0]]), "mm"),
    "kernels that are computed": (
        lambda x: F.conv1d(torch.ones(2, 2, 3).double(), x.view(2, 2, 2)).flatten(1),
        "convolution",
    ),
}


@pytest.mark.parametrize("name", [name for name in UNKNOWN if "weights" not in name])
def test_operations_without_a_rule_are_named(name):
    """Operation, layer and the ways out."""
    function, operation = UNKNOWN[name]
    with pytest.raises(UnknownOperation) as caught:
        explain(nn.Sequential(nn.Linear(4, 4), Call(function), nn.Linear(4, 2)).double(), X)
    message = str(caught.value)
    assert operation in message
    assert message.startswith("1")
    assert "no relevance rule for aten." in message
    assert "write it with operations that have one" in message
    assert "start=Inner(...)" in message
    assert isinstance(caught.value, ValueError)


def strided(x):
    return x.t().as_strided((2, 4), (1, 2))


def largest(x):
    return x.amax(1, keepdim=True).expand(2, 4)


def chosen(x):
    return x.gather(1, x.argsort(1))


def chosen_by_index(x):
    return x[torch.arange(2).view(2, 1), x.argsort(1)]


def clamped(x):
    return x.clamp(min=x.flip(1))


@pytest.mark.parametrize("function", [strided, largest, chosen, chosen_by_index, clamped])
def test_rare_operations_are_explained_rightly_or_refused_by_name(function):
    try:
        found = relevance(function, X)[0]
    except UnknownOperation:
        return
    (expected,) = gradient_times_input(function, X)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_a_product_with_computed_weights_is_one_of_two_computed_operands():
    """F.linear(x, weight) with both computed is a matrix product, and has its rule."""
    a, b = X.view(1, 2, 4), X.flip(1).view(1, 2, 4)
    rules, start = [{"kind": "matmul", "epsilon": 0.0, "rule": "half"}], torch.ones(1, 2, 2)
    found = explain(Pair(lambda a, b: a @ b.transpose(1, 2)), (a, b), rules, start, dtype=torch.float64)
    s = 1 / (a @ b.transpose(1, 2))
    torch.testing.assert_close(found.relevance[0], 0.5 * a * (s @ b), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.relevance[1], 0.5 * b * (s.transpose(1, 2) @ a), rtol=1e-12, atol=1e-14)


class Pair(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, a, b):
        return self.function(a, b)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_dense_layer_is_one_operation_however_its_input_lies_in_memory(samples):
    torch.manual_seed(0)
    dense, x = nn.Linear(4, 3).double(), torch.randn(samples, 4, 5).double()
    spread = nn.Sequential(Call(lambda x: x.transpose(1, 2)), dense)
    packed = nn.Sequential(Call(lambda x: x.transpose(1, 2).contiguous()), dense)
    start = torch.randn(samples, 5, 3)
    for entry in ({"rule": "z_plus", "kind": "linear"}, {"rule": "gamma", "name": "1", "bias": "drop"}):
        found, expected = explain(spread, x, [entry], start), explain(packed, x, [entry], start)
        torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function", [lambda x: x.sort(1)[0], lambda x: x.abs().exp()])
def test_ways_out(function):
    """An inner start before it; a gate that gets nothing; a part of the network that relevance never reaches."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(function(self.first(x)))

    model = Net().double()
    assert explain(model, X, EPSILON, Inner("first")).relevance.any()
    gated = Function(lambda x: x * torch.sigmoid(function(x))).double()
    assert explain(gated, X, EPSILON, START).relevance.any()
    with pytest.raises(UnknownOperation):
        explain(gated, X, [{"kind": "product", "rule": "half"}, *EPSILON], START)

    class Aside(nn.Module):
        def forward(self, x):
            return x.sum(1), function(x)

    assert explain(Aside(), X, EPSILON, output=0, dtype=torch.float64).relevance.any()


def test_batch_statistics_are_refused_by_name():
    """Samples of a batch would explain each other."""
    model = nn.Sequential(
        nn.Conv3d(2, 2, 1), nn.BatchNorm3d(2, track_running_stats=False), nn.Flatten(), nn.Linear(8, 2)
    )
    with pytest.raises(UnknownOperation, match=r"1: no relevance rule for aten\.\w*batch_norm"):
        explain(model.double(), IMAGE)


@pytest.mark.parametrize(
    "made",
    [lambda x: x.new_ones(2, 4), torch.ones_like, lambda x: torch.full_like(x, 1.0), lambda x: x.new_full((2, 4), 1.0)],
)
def test_constants_in_the_shape_of_a_computed_tensor_are_constants(made):
    torch.testing.assert_close(relevance(lambda x: x + made(x), X)[0], relevance(lambda x: x + 1.0, X)[0])


# --------------------------------------------------------------------------------------------- order, names, reports
class OutOfOrder(nn.Module):
    """Declared in the reverse of the order in which they run."""

    def __init__(self):
        super().__init__()
        self.c, self.b, self.a = nn.Linear(3, 1), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def test_rules_go_by_the_order_of_execution():
    torch.manual_seed(0)
    composite = [
        {"place": "first", "rule": "flat"},
        {"place": "last", "rule": "gamma"},
        {"place": [1, 2], "rule": "z_plus"},
    ]
    ledger = explain(OutOfOrder(), torch.rand(1, 3), composite).ledger
    rules = dict(zip(ledger["layer"], ledger["rule"], strict=True))
    assert (rules["a"], rules["b"], rules["c"]) == ("flat", "z_plus", "gamma")
    assert [name for name in ledger["layer"] if name in "abc"] == ["a", "b", "c"]


def test_the_first_operation_of_every_branch_is_first():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.tail, self.left, self.right = nn.Linear(6, 1), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.tail(torch.cat([self.left(x), self.right(x)], 1))

    table = check_model(Branches(), torch.rand(1, 3), [{"place": "first", "rule": "flat"}])
    rules = dict(zip(table["layer"], table["rule"], strict=True))
    assert rules["left"] == rules["right"] == "flat"
    assert rules["tail"] == "epsilon"


def test_the_report_lists_what_would_fail():
    model = nn.Sequential(nn.Linear(4, 4), Call(lambda x: x.abs().cumsum(1)), nn.ReLU(), nn.Linear(4, 1))
    table = check_model(model, torch.rand(1, 4))
    bad = table.filter(kind="unknown")
    assert bad["operation"].to_list() == ["aten.abs", "aten.cumsum"]
    assert bad["rule"].to_list() == [None, None]
    assert all("no relevance rule" in note for note in bad["note"])
    assert table.filter(table["kind"] != "unknown")["rule"].null_count() == 0


def test_the_report_says_where_no_relevance_comes():
    gated = Function(lambda x: x * torch.sigmoid(2 * x)).double()
    table = check_model(gated, X)
    rows = table.filter(layer=":sigmoid").to_dicts()
    assert [(row["rule"], row["note"]) for row in rows] == [(None, "no relevance comes here")]


def test_names_are_unique():
    def function(x):
        return torch.relu(torch.relu(x) + torch.relu(x))

    table = check_model(Function(function).double(), X)
    assert table["layer"].n_unique() == table.height
    ledger = explain(Function(function).double(), X, EPSILON, START).ledger.filter(sample=0)
    assert ledger["layer"].n_unique() == ledger.height


def test_another_shape_is_traced_anew():
    """Sizes that the network reads from its input are those of the input at hand."""
    model = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), Call(lambda x: x * (10 / x.shape[2])), nn.AdaptiveAvgPool1d(1))
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(2, 1)).double()
    explainer = Explainer(model, EPSILON)
    for size in (4, 9, 4):
        x = torch.rand(2, 1, size).double()
        found = explainer(x)
        torch.testing.assert_close(found.output, model(x).detach(), rtol=1e-12, atol=1e-14)
        assert (found.start.sum() - found.total.sum()).item() == pytest.approx(account(found), rel=1e-9)
