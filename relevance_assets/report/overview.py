"""One page of all scans of a study as they were prepared: the bad one among thousands is seen at a glance.

Belongs here: the page, from what is on disk of every scan (its figure, rows of table `volumes`). Does not belong here:
drawing scans (`figures_preparation.py`), limits (`imaging/limits.py`).

One HTML file without scripts, that lies beside the pictures it shows: they are loaded when they come into view.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from relevance_assets.files import atomic_path
from relevance_assets.imaging.limits import beyond
from relevance_assets.report.figures_preparation import mosaic_path
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
    figures: Mapping[str, Path],
    limits: Limits,
    title: str,
    path: Path,
    stopped: Mapping[str, str] | None = None,
) -> None:
    """Write the page of a cohort: a mosaic and a row of numbers per scan, in the order of their names.

    What is beyond a limit is said in red, the frame of its scan is red, and those scans are also listed at the top.

    Parameters
    ----------
    volumes : DataFrame
        Table `volumes` of one study: a row per scan and image. Columns that are missing are not shown.
    figures : dict of str to Path
        By scan; its mosaic is shown and links to it. Where that is missing the page says so.
    limits : Limits
        The study's `quality.warn`.
    path : Path
        HTML, 0.6 kB per scan.
    stopped : dict of str to str, optional
        Scans that were not prepared, and why.
    """
    stopped = stopped or {}
    known = {str(scan): rows.to_dicts() for (scan,), rows in volumes.partition_by("scan", as_dict=True).items()}
    cards, bad = [], []
    for scan in sorted({*known, *stopped}):
        rows = known.get(scan, [])
        far = list(dict.fromkeys(words for row in rows for words in beyond(row, limits)))
        if scan in stopped:
            far.append(f"not prepared: {stopped[scan]}")
        if far:
            bad.append(scan)
        said = "".join(f"<span>{escape(text)}</span> " for text in _numbers(rows))
        said += "".join(f"<div class=far>{escape(words)}</div>" for words in far)
        picture = _picture(figures.get(scan), path)
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


def _picture(figure: Path | None, page: Path) -> str:
    if figure is None or not mosaic_path(figure).is_file():
        return "<i>no picture</i><br>"
    there, small = (quote(os.path.relpath(file, page.parent)) for file in (figure, mosaic_path(figure)))
    return f'<a href="{there}"><img alt="" loading=lazy src="{small}"></a>'


def _numbers(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What is known of a scan in words; of its images the worst."""
    first = rows[0] if rows else {}
    if first.get("brain_volume_mm3") is not None:
        yield f"{first['brain_volume_mm3'] / 1000:.0f} ml"
    if first.get("template_overlap") is not None:
        yield f"overlap {first['template_overlap']:.3f}"
    if first.get("similarity_after") is not None:
        yield f"similarity {first['similarity_after']:.2f}"
    if first.get("jacobian_minimum") is not None:
        yield f"Jacobian {first['jacobian_minimum']:.2f} to {first['jacobian_maximum']:.2f}"
    for name, word in (("share_clipped", "clipped"), ("share_cropped", "cropped")):
        shares = [row[name] for row in rows if row.get(name) is not None]
        if shares:
            yield f"{word} {max(shares):.2%}"
