"""An encoded update as a file, written and read piece by piece beside its base, which says what is in it.

    8 bytes "histofed", u32 length of the header, little-endian
    header   canonical JSON: base (SHA-256 of the base's file), block (words in one), encoding
    blocks   tensor by tensor, sorted by name: `planes.pack` of every `BLOCK` words

Names, types and shapes are the base's, whose digest the header and the site's signed manifest name: the file repeats none
of them, so it cannot contradict them. Without exactly that base nothing can be read.

Invariants. The same tensors, base and encoding give the same bytes with the same zlib, whatever process writes them; what
is decoded does not depend on zlib. A reader knows from the base how many bytes come out of every block; one more, one
less, or one behind the last are refused. Memory is a few pieces.

The agent's trainer encodes (`agent/trainer.py`), the aggregator's children decode (`aggregator/inspection.py`,
`aggregator/aggregate.py`).
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import numpy as np

from histofed.base.encoding import Encoding
from histofed.base.errors import BadData, TryLater
from histofed.base.ids import canonical
from histofed.encodings.loss import Loss, Tally
from histofed.encodings.planes import pack, skip, unpack
from histofed.encodings.words import Transform, transform
from histofed.weights import (
    HEADER_LIMIT,
    PIECE,
    Array,
    TensorFile,
    Tensors,
    TensorSpec,
    Written,
    check_same_meaning,
    dtype_of,
    piece_sizes,
    read_into,
    write_stream,
)

BLOCK: Final = PIECE
"""Words coded together: the pieces that are averaged. Part of the format; a reader refuses another one."""
_MAGIC: Final = b"histofed"
_LENGTH: Final = struct.Struct("<I")
_BEGIN: Final = len(_MAGIC) + _LENGTH.size
_HEADER_LIMIT: Final = 1024
_ROOM: Final = 1e-9
"""Relative: the same norm summed in another order, where clipping had nothing to do."""


@dataclass(frozen=True)
class Form:
    """How a file of tensors is written."""

    encoding: Encoding = "float32"
    base: str = ""
    """SHA-256 of the base's file; `float32` needs none."""


PLAIN: Final = Form()


@dataclass(frozen=True)
class Encoded:
    """The file that was written, how far what it decodes to is from the base, and what the encoding changed."""

    file: Written
    norm: float
    """L2 norm of (decoded - base), as the aggregator will measure it."""
    loss: Loss


def longest(base: int) -> int:
    """Bytes that no file of an update has more of, in any encoding, where the base's file has `base` bytes.

    A plain one has the base's data behind another header. In an encoded one every plane may be stored as it is, behind four
    bytes: one byte more for each 8192 of data, and at most 32 for each tensor's last block, which its entry in the base's
    header outweighs.
    """
    return base + base // (BLOCK // _LENGTH.size) + HEADER_LIMIT


def encode_file(update: Path, base: Path, form: Form, max_norm: float, target: Path) -> Encoded:
    """Write the tensors of `update` (plain, finite) to `target` in `form`, which is not `float32`.

    Where rounding a difference to nearest would carry the update over `max_norm`, every difference is truncated instead.
    Raises `BadData` when the files do not hold the same floating tensors, or when rounded weights are too far from the
    base (they cannot be kept near it), and `CannotWriteState`.
    """
    bound = max_norm * (1 + _ROOM)
    with TensorFile(update) as new, TensorFile(base) as old:
        check_same_meaning(new, old)
        found = _written(new, old, form, target, towards_base=False)
        if found.norm > bound and form.encoding == "bfloat16-delta":
            found = _written(new, old, form, target, towards_base=True)
    if not found.norm <= bound:
        raise BadData(
            f"encoding {form.encoding!r} moves the update to a norm of {found.norm:.6g}, the experiment allows "
            f"{max_norm:.6g} (aggregation.max_norm): ask its operator for 'bfloat16-delta', or for a wider bound"
        )
    return found


