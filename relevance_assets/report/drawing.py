"""Small pictures of brains by numpy and PIL: one per scan of a cohort of ten thousand, so they must cost little.

Belongs here: planes, outlines, letters and text as blocks of pixels, and the PNG of them. Does not belong here: which
planes of what are shown (`figures_preparation.py`), figures that are made once per study (`figures_brain.py`).

A block is (height, width, 2) uint8: grey, and the number of a colour that covers it (0: none, else a place in `COLOURS`
from 1). Every plane is in radiological orientation: the person's right, and the front of the head, is on the left of
the page.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["COLOURS", "FRONT", "MASK", "WHITE", "below", "beside", "legend", "png", "row", "shortened", "text", "tile"]

#: Told apart with any colour vision, and from grey.
COLOURS = ((255, 150, 0), (0, 215, 255), (255, 95, 215))
MASK, FRONT, WHITE = 1, 2, 3  # brain mask of the scan; brain and white matter of the template
LETTERS = ("APSI", "RLSI", "RLAP")  # left, right, top and bottom of a plane across x, y, z
INK = 225
LETTER = 14  # pixels on a side


def tile(plane: np.ndarray, outlines: Sequence[tuple[np.ndarray, int]], size: tuple[int, int]) -> np.ndarray:
    """One plane with outlines, by nearest neighbour.

    Parameters
    ----------
    plane : (a, b) uint8
        Grey; `a` to the right or anterior, `b` to anterior or superior.
    outlines : sequence of ((c, d) bool, int)
        Masks over the same field of view, of any resolution, and the number of their colour. The outline is the
        outermost pixels of the mask, one pixel wide.
    size : (int, int)
        Width and height, pixels.
    """
    width, height = size
    block = np.zeros((height, width, 2), np.uint8)
    block[..., 0] = _stretched(plane, size)
    for mask, colour in outlines:
        block[_edge(_stretched(mask, size)), 1] = colour
    return block


def row(tiles: Sequence[np.ndarray], letters: str) -> np.ndarray:
    """Tiles beside each other; around the first one what is left, right, above and below of it."""
    tall = max(block.shape[0] for block in tiles)
    framed = []
    for number, block in enumerate(tiles):
        above = LETTER + (tall - block.shape[0]) // 2
        below_it = tall + 2 * LETTER - block.shape[0] - above
        side = 0 if number else LETTER
        framed.append(np.pad(block, ((above, below_it), (side, side), (0, 0))))
    high, wide = tiles[0].shape[:2]
    top = LETTER + (tall - high) // 2
    middle = top + high // 2 - LETTER // 2, LETTER // 2 + wide // 2
    corners = (middle[0], 0), (middle[0], LETTER + wide), (top - LETTER, middle[1]), (top + high, middle[1])
    for letter, (y, x) in zip(letters, corners, strict=False):
        framed[0][y : y + LETTER, x : x + LETTER] = _glyph(letter)
    return beside(framed)


def _glyph(letter: str) -> np.ndarray:
    """A letter in the middle of LETTER x LETTER pixels."""
    picture = Image.new("L", (LETTER, LETTER))
    ImageDraw.Draw(picture).text((LETTER / 2, LETTER / 2), letter, fill=INK, font=_font(12), anchor="mm")
    return np.stack([np.asarray(picture), np.zeros((LETTER, LETTER), np.uint8)], axis=-1)


def _stretched(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(a, b) as (height, width), both axes turned round."""
    places = [
        ((np.arange(pixels)[::-1] + 0.5) * n / pixels).astype(int) for n, pixels in zip(plane.shape, size, strict=True)
    ]
    return plane[np.ix_(*places)].T


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with one of their four neighbours outside; beyond the plane is outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def beside(blocks: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Blocks from left to right, their upper edges level."""
    height = max(block.shape[0] for block in blocks)
    page = np.zeros((height, sum(block.shape[1] for block in blocks) + gap * (len(blocks) - 1), 2), np.uint8)
    left = 0
    for block in blocks:
        page[: block.shape[0], left : left + block.shape[1]] = block
        left += block.shape[1] + gap
    return page


def below(blocks: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Blocks from top to bottom, their left edges level."""
    width = max(block.shape[1] for block in blocks)
    page = np.zeros((sum(block.shape[0] for block in blocks) + gap * (len(blocks) - 1), width, 2), np.uint8)
    top = 0
    for block in blocks:
        page[top : top + block.shape[0], : block.shape[1]] = block
        top += block.shape[0] + gap
    return page


def text(said: str, size: int, width: int = 0) -> np.ndarray:
    """Text in lines of at most `width` pixels, or one line as wide as it needs; `size` is the letters', pixels."""
    font = _font(size)
    lines = _wrapped(said, font, width) if width else [said]
    line_height = round(size * 1.35)
    wide = width or max(1, int(font.getlength(said)) + 2)
    picture = Image.new("L", (wide, line_height * len(lines)))
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((1, number * line_height), line, fill=INK, font=font)
    return np.stack([np.asarray(picture), np.zeros(picture.size[::-1], np.uint8)], axis=-1)


def shortened(said: str, size: int, width: int) -> str:
    """As much of the text as fits into one line."""
    font = _font(size)
    if font.getlength(said) <= width - 2:
        return said
    while said and font.getlength(said + "…") > width - 2:
        said = said[:-1]
    return said + "…"


def _wrapped(said: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines that fit; a word that is wider than a line is broken."""
    lines = [""]
    for word in said.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width - 2:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width - 2:
                lines.append("")
            lines[-1] += character
    return lines


def legend(entries: Sequence[tuple[int, str]], size: int, width: int) -> np.ndarray:
    """A line in each colour and what it stands for, one below the other."""
    rows = []
    for colour, said in entries:
        swatch = np.zeros((round(size * 1.35), 18, 2), np.uint8)
        swatch[swatch.shape[0] // 2 - 1 : swatch.shape[0] // 2 + 1, :, 1] = colour
        rows.append(beside([swatch, text(said, size, width - 24)], 6))
    return below(rows, 0)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings, without loading matplotlib."""
    found = find_spec("matplotlib")
    assert found is not None  # the project needs it
    assert found.origin is not None
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def png(block: np.ndarray, most_bytes: int, levels: Sequence[int] = (24, 16, 12, 6, 3)) -> bytes:
    """A block as PNG with a palette: as many levels of grey as fit into so many bytes, the fewest if none do."""
    for count in levels:
        grey = ((block[..., 0].astype(np.uint16) * (count - 1) + 127) // 255).astype(np.uint8)
        picture = Image.fromarray(np.where(block[..., 1] > 0, count - 1 + block[..., 1], grey).astype(np.uint8), "P")
        shades = [(round(255 * level / (count - 1)),) * 3 for level in range(count)]
        picture.putpalette([value for colour in (*shades, *COLOURS) for value in colour])
        file = io.BytesIO()
        picture.save(file, "PNG", bits=4 if count + len(COLOURS) <= 16 else 8)
        if file.tell() <= most_bytes:
            break
    return file.getvalue()
