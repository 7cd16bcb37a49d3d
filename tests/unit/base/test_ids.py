"""Names and digests that may stand in a certificate, a folder name or a trace."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import BadData
from histofed.base.ids import (
    Json,
    RoundKey,
    TaskKey,
    canonical,
    check_name,
    digest,
    experiment_id,
    sha256,
    site_id,
)

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize("name", ["a", "7", "north-clinic", "a" * 40, "a-b-c"])
def test_good_names(name: str) -> None:
    assert {check_name(name), site_id(name), experiment_id(name)} == {name}


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "A", "a" * 41, "a b", "a/b", "..", "a\n", "a\x00", "ä", "a_b", "a.b", "\u0661"],  # an Arabic digit
)
def test_bad_names(name: str) -> None:
    with pytest.raises(BadData, match="is not allowed: use 1 to 40"):
        check_name(name)


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "../" + "0" * 61, "g" * 64])
def test_bad_digests(text: str) -> None:
    with pytest.raises(BadData, match="not a SHA-256 digest"):
        digest(text)


def test_a_digest_is_of_the_bytes() -> None:
    assert digest(sha256(b"")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(names, st.integers(0, 10**9 - 1), st.sampled_from(["train", "evaluate"]), names)
def test_a_task_is_read_back(experiment: str, number: int, kind: str, site: str) -> None:
    key = TaskKey(RoundKey(experiment_id(experiment), number), kind, site_id(site))
    assert TaskKey.parse(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "crc/1/train",
        "crc/1/paint/north",
        "crc/x/train/north",
        "crc/-1/train/north",
        "crc/1/train/north/x",
        "crc/1/train/NORTH",
        "crc/²/train/north",
        "crc/٣/train/north",
        "crc/03/train/north",
        f"crc/{10**30}/train/north",
    ],
)
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises(BadData):
        TaskKey.parse(text)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(texts, documents, max_size=4))
def test_a_document_has_one_byte_form(document: dict[str, Json]) -> None:
    form = canonical(document)
    assert json.loads(form) == document
    shuffled = dict(reversed(document.items()))
    assert canonical(shuffled) == form
    assert b"\n" not in form


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_has_none(value: float) -> None:
    with pytest.raises(BadData, match="not finite"):
        canonical({"x": value})
