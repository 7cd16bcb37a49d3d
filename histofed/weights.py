"""Named tensors in safetensors files: the only form in which weights are stored, sent and hashed; never pickle.

numpy only, so that the aggregator needs no torch. Files are read through `mmap`: a view costs page cache, not anonymous
memory, and a model of any size is walked tensor by tensor. What is written is deterministic (names sorted, no gaps, fixed
header form), so equal tensors give equal bytes and one digest.

The format (safetensors 0.x, "Format" section of its README): 8 bytes little-endian header length, a JSON header
`{name: {dtype, shape, data_offsets}}`, then the data. The format permits headers of 100 MB; ours are refused above
1 MiB before they are parsed, and holes, overlaps, unknown types and trailing bytes are refused too.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from histofed.base import durable
from histofed.base.errors import BadData
from histofed.base.hashing import StreamDigest
from histofed.base.ids import Digest

Array: TypeAlias = npt.NDArray[Any]

HEADER_LIMIT: Final = 1 << 20
"""Bytes of JSON header accepted; ViT-L/16 with two heads needs about 40 KiB."""

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
LET_GO: Final = 4 << 20
"""Bytes of a file that a walk through it has mapped at most."""
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
FLOATS: Final = frozenset({"F64", "F32", "F16"})
"""Types that may be shared and averaged."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file: its name, safetensors type, shape, and where its bytes lie behind the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def meaning(self) -> tuple[str, str, tuple[int, ...]]:
        """What two files must agree on."""
        return self.name, self.dtype, self.shape


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """numpy's type of a tensor's values."""
    return _DTYPES[spec.dtype]


def parse_header(header: bytes, data_size: int) -> tuple[TensorSpec, ...]:
    """The tensors of a file whose JSON header is `header` and which holds `data_size` bytes behind it, by name.

    Raises `BadData` for anything the format forbids.
    """
    return _parse(header, data_size)[0]


def _parse(header: bytes, data_size: int) -> tuple[tuple[TensorSpec, ...], Mapping[str, str]]:
    """The tensors by name, and the texts beside them."""
    try:
        document = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise BadData("not a safetensors file: its header is not JSON") from error
    if not isinstance(document, dict):
        raise BadData("not a safetensors file: its header is not a table")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise BadData("damaged safetensors file: what it says about itself is not text")
    specs = sorted((_spec(name, entry) for name, entry in document.items()), key=lambda spec: (spec.begin, spec.end))
    position = 0
    for spec in specs:
        if spec.begin != position:
            raise BadData(f"damaged safetensors file: tensor {spec.name!r} leaves a hole or overlaps another")
        position = spec.end
    if position != data_size:
        raise BadData(f"damaged safetensors file: {data_size} bytes of data where the header promises {position}")
    return tuple(sorted(specs, key=lambda spec: spec.name)), metadata


def _spec(name: str, entry: object) -> TensorSpec:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if dtype in _DTYPES:
            pass
        case _:
            raise BadData(f"tensor {name[:80]!r} has a description or a type that is not supported")
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 0 for size in shape):
        raise BadData(f"tensor {name[:80]!r} has an impossible shape")
    if begin < 0 or end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise BadData(f"tensor {name[:80]!r} does not fill its place in the file")
    return TensorSpec(name, dtype, tuple(shape), begin, end)


class Tensors(Protocol):
    """A file of tensors that is walked piece by piece: a `TensorFile`, or an update that is decoded as it is read."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor by name, sorted."""
        ...

    def pieces(self, name: str) -> Iterator[Array]:
        """The tensor, flattened, in parts of `PIECE` elements; the last one may have fewer. Raises `BadData`."""
        ...

    def array(self, name: str) -> Array:
        """The whole tensor. Raises `BadData`."""
        ...

    def __enter__(self) -> Tensors: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TensorFile:
    """A safetensors file, read through mmap; a context manager. Raises `BadData` when it cannot be used.

    Arrays are read-only views that must not outlive the file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 8:
                raise BadData("not a safetensors file: it is shorter than 8 bytes")
            (length,) = struct.unpack("<Q", file.read(8))
            if length > HEADER_LIMIT or 8 + length > size:
                raise BadData(f"not a safetensors file: a header of {length} bytes (the limit is {HEADER_LIMIT})")
            self._data_begin = 8 + length
            specs, self.metadata = _parse(file.read(length), size - self._data_begin)
            self.specs = {spec.name: spec for spec in specs}
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, sorted."""
        return tuple(self.specs)

    def array(self, name: str) -> Array:
        """The tensor as a read-only view of the file. Raises `BadData` when it is not there."""
        spec = self.specs.get(name)
        if spec is None:
            raise BadData(f"tensor {name!r} is missing")
        flat = np.frombuffer(
            self._map, _DTYPES[spec.dtype], math.prod(spec.shape), self._data_begin + spec.begin if spec.end else 0
        )
        return flat.reshape(spec.shape)

    def pieces(self, name: str) -> Iterator[Array]:
        """The flattened tensor in parts, as views, for one pass: what was passed leaves this process's memory.

        It stays in the page cache. A process that reads twenty models would otherwise look, to whoever limits its memory, as
        if it held twenty. Raises `BadData` when the tensor is not there.
        """
        end = self._data_begin + self.specs[name].begin if self.specs.get(name) else 0
        behind = end
        for piece in pieces(self.array(name)):
            yield piece
            end += piece.nbytes
            if end - behind >= LET_GO:
                let_go(self._map, end)
                behind = end
        let_go(self._map, end)

    def items(self) -> Iterator[tuple[str, Array]]:
        """Names and views, sorted by name."""
        for name in self.names:
            yield name, self.array(name)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._map.close()
        except BufferError:
            # a view is still alive (as in a traceback); the map goes with it
            return


