"""Plain text for people: aligned columns and human units.

What a cell holds may have come from another machine: whatever it is, it is printed as one printable line.
No rich here, because `status` must start in 0.4 s and a pipe must not wrap or cut columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from histofed.base.words import readable


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart, no line ends in a blank."""
    lines = [list(map(readable, line)) for line in (headings, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def fields(pairs: Sequence[tuple[str, str]]) -> str:
    """One `name  value` per line, values aligned."""
    lines = [(readable(name), readable(value)) for name, value in pairs]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in lines)


def quoted(text: str) -> str:
    """A text of several lines, as it was written but for what a terminal would obey."""
    lines = (line.removesuffix("\r") for line in text.rstrip().split("\n"))
    return "\n".join("\t".join(map(readable, line.split("\t"))) for line in lines)


def size(count: float) -> str:
    """`14.1 MB`; decimal units, as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def span(seconds: float) -> str:
    """`48 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(text: str | None) -> str:
    """`2026-01-01 12:00:00`, UTC; `-` where there is none."""
    return "-" if not text else text[:19].replace("T", " ")


def between(begin: str | None, end: str | None) -> timedelta | None:
    """The time from one RFC 3339 moment to another; None while one of them is missing."""
    if not begin or not end:
        return None
    return datetime.fromisoformat(end) - datetime.fromisoformat(begin)


def short(digest: str | None) -> str:
    """The first 12 digits, enough to name a model to `models pull`."""
    return digest[:12] if digest else "-"


def losses(values: Mapping[str, float]) -> str:
    """`discriminator 1.312  generator 0.841`, by name, without the word loss."""
    return "  ".join(f"{name.removesuffix('_loss')} {value:.3f}" for name, value in sorted(values.items()))


ENCODING: Final = "encoding_"
"""Begins the metrics that tell what an update's encoding changed (`histofed/encodings/loss.py`)."""


def trained(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of training alone."""
    return {name: value for name, value in metrics.items() if not name.startswith(ENCODING)}


def encoding(metrics: Mapping[str, float]) -> tuple[str, ...]:
    """One sentence about the round's encoded updates; none where they were plain float32, or of an older agent.

    The means of the sites' errors bound the error of the updates' mean.
    """
    found = {name.removeprefix(ENCODING): value for name, value in metrics.items() if name.startswith(ENCODING)}
    match found:
        case {"error_max": 0.0, "ratio": float(ratio)}:
            return (f"{ratio:.3f} of float32's bytes, exact",)
        case {"error_max": float(most), "error_rms": float(rms), "error_relative": float(relative), "ratio": float(ratio)}:
            return (
                f"{ratio:.3f} of float32's bytes; of the mean, against float32: RMS error at most {rms:.2g}, of any weight "
                f"{most:.2g}; {relative:.2g} of what a site trained",
            )
    return ()
