"""What each aten operation is to a relevance rule, and its exact adjoint where it is linear.

Belongs here: the table of kinds; how a linear operation is applied with other weights, and transposed. Does not
belong here: recording (`graph.py`), rules (`rules.py`).

An operation that is in no table has the kind `unknown`; relevance that arrives there is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["MOVES", "NAMES", "Weighted", "adjoint", "is_computed", "kind_of"]

aten = torch.ops.aten

MOVES = frozenset({"move", "select"})

KINDS: dict[str, str] = {}
for _kind, _names in {
    # every output voxel is one input voxel (or a constant): relevance goes back where the value came from
    "move": "view _unsafe_view reshape alias detach clone contiguous permute transpose t squeeze unsqueeze expand "
    "select slice split split_with_sizes unbind cat stack flip roll index_select index gather repeat narrow unfold "
    "im2col constant_pad_nd replication_pad1d replication_pad2d replication_pad3d reflection_pad1d reflection_pad2d "
    "reflection_pad3d pixel_shuffle pixel_unshuffle channel_shuffle diagonal lift_fresh _to_copy view_copy "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d movedim",
    "select": "where masked_fill",
    "average": "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d mean",
    "sum": "sum",
    "interpolate": "upsample_linear1d upsample_bilinear2d upsample_trilinear3d",
    "max_pool": "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d "
    "adaptive_max_pool3d",
    "activation": "relu leaky_relu elu celu selu gelu silu mish tanh sigmoid hardtanh hardsigmoid hardswish softplus "
    "clamp clamp_min clamp_max _prelu_kernel log_sigmoid_forward rrelu threshold relu6 softshrink hardshrink",
    "softmax": "_softmax _log_softmax _safe_softmax",
    "norm": "native_layer_norm native_group_norm _fused_rms_norm rms_norm",
}.items():
    KINDS |= dict.fromkeys(_names.split(), _kind)

# made in the shape of a computed tensor, but not from its values
CREATORS = frozenset(f"aten.{name}_like" for name in ("ones", "zeros", "full", "empty")) | frozenset(
    f"aten.new_{name}" for name in ("ones", "zeros", "full", "empty", "empty_strided")
)

NAMES = {
    "aten.convolution": "conv",
    "aten.addmm": "linear",
    "aten.mm": "linear",
    "aten.bmm": "matmul",
    "aten.native_batch_norm": "batch_norm",
    "aten.native_layer_norm": "layer_norm",
    "aten.native_group_norm": "group_norm",
    "aten._softmax": "softmax",
    "aten._prelu_kernel": "prelu",
}
BATCH_NORMS = (
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit",
    "cudnn_batch_norm",
)


def is_computed(value: Any) -> bool:
    """Whether an argument is the result of another node."""
    return not isinstance(value, Tensor) and hasattr(value, "node")


def kind_of(op: Any, args: Sequence[Any], shape: Sequence[int]) -> str:
    """The kind of an operation with these arguments (`Ref` where computed) and this shape of its output."""
    name = str(op).removeprefix("aten.").rpartition(".")[0]
    first = is_computed(args[0]) if args else False
    second = is_computed(args[1]) if len(args) > 1 else False
    if name == "convolution":
        return "unknown" if not first or second or is_computed(args[2]) else "convolution"
    if name == "addmm":
        third = is_computed(args[2])
        return "unknown" if first else "matmul" if second and third else "linear"
    if name in ("mm", "bmm"):
        return "matmul" if first and second else "linear"
    if name in ("add", "sub", "rsub"):
        return "add"
    if name in ("mul", "div"):
        if first and second:
            return "product"
        return "scale" if first or name == "mul" else "unknown"
    if name == "neg":
        return "scale"
    if name in BATCH_NORMS:
        return _batch_norm(name, args, shape)
    if name == "_prelu_kernel" and second:
        return "unknown"
    if KINDS.get(name) == "activation" and name != "_prelu_kernel" and any(is_computed(v) for v in args[1:]):
        return "unknown"  # its bounds depend on the scan
    if name in ("index", "gather", "index_select") and any(is_computed(v) for v in tree_flatten(args[1:])[0]):
        return "unknown"  # where values come from depends on the scan
    return KINDS.get(name, "unknown")


def _batch_norm(name: str, args: Sequence[Any], shape: Sequence[int]) -> str:
    if any(is_computed(value) for value in args[1:]):
        return "unknown"
    training = args[5] if name != "_native_batch_norm_legit_no_training" else False
    if not training:
        return "batch_norm"
    # instance norm: samples and channels lie side by side in axis 1, each with its own statistics; statistics of a
    # batch of several would have samples explain each other
    return "norm" if args[3] is None and shape[0] == 1 else "unknown"


class Weighted:
    """A convolution or dense operation as a linear map with exchangeable weights.

    Attributes
    ----------
    source
        Place of the computed operand among the arguments.
    weight, bias
        Constants; `weight` as the operation takes it (a dense one transposed, as in `addmm`).
    channels
        Axis of the output that the bias and the rows of the weight belong to.
    """

    def __init__(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.name = str(op).removeprefix("aten.").rpartition(".")[0]
        self.bias: Tensor | None = None
        if self.name == "convolution":
            self.source, self.weight, self.bias = 0, args[1], args[2]
            self.options = tuple(args[3:])
        elif self.name == "addmm":
            self.source = 1 if is_computed(args[1]) else 2
            self.weight = args[3 - self.source]
            self.bias = args[0] * kwargs.get("beta", 1)
            if kwargs.get("alpha", 1) != 1:
                self.weight = self.weight * kwargs["alpha"]
        else:
            self.source = 0 if is_computed(args[0]) else 1
            self.weight = args[1 - self.source]
        self.convolution = self.name == "convolution"
        self.left = not self.convolution and self.source == (2 if self.name == "addmm" else 1)  # weight @ x
        self.channels = 1 if self.convolution or not self.left else 0

    @property
    def transposed(self) -> bool:
        return self.convolution and bool(self.options[3])

    def rows(self, values: Tensor) -> Tensor:
        """(O,) values per output channel, laid out to multiply the weight."""
        if not self.convolution:
            return values.unsqueeze(1) if self.left else values.unsqueeze(0)
        weight, groups = self.weight, self.options[5]
        if not self.transposed:
            return values.view(-1, *(1,) * (weight.ndim - 1))
        # (I, O / groups, ...): the rows of a group's inputs are that group's outputs
        rows = values.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
        return rows.reshape(weight.shape[0], -1, *(1,) * (weight.ndim - 2))

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The map of x; a convolution takes a bias along."""
        if self.convolution:
            return aten.convolution(x, weight, bias, *self.options)
        return torch.matmul(weight, x) if self.left else torch.matmul(x, weight)

    def adjoint(self, s: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """The transposed map of s (starts, *output) to (starts, *shape)."""
        if not self.convolution:
            turned = weight.transpose(-1, -2)
            return torch.matmul(turned, s) if self.left else torch.matmul(s, turned)
        flat = s.flatten(0, 1)
        like = s.new_empty(1).expand(flat.shape[0], *shape[1:])
        back = aten.convolution_backward(flat, like, weight, None, *self.options, [True, False, False])[0]
        return back.view(s.shape[0], *shape)


def adjoint(op: Any, args: Sequence[Any], kwargs: dict[str, Any], shapes: Any, output: int, s: Tensor) -> list[Tensor]:
    """The transposed map of a linear operation, per computed operand, for one start.

    Parameters
    ----------
    op, args, kwargs
        As the node has them.
    shapes
        Function from a computed argument to its shape.
    output
        Which output `s` belongs to.
    s
        Shaped like that output.
    """
    name = str(op).removeprefix("aten.").rpartition(".")[0]
    if name in ("view", "_unsafe_view", "reshape", "alias", "detach", "clone", "contiguous", "squeeze", "unsqueeze"):
        return [s.reshape(shapes(args[0]))]
    if name == "_to_copy":
        return [s]
    if name == "permute":
        return [s.permute(*(int(i) for i in torch.tensor(args[1]).remainder(s.ndim).argsort()))]
    if name in ("transpose", "t"):
        return [s.transpose(*args[1:]) if args[1:] else s.t()]
    with torch.enable_grad():
        # values do not matter to a linear map; nor do they to views, which never read this memory
        operands: list[Tensor] = []

        def dummy(value: Any) -> Any:
            if not is_computed(value):
                return value
            operands.append(s.new_empty(shapes(value)).requires_grad_())
            return operands[-1]

        given, named = tree_map(dummy, (tuple(args), dict(kwargs)))
        result = op(*given, **named)
        result = result if isinstance(result, Tensor) else result[output]
        found = torch.autograd.grad(result, operands, s, allow_unused=True)
    return [torch.zeros_like(o) if g is None else g for o, g in zip(operands, found, strict=True)]
