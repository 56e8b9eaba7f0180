"""Whole networks against explicit matrices, for several composites each: output, relevance, what was kept on the way.

Each network is written twice, as a torch module and as steps on the oracle's tape, with batch norms folded by hand.
Single layers are in `test_dense_rules.py`.
"""

import dense_rules as oracle
import numpy as np
import pytest
import torch
from torch import nn

from relevance_assets.relevance import Inner, explain

TOLERANCE = 1e-12

# name: rules of first convolution, other convolutions, linear layers, averages and sums; bias
COMPOSITES = {
    "z_plus": ({"rule": "z_plus"}, {"rule": "z_plus"}, {"rule": "epsilon"}, {"rule": "epsilon"}, "keep"),
    "gamma_box": (
        {"rule": "box", "low": -4.0, "high": 4.0},
        {"rule": "gamma", "gamma": 0.25},
        {"rule": "epsilon"},
        {"rule": "epsilon"},
        "keep",
    ),
    "alpha_beta_flat": (
        {"rule": "flat"},
        {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0},
        {"rule": "epsilon", "epsilon": 0.01},
        {"rule": "z_plus"},
        "keep",
    ),
    "w_square_drop": (
        {"rule": "w_square"},
        {"rule": "alpha_beta", "alpha": 1.0, "beta": 0.0},
        {"rule": "epsilon", "epsilon": 1e-8},
        {"rule": "z_plus"},
        "drop",
    ),
    "epsilon": (
        {"rule": "epsilon", "epsilon": 0.1},
        {"rule": "epsilon", "epsilon": 0.1},
        {"rule": "epsilon", "epsilon": 0.1},
        {"rule": "epsilon", "epsilon": 0.1},
        "keep",
    ),
    "gamma_distribute": (
        {"rule": "gamma", "gamma": -20.0},
        {"rule": "gamma", "gamma": 1.0},
        {"rule": "gamma", "gamma": 0.5},
        {"rule": "epsilon", "epsilon": 0.01},
        "distribute",
    ),
}
KINDS = {"average": ("average", "sum", "add"), "linear": ("linear",), "convolution": ("convolution",)}


class Rules:
    """One composite, as the engine takes it and as the oracle does."""

    def __init__(self, name, **more):
        first, convolution, linear, average, self.bias = COMPOSITES[name]
        self.rules = {"first": first, "convolution": convolution, "linear": linear, "average": average}
        self.more = more

    def data(self, fold=("left", "right")):
        layers = [{"kind": "convolution", "place": "first", **self.rules["first"]}]
        layers += [{"kind": kind, **self.rules[group]} for group, kinds in KINDS.items() for kind in kinds]
        layers += [{"kind": kind, "rule": rule} for kind, rule in self.more.items()]
        return {"layers": layers, "bias": self.bias, "fold": list(fold)}

    def __getitem__(self, group):
        """Keyword arguments of the oracle."""
        rule = dict(self.rules[group])
        if group == "average" and rule["rule"] == "z_plus":
            return {"rule": "share", "stabiliser": 0.0}
        return rule | {"bias": self.bias}

    def add(self):
        """Of sums of two branches."""
        if self.rules["average"]["rule"] == "z_plus":
            return {"rule": "z_plus"}
        return {"stabiliser": self.rules["average"].get("epsilon", 1e-6)}


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(model, seed):
    """Batch norms as after training, and worse: negative scales, and one channel with a scale of 0."""
    model = model.double().eval()
    with torch.no_grad():
        for place, module in enumerate(model.modules()):
            key = 1000 * seed + 10 * place
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d):
                module.running_mean.copy_(0.3 * normal(key, module.num_features))
                module.running_var.copy_(0.3 + normal(key + 1, module.num_features).abs())
                if not module.affine:
                    continue
                module.weight.copy_(0.4 + 0.7 * normal(key + 2, module.num_features))
                module.bias.copy_(0.3 * normal(key + 3, module.num_features))
            elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
                fan = module.weight[0].numel()
                module.weight.copy_(normal(key, *module.weight.shape) * (2 / fan) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.1 * normal(key + 1, *module.bias.shape))
    return model


def array(tensor):
    return tensor.detach().numpy()


def affine(norm):
    """c and d of a batch norm in evaluation, c x + d."""
    c = 1 / np.sqrt(array(norm.running_var) + norm.eps)
    c = c * array(norm.weight) if norm.affine else c
    return c, (array(norm.bias) if norm.affine else 0) - array(norm.running_mean) * c


