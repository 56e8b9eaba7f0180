"""Multiplications, seconds and peak memory of a call.

Belongs here: measuring. Does not belong here: what is measured (`engines.py`), tables (`relevance_engine.py`).
Run as a program it measures the memory of one case; only `peak_memory` does so.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import engines
import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["flops", "peak_memory", "seconds"]


def flops(call: Callable[[], Any]) -> int:
    """Floating point operations of convolutions and matrix products, counted by torch as they are dispatched."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def seconds(calls: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Median, least and most seconds of each call after one to warm up, and its median processor time.

    The calls take turns, so that what else the machine does disturbs all of them alike.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            _wait(device)
            began = time.perf_counter(), time.process_time()
            call()
            _wait(device)
            if turn:
                times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    found = {}
    for name, pairs in times.items():
        wall, processor = zip(*pairs, strict=True)
        median = statistics.median(wall)
        found[name] = {"median": median, "least": min(wall), "most": max(wall), "cpu": statistics.median(processor)}
    return found


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(case: Mapping[str, Any]) -> float | None:
    """MB that preparing one engine and one explanation take at most, in a process of their own.

    On the CPU this is resident memory, as the system counts it, over what is resident when the libraries are loaded,
    the network is made and one small volume was explained. torch's profiler would count what torch allocates, but not
    oneDNN's workspaces, nor what the C library keeps. So that the same case gives the same number, the process is told
    to give back whatever is freed above 64 kB, for all engines alike. A peak cannot be reset: one process per case.
    On a GPU: the most that torch had allocated, over what it had before.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, str(Path(__file__)), json.dumps(dict(case))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        print(f"memory of {case['engine']}, {case['rule']}: not measured ({' '.join(last)})", file=sys.stderr)
        return None
    return float(done.stdout.split()[-1])


def _resident() -> tuple[float, float]:
    """MB resident now, and at most until now.

    `getrusage` alone will not do on Linux: its peak counts what the process was before it became this program, which
    is its parent, with all its libraries and volumes.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return tuple(int(lines[key].split()[0]) / 2**10 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return most, most


def _measure(case: Mapping[str, Any]) -> float:
    torch.set_num_threads(case["threads"])
    device, shape = case["device"], case["shape"]
    model = engines.network(case["network"], shape[1]).to(device)

    def prepare() -> engines.Call:
        kind = {"signed": case["signed"], "fold": case["fold"]}
        return engines.prepare(case["engine"], model, case["rule"], case["network"], **kind)

    small = engines.image(1, shape[1], 32, 32, 32, signed=case["signed"]).to(device)
    prepare()(small)
    x = engines.image(*shape, signed=case["signed"]).to(device)
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        prepare()(x)
        return (torch.cuda.max_memory_allocated() - allocated) / 2**20
    before = _resident()[0]
    prepare()(x)
    return _resident()[1] - before


if __name__ == "__main__":
    print(_measure(json.loads(sys.argv[1])))
