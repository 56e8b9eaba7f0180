"""Relevance by explicit matrices, in NumPy and float64: slow, small, and sharing no code with the engine.

Every layer is written as contributions z[k, i] of input i to output k; every rule is a line on that matrix.
Works on the state dict of a network (as arrays) and knows the two architectures by their layer names.
"""

import itertools

import numpy as np

BN_EPS = 1e-5


# ------------------------------------------------------------------------------- rules on contributions
def epsilon(z, relevance, eps, bias=0.0):
    total = z.sum(axis=1) + bias
    return (z / (total + eps * np.where(total >= 0, 1, -1))[:, None]).T @ relevance


def alpha_one(z, relevance):
    positive = np.maximum(z, 0)
    total = positive.sum(axis=1)
    return (positive / np.where(total == 0, 1, total)[:, None]).T @ relevance


def alpha_one_with_bias(z, relevance, bias):
    """iNNvestigate: both signs of the bias stay in the denominator."""
    positive = np.maximum(z, 0)
    total = positive.sum(axis=1) + bias
    return (positive / np.where(total == 0, 1e-7, total)[:, None]).T @ relevance


def box(weights, x, relevance, low=0.0, high=1.0):
    z = weights * x - low * np.maximum(weights, 0) - high * np.minimum(weights, 0)
    total = z.sum(axis=1)
    return (z / np.where(total == 0, 1, total)[:, None]).T @ relevance


def average_share(windows, x, relevance):
    """windows[k, i] is 1 where input i is in window k."""
    positive = windows * np.maximum(x, 0)
    total = positive.sum(axis=1)
    shares = np.where(
        (total > 0)[:, None], positive / np.where(total > 0, total, 1)[:, None], windows / windows.sum(1)[:, None]
    )
    return shares.T @ relevance


def split_product(signal, gate, relevance, kind):
    if kind == "all":
        return relevance, 0 * relevance
    both = np.abs(signal) + np.abs(gate)
    share = np.where(both == 0, 0.5, np.abs(signal) / np.where(both == 0, 1, both))
    return share * relevance, (1 - share) * relevance


# ------------------------------------------------------------------------------------ layers as matrices
def voxels(shape):
    return list(itertools.product(*map(range, shape)))


def padding_matrix(shape, pad, mode):
    """(padded voxels, voxels) of 0 and 1."""
    padded = tuple(n + 2 * pad for n in shape)
    matrix = np.zeros((np.prod(padded), np.prod(shape)))
    for row, place in enumerate(voxels(padded)):
        source = [p - pad for p in place]
        clipped = [min(max(s, 0), n - 1) for s, n in zip(source, shape, strict=True)]
        if mode == "replicate" or clipped == source:
            matrix[row, np.ravel_multi_index(clipped, shape)] = 1
    return matrix


def conv_matrix(weight, shape):
    """(O * voxels, I * padded voxels) of a convolution with stride 1 that keeps the grid."""
    o, i, k = weight.shape[:3]
    padded = tuple(n + k - 1 for n in shape)
    matrix = np.zeros((o, np.prod(shape), i, np.prod(padded)))
    for row, place in enumerate(voxels(shape)):
        for offset in voxels((k, k, k)):
            column = np.ravel_multi_index([p + q for p, q in zip(place, offset, strict=True)], padded)
            matrix[:, row, :, column] += weight[(slice(None), slice(None), *offset)]
    return matrix.reshape(o * matrix.shape[1], -1)