class _Content:
    """A file's bytes, read as they are asked for: of a mapped one, a sector that cannot be read would kill the process."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> memoryview:
        """Raises `BadData` for a file that has become shorter, and `TryLater` when the disk fails."""
        begin, end, _ = part.indices(self._size)
        found = memoryview(bytearray(end - begin))
        try:
            read = read_into(self._file.fileno(), found, begin)
        except OSError as error:
            raise TryLater(f"an update cannot be read: {error.strerror}; repair the disk of this machine") from error
        if read < len(found):
            raise BadData("its file has become shorter")
        return found


class DecodedFile:
    """The tensors of an encoded file, decoded as they are read; a context manager over an open base.

    Raises `BadData` when the file is damaged, cut short or too long, in another encoding, or was made for another base, and
    `TryLater` when the disk fails, which says nothing of what the file holds.
    """

    def __init__(self, path: Path, base: Tensors, form: Form) -> None:
        self._base = base
        self._encoding = form.encoding
        self.specs: Mapping[str, TensorSpec] = base.specs
        with contextlib.ExitStack() as opened:
            self._file = opened.enter_context(path.open("rb", buffering=0))
            self._data = _Content(self._file, path.stat().st_size)
            position = _check_header(bytes(self._data[: _BEGIN + _HEADER_LIMIT]), form)
            self._begins = dict[str, int]()
            for name in self.specs:
                self._begins[name] = position
                position = self._behind(name, position)
            if position != len(self._data):
                raise BadData(f"damaged update: {len(self._data) - position} bytes follow its last tensor")
            opened.pop_all()

    def pieces(self, name: str) -> Iterator[Array]:
        """The decoded tensor in parts. Raises `BadData` and `TryLater`."""
        coder, position = self._coder(name), self._begins[name]
        for base in self._base.pieces(name):
            try:
                words, position = unpack(self._data, position, base.size, coder.words)
            except BadData as error:
                raise _damaged(name, error) from error
            yield coder.decode(words, base)

    def copy(self, name: str) -> Array:
        """The whole tensor, decoded. Raises `BadData` and `TryLater`."""
        spec = self.specs[name]
        parts = [*self.pieces(name)] or [np.empty(0, dtype_of(spec))]
        return np.concatenate(parts).reshape(spec.shape)

    def _coder(self, name: str) -> Transform:
        return transform(self._encoding, dtype_of(self.specs[name]))

    def _behind(self, name: str, position: int) -> int:
        words = self._coder(name).words
        try:
            for size in piece_sizes(math.prod(self.specs[name].shape)):
                position = skip(self._data, position, size, words)
        except BadData as error:
            raise _damaged(name, error) from error
        return position

    def __enter__(self) -> DecodedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def _damaged(name: str, error: BadData) -> BadData:
    return BadData(f"damaged update: tensor {name[:80]!r} cannot be decoded: {error}")


def open_encoded(path: Path, base: TensorFile, form: Form) -> Tensors:
    """An update in any encoding, over its open base. Raises `BadData`, `TryLater` and `OSError`."""
    return TensorFile(path) if form.encoding == "float32" else DecodedFile(path, base, form)


def _written(new: TensorFile, old: TensorFile, form: Form, target: Path, *, towards_base: bool) -> Encoded:
    tally = Tally()
    file = write_stream(target, _encoded(new, old, form, tally, towards_base=towards_base))
    plain = sum(spec.end - spec.begin for spec in new.specs.values())
    return Encoded(file, tally.norm, tally.loss(file.bytes / plain if plain else 1.0))


def _encoded(new: TensorFile, old: TensorFile, form: Form, tally: Tally, *, towards_base: bool) -> Iterator[memoryview]:
    """The file's bytes in parts; what they mean is counted in `tally` on the way."""
    yield memoryview(encoded_header(form))
    for name, spec in old.specs.items():
        coder = transform(form.encoding, dtype_of(spec), towards_base=towards_base)
        for trained, base in zip(new.pieces(name), old.pieces(name), strict=True):
            words = coder.encode(trained, base)
            tally.add(trained, trained if coder.exact else coder.decode(words, base), base)
            yield memoryview(pack(words))


def encoded_header(form: Form) -> bytes:
    """How a file in `form` begins."""
    text = canonical({"base": form.base, "block": BLOCK, "encoding": form.encoding})
    return _MAGIC + _LENGTH.pack(len(text)) + text


def _check_header(begin: bytes, form: Form) -> int:
    """Where the blocks begin. Raises `BadData` saying what the file is instead."""
    expected = encoded_header(form)
    if begin.startswith(expected):
        return len(expected)
    if not begin.startswith(_MAGIC) or len(begin) < _BEGIN:
        raise BadData(f"not an update in encoding {form.encoding!r}: it does not begin like one")
    (length,) = _LENGTH.unpack_from(begin, len(_MAGIC))
    try:
        found = json.loads(begin[_BEGIN : _BEGIN + min(length, _HEADER_LIMIT)])
    except (ValueError, RecursionError) as error:
        raise BadData("damaged update: its header is not JSON") from error
    wanted = json.loads(expected[_BEGIN:])
    for name in wanted:
        have = found.get(name) if isinstance(found, dict) else None
        if have != wanted[name]:
            raise BadData(f"the update's file says {name} {str(have)[:80]!r}, where it must be {wanted[name]!r}")
    raise BadData("damaged update: its header is not in canonical form")