def read_header(path: Path) -> tuple[TensorSpec, ...]:
    """The tensors of a file, by name. Raises `BadData`."""
    with TensorFile(path) as file:
        return tuple(file.specs.values())


def read(path: Path) -> dict[str, Array]:
    """Every tensor, copied into memory. Raises `BadData`."""
    with TensorFile(path) as file:
        return {name: array.copy() for name, array in file.items()}


@dataclass(frozen=True)
class Written:
    """A file by content, as it was written."""

    sha256: Digest
    bytes: int


def save(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Written:
    """Write tensors to `path`, and texts about them into its header: atomic, durable, the same bytes for the same content.

    Raises `BadData` for a type that is not supported and `CannotWriteState`.
    """
    specs = [(name, _type_name(name, array.dtype), array.shape) for name, array in sorted(tensors.items())]
    return save_stream(path, specs, (np.ascontiguousarray(tensors[name]).reshape(-1) for name, _, _ in specs), metadata)


def store(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """What `save` writes, for a file that nobody names by content: its digest costs more than the rest. Raises as `save`."""
    specs = [(name, _type_name(name, array.dtype), array.shape) for name, array in sorted(tensors.items())]
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


def header_of(
    specs: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, int]:
    """How a file of ours with such tensors begins, and the bytes of data behind. Raises `BadData` for too many tensors."""
    offset, header = 0, dict[str, object]()
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    for name, dtype, shape in specs:
        size = math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise BadData(f"too many tensors: a header of {len(text)} bytes (the limit is {HEADER_LIMIT})")
    return struct.pack("<Q", len(text)) + text, offset


def _type_name(name: str, dtype: np.dtype[Any]) -> str:
    try:
        return _NAMES[dtype]
    except KeyError as error:
        raise BadData(f"tensor {name!r} has type {dtype}, which cannot be stored") from error


def let_go(mapped: mmap.mmap, end: int) -> None:
    """Take the first `end` bytes of a mapped file out of this process's memory; they stay in the page cache.

    From the file's first byte on, not from where the walk began: a file system with large folios maps all of a folio when
    one of its pages is touched, so that the pages before come back each time. Pages that are gone cost nothing.
    """
    if end:
        mapped.madvise(mmap.MADV_DONTNEED, 0, end)


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


@dataclass(frozen=True)
class Difference:
    """How an update differs from its base: L2 norm of (update - base) over all tensors; infinite when not finite."""

    norm: float
    not_finite: tuple[str, ...]


def difference(update: Tensors, base: Tensors) -> Difference:
    """Compare two files with the same tensors, piece by piece in float64. Raises `BadData` when they do not match."""
    check_same_meaning(update, base)
    total, bad = 0.0, []
    for name in base.specs:
        square = 0.0
        # a value that is not finite ends up in the sum, which is looked at below
        with np.errstate(over="ignore", invalid="ignore"):
            for new, old in zip(update.pieces(name), base.pieces(name), strict=True):
                delta = np.subtract(new, old, dtype=np.float64)
                # not np.dot: BLAS sums in an order that depends on its threads, and a clipped update on this norm
                square += float(np.square(delta, out=delta).sum())
        if not math.isfinite(square):
            bad.append(name)
        total += square
    return Difference(math.sqrt(total) if not bad else math.inf, tuple(bad))


def check_same_meaning(update: Tensors, base: Tensors) -> None:
    """Both files hold the same floating tensors: names, types, shapes. Raises `BadData` naming the first that differs."""
    for name in sorted({*update.specs, *base.specs}):
        new, old = update.specs.get(name), base.specs.get(name)
        if new is None or old is None:
            raise BadData(f"tensor {name[:80]!r} is {'missing from' if new is None else 'unknown to'} the model")
        if new.meaning != old.meaning:
            raise BadData(
                f"tensor {name[:80]!r} is {new.dtype}{list(new.shape)} where the model has {old.dtype}{list(old.shape)}"
            )
        if new.dtype not in FLOATS:
            raise BadData(f"tensor {name[:80]!r} of type {new.dtype} cannot be averaged; only floating tensors are shared")
