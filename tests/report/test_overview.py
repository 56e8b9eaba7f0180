"""The page of all scans: in order, complete, and red where a limit is passed."""

from __future__ import annotations

from html.parser import HTMLParser

import polars as pl
import pytest

from relevance_assets.report.figures_preparation import mosaic_path
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
            assert "loading" in known
            self.card["pictures"].append(known["src"])
        if tag == "a" and self.card is not None:
            self.card["figure"] = known["href"]
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
    overview_page(pl.DataFrame(rows, infer_schema_length=None), more.pop("figures", {}), LIMITS, "a < b", path, **more)
    text = path.read_text("utf-8")
    assert "a &lt; b" in text
    return Page(text)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("brain_volume_mm3", 7e5, "brain of 700 ml, not 800 to 2200"),
        ("brain_volume_mm3", 2.3e6, "brain of 2300 ml, not 800 to 2200"),
        ("template_overlap", 0.84, "template overlap 0.840, below 0.85"),
        ("template_overlap", float("nan"), "template overlap nan, below 0.85"),
        ("similarity_after", 0.4, "similarity 0.400, below 0.5"),
        ("jacobian_minimum", -0.1, "Jacobian from -0.1 to 5, not within 0.05 and 20"),
        ("jacobian_maximum", 21.0, "Jacobian from 0.2 to 21, not within 0.05 and 20"),
        ("share_clipped", 0.06, "share clipped 6.0%, above 5.0%"),
        ("share_cropped", 0.03, "share cropped 3.0%, above 2.0%"),
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
    assert page(tmp_path, rows).cards["sub-1"]["red"] == ["share clipped 50.0%, above 5.0%"]


def test_pictures_lie_beside_the_page_and_nothing_else_is_fetched(tmp_path):
    figure = tmp_path / "sub-0" / "figures" / "a b.png"
    mosaic_path(figure).parent.mkdir(parents=True)
    mosaic_path(figure).write_bytes(b"\x89PNG")
    rows = [{"scan": f"sub-{i}", "image": "T1w"} | GOOD for i in range(3)]
    figures = {"sub-0": figure, "sub-1": tmp_path / "gone.png"}
    found = page(tmp_path, rows, figures=figures, stopped={"sub-x": "<truncated>; copy it again"})
    assert found.fetched == []
    assert found.cards["sub-0"]["pictures"] == ["sub-0/figures/a%20b_mosaic.png"]
    assert found.cards["sub-0"]["figure"] == "sub-0/figures/a%20b.png"
    assert "no picture" in found.cards["sub-1"]["said"]
    assert found.cards["sub-x"]["red"] == ["not prepared: <truncated>; copy it again"]


def test_what_is_not_known_is_not_shown(tmp_path):
    rows = [{"scan": "sub-1", "image": "T1w", "brain_volume_mm3": 1.4e6, "share_clipped": None}]
    card = page(tmp_path, rows).cards["sub-1"]
    assert card["class"] == "good"
    assert "clipped" not in card["said"]
    assert "Jacobian" not in card["said"]
