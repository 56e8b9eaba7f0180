"""Where the brain is, at every operation of a network.

Belongs here: following a mask of the input through the graph. Does not belong here: rules.

A position inside the network is inside if any voxel that it sees is. Where the background is one constant, what the
network computes outside is constant too, however large it is (biases, normalised intensities): it belongs to no voxel.
Rules therefore leave such positions out of their contributions, as if they were bias.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from relevance_assets.relevance.graph import Graph, Node, Ref
from relevance_assets.relevance.operations import is_computed

__all__ = ["Inside"]

SAME = ("activation", "batch_norm", "norm", "scale", "add", "product", "select", "softmax")


class Inside:
    """The mask of the first input, followed through a graph.

    Parameters
    ----------
    graph
        Of the network.
    mask : (B, 1, spatial) bool
        Of the first input; other inputs of the same spatial shape have it too. None: all voxels are inside.
    device
        Of the inputs.
    padding
        Follow instead, through moves alone, where the network's own constant padding is: it is nobody's input to rules
        that count inputs (`flat`, `w_square`, a spread bias), though it has its part in denominators.
    """

    def __init__(self, graph: Graph, mask: Tensor | None, device: torch.device, *, padding: bool = False) -> None:
        self.graph, self.device, self.masked, self.padding = graph, device, mask is not None, padding
        self.known: dict[Ref, Tensor | None] = {}
        for node in graph.nodes[: graph.inputs]:
            fits = mask is not None and node.shape[2:] == mask.shape[2:]
            self.known[Ref(node.index)] = mask if fits else None

    def at(self, ref: Ref) -> Tensor | None:
        """Bool, broadcasts to the tensor; None where all of it is inside, or space is gone."""
        if ref not in self.known:
            found = self._follow(self.graph.nodes[ref.node], ref)
            self.known[ref] = None if found is None or bool(found.all()) else found
        return self.known[ref]

    def _follow(self, node: Node, ref: Ref) -> Tensor | None:
        masks = [self.at(source) for source in node.refs]
        shape = self.graph.nodes[ref.node].shapes[ref.output]
        if self.padding and node.kind != "move":
            return None
        if node.name == "aten.constant_pad_nd" and (self.padding or masks[0] is not None):
            return functional.pad(self._full(node.refs[0]), node.args[1], value=False)
        if all(mask is None for mask in masks):
            return None
        if node.name == "aten.cat":
            return torch.cat([self._full(source) for source in node.args[0]], node.args[1] if len(node.args) > 1 else 0)
        if node.kind in SAME:
            return self._any_of(masks, shape)
        mask = masks[0]
        if mask is None:
            return None
        if node.kind == "convolution":
            stride, padding, dilation, transposed, output_padding, _ = node.args[3:]
            kernel = torch.ones(1, 1, *node.args[1].shape[2:], device=mask.device)
            options = (stride, padding, dilation, transposed, output_padding, 1)
            seen = mask.amax(1, keepdim=True).float()
            return torch.ops.aten.convolution(seen, kernel, None, *options) > 0.5
        if node.kind in ("average", "max_pool", "interpolate", "move"):
            return self._moved(node, mask, shape)
        return None

    def _full(self, value: Ref | Tensor) -> Tensor:
        """The mask of one tensor in its own shape; constants count as outside."""
        if isinstance(value, Tensor):
            return torch.zeros_like(value, dtype=torch.bool)
        mask, shape = self.at(value), self.graph.nodes[value.node].shapes[value.output]
        return (
            torch.ones((), dtype=torch.bool, device=self.device).expand(shape) if mask is None else mask.expand(shape)
        )

    def _any_of(self, masks: list[Tensor | None], shape: tuple[int, ...]) -> Tensor | None:
        found = None
        for mask in masks:
            if mask is None or mask.ndim != len(shape) or mask.shape[2:] != shape[2:] or mask.ndim < 3:
                return None
            found = mask if found is None else found | mask
        return found

    def _moved(self, node: Node, mask: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Pools, pads, slices, views: the operation itself, on the mask in every channel."""
        source = node.refs[0]
        full = mask.float().expand(self.graph.nodes[source.node].shapes[source.output]).contiguous()
        made = node.op(*(full if is_computed(value) else value for value in node.args), **node.kwargs)
        made = made if isinstance(made, Tensor) else made[0]
        if tuple(made.shape) != shape:
            return None
        spatial = made.ndim == mask.ndim > 2 and made.shape[0] == mask.shape[0] and mask.shape[1] == 1
        return (made.amax(1, keepdim=True) if spatial else made) > 0
