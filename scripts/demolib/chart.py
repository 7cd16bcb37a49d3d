"""A line chart as inline SVG: a few named series over rounds. Its colours come from the page, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 130, 16, 32
TICKS = 4


def line_chart(series: Mapping[str, Sequence[tuple[int, float]]], what: str) -> str:
    """Lines over the round's number; each is labelled at its end. `what` names the chart for screen readers."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    rounds = [x for x, _ in points]
    first, last = min(rounds), max(rounds)
    top = max(y for _, y in points) * 1.08 or 1.0
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)}">']
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for number in sorted(set(rounds)):
        x = _x(number, first, last)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number}</text>')
    ends: list[float] = []
    for index, (name, line) in enumerate(sorted(series.items(), key=lambda item: -item[1][-1][1])):
        path = " ".join(f"{_x(x, first, last):.1f},{_y(y, top):.1f}" for x, y in line)
        parts.append(f'<polyline class="line s{index % 4}" points="{path}"/>')
        parts += [
            f'<circle class="dot s{index % 4}" cx="{_x(x, first, last):.1f}" cy="{_y(y, top):.1f}" r="3.5">'
            f"<title>{escape(name)}, round {x}: {y:.4f}</title></circle>"
            for x, y in line
        ]
        # labels of lines that end close together are pushed apart
        label = max(_y(line[-1][1], top), ends[-1] + 16 if ends else 0.0)
        ends.append(label)
        parts.append(
            f'<text class="label s{index % 4}" x="{_x(line[-1][0], first, last) + 10:.1f}" y="{label + 4:.1f}">'
            f"{escape(name)}</text>"
        )
    return "".join([*parts, "</svg>"])


def _x(number: int, first: int, last: int) -> float:
    width = WIDTH - LEFT - RIGHT
    return LEFT + (width * (number - first) / (last - first) if last > first else width / 2)


def _y(value: float, top: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)
