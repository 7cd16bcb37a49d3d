"""The digest of a stream: the one that hashlib gives, however the stream is cut, and no thread left behind."""

from __future__ import annotations

import hashlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.hashing import StreamDigest

CHUNK = 1 << 18
"""Bytes from which on a thread hashes."""
SIZES = st.lists(st.sampled_from([0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]), max_size=6)


def hashing_threads() -> list[threading.Thread]:
    """Those alive."""
    return [thread for thread in threading.enumerate() if thread.name == "sha256"]


@given(sizes=SIZES)
def test_cuts_do_not_matter(sizes: list[int]) -> None:
    data = bytes(range(251)) * (sum(sizes) // 251 + 1)
    position = 0
    with StreamDigest() as digest:
        for size in sizes:
            digest.update(memoryview(data)[position : position + size])
            position += size
        assert digest.finish() == hashlib.sha256(data[:position]).hexdigest()
    assert not hashing_threads()


def test_the_callers_buffer_may_be_used_again() -> None:
    buffer = bytearray(b"a" * CHUNK)
    with StreamDigest() as digest:
        digest.update(memoryview(buffer))
        buffer[:] = b"b" * CHUNK
        assert digest.finish() == hashlib.sha256(b"a" * CHUNK).hexdigest()


def test_a_small_stream_needs_no_thread() -> None:
    with StreamDigest() as digest:
        digest.update(memoryview(b"few"))
        assert not hashing_threads()


def test_work_that_fails_leaves_no_thread() -> None:
    with pytest.raises(OSError, match="full"), StreamDigest() as digest:
        digest.update(memoryview(bytes(2 * CHUNK)))
        assert hashing_threads()
        raise OSError("the disk is full")
    assert not hashing_threads()
