"""The executed graph of a network: every operation that its inputs reach, in the order in which they ran.

Belongs here: what is recorded of a network, and doing it again (`Graph.run`). Does not belong here: recording
(`recording.py`), what an operation means for relevance (`operations.py`), rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from relevance_assets.precision import no_tf32

__all__ = ["Graph", "Node", "Ref", "UnknownOperation", "keep", "outputs", "steady"]


class UnknownOperation(ValueError):
    """An operation that relevance would have to pass, and for which there is no rule."""


@dataclass(frozen=True)
class Ref:
    """A computed tensor: output number `output` of node number `node`."""

    node: int
    output: int = 0


@dataclass
class Node:
    """One operation, as it ran.

    Attributes
    ----------
    index
        Its place in the order of execution; inputs come first.
    op
        The aten operation, out of place; None for an input.
    args, kwargs
        As given, with `Ref` in the place of computed tensors; other tensors are parameters and constants.
    layer
        Name of the module that called it, made unique: `conv1`, `block.0:add`, `head#2` (second call).
    kind
        What it is to a relevance rule; see `operations.py`.
    shapes, dtypes
        Of its outputs.
    """

    index: int
    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layer: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first output."""
        return self.shapes[0]

    @cached_property
    def refs(self) -> list[Ref]:
        """Computed tensors among its arguments, in order; one may come twice."""
        return [value for value in tree_flatten((self.args, self.kwargs))[0] if isinstance(value, Ref)]

    @cached_property
    def name(self) -> str:
        """The operation's name: `aten.relu`."""
        return "input" if self.op is None else str(self.op).rpartition(".")[0]


@dataclass
class Graph:
    """The operations of one network for inputs of given shapes.

    Attributes
    ----------
    nodes
        In order of execution.
    inputs
        Number of inputs: the first nodes.
    structure
        What the network returned, with `Ref` in the place of computed tensors.
    modules
        What each module returned, where that is one computed tensor; `name#2` for a second call.
    """

    nodes: list[Node]
    inputs: int
    structure: Any
    modules: dict[str, Ref] = field(default_factory=dict)
    consumers: dict[Ref, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.nodes:
            for ref in dict.fromkeys(node.refs):
                self.consumers.setdefault(ref, []).append(node.index)

    def readers(self, ref: Ref) -> list[int]:
        """Places of the nodes that read a tensor."""
        return self.consumers.get(ref, [])

    def result(self, output: int | str | None = None) -> Ref:
        """The tensor that is explained: the only one returned, or the one at key `output` of what was returned.

        Raises
        ------
        ValueError
            If there are several and none is named, or the name leads nowhere.
        """
        found = self.structure
        if output is not None:
            try:
                found = found[output]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"the network's output has no part {output!r}") from None
        refs = [value for value in tree_flatten(found)[0] if isinstance(value, Ref)]
        if len(refs) == 1:
            return refs[0]
        if not refs:
            raise ValueError("the network returned nothing that depends on its inputs")
        raise ValueError(f"the network returned {len(refs)} tensors; say which: output=0 (or its key)")

    def find(self, layer: str) -> Ref:
        """What a module returned, or else the output of the operation of that name.

        Raises
        ------
        ValueError
            If no operation has that name; the message holds names like it.
        """
        if layer in self.modules:
            return self.modules[layer]
        for node in self.nodes[self.inputs :]:
            if node.layer == layer:
                return Ref(node.index)
        import difflib

        names = [*self.modules, *(node.layer for node in self.nodes[self.inputs :] if node.kind != "move")]
        near = difflib.get_close_matches(layer, names, n=4, cutoff=0.3)
        raise ValueError(f"no operation is called {layer!r}; near names: {', '.join(near) or 'none'}")

    def compute(self, node: Node, values: dict[Ref, Tensor], op: Callable[..., Any] | None = None) -> None:
        """Run one node on `values` and put its outputs there."""
        args, kwargs = tree_map(lambda v: values[v] if isinstance(v, Ref) else v, (node.args, node.kwargs))
        keep(node, (op or node.op)(*args, **kwargs), values)

    def run(
        self,
        inputs: Sequence[Tensor],
        *,
        wanted: set[Ref] | None = None,
        replace: dict[int, Callable[..., Any]] | None = None,
    ) -> dict[Ref, Tensor]:
        """Run all nodes.

        Parameters
        ----------
        inputs
            As captured, in shape.
        wanted
            Tensors to return; others are freed as soon as nothing reads them. None: all.
        replace
            Functions in the place of operations, by node.
        """
        values = {Ref(place): value for place, value in enumerate(inputs)}
        last = self.last_read()
        for node in self.nodes[self.inputs :]:
            self.compute(node, values, (replace or {}).get(node.index))
            if wanted is not None:
                done = [ref for ref in (*node.refs, *outputs(node)) if last.get(ref, -1) <= node.index]
                for ref in done:
                    if ref not in wanted:
                        values.pop(ref, None)
        return values

    def last_read(self) -> dict[Ref, int]:
        """The last node that reads each tensor."""
        return {ref: readers[-1] for ref, readers in self.consumers.items()}


def outputs(node: Node) -> list[Ref]:
    """The tensors that a node makes."""
    return [Ref(node.index, place) for place in range(len(node.shapes))]


def keep(node: Node, result: Any, values: dict[Ref, Tensor]) -> None:
    """Put what a node returned where it belongs."""
    tensors = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
    values.update(zip(outputs(node), tensors, strict=True))


@contextmanager
def steady() -> Iterator[None]:
    """Neither autocast, nor TF32, nor fused attention: numbers in the type asked for, operations that have rules."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        stack.enter_context(no_tf32())
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        yield
