"""Files that are either whole or absent, their hashes, and fingerprints of anything that JSON can say.

Belongs here: what every stage needs to write safely. Does not belong here: where a study's files lie
(`home.py`), what is in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "sidecar", "write_json", "sha256", "fingerprint"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on error.

    The temporary name ends as `path` does, so writers that look at the extension still work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105  atomic, also onto an existing file
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")


def sidecar(image: Path) -> Path:
    """The JSON file beside an image or a transform."""
    return image.with_name(image.name.removesuffix(".nii.gz").removesuffix(".txt") + ".json")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, default=str, separators=(",", ":"))  # one for all: there are many calls


def fingerprint(*parts: Any) -> str:
    """A short hash of values: equal values give equal fingerprints, on any machine and in any run."""
    return hashlib.sha256(_CANONICAL.encode(parts).encode()).hexdigest()[:24]
