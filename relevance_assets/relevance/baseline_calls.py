"""How baselines call the function that they explain (`baselines.py` says what it is).

Belongs here: checks of inputs and of what the function returns, reference inputs, rows in one call. Does not belong
here: methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = [
    "Function",
    "Inputs",
    "Value",
    "check_value",
    "checked",
    "chunks",
    "positive",
    "reference_inputs",
    "value_of",
]

Inputs = tuple[Tensor, ...]
Function = Callable[[Inputs], Tensor]
Value = float | Tensor | Sequence[float | Tensor]
T = TypeVar("T")


def reference_inputs(inputs: Inputs, value: Value) -> Inputs:
    """`value` in the inputs' shapes: a number, a tensor that broadcasts to the input, or one of them per input.

    Raises
    ------
    ValueError
        If their number is not that of the inputs, or one does not broadcast.
    """
    if isinstance(value, int | float):
        values: Sequence[float | Tensor] = [value] * len(inputs)
    else:
        values = [value] if isinstance(value, Tensor) else value
    if len(values) != len(inputs):
        raise ValueError(f"{len(values)} values for {len(inputs)} inputs: give a number, or one value per input")
    filled = []
    for x, one in zip(inputs, values, strict=True):
        tensor = torch.as_tensor(one, dtype=x.dtype, device=x.device)
        try:
            filled.append(tensor.detach().expand_as(x))
        except RuntimeError:
            shapes = f"{tuple(tensor.shape)} does not broadcast to an input {tuple(x.shape)}"
            raise ValueError(f"a value of shape {shapes}") from None
    return tuple(filled)


def checked(inputs: Inputs) -> Inputs:
    inputs = tuple(inputs)
    for index, x in enumerate(inputs):
        if not x.is_floating_point():
            raise ValueError(f"input {index} is {x.dtype}: a floating tensor is needed")
        if len(x) != len(inputs[0]):
            raise ValueError(f"input {index} has batch size {len(x)}, the first {len(inputs[0])}")
    return inputs


def positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}: at least 1 is needed")
    return value


def check_value(value: Tensor, inputs: Inputs) -> None:
    if value.shape != (len(inputs[0]),):
        raise ValueError(f"the function returned {tuple(value.shape)} for {len(inputs[0])} rows: one number per row")


def value_of(function: Function, inputs: Inputs) -> Tensor:
    value = function(inputs)
    check_value(value, inputs)
    return value


def chunks(items: Sequence[T], batch: int, internal_batch_size: int) -> Iterator[Sequence[T]]:
    """Items in groups of equal size but the last, each at most `internal_batch_size` rows or one item."""
    most = max(1, positive("internal_batch_size", internal_batch_size) // batch)
    # As equal as can be: with a remainder of one or two, that call would be mostly overhead.
    size = math.ceil(len(items) / math.ceil(len(items) / most))
    for first in range(0, len(items), size):
        yield items[first : first + size]
