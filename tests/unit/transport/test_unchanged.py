"""What two files have in common: always true, never too much, and everything that is long enough to matter."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histofed.base.errors import BadData, DigestMismatch
from histofed.base.ids import sha256
from histofed.transport import limits
from histofed.transport.unchanged import Stretch, copied, pieces, unchanged

BLOCK = limits.COPY_LEAST


@contextmanager
def in_memory(*contents: bytes) -> Iterator[tuple[int, ...]]:
    descriptors = []
    for content in contents:
        descriptors.append(os.memfd_create("blob"))
        os.pwrite(descriptors[-1], content, 0)
    try:
        yield tuple(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def compare(new: bytes, old: bytes) -> tuple[Stretch, ...]:
    with in_memory(new, old) as (one, other):
        return unchanged(one, other)


def noise(size: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(size)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[bytes, bytes, list[tuple[int, int]]]:
    """Two files of the same layout, some of whose tensors differ in their first and last byte, and the unchanged ones."""
    new, old, same = bytearray(), bytearray(), []
    for number, (size, is_same) in enumerate(
        draw(st.lists(st.tuples(st.integers(1, 4 * BLOCK), st.booleans()), min_size=1, max_size=12))
    ):
        data = noise(size, number)
        if is_same:
            same.append((len(new), len(new) + size))
        new += data
        old += data if is_same else bytes((data[0] ^ 1,)) + noise(size - 1, -1 - number)[: max(0, size - 2)]
        if not is_same and size > 1:
            old += bytes((data[-1] ^ 1,))
    return bytes(new), bytes(old), same


@settings(max_examples=30, deadline=None)
@given(tensors())
def test_every_unchanged_tensor_of_two_blocks_is_found_and_nothing_that_changed(
    files: tuple[bytes, bytes, list[tuple[int, int]]],
) -> None:
    new, old, same = files
    found = compare(new, old)
    assert all(new[each.offset : each.end] == old[each.offset : each.end] for each in found)
    assert all(each.sha256 == sha256(new[each.offset : each.end]) for each in found)
    assert all(one.end <= other.offset for one, other in itertools.pairwise(found))
    for begin, end in same:
        if end - begin >= 2 * BLOCK:
            assert any(each.offset <= begin and end <= each.end for each in found)


def test_borders_are_found_to_the_byte() -> None:
    new, old = bytearray(noise(10 * BLOCK)), bytearray(noise(10 * BLOCK))
    for changed in (0, 3 * BLOCK + 5, 10 * BLOCK - 1):
        old[changed] ^= 255
    found = [(each.offset, each.end) for each in compare(bytes(new), bytes(old))]
    assert found == [(1, 3 * BLOCK + 5), (3 * BLOCK + 6, 10 * BLOCK - 1)]


def test_files_of_other_lengths_share_what_they_can() -> None:
    new = noise(5 * BLOCK)
    assert [(each.offset, each.end) for each in compare(new, new[: 3 * BLOCK + 7])] == [(0, 3 * BLOCK + 7)]
    assert [(each.offset, each.end) for each in compare(new[: 3 * BLOCK + 7], new)] == [(0, 3 * BLOCK + 7)]
    assert compare(b"", new) == ()
    assert compare(new[: BLOCK - 1], new) == (), "too short to be worth a copy"


def test_no_stretch_is_longer_than_what_is_acknowledged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SYNC_EVERY", 4 * BLOCK)
    found = compare(noise(10 * BLOCK), noise(10 * BLOCK))
    assert [each.size for each in found] == [4 * BLOCK, 4 * BLOCK, 2 * BLOCK]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_pieces_are_every_byte_once_and_in_order(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 40 * BLOCK))
    borders = sorted(data.draw(st.lists(st.integers(0, size), max_size=10, unique=True)))
    stretches = [Stretch(begin, end - begin, sha256(b"")) for begin, end in zip(borders[::2], borders[1::2], strict=False)]
    offset, most = data.draw(st.integers(0, size)), data.draw(st.integers(BLOCK, 3 * BLOCK))
    position = offset
    for piece in pieces(size, stretches, offset, most):
        assert piece.offset == position
        position += piece.size
        if piece.is_copy:
            assert piece.size >= BLOCK
            assert any(each.offset <= piece.offset and position <= each.end for each in stretches)
            assert (piece.sha256 is None) == all(each.offset != piece.offset for each in stretches)
        else:
            assert 0 < piece.size <= most
    assert position == max(size, offset)


@pytest.mark.parametrize(
    ("offset", "size", "error", "words"),
    [
        (0, BLOCK - 1, BadData, "a copy has"),
        (0, -1, BadData, "a copy has"),
        (0, limits.SYNC_EVERY + 1, BadData, "a copy has"),
        (-1, BLOCK, DigestMismatch, "reaches behind"),
        (1, 2 * BLOCK, DigestMismatch, "reaches behind"),
        (1 << 62, BLOCK, DigestMismatch, "reaches behind"),
    ],
)
def test_a_copy_of_something_impossible_is_refused(offset: int, size: int, error: type[Exception], words: str) -> None:
    with in_memory(noise(2 * BLOCK)) as (held,), pytest.raises(error, match=words):
        next(copied(held, offset, size, sha256(b"")))


def test_a_copy_is_checked_before_its_first_byte() -> None:
    content = noise(2 * BLOCK)
    with in_memory(content) as (held,):
        assert b"".join(copied(held, 5, BLOCK, sha256(content[5 : 5 + BLOCK]))) == content[5 : 5 + BLOCK]
        for wrong in (sha256(b"x"), "", "../../etc/passwd"):
            with pytest.raises(DigestMismatch, match="one of the two is damaged"):
                next(copied(held, 0, BLOCK, wrong))
