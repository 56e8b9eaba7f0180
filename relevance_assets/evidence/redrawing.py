"""A network's stages, and copies of it that have forgotten what they learnt there.

Belongs here: which modules act together, and drawing their parameters anew, for any network. Does not belong here:
what becomes of the maps (`randomisation.py`).

What batch norms do: their running statistics are learnt with the weights, so a re-drawn batch norm gets the mean 0
and variance 1 of a network that has seen nothing. Trained statistics would say how large a feature was that is no
longer there, and would silence or open whole channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Stage", "cascade", "redrawn", "stages"]


class Stage(NamedTuple):
    """Modules that act at the same depth of a network.

    `keys` are their parameters and buffers, as `state_dict` names them.
    """

    name: str
    keys: tuple[str, ...]


def stages(model: nn.Module, *inputs: Tensor, count: int | None = None) -> list[Stage]:
    """Modules with parameters, from the input to the output, those of one depth together.

    A module's depth is the greatest number of operations between its parameters and the output, in the graph that
    autograd records. So parallel encoders are one stage after the other in step, whatever modules are called, and a
    module that is defined early and used late is late. Parameters that the output does not depend on are in none.

    Parameters
    ----------
    model
        Left as it is.
    inputs
        What it takes; one scan is enough.
    count
        Neighbouring stages are put together until so many are left; None leaves all. The first stays alone unless
        count is 1, so that the last steps of a cascade mean the same however many steps it has.

    Raises
    ------
    ValueError
        No parameter has a part in the output, or count is not positive.
    """
    if count is not None and count < 1:
        raise ValueError(f"stages: count must be at least 1, not {count}")
    network = copy.deepcopy(model).eval()
    owners: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):  # tied ones belong to several modules
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    network.requires_grad_(True)
    with torch.enable_grad():
        output = network(*inputs)
    depth: dict[str, int] = {}
    for number, distance in _distances(output):
        for owner in owners.get(number, ()):
            depth[owner] = max(depth.get(owner, 0), distance)
    if not depth:
        raise ValueError(f"{type(model).__name__}: no parameter has a part in the output; nothing to randomise")
    levels = sorted(set(depth.values()), reverse=True)
    parts = [[level] for level in levels]
    if count is not None and count < len(levels):
        later = [part.tolist() for part in np.array_split(np.array(levels[1:]), count - 1)] if count > 1 else []
        parts = [levels[:1], *later] if later else [levels]
    keys = list(model.state_dict())
    found = []
    for part in parts:
        units = sorted((unit for unit in depth if depth[unit] in part), key=lambda unit: -depth[unit])
        inside = set(units)
        name = units[0] if len(part) == 1 else f"{units[0]} .. {units[-1]}"
        found.append(Stage(name, tuple(key for key in keys if key.rpartition(".")[0] in inside)))
    return found


def _distances(output: Tensor) -> Iterator[tuple[int, int]]:
    """For every tensor that needs a gradient its id, and the longest way to it in the graph."""
    order: list[Any] = []
    seen: set[Any] = set()
    waiting: list[tuple[Any, bool]] = [(output.grad_fn, False)] if output.grad_fn is not None else []
    while waiting:  # children before parents
        node, done = waiting.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting += [(child, False) for child, _ in node.next_functions if child is not None]
    distance = dict.fromkeys(order, 0)
    for node in reversed(order):
        for child, _ in node.next_functions:
            if child is not None:
                distance[child] = max(distance[child], distance[node] + 1)
        if hasattr(node, "variable"):
            yield id(node.variable), distance[node]


def redrawn(model: nn.Module, seed: int, build: Callable[[], nn.Module] | None = None) -> nn.Module:
    """A network like this one that has learnt nothing.

    Parameters
    ----------
    build
        Builds the network with fresh weights (`Description.build` of a checkpoint), so that it begins as it began
        in training, with its own initialisation. Without it, each module's `reset_parameters` is called.
    seed
        Of torch's generator, which is put back afterwards.

    Raises
    ------
    ValueError
        A module has parameters and no `reset_parameters`, or what is built is another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if build is not None:
            fresh = build().state_dict()
        else:
            twin = copy.deepcopy(model).cpu()
            for name, module in twin.named_modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
                elif next(module.parameters(recurse=False), None) is not None:
                    raise ValueError(
                        f"{name or type(module).__name__}: has parameters and no reset_parameters; "
                        "give the function that builds the network"
                    )
            fresh = twin.state_dict()
    return _with_state(model, fresh)


def cascade(
    model: nn.Module, ordered: Sequence[Stage], seed: int, build: Callable[[], nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """From the output to the input: after each step one stage more is re-drawn, and those before it stay as drawn.

    Yields the stage's name and the copy, one per stage. The last copy is `redrawn`'s, parameters included that no
    stage has.
    """
    network = redrawn(model, seed, build)
    fresh, state = network.state_dict(), dict(model.state_dict())
    for stage in reversed(ordered):
        state |= {key: fresh[key] for key in stage.keys}
        yield stage.name, network if stage is ordered[0] else _with_state(model, state)


def _with_state(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(model)
    try:
        twin.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the network that is built is not the one that was trained: {reason}") from error
    return twin.eval()
