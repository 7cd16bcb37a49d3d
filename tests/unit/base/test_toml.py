"""Lines of keys, in every form that TOML allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import ConfigError
from histofed.base.toml import KeyPath, read

TEXT = '''# comment
title = "x"

numbers = [
  1,  # one
  2,
]
text = """
[not.a.header]
key = 1
"""
[server]
host.name = "a"
"quoted key" = { inner = 1, deep = { er = 2 } }

[server.tls] # comment
ca = "c"
[[site]]
name = "a"
[[site]]
name = "b"
[site.extra]
x = 1
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("title",), 2),
        (("numbers",), 4),
        (("numbers", 1), 4),
        (("text",), 8),
        (("server",), 12),
        (("server", "host", "name"), 13),
        (("server", "quoted key", "deep", "er"), 14),
        (("server", "tls"), 16),
        (("server", "tls", "ca"), 17),
        (("server", "tls", "unknown"), 16),
        (("site", 0, "name"), 19),
        (("site", 1), 20),
        (("site", 1, "name"), 21),
        (("site", 1, "extra", "x"), 23),
        (("nowhere",), None),
    ],
)
def test_the_line_of_a_key(tmp_path: Path, key: KeyPath, line: int | None) -> None:
    (tmp_path / "x.toml").write_text(TEXT)
    assert read(tmp_path / "x.toml").line(key) == line


def test_windows_line_ends_do_not_move_lines(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert read(tmp_path / "x.toml").line(("server", "tls", "ca")) == 17


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 3000 + "]" * 3000, "{ a = " * 3000 + "1" + " }" * 3000])
def test_what_no_reader_of_toml_bears_is_refused_in_words(tmp_path: Path, value: str) -> None:
    (tmp_path / "x.toml").write_text(f"maximum_steps = {value}\n")
    with pytest.raises(ConfigError, match=r"x\.toml: has a number of thousands of digits, or values nested hundreds deep"):
        read(tmp_path / "x.toml")


keys = st.text("abc_", min_size=1, max_size=3)


@given(st.lists(st.tuples(keys, st.integers(0, 3)), unique_by=lambda item: item[0], max_size=8))
def test_every_key_stands_where_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, int]]
) -> None:
    lines: list[str] = []
    expected: dict[KeyPath, int] = {}
    for key, blank in items:
        lines.extend(["# k = 1"] * blank)
        lines.append(f"{key} = [{chr(10) * blank}1]")
        expected[(key,)] = "\n".join(lines[:-1]).count("\n") + 1 + bool(lines[:-1])
    path = tmp_path_factory.mktemp("toml") / "x.toml"
    path.write_text("\n".join(lines))
    file = read(path)
    assert {key: file.line(key) for key in expected} == expected