def channels(values):
    return values.reshape(-1, 1, 1, 1)


def conv(module, into, norm=None):
    """A convolution's matrix, with the batch norm behind it merged in."""
    bias = None if module.bias is None else array(module.bias)
    if isinstance(module, nn.ConvTranspose3d):
        more = {"stride": module.stride, "padding": module.padding, "output_padding": module.output_padding}
        layer = oracle.transposed(array(module.weight), bias, into, groups=module.groups, **more)
    else:
        more = {"stride": module.stride, "padding": module.padding, "mode": module.padding_mode}
        layer = oracle.convolution(array(module.weight), bias, into, groups=module.groups, **more)
    return layer if norm is None else layer.scaled(*affine(norm))


def linear(module, into):
    return oracle.dense(array(module.weight), None if module.bias is None else array(module.bias), into)


def norm_relu(tape, x, norm, block=None, relu=True):
    """BN, ReLU; and d, by which rules of what comes next see it moved: y - d = c max(x, t) or c min(x, t).

    `block` names the ReLU if nothing passes where it holds a unit at its threshold t.
    """
    c, d = affine(norm)
    axes = (-1, *(1,) * (x.value.ndim - 1))
    y = c.reshape(axes) * x.value + d.reshape(axes)
    y = oracle.up(y) if relu else y
    node = tape.blocked(block, y, x) if block else tape.passed(y, x)
    return node, (np.where(c == 0, oracle.up(d), d) if relu else d).reshape(axes)


def same(ours, theirs, what=""):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    difference, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
    assert difference <= TOLERANCE * size, f"{what} differs by {difference / size if size else difference:.3g}"


def compare(explanation, tapes, inputs, output, starts):
    """Output, maps, and the sums of the ledger's columns, per sample."""
    same(explanation.output, np.stack([out.value for out in output]), "output")
    ours = explanation.relevance if isinstance(explanation.relevance, tuple | list) else (explanation.relevance,)
    for place, relevance in enumerate(ours):
        same(relevance, np.stack([nodes[place].relevance for nodes in inputs]), f"relevance of input {place}")
    for sample, (tape, nodes, start) in enumerate(zip(tapes, inputs, starts, strict=True)):
        kept = tape.kept()
        left = sum(node.relevance.sum() for node in nodes)
        size = max(np.abs(start).sum(), *(np.abs(account.relevance).sum() for account in tape.accounts.values()))
        # the oracle's own account closes ...
        assert abs(start.sum() - left - kept.bias - kept.stabiliser - kept.dead - kept.clamped) <= TOLERANCE * size
        # ... and the engine's is the same
        rows = [row for row in explanation.ledger.iter_rows(named=True) if row["sample"] == sample]
        for column in ("bias", "stabiliser", "dead", "clamped"):
            ours_, theirs = sum(row[column] for row in rows), getattr(kept, column)
            assert abs(ours_ - theirs) <= TOLERANCE * size, (column, ours_, theirs)
        assert sum(abs(row["unexplained"]) for row in rows) <= TOLERANCE * size


def run(model, inputs, steps, start, **engine):
    """Explain a batch, walk the oracle sample by sample, compare. `steps(tape, *nodes)` returns output, start node."""
    explanation = explain(model, inputs if len(inputs) > 1 else inputs[0], start=start, **engine)
    tapes, nodes, outputs, starts = [], [], [], []
    for sample in zip(*inputs, strict=True):
        tape = oracle.Tape()
        leaves = [tape.node(array(x)) for x in sample]
        output, begin, relevance = steps(tape, *leaves)
        tape.back((begin, relevance))
        for many, one in zip((tapes, nodes, outputs, starts), (tape, leaves, output, relevance), strict=True):
            many.append(one)
    compare(explanation, tapes, nodes, outputs, starts)
    return explanation


def predicted(output):
    """Relevance of the predicted class: its logit."""
    relevance = np.zeros(output.value.shape)
    relevance[output.value.argmax()] = output.value.max()
    return relevance


# ------------------------------------------------------------------------------------------------ dense block
class DenseLayer(nn.Module):
    def __init__(self, features, growth, mode):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm3d(features), nn.Conv3d(features, 4, 1, bias=False)
        self.norm2 = nn.BatchNorm3d(4)
        self.conv2 = nn.Conv3d(4, growth, 3, padding=1, padding_mode=mode, bias=False)

    def forward(self, x):
        y = self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return torch.cat([x, y], 1)


