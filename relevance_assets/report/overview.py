"""One page of all scans of a study as they were prepared: the bad one among thousands is seen at a glance.

Belongs here: the page, from what is on disk of every scan (a mosaic of a few kB, rows of table `volumes`). Does not
belong here: drawing scans (`figures_preparation.py`), stopping one (`imaging/limits.py`).

One HTML file without scripts, pictures in it: it opens from disk, can be sent, and is searched by the browser.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from relevance_assets.files import atomic_path
from relevance_assets.study import Limits

__all__ = ["overview_page"]

_STYLE = """
body { background: #000; color: #ddd; font: 13px/1.4 "DejaVu Sans", Verdana, sans-serif; margin: 12px }
h1 { font-size: 20px; margin: 0 0 6px } a { color: #6cf } .far { color: #ff6b4a; font-weight: bold }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(236px, 1fr)); gap: 6px; margin-top: 10px }
article { border: 2px solid #222; padding: 4px; content-visibility: auto; contain-intrinsic-size: auto 150px }
article.bad { border-color: #ff6b4a } img { image-rendering: pixelated; display: block } b { overflow-wrap: anywhere }
span { white-space: nowrap; margin-right: 8px } nav { max-height: 9em; overflow: auto } nav a { margin-right: 10px }
body:has(#only:checked) article.good { display: none }
"""


def overview_page(
    volumes: pl.DataFrame,
    mosaics: Mapping[str, Path],
    limits: Limits,
    title: str,
    path: Path,
    stopped: Mapping[str, str] | None = None,
    figures: Mapping[str, str] | None = None,
) -> None:
    """Write the page of a cohort: a mosaic and a row of numbers per scan, in the order of their names.

    A number beyond its limit is red, and so is the frame of its scan; those scans are also listed at the top.

    Parameters
    ----------
    volumes : DataFrame
        Table `volumes` of one study: a row per scan and image. Columns that are missing are not shown.
    mosaics : dict of str to Path
        By scan; where the file is missing the page says so.
    limits : Limits
        The study's `quality.warn`.
    path : Path
        HTML; about 1.4 times the mosaics' bytes, and 0.6 kB of text per scan.
    stopped : dict of str to str, optional
        Scans that were not prepared, and why.
    figures : dict of str to str, optional
        Address of a scan's figure, relative to the page: the mosaic links there.
    """
    stopped, figures = stopped or {}, figures or {}
    known = {str(scan): rows for (scan,), rows in volumes.partition_by("scan", as_dict=True).items()}
    cards, bad = [], []
    for scan in sorted({*known, *stopped}):
        numbers = list(_numbers(known[scan].to_dicts(), limits)) if scan in known else []
        reason = stopped.get(scan)
        far = reason is not None or any(beyond for _, beyond in numbers)
        if far:
            bad.append(scan)
        said = "".join(f"<span{' class=far' if beyond else ''}>{escape(text)}</span> " for text, beyond in numbers)
        if reason is not None:
            said += f"<div class=far>not prepared: {escape(reason)}</div>"
        picture = _picture(mosaics.get(scan), figures.get(scan))
        name = escape(scan)
        cards.append(
            f'<article id="{name}" class={"bad" if far else "good"}>{picture}<b>{name}</b><br>{said}</article>'
        )
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([*_head(title, len(cards), bad), *cards, "</main></body></html>\n"]), "utf-8")


def _head(title: str, scans: int, bad: list[str]) -> Iterator[str]:
    yield f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
    yield f"<p>{scans} scans as prepared: axial, coronal, sagittal, with the outline of the brain mask (orange). "
    yield "Radiological view: the person's right is on the left. "
    yield f"<span{' class=far' if bad else ''}>{len(bad)} beyond a limit or not prepared</span></p>"
    if bad:
        links = "".join(f'<a href="#{escape(scan)}">{escape(scan)}</a> ' for scan in bad)
        yield f"<nav>{links}</nav><label><input type=checkbox id=only> show only these</label>"
    yield "<main>"


def _picture(mosaic: Path | None, figure: str | None) -> str:
    """The mosaic's own bytes, as wide as it is."""
    if mosaic is None or not mosaic.is_file():
        return "<i>no picture</i><br>"
    data = base64.b64encode(mosaic.read_bytes()).decode()
    image = f'<img alt="" src="data:image/png;base64,{data}">'
    return f'<a href="{escape(figure)}">{image}</a>' if figure else image


def _numbers(rows: list[dict[str, Any]], limits: Limits) -> Iterator[tuple[str, bool]]:
    """What is known of a scan in words, and whether it is beyond its limit; of its images the worst."""
    first = rows[0]
    brain = first.get("brain_volume_mm3")
    if brain is not None:
        yield f"{brain / 1000:.0f} ml", _outside(brain / 1000, brain / 1000, limits.brain_ml)
    overlap, similarity = first.get("template_overlap"), first.get("similarity_after")
    if overlap is not None:
        yield f"overlap {overlap:.3f}", limits.template_overlap is not None and not overlap >= limits.template_overlap
    if similarity is not None:
        yield f"similarity {similarity:.2f}", limits.similarity is not None and not abs(similarity) >= limits.similarity
    least, greatest = first.get("jacobian_minimum"), first.get("jacobian_maximum")
    if least is not None and greatest is not None:
        yield f"Jacobian {least:.2f} to {greatest:.2f}", _outside(least, greatest, limits.jacobian)
    for name, word in (("share_clipped", "clipped"), ("share_cropped", "cropped")):
        shares = [row[name] for row in rows if row.get(name) is not None]
        most: float | None = getattr(limits, name)
        if shares:
            yield f"{word} {max(shares):.2%}", most is not None and not max(shares) <= most


def _outside(least: float, greatest: float, limit: tuple[float, float] | None) -> bool:
    """Whether a range leaves the limit's; NaN does."""
    return limit is not None and not (least >= limit[0] and greatest <= limit[1])
