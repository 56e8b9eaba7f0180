"""Where numbers are computed so that they can be compared: full float32 on GPUs, one thread on CPUs.

Belongs here: switches that training's predictions and the relevance engine share. Does not belong here:
deterministic kernels (`training`), the type of numbers (`relevance`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["has_gpu", "no_tf32", "one_thread"]


def has_gpu() -> bool:
    return torch.cuda.is_available()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch: sums then do not depend on how many there are, and scans run side by side in processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_tf32() -> Iterator[None]:
    """No TF32 in convolutions and matrix products: it keeps ten bits. On leaving, all is as before.

    All of cuDNN's switches are set together: torch refuses to tell of them by their older name once they differ.
    """
    cudnn: Any = torch.backends.cudnn
    switches: list[Any] = [cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
