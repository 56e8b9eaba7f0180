"""Baselines: closed forms, nets worked out by hand, captum as a witness, batches, memory.

Belongs here: what `baselines.py` promises of a plain callable. Does not belong here: how the engine makes one.
"""

import copy
import itertools
import math
import re

import captum.attr
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from relevance_assets.relevance import baselines, occlusion
from relevance_assets.relevance.baselines import BASELINES, GuidedReLU, reference_inputs

# captum sets what it needs, and says so at every call.
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting backward hooks")


class Guided(nn.Module):
    def forward(self, x):
        return GuidedReLU.apply(x)


class Net(nn.Module):
    """Image of two channels and three covariates to three classes."""

    def __init__(self, bias=True, relu=nn.ReLU):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv3d(2, 4, 3, padding=1, bias=bias), relu()
        self.pool = nn.MaxPool3d(2)
        self.conv2, self.relu2 = nn.Conv3d(4, 6, 3, padding=1, bias=bias), relu()
        self.hidden, self.relu3 = nn.Linear(6 * 27 + 3, 8, bias=bias), relu()
        self.last = nn.Linear(8, 3, bias=bias)

    def forward(self, image, covariates):
        return self.with_features(image, covariates)[0]

    def with_features(self, image, covariates):
        features = self.conv2(self.pool(self.relu1(self.conv1(image))))
        joined = torch.cat([self.relu2(features).flatten(1), covariates], dim=1)
        return self.last(self.relu3(self.hidden(joined))), features


CLASSES = [2, 0, 1]
OPTIONS = {
    "integrated_gradients": {"steps": 7, "baseline": (0.2, -0.1)},
    "smoothgrad": {"samples": 7},
    "occlusion": {"patch": 3, "stride": 2, "fill": 0.3},
}
SAMPLING = list(OPTIONS)


def network(bias=True, dtype=torch.float64):
    torch.manual_seed(3)
    return Net(bias).to(dtype).eval()


def scans(dtype=torch.float64, batch=3):
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(batch, 2, 6, 7, 6, generator=generator, dtype=torch.float64)
    return image.to(dtype), torch.randn(batch, 3, generator=generator, dtype=torch.float64).to(dtype)


def function(model, name, classes=CLASSES):
    """What the engine is asked to pass: row r is explained for the class of sample r mod B."""

    def logit(output):
        start = nn.functional.one_hot(torch.tensor(classes), output.shape[1]).to(output.dtype)
        return (output * start.repeat(len(output) // len(start), 1)).sum(1)

    def features(inputs):
        output, hidden = model.with_features(*inputs)
        return logit(output), hidden

    if BASELINES[name].needs == "features":
        return features
    if BASELINES[name].needs == "guided":
        model = copy.deepcopy(model)
        model.relu1 = model.relu2 = model.relu3 = Guided()
    return lambda inputs: logit(model(*inputs))


def run(name, model, inputs, classes=CLASSES, **options):
    return BASELINES[name](function(model, name, classes), inputs, **{**OPTIONS.get(name, {}), **options})


def same(ours, theirs, tolerance):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert other.abs().max() > 0
        assert (one - other).abs().max() <= tolerance * other.abs().max()


# Closed forms


@pytest.fixture
def linear():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(2, 5, 6, 4), (3,)]]
    inputs = tuple(torch.randn(2, *w.shape, generator=generator, dtype=torch.float64) for w in weights)

    def value(rows):
        return sum((x * w).flatten(1).sum(1) for x, w in zip(rows, weights, strict=True)) + 0.7

    return value, weights, inputs


def test_gradients_of_a_linear_function_are_its_weights(linear):
    value, weights, inputs = linear
    repeated = [w.expand_as(x) for w, x in zip(weights, inputs, strict=True)]
    same(baselines.saliency(value, inputs), [w.abs() for w in repeated], 0)
    same(baselines.saliency(value, inputs, signed=True), repeated, 0)
    same(baselines.gradient_x_input(value, inputs), [w * x for w, x in zip(weights, inputs, strict=True)], 0)
    same(baselines.smoothgrad(value, inputs, samples=5), repeated, 1e-15)


