"""How a safetensors file begins: which tensors it holds, of what type and shape, and where their bytes lie.

The format (safetensors 0.x, "Format" section of its README): 8 bytes little-endian header length, a JSON header
`{name: {dtype, shape, data_offsets}}`, then the data. The format permits headers of 100 MB; ours are refused above
1 MiB before they are parsed, and holes, overlaps, unknown types and trailing bytes are refused too. Pure.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from histofed.base.errors import BadData

Array: TypeAlias = npt.NDArray[Any]

HEADER_LIMIT: Final = 1 << 20
"""Bytes of JSON header accepted; ViT-L/16 with two heads needs about 40 KiB."""
_MOST_AXES: Final = 32
"""Of a tensor; numpy has no more than 64."""
_LONGEST_AXIS: Final = 1 << 48
"""Elements; a longer one can only be a lie beside an axis of length 0."""
LENGTH: Final = struct.Struct("<Q")
"""The header's length, before it."""
FLOATS: Final = frozenset({"F64", "F32", "F16"})
"""Types that may be shared and averaged."""
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


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
    return parse_header_and_texts(header, data_size)[0]


def parse_header_and_texts(header: bytes, data_size: int) -> tuple[tuple[TensorSpec, ...], Mapping[str, str]]:
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
            raise BadData(f"damaged safetensors file: tensor {spec.name[:80]!r} leaves a hole or overlaps another")
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
    if len(shape) > _MOST_AXES or any(type(size) is not int or not 0 <= size < _LONGEST_AXIS for size in shape):
        raise BadData(f"tensor {name[:80]!r} has an impossible shape")
    if begin < 0 or end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise BadData(f"tensor {name[:80]!r} does not fill its place in the file")
    return TensorSpec(name, dtype, tuple(shape), begin, end)


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
    return LENGTH.pack(len(text)) + text, offset


def type_name(name: str, dtype: np.dtype[Any]) -> str:
    """safetensors' name of a type of values. Raises `BadData` naming the tensor `name` for one that it does not have."""
    try:
        return _NAMES[dtype]
    except KeyError as error:
        raise BadData(f"tensor {name!r} has type {dtype}, which cannot be stored") from error
