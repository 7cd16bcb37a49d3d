"""A segment's lines from its end, whatever pieces it is read in."""

from __future__ import annotations

from pathlib import Path

import pytest

from histofed.audit.segments import lines, lines_backwards


@pytest.mark.parametrize("torn", [b"", b"half a li"])
@pytest.mark.parametrize("window", [8, 9, 13, 16, 1000])
def test_the_complete_lines_are_read_newest_first(tmp_path: Path, torn: bytes, window: int) -> None:
    path = tmp_path / "segment"
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(10)) + b"\n\nx\n" + torn)
    found = [line for line, complete in lines(path) if complete]
    assert list(lines_backwards(path, window)) == found[::-1]


def test_a_line_longer_than_a_window_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(b"first\n" + b"x" * 50 + b"\nlast\n")
    found = list(lines_backwards(path, 10))
    assert (found[0], found[-1]) == (b"last", b"first")