@pytest.mark.parametrize("riemann", ["right", "left", "middle", "trapezoid"])
def test_integrated_gradients_of_a_linear_function_are_exact(linear, riemann):
    value, weights, inputs = linear
    start = (torch.randn(5, 6, 4, dtype=torch.float64), -0.5)
    ours = baselines.integrated_gradients(value, inputs, steps=3, baseline=start, riemann=riemann)
    same(ours, [w * (x - x0) for w, x, x0 in zip(weights, inputs, start, strict=True)], 1e-14)
    factor = baselines.integrated_gradients(value, inputs, steps=3, baseline=start, riemann=riemann, multiply=False)
    same(factor, [w.expand_as(x) for w, x in zip(weights, inputs, strict=True)], 1e-14)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_integrated_gradients_of_a_square(steps):
    generator = torch.Generator().manual_seed(1)
    q, x = torch.randn(2, 3, 9, generator=generator, dtype=torch.float64)
    exact = q[0] * x**2
    # Sum over k of 2 q x^2 (k / n) / n for the nodes of each rule; the last two integrate a line without error.
    factors = {"right": (steps + 1) / steps, "left": (steps - 1) / steps, "middle": 1.0, "trapezoid": 1.0}
    for riemann, factor in factors.items():
        (ours,) = baselines.integrated_gradients(
            lambda rows: (q[0] * rows[0] ** 2).sum(1), (x,), steps=steps, riemann=riemann
        )
        assert torch.allclose(ours, factor * exact, rtol=1e-13, atol=1e-15)
    (default,) = baselines.integrated_gradients(lambda rows: (q[0] * rows[0] ** 2).sum(1), (x,))
    assert torch.allclose(default, 51 / 50 * exact, rtol=1e-13)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 200),
    internal=st.integers(1, 60),
    riemann=st.sampled_from(["right", "left", "middle", "trapezoid"]),
)
def test_integrated_gradients_tend_to_completeness(seed, steps, internal, riemann):
    """f = c tanh(W x + b) along the line has |h''| <= 0.77 |c| (W d)^2 and |h'''| <= 2 |c| |W d|^3: the sums' error
    is at most max|h''| / 2n (right, left) and max|h'''| / 12 n^2 (middle, trapezoid; 24 for the former)."""
    generator = torch.Generator().manual_seed(seed)
    first, second, c = (torch.randn(s, generator=generator, dtype=torch.float64) for s in [(4, 6), (2, 6), (6,)])
    inputs = tuple(torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    start = reference_inputs(inputs, (0.3, -0.2))

    def value(rows):
        return torch.tanh(rows[0] @ first + rows[1] @ second + 0.1) @ c

    ours = baselines.integrated_gradients(
        value, inputs, steps=steps, baseline=(0.3, -0.2), riemann=riemann, internal_batch_size=internal
    )
    gap = (sum(r.sum(1) for r in ours) - (value(inputs) - value(start))).abs()
    slope = ((inputs[0] - start[0]) @ first + (inputs[1] - start[1]) @ second).abs()
    if riemann in ("right", "left"):
        bound = 4 / (3 * math.sqrt(3)) * (c.abs() * slope**2).sum(1) / (2 * steps)
    else:
        bound = 2 * (c.abs() * slope**3).sum(1) / (12 * steps**2)
    assert (gap <= bound + 1e-12).all()


def test_gradient_x_input_is_complete_without_bias():
    model, inputs = network(bias=False), scans()
    total = sum(r.flatten(1).sum(1) for r in run("gradient_x_input", model, inputs))
    assert torch.allclose(total, function(model, "gradient_x_input")(inputs), rtol=1e-12)


def test_noise_of_smoothgrad_is_a_share_of_the_sample_s_range():
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(2, 1, 16, 16, 16, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 10]).view(
        2, 1, 1, 1, 1
    )
    constant = torch.full((2, 1), 3.0, dtype=torch.float64)

    def squares(rows):
        return sum((x**2).flatten(1).sum(1) for x in rows) / 2  # its gradient is the noisy input

    def noise(**options):
        ours = baselines.smoothgrad(squares, (image, constant), samples=16, **options)
        return ours[0] - image, ours[1] - constant

    drawn, none = noise(noise=0.2)
    ranges = image.flatten(1).amax(1) - image.flatten(1).amin(1)
    # The mean of 16 draws; its standard deviation is known to 1.1 % from 4096 voxels.
    assert torch.allclose(drawn.flatten(1).std(1) / ranges, torch.tensor(0.2 / 4, dtype=torch.float64), rtol=0.05)
    assert not none.any()
    assert torch.equal(drawn, noise(noise=0.2, seed=0)[0])
    assert (drawn - noise(noise=0.2, seed=1)[0]).abs().max() > 0.01
    assert noise(noise=(0.0, 0.2))[0].abs().max() < 1e-13  # rounding of a mean of values up to 10


