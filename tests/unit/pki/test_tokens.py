"""Tokens and join lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import BadData
from histofed.base.ids import Digest, sha256
from histofed.pki import tokens
from histofed.pki.tokens import JoinLine

hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
lines = st.builds(
    JoinLine,
    hosts,
    st.integers(1, 65535),
    st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True),
    st.binary().map(sha256),
)


@given(lines, st.sampled_from(["{}", "  {}\n", "{}\r\n"]))
def test_parse_reverses_str(line: JoinLine, around: str) -> None:
    text = str(line)
    assert "\n" not in text
    assert JoinLine.parse(around.format(text)) == line


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    try:
        line = JoinLine.parse(text)
    except BadData as error:
        assert str(error)
    else:
        assert JoinLine.parse(str(line)) == line


TOKEN = tokens.make()
DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a join line"),
        (f"histofed2 h:1 {TOKEN} {DIGEST}", "beginning with histofed1"),
        (f"histofed1 h {TOKEN} {DIGEST}", "not HOST:PORT"),
        (f"histofed1 h:0 {TOKEN} {DIGEST}", "not HOST:PORT"),
        (f"histofed1 h:65536 {TOKEN} {DIGEST}", "not HOST:PORT"),
        (f"histofed1 h/x:1 {TOKEN} {DIGEST}", "not HOST:PORT"),
        (f"histofed1 h:1 {TOKEN[:-1]} {DIGEST}", "token of the join line is damaged"),
        (f"histofed1 h:1 {TOKEN} {DIGEST[:-1]}", "not a SHA-256"),
    ],
)
def test_says_which_word_is_wrong_and_never_the_token(text: str, words: str) -> None:
    with pytest.raises(BadData, match=words) as caught:
        JoinLine.parse(text)
    assert TOKEN[:20] not in str(caught.value)


def test_a_line_does_not_show_its_token_in_logs() -> None:
    assert TOKEN not in repr(JoinLine("h", 1, TOKEN, Digest(DIGEST)))


def test_only_the_hmac_of_a_token_is_stored() -> None:
    key = tokens.new_server_key()
    stored = tokens.digest(TOKEN, key)
    assert tokens.matches(TOKEN, key, stored)
    assert not tokens.matches(tokens.make(), key, stored)
    assert not tokens.matches(TOKEN, tokens.new_server_key(), stored)
    assert stored != sha256(TOKEN.encode())


def test_tokens_do_not_repeat() -> None:
    assert len({tokens.make() for _ in range(100)}) == 100
