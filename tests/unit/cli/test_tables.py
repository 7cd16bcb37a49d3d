from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.cli.tables import between, encoding, fields, losses, moment, quoted, short, size, span, table, trained

WORDS = st.text(st.characters(categories=("L", "N")), max_size=12)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("SITE", "STATE"), [("north", "open"), ("a", "committed")]) == (
        "SITE   STATE\nnorth  open\na      committed"
    )


@given(st.lists(st.tuples(WORDS, WORDS), max_size=6))
def test_every_row_is_one_line_and_no_line_ends_in_a_blank(rows: list[tuple[str, str]]) -> None:
    lines = table(("A", "B"), rows).split("\n")

    assert len(lines) == len(rows) + 1
    assert all(line == line.rstrip() for line in lines)
    assert all(cell in line for row, line in zip(rows, lines[1:], strict=True) for cell in row)


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=6))
def test_whatever_a_cell_holds_is_one_printable_line(rows: list[tuple[str, str]]) -> None:
    assert all(line.isprintable() for line in table(("A", "B"), rows).split("\n"))
    assert len(table(("A", "B"), rows).split("\n")) == len(rows) + 1
    assert all(line.isprintable() for line in fields(rows).split("\n"))
    assert len(fields(rows).split("\n")) == len(rows)


def test_no_cell_forges_a_row_or_talks_to_the_terminal() -> None:
    assert table(("SITE", "VERSION"), [("north", "0.1.\x1b[2J\nsouth  0.1.0")]).split("\n") == [
        "SITE   VERSION",
        "north  0.1.\\x1b[2J\\nsouth  0.1.0",
    ]


def test_a_quoted_text_keeps_its_lines_and_tabs_and_obeys_nobody() -> None:
    text = "# \x9b31m \u202e desrever\n[config]\r\n\tsteps = 1  # µ\x85 m\n\n"

    assert quoted(text) == "# \\x9b31m \\u202e desrever\n[config]\n\tsteps = 1  # µ\\x85 m"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (14_140_000, "14.1 MB"), (5e12, "5.0 TB")]
)
def test_sizes_are_decimal(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (-3, "0 s")]
)
def test_spans_read_like_a_clock(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_missing_values_are_a_dash() -> None:
    assert (moment(None), short(None), losses({})) == ("-", "-", "")


def test_time_between_two_moments() -> None:
    passed = between("2026-01-01T12:00:00.000000Z", "2026-01-01T12:01:05.500000Z")

    assert passed is not None
    assert passed.total_seconds() == 65.5
    assert between("2026-01-01T12:00:00.000000Z", None) is None


def test_what_encodings_changed_has_a_sentence_of_its_own() -> None:
    lossy = {"encoding_error_max": 3e-5, "encoding_error_rms": 2.04e-6, "encoding_error_relative": 0.00166}
    metrics = {"generator_loss": 0.7, **lossy, "encoding_ratio": 0.3337}
    assert trained(metrics) == {"generator_loss": 0.7}
    assert encoding(metrics) == (
        "0.334 of float32's bytes; of the mean, against float32: RMS error at most 2e-06, of any weight 3e-05; "
        "0.0017 of what a site trained",
    )
    assert encoding(dict.fromkeys(lossy, 0.0) | {"encoding_ratio": 0.63}) == ("0.630 of float32's bytes, exact",)
    assert encoding({"generator_loss": 0.7}) == ()
    assert encoding({"encoding_error_max": 0.1}) == (), "a site that reports less than all of it"
