"""Words from elsewhere are one short line that no terminal obeys."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.words import LETTERS, one_line, readable


@given(words=st.text(), most=st.integers(1, 40))
def test_any_words_are_one_short_printable_line(words: str, most: int) -> None:
    line = one_line(words, most)
    assert len(line) <= most
    assert line.isprintable()
    assert "\n" not in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("the scanner\n  is down ", "the scanner is down"),
        ("\x1b[2Jfinished", "?[2Jfinished"),
        ("über 5 µm", "über 5 µm"),
        ("", ""),
        (" " * 10_000_000 + "x", "…"),
    ],
)
def test_what_becomes_of_words(words: str, line: str) -> None:
    assert one_line(words) == line


def test_a_cut_is_shown() -> None:
    assert one_line("x" * LETTERS) == "x" * LETTERS
    assert one_line("x" * (LETTERS + 1)) == "x" * (LETTERS - 1) + "…"


@given(words=st.text(st.characters(exclude_categories=())))
def test_words_of_any_letters_can_be_read(words: str) -> None:
    shown = readable(words)
    assert shown.isprintable()
    assert readable(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("two  blanks, über 5 µm", "two  blanks, über 5 µm"),
        ("\x1b[2J\n\u202e", "\\x1b[2J\\n\\u202e"),
        (os.fsdecode(b"gr\xf6\xdfe.png"), "gr\\xf6\\xdfe.png"),
    ],
)
def test_what_cannot_be_shown_is_escaped(words: str, shown: str) -> None:
    assert readable(words) == shown