class DenseNet(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.conv0 = nn.Conv3d(2, 4, 3, padding=1, padding_mode=mode, bias=False)
        self.norm0 = nn.BatchNorm3d(4)
        self.layer1, self.layer2 = DenseLayer(4, 2, mode), DenseLayer(6, 2, mode)
        self.norm, self.conv = nn.BatchNorm3d(8), nn.Conv3d(8, 4, 1, bias=False)
        self.pool = nn.AvgPool3d(2)
        self.last_norm, self.classifier = nn.BatchNorm3d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.norm0(self.conv0(x)))
        x = self.layer2(self.layer1(x))
        x = self.pool(self.conv(torch.relu(self.norm(x))))
        x = nn.functional.adaptive_avg_pool3d(torch.relu(self.last_norm(x)), 1)
        return self.classifier(x.flatten(1))


def dense_net(model, rules, inner_left, *, mask=None, block=False):
    """Every BN-ReLU-conv to the right; with `inner_left` conv1-norm2 of the dense layers to the left."""

    def off(name):
        return name if block else None

    def steps(tape, x):
        first = rules["first"] if mask is None else rules["first"] | {"mask": np.broadcast_to(mask, x.value.shape)}
        h = tape.weighted("conv0", conv(model.conv0, x.value.shape, model.norm0), x, **first)
        h = tape.blocked("relu0", oracle.up(h.value), h) if block else tape.relu(h)
        for name in ("layer1", "layer2"):
            layer = getattr(model, name)
            y, d = norm_relu(tape, h, layer.norm1, off(f"{name}.relu1"))
            merged = layer.norm2 if inner_left else None
            y = tape.weighted(f"{name}.conv1", conv(layer.conv1, y.value.shape, merged), y, d, **rules["convolution"])
            y, d = (tape.relu(y), None) if inner_left else norm_relu(tape, y, layer.norm2, off(f"{name}.relu2"))
            y = tape.weighted(f"{name}.conv2", conv(layer.conv2, y.value.shape), y, d, **rules["convolution"])
            h = tape.cat(h, y)
        y, d = norm_relu(tape, h, model.norm, off("relu"))
        y = tape.weighted("conv", conv(model.conv, y.value.shape), y, d, **rules["convolution"])
        pool = oracle.average_pool(y.value.shape, 2)
        y = tape.weighted("pool", pool, y, **rules["average"])
        y, d = norm_relu(tape, y, model.last_norm, off("last_relu"))
        whole = oracle.adaptive_average_pool(y.value.shape, (1, 1, 1))
        # the shift goes through the average into the linear layer
        y = tape.weighted("mean", whole, y, d, carry=True, **rules["average"])
        y = tape.passed(y.value.ravel(), y)
        out = tape.weighted("classifier", linear(model.classifier, (4,)), y, d.ravel(), **rules["linear"])
        return out, out, predicted(out)

    return steps


@pytest.mark.parametrize("fold", [("right", "left"), ("left", "right")], ids=["right", "left"])
@pytest.mark.parametrize("mode", ["replicate", "zeros"])
@pytest.mark.parametrize("name", COMPOSITES)
def test_dense_block(name, mode, fold):
    model = randomised(DenseNet(mode), 1)
    with torch.no_grad():
        for norm in (model.layer1.norm1, model.layer2.norm2, model.last_norm):
            norm.weight[1] = 0
        model.layer1.norm1.bias[1], model.layer2.norm2.bias[1] = 0.4, -0.4  # on for ever, and off
    rules, x = Rules(name), normal(5, 2, 2, 4, 4, 4)
    run(model, (x,), dense_net(model, rules, fold[0] == "left"), None, composite=rules.data(fold))


@pytest.mark.parametrize("mode", ["replicate", "zeros"])
@pytest.mark.parametrize("name", COMPOSITES)
def test_dense_block_in_a_mask(name, mode):
    model, rules, x = randomised(DenseNet(mode), 1), Rules(name), normal(5, 2, 2, 4, 4, 4)
    mask = normal(9, 4, 4, 4) > -0.5
    steps = dense_net(model, rules, False, mask=array(mask))
    explanation = run(model, (x,), steps, None, composite=rules.data(("right", "left")), mask=mask)
    assert explanation.relevance[..., ~mask].abs().max() == 0


@pytest.mark.parametrize("name", COMPOSITES)
def test_dense_block_with_held_units_blocked(name):
    """The variant that drops relevance on units at their threshold, and says how much."""
    model, rules, x = randomised(DenseNet("replicate"), 1), Rules(name, activation="block"), normal(5, 2, 2, 4, 4, 4)
    steps = dense_net(model, rules, False, block=True)
    explanation = run(model, (x,), steps, None, composite=rules.data(("right", "left")))
    assert explanation.ledger["clamped"].abs().max() > 0


