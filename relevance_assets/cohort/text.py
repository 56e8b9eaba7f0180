"""Small text files that people write, read without trust, and names that fit into one line.

Belongs here: opening such a file, showing such a name. Does not belong here: what a file says (`bids.py`,
`participants.py`).
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["one_line", "read_text"]

LARGEST = 2**26  # bytes; a table of 100,000 people with 50 columns has 2e7


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises
    ------
    OSError
        It may not or cannot be read.
    ValueError
        No regular file (a pipe would wait for ever), more than 64 MiB, or not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    return path.read_bytes().decode("utf-8-sig")


def one_line(text: str) -> str:
    r"""With line breaks, control characters and bytes that are no text written as escapes.

    Examples
    --------
    >>> one_line("sub-A\nB")
    'sub-A\\nB'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
