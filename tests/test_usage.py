"""What a process takes from its system: peaks, and memory that it keeps."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from relevance_assets.usage import keep_memory, peak_mb

# pages that the system had to give for eight times 16 MB, asked for and freed ten times over; in a process of its own
CODE = """
import resource, numpy as np
from relevance_assets.usage import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [np.ones((2, 2**20)) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_memory()
faults()
print(faults())
"""


def test_what_is_freed_is_used_again() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("no glibc")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # given back each time, they are 32768 pages


def test_where_there_is_no_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_memory()


def test_peak_is_in_megabytes() -> None:
    before = peak_mb()
    assert 1 < before < 1e6
    assert peak_mb() >= before