@pytest.mark.parametrize("rule", ["pass", "epsilon"])
def test_batch_norms_left_alone(rule):
    """fold=[]: a batch norm is an operation with a rule of its own."""
    model = randomised(
        nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 2, 2)), 2
    )
    rules, start = Rules("z_plus", batch_norm=rule), normal(7, 2, 2, 3, 2, 3)
    starts = iter(array(start))

    def steps(tape, x):
        h = tape.weighted("0", conv(model[0], x.value.shape), x, **rules["first"])
        c, d = affine(model[1])
        scale = np.ones(h.value.shape) * channels(c)
        norm = oracle.Layer(
            np.diag(scale.ravel()),
            np.eye(scale.size) > 0,
            np.arange(scale.size),
            (np.ones(scale.shape) * channels(d)).ravel(),
            scale.shape,
            scale.shape,
        )
        h = tape.passed(norm(h.value), h) if rule == "pass" else tape.weighted("1", norm, h, rule="epsilon")
        out = tape.weighted("3", conv(model[3], h.value.shape), tape.relu(h), **rules["convolution"])
        return out, out, next(starts)

    run(model, (normal(5, 2, 1, 4, 3, 4),), steps, start, composite=rules.data([]))


def flat(node, tape):
    return tape.passed(node.value.ravel(), node)


def everywhere(d, node):
    """One shift per channel, per value."""
    return np.broadcast_to(d, node.value.shape).ravel()


def linear_norm(tape, x, m, rules):
    h = tape.weighted("0", linear(m[0], (4,)).scaled(*affine(m[1])), x, **rules["linear"])
    return tape.weighted("3", linear(m[3], (5,)), tape.relu(h), **rules["linear"])


def norm_linear(tape, x, m, rules):
    y, d = norm_relu(tape, x, m[0], relu=False)
    return tape.weighted("1", linear(m[1], (4,)), y, d, **rules["linear"])


def relu_norm_conv(tape, x, m, rules):
    h = tape.relu(tape.weighted("0", conv(m[0], x.value.shape), x, **rules["first"]))
    y, d = norm_relu(tape, h, m[2], relu=False)
    return tape.weighted("3", conv(m[3], y.value.shape), y, d, **rules["convolution"])


def pool_norm_flatten_linear(tape, x, m, rules):
    h = tape.max_pool(tape.weighted("0", conv(m[0], x.value.shape), x, **rules["first"]), 2)
    y, d = norm_relu(tape, h, m[2])
    return tape.weighted("5", linear(m[5], (y.value.size,)), flat(y, tape), everywhere(d, y), **rules["linear"])


def norm_average_flatten_linear(tape, x, m, rules):
    h = tape.max_pool(tape.weighted("0", conv(m[0], x.value.shape), x, **rules["first"]), 2, stride=1)
    y, d = norm_relu(tape, h, m[2])
    y = tape.weighted("4", oracle.average_pool(y.value.shape, 2, 1), y, d, carry=True, **rules["average"])
    return tape.weighted("6", linear(m[6], (y.value.size,)), flat(y, tape), everywhere(d, y), **rules["linear"])


def norm_pad_conv(mode):
    def steps(tape, x, m, rules):
        h = tape.relu(tape.weighted("0", conv(m[0], x.value.shape), x, **rules["first"]))
        y, d = norm_relu(tape, h, m[2])
        more = {"padding": [(1, 0), (0, 2), (1, 1)], "mode": mode}
        layer = oracle.convolution(array(m[5].weight), array(m[5].bias), y.value.shape, **more)
        return tape.weighted("5", layer, y, d, **rules["convolution"])

    return steps


def norm_transposed(tape, x, m, rules):
    h = tape.relu(tape.weighted("0", conv(m[0], x.value.shape), x, **rules["first"]))
    y, d = norm_relu(tape, h, m[2])
    return tape.weighted("4", conv(m[4], y.value.shape), y, d, **rules["convolution"])


def transposed_norm(tape, x, m, rules):
    h = tape.relu(tape.weighted("0", conv(m[0], x.value.shape, m[1]), x, **rules["first"]))
    return tape.weighted("3", conv(m[3], h.value.shape, m[4]), h, **rules["convolution"])


