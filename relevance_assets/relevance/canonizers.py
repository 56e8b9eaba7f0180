"""Batch norms folded into their neighbours, so that relevance rules meet only linear layers and thresholds.

Belongs here: which batch norm goes where, and what that does to weights, inputs and biases. Does not belong here:
rules. Folding is done on the traced graph: the network itself is never changed, its output is that of the unfolded
network to the last bit, and only rules see the folded form.

With c = gamma / sqrt(var + eps) and d = beta - mean c, a batch norm in evaluation is c x + d.

*Left*: convolution, then batch norm, is one convolution with weights c w and bias c b + d.

*Right*: batch norm[, ReLU][, average pool, padding, flatten], convolution. ReLU(c x + d) = c T(x) + d, where T holds x
at the threshold -d / c (Binder et al.). So contributions are w (y - d), y being the ReLU's output, and the constant
w d belongs to the bias; that bias differs from place to place where the convolution pads with zeros. A channel with
gamma = 0 is the constant ReLU(beta): all of it is bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from relevance_assets.relevance.graph import Graph, Node, Ref
from relevance_assets.relevance.operations import is_computed

__all__ = ["Folds", "affine", "find_folds"]

WEIGHTED = ("convolution", "linear")
# A shift that is one number per channel stays so through these; `mean` and pools without padding average equal numbers.
UNCHANGED = ("replication_pad", "reflection_pad", "relu", "_adaptive_avg_pool", "adaptive_avg_pool")


@dataclass
class Folds:
    """Where the batch norms of a graph went.

    Attributes
    ----------
    left
        Batch norm -> the weighted node before it, by index.
    right
        Batch norm -> the weighted nodes behind it.
    path
        Tensors between a right-folded batch norm and those nodes -> the batch norm.
    """

    left: dict[int, int] = field(default_factory=dict)
    right: dict[int, list[int]] = field(default_factory=dict)
    path: dict[Ref, int] = field(default_factory=dict)


def affine(node: Node) -> tuple[Tensor, Tensor]:
    """c and d, (channels,) each, of a batch norm in evaluation.

    d is what the operation itself makes of 0, to the last bit: where every ReLU before a batch norm is off, y - d must
    be 0 and not its rounding, which a rule that divides by contributions would hand relevance out by.
    """
    _, weight, _, _, variance = node.args[:5]
    scale = torch.rsqrt(variance + node.args[-1])
    nothing = variance.new_zeros(1, len(variance), *(1,) * (len(node.shape) - 2))
    shift = node.op(nothing, *node.args[1:], **node.kwargs)[0].flatten()
    return scale if weight is None else scale * weight.detach(), shift


def find_folds(graph: Graph, order: Sequence[Literal["left", "right"]] = ("left", "right")) -> Folds:
    """Fold every batch norm that can be, in the first direction of `order` in which it can."""
    folds = Folds()
    taken: set[int] = (
        set()
    )  # weighted nodes with a batch norm from the left and from the right are fine, twice left is not
    for node in graph.nodes:
        if node.kind != "batch_norm":
            continue
        for direction in order:
            if direction == "left":
                before = graph.nodes[node.args[0].node]
                alone = graph.readers(node.args[0]) == [node.index]
                if before.kind in WEIGHTED and alone and before.index not in taken and _channels_agree(before, node):
                    folds.left[node.index] = before.index
                    taken.add(before.index)
                    break
            else:
                path: list[Ref] = []
                ends = _ends(graph, Ref(node.index), path, behind_relu=False)
                if ends:
                    folds.right[node.index] = sorted(set(ends))
                    folds.path |= dict.fromkeys(path, node.index)
                    break
    return folds


def _channels_agree(before: Node, norm: Node) -> bool:
    """Dense layers on three axes have their features last, where a batch norm would not look for them."""
    return before.kind == "convolution" or len(before.shape) == 2 == len(norm.shape)


def _ends(graph: Graph, ref: Ref, path: list[Ref], *, behind_relu: bool) -> list[int]:
    """The weighted nodes that read a tensor, through what commutes with a shift; none if anything else reads it."""
    path.append(ref)
    ends: list[int] = []
    for index in graph.readers(ref):
        node = graph.nodes[index]
        name = node.name.removeprefix("aten.")
        if node.kind in WEIGHTED and _source(node) == ref:
            ends.append(index)
            continue
        if (name == "relu" and not behind_relu and graph.nodes[ref.node].kind == "batch_norm") or (
            node.kind in ("move", "average") and len(node.shapes) == 1 and is_computed(node.args[0])
        ):
            further = _ends(graph, Ref(index), path, behind_relu=True)
        else:
            return []
        if not further:
            return []
        ends += further
    return ends


def _source(node: Node) -> Ref:
    return next(value for value in node.args if is_computed(value))


def shift_of(graph: Graph, folds: Folds, ref: Ref, like: Tensor) -> Tensor:
    """What a right-folded batch norm adds to a tensor on its path: (1, C, 1, ...) where it is one number per channel.

    Parameters
    ----------
    like
        The tensor's value, for its shape.
    """
    node = graph.nodes[ref.node]
    if node.kind == "batch_norm":
        return affine(node)[1].view(1, -1, *(1,) * (like.ndim - 2))
    source = node.refs[0]
    before = shift_of(graph, folds, source, like.new_empty(()).expand(graph.nodes[source.node].shapes[source.output]))
    name = node.name.removeprefix("aten.")
    if name == "relu":
        scale, _ = affine(graph.nodes[source.node])
        return torch.where((scale == 0).view(before.shape), before.clamp(min=0), before)
    per_channel = before.ndim == len(node.shape) and before.numel() == before.shape[1] == node.shape[1]
    if per_channel and (name.startswith(UNCHANGED) or _unpadded_mean(name, node)):
        return before
    full = before.expand(graph.nodes[source.node].shapes[source.output]).contiguous()
    return node.op(*(full if is_computed(value) else value for value in node.args), **node.kwargs)


def _unpadded_mean(name: str, node: Node) -> bool:
    if name.startswith("avg_pool"):
        padding: Any = node.args[3] if len(node.args) > 3 else 0
        ceil = node.args[4] if len(node.args) > 4 else False
        return not ceil and not any(padding if isinstance(padding, list | tuple) else [padding])
    return name == "mean"
