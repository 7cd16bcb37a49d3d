"""The page of `histofed data check`: a survey with pictures, in one file without a link to anything else.

It shows tiles and names patients: it is made inside the hospital and stays there, and its first line says so.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from histofed.base.errors import TryLater
from histofed.base.words import readable
from histofed.tiles.decode import Refused, read_tile
from histofed.tiles.survey import Seen, Survey
from histofed.tiles.tileset import Tile

_STYLE: Final = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_THUMBNAIL: Final = 112
"""Pixels; a page with 100 of them has about half a megabyte."""
_PER_ROW: Final = 8
_GROUPS: Final = 12
_FILES: Final = 1000
"""Unusable files that are named; a page with more is slow to open."""
_BINS: Final = 32
_CHARTS: Final = {
    "focus": "Focus (variance of the Laplacian)",
    "tissue": "Tissue (share of the tile)",
    "haematoxylin": "Haematoxylin (mean of the tissue)",
    "eosin": "Eosin (mean of the tissue)",
    "brightness": "Brightness (0 to 255)",
}
BEGINNING: Final = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Tiles of '
)
"""Of every page: what begins with it may be replaced by another page."""
STAYS: Final = "This report names patients and shows their tissue. It was made inside the hospital and must stay there."


def render(survey: Survey, title: str) -> str:
    """The page. Opens about a hundred of the files once more for their pictures."""
    sections = [
        f'<h1>Tiles of {_shown(title)}</h1><p class="stays">{STAYS}</p>',
        _verdict(survey),
        _section("Classes", _classes(survey)),
        _section("Hospitals", _hospitals(survey)),
        _section("Patients", f'<div class="scroll">{_patients(survey)}</div>'),
        _section("Quality", _charts(survey)),
        _section("Size", _sizes(survey)),
        _section("Tiles, drawn evenly from each class and hospital", _samples(survey)),
        _section("Least focus", _pictures(sorted(survey.seen, key=lambda seen: seen.measures.focus), "focus")),
        _section("Least tissue", _pictures(sorted(survey.seen, key=lambda seen: seen.measures.tissue), "tissue")),
        _section("Copies across patients or classes", _copies(survey, survey.crossing())),
        _section("The same bytes", _copies(survey, survey.exact)),
        _section("Looks the same", _copies(survey, survey.near)),
        _section("Files that cannot be used", _unusable(survey)),
    ]
    return (
        f"{BEGINNING}{_shown(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _shown(text: str) -> str:
    """As text of the page: nothing in it is markup, and every letter can be shown, whatever a folder or a file is called."""
    return html.escape(readable(text))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_shown(title)}</h2>{body}</section>"


def _verdict(survey: Survey) -> str:
    patients = len(survey.by_patient())
    found = f"<p>{len(survey.seen)} usable tiles of {patients} patients from {len(survey.by_hospital())} hospitals.</p>"
    lines = [f'<li class="bad">{_shown(line)}</li>' for line in survey.problems()]
    lines += [f"<li>{_shown(line)}</li>" for line in (*survey.advice(), *survey.warnings())]
    return found + (f"<ul>{''.join(lines)}</ul>" if lines else "<p>Nothing to complain about.</p>")


def _classes(survey: Survey) -> str:
    rows = []
    for index, name in enumerate(survey.classes):
        mine = [seen.tile for seen in survey.seen if seen.tile.class_index == index]
        rows.append((name, len(mine), len({tile.patient for tile in mine}), len({tile.hospital for tile in mine})))
    return _table(("class", "tiles", "patients", "hospitals"), rows)


def _hospitals(survey: Survey) -> str:
    rows = []
    for hospital, seen in survey.by_hospital().items():
        middle = {name: f"{values[2]:.2f}" for name, values in survey.quantities(seen).items()}
        people = len({one.tile.patient for one in seen})
        rows.append((hospital or "unknown", people, *_by_class(survey, seen), middle["haematoxylin"], middle["eosin"]))
    return _table(("hospital", "patients", *survey.classes, "median haematoxylin", "median eosin"), rows)


def _patients(survey: Survey) -> str:
    rows = [
        (patient, ", ".join(sorted({one.tile.hospital for one in seen})) or "unknown", *_by_class(survey, seen))
        for patient, seen in survey.by_patient().items()
    ]
    return _table(("patient", "hospital", *survey.classes), rows)


def _by_class(survey: Survey, seen: Sequence[Seen]) -> list[int]:
    return [sum(one.tile.class_index == index for one in seen) for index in range(len(survey.classes))]


def _sizes(survey: Survey) -> str:
    sizes = sorted({(seen.measures.width, seen.measures.height) for seen in survey.seen})
    count = {size: sum((s.measures.width, s.measures.height) == size for s in survey.seen) for size in sizes}
    return _table(("pixels", "tiles"), [(f"{width} x {height}", count[width, height]) for width, height in sizes])


def _charts(survey: Survey) -> str:
    if not survey.seen:
        return '<p class="soft">none</p>'
    charts = [
        f"<div>{_shown(words)}{_histogram([getattr(seen.measures, name) for seen in survey.seen])}</div>"
        for name, words in _CHARTS.items()
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _histogram(values: Sequence[float]) -> str:
    """Bars from the 1st to the 99th percentile; what is beyond is in the outermost bars."""
    low, high = np.percentile(values, (1, 99))
    counts, _ = np.histogram(np.clip(values, low, high), _BINS, (low, high if high > low else low + 1))
    bars = "".join(
        f'<rect x="{10 * place}" y="{80 * (1 - share):.1f}" width="9" height="{80 * share:.1f}"/>'
        for place, share in enumerate(counts / counts.max())
    )
    svg = f'<svg viewBox="0 0 {10 * _BINS} 80" preserveAspectRatio="none" role="img" aria-label="histogram">{bars}</svg>'
    return f'{svg}<span class="soft">{low:.3g} to {high:.3g}</span>'


def _samples(survey: Survey) -> str:
    rows = []
    for index, name in enumerate(survey.classes):
        groups = [[s for s in seen if s.tile.class_index == index] for seen in survey.by_hospital().values()]
        # one of each hospital in turn, so that a large one does not hide the others
        turns = (group[turn] for turn in range(_PER_ROW) for group in groups if turn < len(group))
        rows.append(f"<p>{_shown(name)}</p>" + _pictures(list(islice(turns, 2 * _PER_ROW)), None, 2 * _PER_ROW))
    return "".join(rows)


def _pictures(seen: Sequence[Seen], quantity: str | None, count: int = _PER_ROW) -> str:
    figures = []
    for one in seen[:count]:
        value = "" if quantity is None else f"<br>{getattr(one.measures, quantity):.3g}"
        figures.append(_figure(one.tile, value))
    return _row(figures)


def _copies(survey: Survey, groups: Sequence[Sequence[Tile]]) -> str:
    """With their folders: copies often have one name."""
    rows = [_row([_figure(tile, name=survey.place(tile.path)) for tile in group[:_PER_ROW]]) for group in groups[:_GROUPS]]
    more = f'<p class="soft">and {len(groups) - _GROUPS} groups more</p>' if len(groups) > _GROUPS else ""
    return ("".join(rows) or '<p class="soft">none</p>') + more


def _unusable(survey: Survey) -> str:
    """How many for which reason, then which."""
    rows = [(survey.place(one.path), one.reason) for one in survey.unusable[:_FILES]]
    more = len(survey.unusable) - _FILES
    note = f'<p class="soft">and {more} files more; histofed data check --json names them all</p>' if more > 0 else ""
    counts = _table(("reason", "files"), sorted(survey.refused.items()))
    return counts + (f'<div class="scroll">{_table(("file", "reason"), rows)}</div>{note}' if rows else "")


def _row(figures: Iterable[str]) -> str:
    joined = "".join(figures)
    return f'<div class="tiles">{joined}</div>' if joined else '<p class="soft">none</p>'


def _figure(tile: Tile, value: str = "", name: str | None = None) -> str:
    caption = f"{_shown(tile.patient)}<br>{_shown(name or tile.path.name)}{value}"
    return f'<figure><img src="{_thumbnail(tile)}" alt=""><figcaption>{caption}</figcaption></figure>'


def _thumbnail(tile: Tile) -> str:
    try:
        pixels = read_tile(tile.path, _THUMBNAIL)
    except (Refused, TryLater):
        return ""  # it changed since it was surveyed, or its disk fails now; its caption says which it was
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return '<p class="soft">none</p>'
    head = "".join(f"<th>{_shown(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{_shown(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