def norm_grouped(tape, x, m, rules):
    h = tape.max_pool(tape.weighted("0", conv(m[0], x.value.shape), x, **rules["first"]), 2, stride=1)
    y, d = norm_relu(tape, h, m[2])
    return tape.weighted("4", conv(m[4], y.value.shape), y, d, **rules["convolution"])


def conv3(into, out, **more):
    return nn.Conv3d(into, out, 3, **{"padding": 1, **more})


FRONT = (1, 3, 4, 3)  # what the first convolution reads
FOLDS = {
    "linear-norm": (lambda: [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)], (4,), linear_norm),
    "norm-linear": (lambda: [nn.BatchNorm1d(4), nn.Linear(4, 3)], (4,), norm_linear),
    "norm without weights-linear": (lambda: [nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3)], (4,), norm_linear),
    "relu-norm-conv": (lambda: [conv3(1, 3), nn.ReLU(), nn.BatchNorm3d(3), conv3(3, 2)], FRONT, relu_norm_conv),
    "pool-norm-relu-flatten-linear": (
        lambda: [conv3(1, 3), nn.MaxPool3d(2), nn.BatchNorm3d(3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)],
        FRONT,
        pool_norm_flatten_linear,
    ),
    "norm-relu-average-flatten-linear": (
        lambda: [
            conv3(1, 3),
            nn.MaxPool3d(2, 1),
            nn.BatchNorm3d(3),
            nn.ReLU(),
            nn.AvgPool3d(2, 1),
            nn.Flatten(),
            nn.Linear(6, 2),
        ],
        FRONT,
        norm_average_flatten_linear,
    ),
    "norm-relu-zeros-conv": (
        lambda: [
            conv3(1, 3),
            nn.ReLU(),
            nn.BatchNorm3d(3),
            nn.ReLU(),
            nn.ConstantPad3d((1, 1, 0, 2, 1, 0), 0.0),
            conv3(3, 2, padding=0),
        ],
        FRONT,
        norm_pad_conv("zeros"),
    ),
    "norm-relu-replicate-conv": (
        lambda: [
            conv3(1, 3),
            nn.ReLU(),
            nn.BatchNorm3d(3),
            nn.ReLU(),
            nn.ReplicationPad3d((1, 1, 0, 2, 1, 0)),
            conv3(3, 2, padding=0),
        ],
        FRONT,
        norm_pad_conv("replicate"),
    ),
    "norm-relu-transposed": (
        lambda: [
            conv3(1, 4),
            nn.ReLU(),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.ConvTranspose3d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        ],
        (1, 2, 3, 2),
        norm_transposed,
    ),
    "transposed-norm": (
        lambda: [
            conv3(1, 4, bias=False),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2),
            nn.BatchNorm3d(6),
        ],
        (1, 2, 3, 2),
        transposed_norm,
    ),
    "norm-relu-grouped": (
        lambda: [conv3(1, 4), nn.MaxPool3d(2, 1), nn.BatchNorm3d(4), nn.ReLU(), conv3(4, 6, groups=2)],
        FRONT,
        norm_grouped,
    ),
}


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("net", FOLDS)
def test_folds(net, name):
    """What a batch norm stands beside, with a channel whose scale is 0."""
    layers, shape, steps = FOLDS[net]
    model, rules = randomised(nn.Sequential(*layers()), 9), Rules(name)
    for module in model:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d) and module.affine and net != "transposed-norm":
            module.weight.data[1], module.bias.data[1] = 0, 0.3
    x = normal(5, 2, *shape)
    with torch.no_grad():
        start = model(x).roll(1) + 1
    starts = iter(array(start))

    def walk(tape, leaf):
        out = steps(tape, leaf, list(model), rules)
        return out, out, next(starts)

    run(model, (x,), walk, start, composite=rules.data())


class Shared(nn.Module):
    """One batch norm and ReLU that two convolutions read; one convolution that is used twice."""

    def __init__(self):
        super().__init__()
        self.enter, self.norm, self.pool = conv3(1, 3), nn.BatchNorm3d(3), nn.MaxPool3d(2, 1)
        self.left, self.right = conv3(3, 3), nn.Conv3d(3, 3, 1)

    def forward(self, x):
        y = torch.relu(self.norm(self.pool(self.enter(x))))
        y = torch.relu(self.left(y) + self.right(y))
        return self.left(y)