def covering(length, edge, step):
    """Patches of one axis, as sets of voxels: from 0 on until the end is reached."""
    found = []
    for first in itertools.count(0, step):
        found.append(range(first, min(first + edge, length)))
        if first + edge >= length:
            return found


@pytest.mark.parametrize(("patch", "stride"), [(2, None), (3, 2), ((2, 4, 3), (1, 3, 2)), (9, 5), (1, 1)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_occlusion_of_a_linear_function_is_the_sum_of_its_weights_over_the_patch(linear, patch, stride, per_channel):
    value, weights, inputs = linear
    fill = (0.4, -0.3)
    image, covariates = baselines.occlusion(
        value, inputs, patch=patch, stride=stride, fill=fill, per_channel=per_channel
    )
    assert torch.allclose(covariates, weights[1] * (inputs[1] + 0.3), rtol=1e-12, atol=1e-13)
    part = (weights[0] * (inputs[0] - 0.4)).numpy()
    edges = np.broadcast_to(patch, 3).tolist()
    steps = edges if stride is None else np.broadcast_to(stride, 3).tolist()
    total, count = np.zeros(part.shape), np.zeros(part.shape)
    for box in itertools.product(*map(covering, part.shape[2:], edges, steps)):
        within = np.ix_(range(2), range(2), *box)
        inside = part[within].sum((2, 3, 4), keepdims=True)
        total[within] += inside if per_channel else inside.sum(1, keepdims=True)
        count[within] += 1
    assert np.allclose(image.numpy(), total / count, rtol=1e-11, atol=1e-12)


def test_the_cost_of_occlusion_is_the_documented_one():
    rows = re.findall(r"(\d+) x (\d+) x (\d+) +(\d+) +(\d+) +([\d ]+\d)\n", baselines.occlusion.__doc__)
    assert len(rows) == 6
    for row in rows:
        *volume, patch, stride, forwards = (int(word.replace(" ", "")) for word in row)
        places = occlusion._boxes(torch.empty(1, 1, *volume, device="meta"), patch, stride, False)
        assert len(places) + 1 == forwards
    calls = []

    def counted(inputs):
        calls.append(len(inputs[0]))
        return inputs[0].flatten(1).sum(1)

    baselines.occlusion(counted, (torch.zeros(2, 3, 5, 4, 4), torch.zeros(2, 7)), patch=2, stride=1, per_channel=True)
    assert sum(calls) == 2 * (1 + 3 * 4 * 3 * 3 + 7)
    assert max(calls) <= 4


# Worked out by hand


def test_guided_backprop_by_hand():
    first = torch.tensor([[1.0, 0], [1, -1], [-1, 0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -1, 1], [-1, 1, 0], [-1, 3, 0]], dtype=torch.float64)
    third = torch.tensor([2.0, 5, -1], dtype=torch.float64)

    def value(relu):
        return lambda rows: relu(relu(rows[0] @ first.T) @ second.T) @ third

    # First units (2, 1, -2), second (1, -1, 1). Back: (2, 5, -1) -> active and positive (2, 0, 0) -> (2, -2, 2)
    # -> (2, 0, 0) -> (2, 0). Both halves of the rule matter: the gradient is (-2, 5), the deconvolution (1, -3).
    inputs = (torch.tensor([[2.0, 1]], dtype=torch.float64),)
    assert baselines.guided_backprop(value(GuidedReLU.apply), inputs)[0].tolist() == [[2, 0]]
    assert baselines.saliency(value(torch.relu), inputs, signed=True)[0].tolist() == [[-2, 5]]


def test_guided_relu_is_closed_at_zero():
    x = torch.tensor([-1.0, 0, 1], requires_grad=True)
    output = GuidedReLU.apply(x)
    assert output.tolist() == [0, 0, 1]
    assert torch.autograd.grad(output.sum(), x)[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("signed", [False, True])
def test_grad_cam_by_hand(signed):
    mix = torch.tensor([1.0, -2], dtype=torch.float64).view(1, 2, 1, 1, 1)
    importance = torch.tensor([[3.0, 1], [0, 2]], dtype=torch.float64).view(1, 2, 2, 1, 1)

    def value(inputs):
        features = nn.functional.avg_pool3d(inputs[0], (2, 1, 1)) * mix  # channels a and -2 a
        return (features * importance).flatten(1).sum(1) + inputs[1].sum(1), features

    # Pairs have means (2, 3) and (-4, 1). Weights: mean gradients 2 and 1, so the map is 2 a - 2 b of both channels:
    # 2 (2, 3) + (-2) (-4, 1) = (12, 4) for the first image, and (-4, 8) for the second.
    image = torch.tensor([[[1.0, 3, 3, 3], [-4, -4, 2, 0]], [[0, 0, 1, 3], [2, 2, -2, -2]]], dtype=torch.float64)
    inputs = (image.view(2, 2, 4, 1, 1), torch.ones(2, 3, dtype=torch.float64))
    ours = baselines.grad_cam(value, inputs, signed=signed)
    low = -4.0 if signed else 0.0
    pairs = [(12.0, 4.0), (low, 8.0)]
    expected = [[a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, b] for a, b in pairs]
    for channel in range(2):
        assert ours[0][:, channel].flatten(1).tolist() == expected
    assert ours[1].shape == (2, 3)
    assert not ours[1].any()
    swapped = baselines.grad_cam(lambda rows: value(rows[::-1]), inputs[::-1], signed=signed, image=-1)
    assert torch.equal(swapped[1], ours[0])


# captum as a witness


def test_gradients_agree_with_captum():
    model, inputs = network(), scans()
    same(run("saliency", model, inputs), captum.attr.Saliency(model).attribute(inputs, target=CLASSES), 1e-12)
    theirs = captum.attr.InputXGradient(model).attribute(inputs, target=CLASSES)
    same(run("gradient_x_input", model, inputs), theirs, 1e-12)


@pytest.mark.parametrize("riemann", ["right", "left", "middle"])
def test_integrated_gradients_agree_with_captum(riemann):
    model, inputs = network(), scans()
    theirs = captum.attr.IntegratedGradients(model).attribute(
        inputs, baselines=(0.2, -0.1), target=CLASSES, n_steps=50, method=f"riemann_{riemann}", internal_batch_size=9
    )
    same(run("integrated_gradients", model, inputs, steps=50, riemann=riemann), theirs, 1e-6)


def test_guided_backprop_agrees_with_captum():
    model, inputs = network(), scans()
    theirs = captum.attr.GuidedBackprop(copy.deepcopy(model)).attribute(inputs, target=CLASSES)
    same(run("guided_backprop", model, inputs), theirs, 1e-12)


@pytest.mark.parametrize("signed", [False, True])
def test_grad_cam_agrees_with_captum(signed):
    model, inputs = network(), scans()
    low = captum.attr.LayerGradCam(model, model.conv2).attribute(inputs, target=CLASSES, relu_attributions=not signed)
    theirs = captum.attr.LayerAttribution.interpolate(low, inputs[0].shape[2:], "trilinear")
    ours = run("grad_cam", model, inputs, signed=signed)
    same(ours[:1], [theirs.expand_as(inputs[0])], 1e-12)


@pytest.mark.parametrize(("patch", "stride"), [(3, 2), ((2, 3, 4), (1, 3, 4)), (4, 1)])
def test_occlusion_agrees_with_captum(patch, stride):
    model, inputs = network(), scans()
    edges, steps = np.broadcast_to(patch, 3).tolist(), np.broadcast_to(stride, 3).tolist()
    theirs = captum.attr.Occlusion(model).attribute(
        inputs,
        sliding_window_shapes=((2, *edges), (1,)),
        strides=((2, *steps), (1,)),
        baselines=(0.3, 0.3),
        target=CLASSES,
    )
    same(run("occlusion", model, inputs, patch=patch, stride=stride), theirs, 1e-6)


def test_captum_misses_a_functional_relu_where_ours_refuses():
    class Functional(nn.Module):
        def __init__(self, relu):
            super().__init__()
            self.relu, self.last = relu, nn.Linear(4, 1).double()

        def forward(self, x):
            return self.last(self.relu(x)).sum(1)

    torch.manual_seed(0)
    model = Functional(torch.relu)
    inputs = (torch.randn(3, 4, dtype=torch.float64),)
    theirs = captum.attr.GuidedBackprop(model).attribute(inputs)
    same(theirs, baselines.saliency(lambda rows: model(*rows), inputs, signed=True), 0)
    with pytest.raises(ValueError, match="not replaced"):
        baselines.guided_backprop(lambda rows: model(*rows), inputs)
    model.relu = GuidedReLU.apply
    ours = baselines.guided_backprop(lambda rows: model(*rows), inputs)
    assert (ours[0] - theirs[0]).abs().max() > 0.01


# Batches, precision, memory


@pytest.mark.parametrize("name", BASELINES)
def test_a_batch_gives_what_singles_give(name):
    model, inputs = network(), scans()
    together = run(name, model, inputs)
    singles = [
        run(name, model, tuple(x[i : i + 1] for x in inputs), classes=CLASSES[i : i + 1]) for i in range(len(CLASSES))
    ]
    for whole, parts in zip(together, zip(*singles, strict=True), strict=True):
        assert torch.allclose(whole, torch.cat(parts), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("internal", [1, 7, 1000])
def test_the_internal_batch_changes_nothing(name, internal):
    model, inputs = network(), scans()
    same(run(name, model, inputs, internal_batch_size=internal), run(name, model, inputs), 1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_precision_and_what_is_left_behind(name):
    model, inputs = network(dtype=torch.float32), scans(torch.float32)
    before = [x.clone() for x in inputs]
    with torch.no_grad():  # as a caller may have it
        ours = run(name, model, inputs)
    exact = run(name, network(), scans())
    assert isinstance(ours, list)
    for one, other, x in zip(ours, exact, inputs, strict=True):
        assert (one.dtype, other.dtype, one.shape) == (torch.float32, torch.float64, x.shape)
        assert not one.requires_grad
        # float32 rounds to 6e-8, in some hundred operations, and occlusion takes differences.
        assert torch.allclose(one.double(), other, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(inputs, before, strict=True))
    assert all(p.grad is None for p in model.parameters())


class Held:
    """Bytes that autograd keeps for the backward pass: now, and at most."""

    now = most = 0

    def __init__(self, tensor):
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Held.now += self.size
        Held.most = max(Held.most, Held.now)

    def __del__(self):
        Held.now -= self.size


@pytest.mark.parametrize(("name", "count"), [("integrated_gradients", "steps"), ("smoothgrad", "samples")])
def test_memory_follows_the_internal_batch_and_not_the_steps(name, count):
    model, inputs = network(), tuple(x[:1] for x in scans())
    plain = function(model, name, [1])
    rows = []

    def counted(rows_):
        rows.append(len(rows_[0]))
        return plain(rows_)

    def peak(**options):
        Held.now = Held.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            BASELINES[name](counted, inputs, **options)
        assert Held.now == 0
        return Held.most

    one = peak(**{count: 1}, internal_batch_size=1)
    assert peak(**{count: 8}, internal_batch_size=4) == peak(**{count: 64}, internal_batch_size=4) <= 4 * one
    assert max(rows) == 4
    rows.clear()
    peak(**{count: 50}, internal_batch_size=16)
    assert rows == [13, 13, 13, 11]


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize(("internal", "most"), [(1, 3), (3, 3), (7, 6)])
def test_calls_are_whole_batches_within_the_internal_batch(name, internal, most):
    model, inputs, rows = network(), scans(), []
    plain = function(model, name)

    def counted(rows_):
        rows.append(len(rows_[0]))
        return plain(rows_)

    BASELINES[name](counted, inputs, **OPTIONS[name], internal_batch_size=internal)
    assert max(rows) == most
    assert all(count % 3 == 0 for count in rows)


# What is refused


@pytest.mark.parametrize(
    "name", ["saliency", "gradient_x_input", "integrated_gradients", "smoothgrad", "guided_backprop"]
)
def test_a_function_that_gives_no_gradient_or_not_one_number_per_row_is_an_error(name):
    inputs = (torch.randn(2, 3),)
    with pytest.raises(ValueError, match="cut off"):
        BASELINES[name](lambda rows: rows[0].detach().sum(1), inputs)
    with pytest.raises(ValueError, match="one number per row"):
        BASELINES[name](lambda rows: rows[0], inputs)


def test_an_input_without_part_in_the_output_gets_nothing():
    inputs = (torch.randn(2, 3), torch.randn(2, 4))
    for name in ("saliency", "gradient_x_input", "integrated_gradients", "smoothgrad", "occlusion"):
        ours = BASELINES[name](lambda rows: rows[0].sum(1), inputs)
        assert ours[0].any()
        assert not ours[1].any()


def test_guided_backprop_needs_a_relu_and_every_one_replaced():
    model, inputs = network(), scans()
    with pytest.raises(ValueError, match="no ReLU"):
        baselines.guided_backprop(lambda rows: rows[0].flatten(1).sum(1), inputs)
    model.relu1 = Guided()
    with pytest.raises(ValueError, match="not replaced"):
        baselines.guided_backprop(function(model, "saliency"), inputs)


def test_grad_cam_needs_a_picture_that_the_output_depends_on():
    inputs = (torch.randn(2, 1, 4, 4, 4), torch.randn(2, 3))
    cases = {
        "no picture": lambda rows: (rows[0].flatten(1).sum(1), rows[0].flatten(1)),
        "cut off": lambda rows: (rows[0].flatten(1).sum(1), rows[0].detach()),
        "does not depend": lambda rows: (rows[0].flatten(1).sum(1), rows[0] * 2),
    }
    for message, value in cases.items():
        with pytest.raises(ValueError, match=message):
            baselines.grad_cam(value, inputs)


def test_bad_arguments_are_errors():
    image, covariates = torch.randn(2, 1, 4, 4, 4), torch.randn(2, 3)

    def value(rows):
        return rows[0].flatten(1).sum(1)

    cases = [
        ("saliency", (image.long(),), {}, "floating"),
        ("saliency", (image, covariates[:1]), {}, "batch size"),
        ("integrated_gradients", (image,), {"steps": 0}, "steps is 0"),
        ("integrated_gradients", (image,), {"riemann": "simpson"}, "simpson"),
        ("integrated_gradients", (image,), {"internal_batch_size": 0}, "internal_batch_size is 0"),
        ("integrated_gradients", (image, covariates), {"baseline": image}, "1 values for 2 inputs"),
        ("integrated_gradients", (image,), {"baseline": torch.zeros(5)}, "broadcast"),
        ("smoothgrad", (image,), {"samples": 0}, "samples is 0"),
        ("smoothgrad", (image,), {"noise": -1.0}, "not negative"),
        ("smoothgrad", (image, covariates), {"noise": [0.1]}, "one per input"),
        ("occlusion", (image,), {"patch": 2, "stride": 3}, "left out"),
        ("occlusion", (image,), {"patch": 0}, "left out"),
        ("occlusion", (image,), {"patch": (2, 2)}, "3 spatial axes"),
        ("occlusion", (image, covariates), {"fill": (0.0,)}, "1 values for 2 inputs"),
    ]
    for name, inputs, options, message in cases:
        with pytest.raises(ValueError, match=message):
            BASELINES[name](value, inputs, **options)


def test_every_method_says_what_it_needs_and_what_its_sum_is():
    said = {name: (method.needs, method.completeness) for name, method in BASELINES.items()}
    assert said == {
        "saliency": ("plain", "none"),
        "gradient_x_input": ("plain", "homogeneous"),
        "integrated_gradients": ("plain", "difference"),
        "smoothgrad": ("plain", "none"),
        "guided_backprop": ("guided", "none"),
        "grad_cam": ("features", "none"),
        "occlusion": ("plain", "none"),
    }
