"""Words that came from elsewhere, made fit to be kept and shown: a site's reason, what a damaged file calls itself.

What another machine wrote may be megabytes long, or hold control characters that a terminal obeys. Whoever keeps such words,
in a row, a record or a log line, or puts them into an error, passes them through here first.
"""

from __future__ import annotations

from typing import Final

LETTERS: Final = 500
"""Of a reason, that are kept."""


def one_line(words: str, most: int = LETTERS) -> str:
    """The words on one line, at most `most` letters of them, without what a terminal would obey; may be empty."""
    # a cut before the split: a megabyte of words is not worth splitting
    line = " ".join(words[: 4 * most].split())
    if len(line) > most or len(words) > 4 * most:
        line = line[: most - 1] + "…"
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def readable(words: str) -> str:
    """The words on one line, with an escape for every letter that a terminal would obey or could not show.

    A byte of a file's name that is not UTF-8 is such a letter.
    """
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in words)


def _escape(letter: str) -> str:
    # how Python carries the bytes of a name that is not UTF-8 (PEP 383)
    return f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else letter.encode("unicode_escape").decode()