@pytest.mark.parametrize("name", ["z_plus", "gamma_box", "epsilon", "gamma_distribute"])
def test_shared_layers(name):
    model, rules, x = randomised(Shared(), 10), Rules(name), normal(5, 2, 1, 3, 4, 3)
    with torch.no_grad():
        start = model(x).roll(1)
    starts = iter(array(start))

    def steps(tape, leaf):
        h = tape.weighted("enter", conv(model.enter, leaf.value.shape), leaf, **rules["first"])
        y, d = norm_relu(tape, tape.max_pool(h, 2, stride=1), model.norm)
        first = tape.weighted("left", conv(model.left, y.value.shape), y, d, **rules["convolution"])
        second = tape.weighted("right", conv(model.right, y.value.shape), y, d, **rules["convolution"])
        y = tape.relu(tape.add("add", first, second, **rules.add()))
        out = tape.weighted("left#2", conv(model.left, y.value.shape), y, **rules["convolution"])
        return out, out, next(starts)

    run(model, (x,), steps, start, composite=rules.data())


# --------------------------------------------------------------------------------------------- residual block
class Residual(nn.Module):
    def __init__(self, into, out, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(into, out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm3d(out)
        self.conv2, self.norm2 = nn.Conv3d(out, out, 3, padding=1, bias=False), nn.BatchNorm3d(out)
        self.down = None
        if stride > 1:
            self.down = nn.Sequential(nn.Conv3d(into, out, 1, stride=stride, bias=False), nn.BatchNorm3d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(1, 3, 3, padding=1), nn.BatchNorm3d(3), nn.ReLU(inplace=True), nn.MaxPool3d(2)
        )
        self.block1, self.block2 = Residual(3, 3, 1), Residual(3, 4, 2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.block2(self.block1(self.stem(x))).mean((2, 3, 4)))


def resnet(model, rules):
    def block(tape, name, x, module):
        y = tape.weighted(f"{name}.1", conv(module.conv1, x.value.shape, module.norm1), x, **rules["convolution"])
        y = tape.relu(y)
        y = tape.weighted(f"{name}.2", conv(module.conv2, y.value.shape, module.norm2), y, **rules["convolution"])
        if module.down is not None:
            x = tape.weighted(
                f"{name}.down", conv(module.down[0], x.value.shape, module.down[1]), x, **rules["convolution"]
            )
        return tape.relu(tape.add(f"{name}.add", y, x, **rules.add()))

    def steps(tape, x):
        h = tape.weighted("stem", conv(model.stem[0], x.value.shape, model.stem[1]), x, **rules["first"])
        h = tape.max_pool(tape.relu(h), 2)
        h = block(tape, "block2", block(tape, "block1", h, model.block1), model.block2)
        h = tape.weighted("mean", oracle.reduction(h.value.shape, (1, 2, 3)), h, **rules["average"])
        out = tape.weighted("fc", linear(model.fc, (4,)), h, **rules["linear"])
        return out, out, predicted(out)

    return steps


@pytest.mark.parametrize("name", COMPOSITES)
def test_residual_block(name):
    model, rules = randomised(ResNet(), 3), Rules(name)
    run(model, (normal(5, 2, 1, 6, 4, 4),), resnet(model, rules), None, composite=rules.data())


# --------------------------------------------------------------------------------------------- gated attention
class GatedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 4)
        self.signal, self.gate, self.score = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 1)
        self.classifier = nn.Linear(5, 1)

    def forward(self, images, covariates):
        m = self.embed(images)
        scores = self.score(torch.tanh(self.signal(m)) * torch.sigmoid(self.gate(m)))
        pooled = (torch.softmax(scores, 1) * m).sum(1)
        return self.classifier(torch.cat([pooled, covariates], 1))


def turned(tape, x):
    return tape.node(x.value.T, x, pull=lambda r: (r.T,))


def gated_attention(model, rules, product, softmax, begin):
    def steps(tape, images, covariates):
        m = tape.weighted("embed", linear(model.embed, images.value.shape), images, **rules["linear"])
        u = tape.weighted("signal", linear(model.signal, m.value.shape), m, **rules["linear"])
        v = tape.weighted("gate", linear(model.gate, m.value.shape), m, **rules["linear"])
        s, g = tape.passed(np.tanh(u.value), u), tape.passed(1 / (1 + np.exp(-v.value)), v)
        h = tape.product(s, g, product, (u, v))
        e = tape.weighted("score", linear(model.score, h.value.shape), h, **rules["linear"])
        weights = tape.softmax("softmax", turned(tape, e), softmax)
        a = turned(tape, weights)
        spread = tape.node(np.repeat(a.value, 4, 1), a, pull=lambda r: (r.sum(1, keepdims=True),))
        parts = tape.product(m, spread, product if product != "abs" else "proposed")
        total = oracle.reduction(parts.value.shape, (0,), mean=False)
        pooled = tape.weighted("sum", total, parts, **rules["average"])
        out = tape.weighted(
            "classifier", linear(model.classifier, (5,)), tape.cat(pooled, covariates), **rules["linear"]
        )
        return (out, e, a.value) if begin == "scores" else (out, out, out.value)

    return steps