def window_matrix(shape, channels):
    """Average pool 2, stride 2: (channels * out, channels * voxels) of 0 and 1, and the grid after it."""
    out = tuple(n // 2 for n in shape)
    one = np.zeros((np.prod(out), np.prod(shape)))
    for row, place in enumerate(voxels(out)):
        for offset in voxels((2, 2, 2)):
            one[row, np.ravel_multi_index([2 * p + q for p, q in zip(place, offset, strict=True)], shape)] = 1
    return np.kron(np.eye(channels), one), out


def maximum(x, shape, pads):
    """Max pool 3, stride 2 with (before, after) padding per axis: winners' flat places (C, out), new grid."""
    out = tuple((n + sum(p) - 3) // 2 + 1 for n, p in zip(shape, pads, strict=True))
    winners = np.zeros((len(x), np.prod(out)), int)
    for row, place in enumerate(voxels(out)):
        starts = [2 * p - pad[0] for p, pad in zip(place, pads, strict=True)]
        axes = [range(max(s, 0), min(s + 3, n)) for s, n in zip(starts, shape, strict=True)]
        inside = np.array([np.ravel_multi_index(v, shape) for v in itertools.product(*axes)])
        winners[:, row] = inside[x[:, inside].argmax(axis=1)]
    return winners, out


def back_to_winners(winners, relevance, size):
    result = np.zeros((len(winners), size))
    for channel, row in enumerate(winners):
        np.add.at(result[channel], row, relevance[channel])
    return result


def affine(state, name):
    c = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + BN_EPS)
    return c[:, None], (state[f"{name}.bias"] - state[f"{name}.running_mean"] * c.ravel())[:, None]


# -------------------------------------------------------------------------------- gated attention network
class Encoder:
    """Forward by the definition (BN, ReLU, convolution); backward by contributions of T(x)."""

    def __init__(self, state, image, blocks, head):
        self.state, self.shape, self.tape, self.size = state, image.shape, [], image.size
        x = self.first(image)
        for block, layers in enumerate(blocks, start=1):
            for layer in range(1, layers + 1):
                x = self.dense_layer(x, f"block{block}_layer{layer}.layers")
            if block < len(blocks):
                x = self.transition(x, f"transition{block}")
        self.embedding = self.head(x, head)

    def backward(self, relevance):
        for step in reversed(self.tape):
            relevance = step(relevance)
        return relevance

    def first(self, image):
        x, shape = image.reshape(1, -1), self.shape
        c, d = affine(self.state, "norm0")
        pad = padding_matrix(shape, 1, "replicate")
        weights = conv_matrix(self.state["conv0.weight"] * c[:, :, None, None, None], shape)
        spread = (pad @ x[0])[None]
        z = np.maximum((weights @ spread[0]).reshape(len(c), -1) + d, 0)
        winners, self.shape = maximum(z, shape, [(1, 1)] * 3)
        size = z.shape[1]
        self.tape.append(lambda r: box(weights, spread, r.ravel()) @ pad)
        self.tape.append(lambda r: back_to_winners(winners, r, size))
        return np.take_along_axis(z, winners, 1)

    def norm_relu_conv(self, x, norm, conv):
        """Output, and the function from its relevance to that of x."""
        c, d = affine(self.state, norm)
        weight, shape = self.state[f"{conv}.weight"], self.shape
        pad = padding_matrix(shape, weight.shape[-1] // 2, "replicate")
        weights = conv_matrix(weight, shape)
        out = (weights @ (np.maximum(c * x + d, 0) @ pad.T).ravel()).reshape(len(weight), -1)
        held = threshold(x, c, d)
        z = weights * (c * held @ pad.T).ravel()

        def back(relevance):
            return alpha_one(z, relevance.ravel()).reshape(len(x), -1) @ pad

        return out, back

    def dense_layer(self, x, name):
        middle, first = self.norm_relu_conv(x, f"{name}.norm1", f"{name}.conv1")
        new, second = self.norm_relu_conv(middle, f"{name}.norm2", f"{name}.conv2")
        self.tape.append(lambda r: r[: len(x)] + first(second(r[len(x) :])))
        return np.concatenate([x, new])

    def transition(self, x, name):
        y, back = self.norm_relu_conv(x, f"{name}.norm", f"{name}.conv")
        windows, self.shape = window_matrix(self.shape, len(y))
        self.tape.append(back)
        self.tape.append(lambda r: average_share(windows, y.ravel(), r.ravel()).reshape(y.shape))
        return (windows @ y.ravel() / 8).reshape(len(y), -1)

    def head(self, x, head):
        c, d = affine(self.state, "norm_head")
        weight, held = self.state["embed.weight"], threshold(x, c, d)
        positive = np.maximum(c * x + d, 0)
        if head == "gap":
            windows = np.kron(np.eye(len(x)), np.ones((1, x.shape[1])))
            mean = held.mean(axis=1)
            self.tape.append(lambda r: average_share(windows, held.ravel(), r).reshape(x.shape))
            self.tape.append(lambda r: epsilon(weight * (c.ravel() * mean), r, 1e-8))
            return weight @ positive.mean(axis=1) + self.state["embed.bias"]
        self.tape.append(lambda r: epsilon(weight * (c * held).ravel(), r, 1e-8).reshape(x.shape))
        return weight @ positive.ravel() + self.state["embed.bias"]


def threshold(x, c, d):
    with np.errstate(divide="ignore", invalid="ignore"):
        t = -d / c
    return np.where(c > 0, np.maximum(x, t), np.where(c < 0, np.minimum(x, t), x))


def gated_attention(state, images, covariates, blocks, head, start, product):
    """maps (C, X, Y, Z), covariates' relevance, output and attention of composite `disability`."""
    encoders = []
    for number, image in enumerate(images):
        prefix = f"encoders.{number}.layers."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        encoders.append(Encoder(own, image, blocks, head))
    m = np.stack([encoder.embedding for encoder in encoders])
    u, v, w = state["signal.weight"], state["gate.weight"], state["score.weight"][0]
    s = np.tanh(m @ u.T + state["signal.bias"])
    g = 1 / (1 + np.exp(-(m @ v.T + state["gate.bias"])))
    e = (s * g) @ w + state["score.bias"][0]
    a = np.exp(e - e.max()) / np.exp(e - e.max()).sum()
    n = a @ m
    last = state["classifier.weight"][0]
    output = last @ np.concatenate([n, covariates]) + state["classifier.bias"][0]

    r_m, r_e, r_covariates = np.zeros_like(m), a.copy(), np.zeros(len(covariates))
    if start == "output":
        r = epsilon((last * np.concatenate([n, covariates]))[None], np.array([output]), 1e-8)
        r_n, r_covariates = r[: m.shape[1]], r[m.shape[1] :]
        parts = a[:, None] * m  # (l, j)
        r_parts = parts / (n + 1e-8 * np.where(n >= 0, 1, -1)) * r_n
        r_m, r_a = split_product(m, np.repeat(a[:, None], m.shape[1], 1), r_parts, product)
        r_e = r_a.sum(axis=1)
    for number in range(len(images)):
        r_h = epsilon((w * s[number] * g[number])[None], r_e[number : number + 1], 1e-8)
        r_s, r_g = split_product(s[number], g[number], r_h, product)
        r_m[number] += epsilon(u * m[number], r_s, 1e-8) + epsilon(v * m[number], r_g, 1e-8)
    maps = [encoder.backward(r).reshape(images.shape[1:]) for encoder, r in zip(encoders, r_m, strict=True)]
    return np.stack(maps), r_covariates, output, a


# ------------------------------------------------------------------------------------------------ MRInet
def mrinet_preset_a(state, images, covariates, convolutions):
    """maps (C, X, Y, Z), covariates' relevance and output of composite `preset_a`."""
    shape, x, tape = images.shape[1:], images.reshape(len(images), -1), []
    for number in range(1, convolutions + 1):
        weight, bias = state[f"features.conv{number}.weight"], state[f"features.conv{number}.bias"]
        pad = padding_matrix(shape, weight.shape[-1] // 2, "zeros")
        z = conv_matrix(weight, shape) * (x @ pad.T).ravel()
        biases = np.repeat(bias, np.prod(shape))

        def back_conv(r, z=z, biases=biases, pad=pad):
            spread = alpha_one_with_bias(z, r.ravel(), biases)
            return spread.reshape(-1, len(pad)) @ pad

        y = np.maximum((z.sum(axis=1) + biases).reshape(len(weight), -1), 0)
        before = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in shape]
        winners, shape = maximum(y, shape, [(b // 2, b - b // 2) for b in before])
        tape += [back_conv, lambda r, w=winners, size=y.shape[1]: back_to_winners(w, r, size)]
        x = np.take_along_axis(y, winners, 1)
    flat = x.ravel()
    z_dense, b_dense = state["features.dense.weight"] * flat, state["features.dense.bias"]
    h = np.maximum(z_dense.sum(axis=1) + b_dense, 0)
    z_out = state["output.weight"] * np.concatenate([h, covariates])
    output = z_out.sum() + state["output.bias"][0]
    r = epsilon(z_out, np.array([output]), 0.1, state["output.bias"])
    r, r_covariates = r[: len(h)], r[len(h) :]
    r = epsilon(z_dense, r, 0.1, b_dense).reshape(x.shape)
    for step in reversed(tape):
        r = step(r)
    return r.reshape(images.shape), r_covariates, output
