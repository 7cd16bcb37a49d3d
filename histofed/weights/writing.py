"""Tensors are written: atomic, durable, and the same bytes for the same content, with names sorted and no gaps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histofed.base import durable
from histofed.base.hashing import StreamDigest
from histofed.base.ids import Digest
from histofed.weights.header import Array, header_of, type_name


@dataclass(frozen=True)
class Written:
    """A file by content, as it was written."""

    sha256: Digest
    bytes: int


def save(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Written:
    """Write tensors to `path`, and texts about them into its header: atomic, durable, the same bytes for the same content.

    Raises `BadData` for a type that is not supported and `CannotWriteState`.
    """
    specs = [(name, type_name(name, array.dtype), array.shape) for name, array in sorted(tensors.items())]
    return save_stream(path, specs, (np.ascontiguousarray(tensors[name]).reshape(-1) for name, _, _ in specs), metadata)


def store(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """What `save` writes, for a file that nobody names by content: its digest costs more than the rest. Raises as `save`."""
    specs = [(name, type_name(name, array.dtype), array.shape) for name, array in sorted(tensors.items())]
    store_stream(path, specs, (np.ascontiguousarray(tensors[name]).reshape(-1) for name, _, _ in specs), metadata)


def save_stream(
    path: Path,
    specs: Iterable[tuple[str, str, tuple[int, ...]]],
    data: Iterable[Array],
    metadata: Mapping[str, str] | None = None,
) -> Written:
    """Write tensors whose data come one piece after another, in the order of `specs` (sorted by name).

    Pieces may be parts of tensors; only their sum must fit. Memory: one piece, and 2 MiB that wait to be hashed.
    """
    return write_stream(path, _parts(specs, data, metadata))


def store_stream(
    path: Path,
    specs: Iterable[tuple[str, str, tuple[int, ...]]],
    data: Iterable[Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """What `save_stream` writes, for a file that nobody names by content."""
    with durable.writing(path) as file:
        for part in _parts(specs, data, metadata):
            file.write(part)


def write_stream(path: Path, parts: Iterable[memoryview]) -> Written:
    """Write a file whose bytes come in parts, and hash them on the way: atomic, durable. Raises `CannotWriteState`."""
    written = 0
    with StreamDigest() as digest, durable.writing(path) as file:
        for part in parts:
            digest.update(part)
            written += file.write(part)
    return Written(digest.finish(), written)


def _parts(
    specs: Iterable[tuple[str, str, tuple[int, ...]]], data: Iterable[Array], metadata: Mapping[str, str] | None
) -> Iterator[memoryview]:
    """A file's bytes; that the data are as long as the header promises is told before the file becomes one."""
    begin, promised = header_of(specs, metadata)
    yield memoryview(begin)
    written = 0
    for piece in data:
        view = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        written += len(view)
        yield view
    assert written == promised, f"{written} bytes of tensors where the header promises {promised}"
