"""A file of tensors that is read: whole ones as views of a mapping, or piece by piece beside others of their kind."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

import numpy as np

from histofed.base.errors import BadData, TryLater
from histofed.weights.header import HEADER_LIMIT, LENGTH, Array, TensorSpec, dtype_of, parse_header_and_texts

PIECE: Final = 1 << 15
"""Elements handled at a time: two float64 buffers of this size (512 KiB) stay in a core's L2 cache (16 to 128 Ki tried)."""


def pieces(array: Array) -> Iterator[Array]:
    """The flattened array in parts of at most `PIECE` elements, as views."""
    flat = array.reshape(-1)
    for begin in range(0, flat.size, PIECE):
        yield flat[begin : begin + PIECE]


def piece_sizes(elements: int) -> Iterator[int]:
    """How long the pieces of a tensor of so many elements are."""
    for begin in range(0, elements, PIECE):
        yield min(PIECE, elements - begin)


def read_into(descriptor: int, into: memoryview, position: int) -> int:
    """How many bytes came from there on; fewer than there is room for only where the file ends. Raises `OSError`."""
    done = 0
    # a disk gives what lies before its fault first, as if the file ended there
    while done < len(into) and (read := os.preadv(descriptor, [into[done:]], position + done)):
        done += read
    return done


class Tensors(Protocol):
    """A file of tensors that is walked piece by piece: a `TensorFile`, or an update that is decoded as it is read."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor by name, sorted."""
        ...

    def pieces(self, name: str) -> Iterator[Array]:
        """The tensor, flattened, in parts of `PIECE` elements; the last may have fewer. Raises `BadData` and `TryLater`."""
        ...

    def copy(self, name: str) -> Array:
        """The whole tensor, in memory of its own. Raises `BadData` and `TryLater`."""
        ...

    def __enter__(self) -> Tensors: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TensorFile:
    """A safetensors file that is open; a context manager. Raises `BadData` when it cannot be used, `OSError` from the disk.

    Two ways to its values: `array` is a read-only view of the mapped file, which must not outlive it; `pieces` and `copy`
    read.
    """

    def __init__(self, path: Path) -> None:
        with contextlib.ExitStack() as opened:
            self._file = opened.enter_context(path.open("rb", buffering=0))
            size = path.stat().st_size
            if size < LENGTH.size:
                raise BadData("not a safetensors file: it is shorter than 8 bytes")
            (length,) = LENGTH.unpack(self._begin(0, LENGTH.size))
            self._data_begin = LENGTH.size + length
            if length > HEADER_LIMIT or self._data_begin > size:
                raise BadData(f"not a safetensors file: a header of {length} bytes (the limit is {HEADER_LIMIT})")
            specs, self.metadata = parse_header_and_texts(self._begin(LENGTH.size, length), size - self._data_begin)
            self.specs = {spec.name: spec for spec in specs}
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            opened.pop_all()

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, sorted."""
        return tuple(self.specs)

    def array(self, name: str) -> Array:
        """The tensor as a read-only view of the file. Raises `BadData` when it is not there."""
        spec = self._spec(name)
        flat = np.frombuffer(
            self._map, dtype_of(spec), math.prod(spec.shape), self._data_begin + spec.begin if spec.end else 0
        )
        return flat.reshape(spec.shape)

    def pieces(self, name: str) -> Iterator[Array]:
        """The flattened tensor in parts of `PIECE` elements, copied from the page cache as they are wanted.

        Mapped instead, a process that reads twenty models looks to whoever limits its memory as if it held twenty, and a
        sector that cannot be read kills it. Raises `BadData` when the tensor is not there, and `TryLater` when the disk
        fails, which says nothing of what the file holds.
        """
        spec = self._spec(name)
        position = self._data_begin + spec.begin
        for size in piece_sizes(math.prod(spec.shape)):
            piece = np.empty(size, dtype_of(spec))
            self._read(name, piece, position)
            position += piece.nbytes
            yield piece

    def copy(self, name: str) -> Array:
        """The whole tensor, read into memory. Raises as `pieces` does."""
        spec = self._spec(name)
        found = np.empty(math.prod(spec.shape), dtype_of(spec))
        self._read(name, found, self._data_begin + spec.begin)
        return found.reshape(spec.shape)

    def _read(self, name: str, into: Array, position: int) -> None:
        try:
            read = read_into(self._file.fileno(), into.view(np.uint8).data, position)
        except OSError as error:
            raise TryLater(f"tensor {name!r} cannot be read: {error.strerror}; repair the disk of this machine") from error
        if read < into.nbytes:
            raise BadData(f"tensor {name!r} cannot be read: its file has become shorter")

    def _begin(self, position: int, size: int) -> bytes:
        found = bytearray(size)
        read_into(self._file.fileno(), memoryview(found), position)
        return bytes(found)

    def _spec(self, name: str) -> TensorSpec:
        spec = self.specs.get(name)
        if spec is None:
            raise BadData(f"tensor {name!r} is missing")
        return spec

    def items(self) -> Iterator[tuple[str, Array]]:
        """Names and views, sorted by name."""
        for name in self.names:
            yield name, self.array(name)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        try:
            self._map.close()
        except BufferError:
            # a view is still alive (as in a traceback); the map goes with it
            return


def read_header(path: Path) -> tuple[TensorSpec, ...]:
    """The tensors of a file, by name. Raises `BadData` and `OSError`."""
    with TensorFile(path) as file:
        return tuple(file.specs.values())


def read(path: Path) -> dict[str, Array]:
    """Every tensor, copied into memory. Raises `BadData`."""
    with TensorFile(path) as file:
        return {name: array.copy() for name, array in file.items()}
