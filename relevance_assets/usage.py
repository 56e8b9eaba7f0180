"""What a process takes from its operating system.

Belongs here: measures that the system keeps; memory that goes back to it or does not. Does not belong here: deciding
what is too much.
"""

from __future__ import annotations

import ctypes
import resource
import sys

__all__ = ["keep_memory", "peak_mb"]

# of malloc.h: what may lie free at the heap's end before it is given back, and the size from which malloc maps apart
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, MAPPED = 2**28, 2**25  # bytes; glibc takes no more than the latter


def keep_memory() -> None:
    """Keep what is freed for the next tensor of this process, up to 256 MB, in place of giving it back.

    A network frees and asks for the same megabytes at every operation, and the system fills with zeros what it gives:
    a third of the time of a small network's forward pass. Only glibc can be told; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl
        return
    mallopt(M_TRIM_THRESHOLD, KEPT)
    mallopt(M_MMAP_THRESHOLD, MAPPED)


def peak_mb() -> float:
    """The process's peak resident memory so far, in MB (Linux counts in kB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
