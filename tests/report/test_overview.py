"""The page of all scans: in order, complete, and red where a limit is passed."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import polars as pl
import pytest

from relevance_assets.report.overview import overview_page
from relevance_assets.study import Limits

GOOD = {
    "brain_volume_mm3": 1.4e6,
    "template_overlap": 0.95,
    "similarity_after": -0.9,  # a contrast that is dark where the template is bright
    "jacobian_minimum": 0.2,
    "jacobian_maximum": 5.0,
    "share_clipped": 0.01,
    "share_cropped": 0.0,
}
LIMITS = Limits(
    brain_ml=(800, 2200),
    template_overlap=0.85,
    similarity=0.5,
    jacobian=(0.05, 20),
    share_clipped=0.05,
    share_cropped=0.02,
)


class Page(HTMLParser):
    """Cards by scan: class, red words, pictures; and what the page would fetch or run."""

    def __init__(self, text):
        super().__init__()
        self.cards, self.fetched, self.card, self.red = {}, [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        if tag == "article":
            self.card = self.cards[known["id"]] = {"class": known["class"], "red": [], "said": "", "pictures": []}
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)
        if tag == "img":
            head, _, data = known["src"].partition("base64,")
            assert head == "data:image/png;"
            self.card["pictures"].append(base64.b64decode(data))
        self.red = known.get("class") == "far"

    def handle_endtag(self, tag):
        self.red = False
        if tag == "article":
            self.card = None

    def handle_data(self, data):
        if self.card is not None:
            self.card["said"] += data
            if self.red:
                self.card["red"].append(data)


def page(tmp_path, rows, **more):
    path = tmp_path / "page.html"
    overview_page(pl.DataFrame(rows, infer_schema_length=None), more.pop("mosaics", {}), LIMITS, "a < b", path, **more)
    text = path.read_text("utf-8")
    assert "a &lt; b" in text
    return Page(text)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("brain_volume_mm3", 7e5, "700 ml"),
        ("brain_volume_mm3", 2.3e6, "2300 ml"),
        ("template_overlap", 0.84, "overlap 0.840"),
        ("template_overlap", float("nan"), "overlap nan"),
        ("similarity_after", 0.4, "similarity 0.40"),
        ("jacobian_minimum", -0.1, "Jacobian -0.10 to 5.00"),
        ("jacobian_maximum", 21.0, "Jacobian 0.20 to 21.00"),
        ("share_clipped", 0.06, "clipped 6.00%"),
        ("share_cropped", 0.03, "cropped 3.00%"),
    ],
)
def test_a_number_beyond_its_limit_is_red(tmp_path, column, value, said):
    rows = [{"scan": "sub-2", "image": "T1w"} | GOOD | {column: value}, {"scan": "sub-1", "image": "T1w"} | GOOD]
    cards = page(tmp_path, rows).cards
    assert list(cards) == ["sub-1", "sub-2"]
    assert (cards["sub-2"]["class"], cards["sub-2"]["red"]) == ("bad", [said])
    assert (cards["sub-1"]["class"], cards["sub-1"]["red"]) == ("good", [])


def test_of_a_scans_images_the_worst_counts(tmp_path):
    rows = [{"scan": "sub-1", "image": name} | GOOD | {"share_clipped": s} for name, s in (("T1w", 0.0), ("T2w", 0.5))]
    assert page(tmp_path, rows).cards["sub-1"]["red"] == ["clipped 50.00%"]


def test_pictures_are_in_the_page_and_nothing_is_fetched(tmp_path):
    mosaic = tmp_path / "m.png"
    mosaic.write_bytes(b"\x89PNG")
    rows = [{"scan": f"sub-{i}", "image": "T1w"} | GOOD for i in range(3)]
    mosaics = {"sub-0": mosaic, "sub-1": tmp_path / "gone.png"}
    found = page(tmp_path, rows, mosaics=mosaics, stopped={"sub-x": "<truncated>; copy it again"})
    assert found.fetched == []
    assert found.cards["sub-0"]["pictures"] == [b"\x89PNG"]
    assert "no picture" in found.cards["sub-1"]["said"]
    assert found.cards["sub-x"]["red"] == ["not prepared: <truncated>; copy it again"]


def test_what_is_not_known_is_not_shown(tmp_path):
    rows = [{"scan": "sub-1", "image": "T1w", "brain_volume_mm3": 1.4e6, "share_clipped": None}]
    card = page(tmp_path, rows).cards["sub-1"]
    assert card["class"] == "good"
    assert "clipped" not in card["said"]
    assert "Jacobian" not in card["said"]
