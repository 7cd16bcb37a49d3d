"""Bytes that need not travel, because the receiver has them: a frozen trunk in the model of the round before.

Two files are compared at the same places, block by block: consecutive models of an experiment, and an update and its base,
have the same tensors and so the same layout. That costs a look at 64 bytes of a block that changed, where digests of every
tensor would cost a hash of the whole file at both ends (ADR 14). Borders are found to the byte; what is shorter than
`limits.COPY_LEAST` travels with its neighbours, so every unchanged tensor of twice that length or more is found.

Descriptors are open files of the caller. Used by both ends: the sender compares, the receiver copies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from histofed.base.errors import BadData, DigestMismatch
from histofed.base.ids import Digest
from histofed.transport import limits

_PROBE: Final = 64
"""Bytes of a block that are looked at before the whole block is read."""


@dataclass(frozen=True)
class Stretch:
    """Bytes that are the same in both files, at the same place."""

    offset: int
    size: int
    sha256: Digest

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.size


@dataclass(frozen=True)
class Piece:
    """The next thing to send: data, or a copy of bytes that the receiver holds."""

    offset: int
    size: int
    is_copy: bool = False
    sha256: Digest | None = None
    """Of a copy, where it is known already; part of a stretch must be hashed."""


def unchanged(new: int, old: int) -> tuple[Stretch, ...]:
    """What two open files have in common, by offset; no stretch overlaps another or is longer than `limits.SYNC_EVERY`.

    Reads both; hashes what is the same.
    """
    stretches = []
    for begin, end in _runs(new, old):
        for offset in range(begin, end, limits.SYNC_EVERY):
            size = min(limits.SYNC_EVERY, end - offset)
            if size >= limits.COPY_LEAST:
                stretches.append(Stretch(offset, size, digest_of(new, offset, size)))
    return tuple(stretches)


def pieces(size: int, stretches: Sequence[Stretch], offset: int, most: int = limits.CHUNK) -> Iterator[Piece]:
    """How to send the bytes from `offset` to `size`: copies where possible, data of at most `most` bytes elsewhere."""
    for stretch in stretches:
        begin = max(offset, stretch.offset)
        if stretch.end - begin < limits.COPY_LEAST:
            continue
        yield from _data(offset, begin, most)
        whole = begin == stretch.offset
        yield Piece(begin, stretch.end - begin, is_copy=True, sha256=stretch.sha256 if whole else None)
        offset = stretch.end
    yield from _data(offset, size, most)


def copied(held: int, offset: int, size: int, sha256: str) -> Iterator[bytes]:
    """The bytes of a copy, read from the open file `held` after their digest was checked.

    Raises `BadData` for a size that no copy has, `DigestMismatch` for other bytes, a file that ends before, or a disk that
    does not give them.
    """
    if not limits.COPY_LEAST <= size <= limits.SYNC_EVERY:
        raise BadData(f"a copy has {limits.COPY_LEAST} to {limits.SYNC_EVERY} bytes, not {size}")
    if offset < 0 or offset + size > os.fstat(held).st_size:
        raise DigestMismatch("a copy reaches behind the blob that it is taken from: one of the two is damaged")
    try:
        found = digest_of(held, offset, size)
    except OSError as error:
        raise DigestMismatch(f"the blob that bytes were to be copied from cannot be read: {error.strerror}") from error
    if found != sha256:
        raise DigestMismatch("the blob that bytes were to be copied from holds other bytes: one of the two is damaged")
    yield from _read(held, offset, size)


def digest_of(descriptor: int, offset: int, size: int) -> Digest:
    """SHA-256 of a part of an open file."""
    found = hashlib.sha256()
    for data in _read(descriptor, offset, size):
        found.update(data)
    return Digest(found.hexdigest())


def _read(descriptor: int, offset: int, size: int) -> Iterator[bytes]:
    end = offset + size
    while offset < end:
        data = os.pread(descriptor, min(limits.CHUNK, end - offset), offset)
        if not data:
            raise BadData("a file became shorter while it was read")
        yield data
        offset += len(data)


def _data(begin: int, end: int, most: int) -> Iterator[Piece]:
    for offset in range(begin, end, most):
        yield Piece(offset, min(most, end - offset))


def _runs(new: int, old: int) -> Iterator[tuple[int, int]]:
    """Begin and end of what is the same, for every run with at least one whole block in it."""
    size = min(os.fstat(new).st_size, os.fstat(old).st_size)
    block, begin = limits.COPY_LEAST, None
    for offset in range(0, size, block):
        same = _same_block(new, old, offset, block)
        if same and begin is None:
            begin = offset - _common_end(new, old, max(0, offset - block), offset)
        elif not same and begin is not None:
            yield begin, offset + _common_begin(new, old, offset, block)
            begin = None
    if begin is not None:
        yield begin, size


def _same_block(new: int, old: int, offset: int, block: int) -> bool:
    return os.pread(new, _PROBE, offset) == os.pread(old, _PROBE, offset) and (
        os.pread(new, block, offset) == os.pread(old, block, offset)
    )


def _common_begin(new: int, old: int, offset: int, block: int) -> int:
    """How many bytes from `offset` on are the same, in a block that is not."""
    return _agreement(os.pread(new, block, offset), os.pread(old, block, offset))


def _common_end(new: int, old: int, begin: int, end: int) -> int:
    """How many bytes before `end` are the same, in a block that is not."""
    return _agreement(os.pread(new, end - begin, begin)[::-1], os.pread(old, end - begin, begin)[::-1])


def _agreement(one: bytes, other: bytes) -> int:
    """Length of the common beginning, by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
