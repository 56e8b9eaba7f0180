"""Records what a network does to its inputs.

Belongs here: the modes that see a network run, and the check that its graph says what it says. Does not belong here:
the graph itself (`graph.py`), what an operation means for relevance (`operations.py`).

A network is run once under a dispatch mode that sees the aten operations below modules and functions alike, so
`nn.ReLU`, `torch.relu`, `x.relu_()` and `F.relu` are one thing, and nothing that touches a computed value goes unseen.
Operations in place are recorded as what they compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from relevance_assets.relevance.graph import Graph, Node, Ref, UnknownOperation, steady
from relevance_assets.relevance.operations import CREATORS, MOVES, NAMES, kind_of

__all__ = ["capture"]


def capture(model: nn.Module, inputs: Sequence[Tensor]) -> Graph:
    """Run a network once and record what it does to its inputs.

    Parameters
    ----------
    model
        In evaluation mode. Hooks are put on its modules and taken off again.
    inputs
        Its positional arguments; they are not changed.

    Raises
    ------
    UnknownOperation
        If the network reads computed values into Python (its graph would depend on the scan), or writes computed
        values into a part of another tensor.
    """
    recorder = _Recorder(inputs)
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _m, _i, name=name: recorder.enter(name)))
        handles.append(module.register_forward_hook(lambda _m, _i, out: recorder.leave(out), always_call=True))
    given = [tensor.detach().clone() for tensor in inputs]
    recorder.begin(given)
    try:
        with torch.no_grad(), steady(), recorder, _Functions(recorder):
            returned = model(*given)
    except (UnknownOperation, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in inputs)
        told = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"inputs of shape {shapes} fail in the network: {type(error).__name__}: {told}") from error
    finally:
        for handle in handles:
            handle.remove()
    structure = tree_map(lambda v: recorder.known.get(v) if isinstance(v, Tensor) else v, returned)
    graph = Graph(recorder.finish(), len(inputs), structure, recorder.modules)
    with torch.no_grad(), steady():
        _check_replay(model, graph, inputs)
    return graph


def _check_replay(model: nn.Module, graph: Graph, inputs: Sequence[Tensor]) -> None:
    """Whether the graph says of other inputs what the network says.

    The network is run on what is different in every value and place: whatever went past the recorder, or was decided
    by the values of the first scan, shows here.
    """
    others = [0.75 * (tensor.flip(-1) if tensor.ndim > 1 else tensor) for tensor in inputs]
    refs = [value for value in tree_flatten(graph.structure)[0] if isinstance(value, Ref)]
    said = graph.run([tensor.clone() for tensor in others], wanted=set(refs))
    expected = [
        value
        for value, ref in zip(tree_flatten(model(*others))[0], tree_flatten(graph.structure)[0], strict=True)
        if isinstance(ref, Ref)
    ]
    for ref, right in zip(refs, expected, strict=True):
        if not right.is_floating_point():
            continue
        bound = 1e-3 if right.dtype == torch.float32 else 1e-9
        if right.shape != said[ref].shape or (said[ref] - right).abs().max() > bound * right.abs().max():
            raise UnknownOperation(
                "the network does not do the same to every input: values are read out of torch, change in place behind "
                "another name, or decide what runs; keep to tensor operations"
            )


class _Stale:
    """What a tensor became when another one that shares its memory was written to."""


class _Functions(TorchFunctionMode):
    """Sees what no dispatch mode does.

    Computed values that leave torch, and may come back as constants, are refused. A dense layer gets its input in one
    piece: of a transposed view torch would compute product and bias apart, and they would be two operations.
    """

    ways: ClassVar[frozenset[Any]] = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__})

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in self.ways and args[0] in self.recorder.known:
            raise self.recorder.error(
                f"{func.__name__}.", "reads computed values out of torch; keep to tensor operations"
            )
        if func is nn.functional.linear and args:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.known: Any = WeakIdKeyDictionary()  # tensor -> Ref, or _Stale
        self.written: dict[int, Any] = {}  # storages that a part of was written to, kept alive so that ids stay theirs
        self.calls: Counter[str] = Counter()
        self.modules: dict[str, Ref] = {}
        self.stack: list[tuple[str, int]] = []
        self.caller: list[tuple[str, int]] = []  # of each node

    def begin(self, inputs: Sequence[Tensor]) -> None:
        for place, tensor in enumerate(inputs):
            self.known[tensor] = Ref(place)
            self.nodes.append(
                Node(place, None, (), {}, f"input{place or ''}", "input", (tuple(tensor.shape),), (tensor.dtype,))
            )
            self.caller.append(("", 0))

    def enter(self, name: str) -> None:
        self.calls[name] += 1
        self.stack.append((name, self.calls[name]))

    def leave(self, returned: Any) -> None:
        name, call = self.stack.pop()
        found = self.known.get(returned) if isinstance(returned, Tensor) else None
        if isinstance(found, Ref) and name:
            self.modules[name if call == 1 else f"{name}#{call}"] = found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        computed = [tensor for tensor in tensors if tensor in self.known]
        for tensor in tensors:
            if isinstance(self.known.get(tensor), _Stale) or (
                tensor not in self.known and tensor.untyped_storage()._cdata in self.written
            ):
                raise self.error(
                    func, "reads memory that was written to under another name; use out-of-place operations"
                )
        if not computed:
            self.unshare(func, args)
        result = func(*args, **kwargs)
        if not computed or str(func).rpartition(".")[0] in CREATORS:
            return result
        made = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
        if not made or len(made) < sum(value is not None for value in tree_flatten(result)[0]):
            raise self.error(
                func,
                "reads a computed value into Python, so that what runs depends on the scan; write the choice as "
                "tensor operations (torch.where), or explain a part of the network",
            )
        op, target = func, self.target(func, args, kwargs)
        if target is not None:
            op = self.out_of_place(func)
        refs = tree_map(lambda v: self.known.get(v, v) if isinstance(v, Tensor) else v, (args, kwargs))
        index = len(self.nodes)
        self.nodes.append(
            Node(
                index,
                op,
                refs[0],
                refs[1],
                "",
                kind_of(op, refs[0], made[0].shape),
                tuple(tuple(tensor.shape) for tensor in made),
                tuple(tensor.dtype for tensor in made),
            )
        )
        self.caller.append(self.stack[-1] if self.stack else ("", 1))
        if target is not None:
            self.overwrite(func, target)
        for place, tensor in enumerate(made):
            self.known[tensor] = Ref(index, place)
        return result

    def target(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The tensor that an operation in place writes to."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                return value
        if any(a.alias_info is not None and a.alias_info.is_write and a.name in kwargs for a in func._schema.arguments):
            raise self.error(func, "writes into a given tensor (out=); let it return its result")
        return None

    def out_of_place(self, func: Any) -> Any:
        namespace, name = func._schema.name.split("::")
        packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
        if not name.endswith("_") or packet is None or func._overloadname not in packet.overloads() or name == "copy_":
            if name == "native_batch_norm":  # its running statistics are written to in training only
                return func
            raise self.error(func, "writes in place and has no form that does not; use one")
        return getattr(packet, func._overloadname)

    def overwrite(self, func: Any, target: Tensor) -> None:
        storage = target.untyped_storage()
        partial = target.numel() * target.element_size() != storage.nbytes()
        if target not in self.known or partial:
            self.written[storage._cdata] = storage
        for tensor in list(self.known):
            if tensor is not target and tensor.untyped_storage()._cdata == storage._cdata:
                self.known[tensor] = _Stale()

    def unshare(self, func: Any, args: tuple[Any, ...]) -> None:
        """A constant is about to change: what recorded operations read of it stays as it was."""
        target = self.target(func, args, {}) if hasattr(func, "_schema") else None
        if target is None:
            return
        storage = target.untyped_storage()._cdata

        def apart(value: Any) -> Any:
            shared = isinstance(value, Tensor) and value.untyped_storage()._cdata == storage
            return value.clone() if shared else value

        for node in self.nodes:
            node.args, node.kwargs = tree_map(apart, (node.args, node.kwargs))

    def error(self, func: Any, what: str) -> UnknownOperation:
        layer = self.stack[-1][0] if self.stack else ""
        return UnknownOperation(f"{layer or 'the network'}: {str(func).rpartition('.')[0]} {what}")

    def finish(self) -> list[Node]:
        """Nodes with unique names."""
        alone = Counter(
            caller for node, caller in zip(self.nodes, self.caller, strict=True) if node.kind not in MOVES and node.op
        )
        used: Counter[str] = Counter()
        for node, (module, call) in zip(self.nodes, self.caller, strict=True):
            if node.op is None:
                continue
            base = module if call == 1 else f"{module}#{call}"
            if node.kind in MOVES:
                node.layer = f"{base}:{node.name.removeprefix('aten.')}"
            elif alone[module, call] == 1 and module:
                node.layer = base
            else:
                node.layer = f"{base}:{NAMES.get(node.name, node.name.removeprefix('aten.'))}"
            used[node.layer] += 1
            if used[node.layer] > 1:
                node.layer += f"#{used[node.layer]}"
        return self.nodes
