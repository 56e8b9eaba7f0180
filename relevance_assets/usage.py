"""What a process has used so far.

Belongs here: measures that the operating system keeps. Does not belong here: deciding what is too much.
"""

from __future__ import annotations

import resource
import sys

__all__ = ["peak_mb"]


def peak_mb() -> float:
    """The process's peak resident memory so far, in MB (Linux counts in kB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
