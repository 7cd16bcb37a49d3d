"""Named tensors in safetensors files: the only form in which weights are stored, sent and hashed; never pickle.

numpy only, so that the aggregator needs no torch. A model of any size is walked tensor by tensor, piece by piece. What is
written is deterministic, so equal tensors give equal bytes and one digest. The package's modules, from the pure one on:
`header` (the format), `file` (reading), `writing`, `difference` (an update against its base).
"""

from histofed.weights.difference import Difference, check_same_meaning, difference
from histofed.weights.file import PIECE, TensorFile, Tensors, piece_sizes, pieces, read, read_header, read_into
from histofed.weights.header import FLOATS, HEADER_LIMIT, Array, TensorSpec, dtype_of, header_of, parse_header
from histofed.weights.writing import Written, save, save_stream, store, store_stream, write_stream

__all__ = [
    "FLOATS",
    "HEADER_LIMIT",
    "PIECE",
    "Array",
    "Difference",
    "TensorFile",
    "TensorSpec",
    "Tensors",
    "Written",
    "check_same_meaning",
    "difference",
    "dtype_of",
    "header_of",
    "parse_header",
    "piece_sizes",
    "pieces",
    "read",
    "read_header",
    "read_into",
    "save",
    "save_stream",
    "store",
    "store_stream",
    "write_stream",
]