@pytest.mark.parametrize("product", ["proposed", "all", "half"])
@pytest.mark.parametrize("begin", ["scores", "output"])
@pytest.mark.parametrize("name", ["z_plus", "epsilon", "gamma_distribute"])
def test_gated_attention(name, begin, product):
    """From the output, or from the attention weights placed on the scores before the softmax."""
    model = randomised(GatedAttention(), 4)
    images, covariates = normal(5, 2, 3, 5), normal(6, 2, 1)
    start = None
    if begin == "scores":
        with torch.no_grad():
            m = model.embed(images)
            scores = model.score(torch.tanh(model.signal(m)) * torch.sigmoid(model.gate(m)))
        start = Inner("score", torch.softmax(scores, 1))
    rules = Rules(name, product=product, softmax="pass")
    steps = gated_attention(model, rules, product, "pass", begin)
    explanation = run(model, (images, covariates), steps, start, composite=rules.data())
    if begin == "scores":
        assert explanation.relevance[1].abs().max() == 0  # the scores have not seen them


@pytest.mark.parametrize("product", ["proposed", "all"])
def test_gated_attention_with_gradient_softmax(product):
    """AttnLRP's softmax instead of passing through."""
    model, rules = randomised(GatedAttention(), 4), Rules("epsilon", product=product, softmax="gradient")
    steps = gated_attention(model, rules, product, "gradient", "output")
    run(model, (normal(5, 2, 3, 5), normal(6, 2, 1)), steps, None, composite=rules.data())


# ------------------------------------------------------------------------------------------- transformer block
class Transformer(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.query, self.key, self.value = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)
        self.leave, self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = self.query(y), self.key(y), self.value(y)
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v
        x = x + self.leave(y)
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def layer_norm(tape, x, module):
    """Passed: its statistics and shift are constants, its scale is what the next layer's input is made of."""
    sigma = np.sqrt(x.value.var(-1, keepdims=True) + module.eps)
    centred = (x.value - x.value.mean(-1, keepdims=True)) / sigma
    return tape.passed(centred * array(module.weight) + array(module.bias), x)


def transformer(model, rules):
    def project(tape, name, x):
        return tape.weighted(name, linear(getattr(model, name), x.value.shape), x, **rules["linear"])

    def steps(tape, x):
        y = layer_norm(tape, x, model.norm1)
        q, k, v = (project(tape, name, y) for name in ("query", "key", "value"))
        if model.fused:  # torch scales both before their product
            q, k = (tape.passed(node.value * 0.5**0.5, node) for node in (q, k))
        scores = tape.matmul("scores", q, turned(tape, k))
        scores = scores if model.fused else tape.passed(scores.value / 2, scores)
        weights = tape.softmax("softmax", scores, "gradient")
        y = project(tape, "leave", tape.matmul("values", weights, v))
        x = tape.add("add1", x, y, **rules.add())
        y = project(tape, "up", layer_norm(tape, x, model.norm2))
        gelu = torch.nn.functional.gelu(torch.tensor(y.value)).numpy()
        x = tape.add("add2", x, project(tape, "down", tape.passed(gelu, y)), **rules.add())
        mean = oracle.reduction(x.value.shape, (0,))
        out = project(tape, "head", tape.weighted("mean", mean, x, **rules["average"]))
        return out, out, predicted(out)

    return steps


@pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
@pytest.mark.parametrize("name", ["epsilon", "z_plus", "gamma_distribute"])
def test_transformer_block(name, fused):
    model = randomised(Transformer(fused), 8)
    with torch.no_grad():
        for place, norm in enumerate((model.norm1, model.norm2)):
            norm.weight.copy_(normal(50 + place, 6))
            norm.bias.copy_(0.2 * normal(60 + place, 6))
    rules = Rules(name, softmax="gradient", matmul="half", norm="pass")
    run(model, (normal(5, 2, 3, 6),), transformer(model, rules), None, composite=rules.data())


# ------------------------------------------------------------------------------------------ squeeze, excitation
class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up = nn.Conv3d(1, 4, 3, padding=1), nn.Linear(4, 2), nn.Linear(2, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3, 4))))))
        return self.fc((x * gate[:, :, None, None, None]).mean((2, 3, 4)))


