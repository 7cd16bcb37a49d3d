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
