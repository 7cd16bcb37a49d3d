from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import XML, Element

from scripts.demolib.chart import line_chart
from scripts.demolib.report import Facts, render

ROUND = {
    "experiment": "demo",
    "round": 1,
    "state": "committed",
    "reason": "",
    "sampled": ["north", "west"],
    "admitted": ["north"],
    "refused": [{"site": "west", "reason": "norm 12 <b>is above</b> 10"}],
    "opened_at": "2026-01-01T12:00:00.000000Z",
    "committed_at": "2026-01-01T12:00:42.000000Z",
    "metrics": {"generator_loss": 1.25, "update_norm": 3.5},
    "tasks": [{"site": "north", "update_bytes": 14_000_000}],
}


def facts(tmp_path: Path) -> Facts:
    sheet = tmp_path / "round-0001.png"
    sheet.write_bytes(b"\x89PNG")
    experiment = {"name": "demo", "state": "finished", "rounds": 1}
    site = {"name": "north", "updates_admitted": 1, "version": "0.1.0", "certificate_expires_at": "2026-01-08T12:00:00Z"}
    statement = {
        "experiment": "demo",
        "round": 1,
        "strategy": "fedavg",
        "base": "cd" * 32,
        "contributions": [{"site": "north", "weight": 1.0}],
    }
    verified = {"model": "ab" * 32, "part": "server", "sha256": "ef" * 32, "bytes": 14_000_000, "statement": statement}
    return Facts(
        experiment={"experiment": experiment, "toml": 'name = "demo"\n'},
        rounds=[ROUND],
        sites=[site],
        status={"version": "0.1.0", "journal_records": 77},
        verified=verified,
        sheets={1: sheet},
        data="drawn tiles",
        seconds=90.0,
    )


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order; what the page refers to."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_and_well_formed(tmp_path: Path) -> None:
    page = Balanced()
    page.feed(render(facts(tmp_path)))
    page.close()

    assert page.open == []
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)


def test_what_happened_is_on_it(tmp_path: Path) -> None:
    page = render(facts(tmp_path))

    for words in ("1 of 1", "north, west", "1.250", ">42<", ">77<", "14.0 MB", "ab" * 32, "verified", "100.0 %", "1.5"):
        assert words in page, words


def test_words_of_others_cannot_become_markup(tmp_path: Path) -> None:
    page = render(facts(tmp_path))

    assert "norm 12 &lt;b&gt;is above&lt;/b&gt; 10" in page


def parsed(svg: str) -> Element:
    return XML(svg)


def test_a_chart_shows_every_point() -> None:
    svg = parsed(line_chart({"g": [(1, 1.0), (2, 0.5), (3, 0.25)], "d": [(1, 0.2), (2, 0.24), (3, 0.26)]}, "losses"))

    assert len(svg.findall("circle")) == 6
    assert len(svg.findall("polyline")) == 2


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    svg = line_chart({name: [(1, 1.0), (2, 0.5 + index / 1000)] for index, name in enumerate("abc")}, "losses")

    heights = [float(y) for y in re.findall(r'class="label s\d" x="[\d.]+" y="([\d.]+)"', svg)]
    assert len(heights) == 3
    assert all(later - earlier >= 16 for earlier, later in pairwise(heights))


def test_a_chart_of_one_point_or_none() -> None:
    assert line_chart({}, "losses") == ""
    assert len(parsed(line_chart({"g": [(1, 0.0)]}, "losses")).findall("circle")) == 1
