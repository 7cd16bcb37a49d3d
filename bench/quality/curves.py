"""Curves of the distance over CPU-minutes as an SVG picture: a panel per feature net, a line per run, axes from zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.quality.judge import NETS

COLOURS: Final = {"paper": "#b4460f", "default": "#0f6cb4"}
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 360, 240, 60, 30, 70


def draw_curves(curves: Mapping[str, Mapping[int, list[dict[str, Any]]]], seeds: Sequence[int]) -> str:
    """The picture's text."""
    panels = [_panel(curves, seeds, net, k * (_WIDTH + _GAP) + _LEFT) for k, net in enumerate(NETS)]
    width, height = len(panels) * (_WIDTH + _GAP) + _LEFT, _HEIGHT + _TOP + 60
    legend = "".join(
        f'<text x="{_LEFT + 120 * k}" y="{height - 8}" fill="{colour}">{name}</text>'
        for k, (name, colour) in enumerate(COLOURS.items())
    )
    style = 'font-family="sans-serif" font-size="12"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(panels)}{legend}</svg>\n'
    )


def _panel(curves: Mapping[str, Mapping[int, list[dict[str, Any]]]], seeds: Sequence[int], net: str, left: int) -> str:
    lines = {
        (name, seed): [(row["minutes"], row["frechet_distance"][net]) for row in runs[seed]]
        for name, runs in curves.items()
        for seed in seeds
    }
    points = [point for line in lines.values() for point in line]
    most_x, most_y = max(x for x, _ in points), max(y for _, y in points)

    def place(x: float, y: float) -> str:
        return f"{left + _WIDTH * x / most_x:.1f},{_TOP + _HEIGHT * (1 - y / most_y):.1f}"

    drawn = "".join(
        f'<polyline points="{" ".join(place(x, y) for x, y in line)}" fill="none" stroke="{COLOURS[name]}" '
        'stroke-width="1.5"/>' + "".join(_dot(place(x, y), COLOURS[name]) for x, y in line)
        for (name, _), line in lines.items()
    )
    bottom = _TOP + _HEIGHT
    axes = f'<path d="M{left},{_TOP}V{bottom}H{left + _WIDTH}" fill="none" stroke="black"/>'
    words = (
        f'<text x="{left}" y="{_TOP - 10}">Fréchet distance, {net}</text>'
        f'<text x="{left - 6}" y="{_TOP + 4}" text-anchor="end">{most_y:.0f}</text>'
        f'<text x="{left - 6}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{left + _WIDTH}" y="{bottom + 16}" text-anchor="end">{most_x:.0f} CPU-minutes</text>'
    )
    return drawn + axes + words


def _dot(place: str, colour: str) -> str:
    x, y = place.split(",")
    return f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'