def squeeze_excitation(model, rules, product):
    def steps(tape, x):
        h = tape.relu(tape.weighted("conv", conv(model.conv, x.value.shape), x, **rules["first"]))
        mean = oracle.reduction(h.value.shape, (1, 2, 3))
        gate = tape.weighted("squeeze", mean, h, **rules["average"])
        gate = tape.relu(tape.weighted("down", linear(model.down, (4,)), gate, **rules["linear"]))
        gate = tape.weighted("up", linear(model.up, (2,)), gate, **rules["linear"])
        gate = tape.passed(1 / (1 + np.exp(-gate.value)), gate)
        wide = np.ones(h.value.shape) * channels(gate.value)
        spread = tape.node(wide, gate, pull=lambda r: (r.sum((1, 2, 3)),))
        h = tape.weighted("mean", mean, tape.product(h, spread, product), **rules["average"])
        out = tape.weighted("fc", linear(model.fc, (4,)), h, **rules["linear"])
        return out, out, predicted(out)

    return steps


@pytest.mark.parametrize("product", ["all", "proposed", "half"])
@pytest.mark.parametrize("name", COMPOSITES)
def test_squeeze_excitation(name, product):
    model, rules = randomised(SqueezeExcitation(), 5), Rules(name, product=product)
    steps = squeeze_excitation(model, rules, product)
    explanation = run(model, (normal(5, 2, 1, 4, 4, 3),), steps, None, composite=rules.data())
    if product == "all":  # nothing went down the gate's branch
        gate = [row for row in explanation.ledger.iter_rows(named=True) if row["layer"] in ("up", "down")]
        assert all(row["relevance_in"] == 0 for row in gate)


# ------------------------------------------------------------------------------------------------------ U-Net
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.pool = nn.Conv3d(1, 3, 3, padding=1), nn.MaxPool3d(2)
        self.bottom = nn.Conv3d(3, 4, 3, padding=1, padding_mode="replicate")
        self.rise, self.leave = nn.ConvTranspose3d(4, 3, 2, stride=2), nn.Conv3d(6, 3, 3, padding=1)
        self.head = nn.Conv3d(3, 2, 1)

    def forward(self, x):
        x = torch.relu(self.enter(x))
        y = self.rise(torch.relu(self.bottom(self.pool(x))))
        y = torch.relu(self.leave(torch.cat([x, y], 1)))
        return self.head(y).mean((2, 3, 4))


def unet(model, rules, pool, index):
    def steps(tape, x):
        x = tape.relu(tape.weighted("enter", conv(model.enter, x.value.shape), x, **rules["first"]))
        y = tape.max_pool(x, 2, pool)
        y = tape.relu(tape.weighted("bottom", conv(model.bottom, y.value.shape), y, **rules["convolution"]))
        y = tape.cat(x, tape.weighted("rise", conv(model.rise, y.value.shape), y, **rules["convolution"]))
        y = tape.relu(tape.weighted("leave", conv(model.leave, y.value.shape), y, **rules["convolution"]))
        y = tape.weighted("head", conv(model.head, y.value.shape), y, **rules["convolution"])
        out = tape.weighted("mean", oracle.reduction(y.value.shape, (1, 2, 3)), y, **rules["average"])
        relevance = np.zeros(2)
        relevance[index] = out.value[index]
        return out, out, relevance

    return steps


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("pool", ["winner", "proportional"])
@pytest.mark.parametrize("name", COMPOSITES)
def test_unet(name, pool, index):
    model, rules = randomised(UNet(), 6), Rules(name, max_pool=pool)
    run(model, (normal(5, 2, 1, 4, 4, 4),), unet(model, rules, pool, index), index, composite=rules.data())


def test_unet_with_several_starts():
    """Two classes of one forward pass are the classes one by one."""
    model, rules, x = randomised(UNet(), 6), Rules("gamma_box"), normal(5, 2, 1, 4, 4, 4)
    found = explain(model, x, rules.data(), start=[1, 0])
    for explanation, index in zip(found, (1, 0), strict=True):
        steps = unet(model, rules, "winner", index)
        expected = []
        for sample in x:
            tape = oracle.Tape()
            leaf = tape.node(array(sample))
            _, begin, relevance = steps(tape, leaf)
            tape.back((begin, relevance))
            expected.append(leaf.relevance)
        same(explanation.relevance, np.stack(expected))
