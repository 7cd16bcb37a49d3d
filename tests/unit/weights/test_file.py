"""Weights files that are read: arrays, pieces, and files that are damaged or something else."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histofed import weights
from histofed.base.errors import BadData, TryLater
from histofed.weights import PIECE, Array, TensorFile, pieces
from tests.support.failing_disk import fail_from

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def raw(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_arrays_are_views_that_cannot_be_written(path: Path) -> None:
    weights.save(path, {"w": np.zeros(3, np.float32)})
    with TensorFile(path) as file:
        array = file.array("w")
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(BadData, match="tensor 'v' is missing"):
            file.array("v")


def test_tensors_are_listed_by_name(path: Path) -> None:
    weights.save(path, {name: np.zeros(1, np.float32) for name in ("b", "a.10", "a.9")})
    assert [spec.name for spec in weights.read_header(path)] == ["a.10", "a.9", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "shorter than 8 bytes"),
        (b"1234567", "shorter than 8 bytes"),
        (struct.pack("<Q", 3) + b"{}", "a header of 3 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "a header of 9223372036854775808 bytes"),
        (struct.pack("<Q", (1 << 20) + 1) + b" " * ((1 << 20) + 1), "a header of 1048577 bytes"),
        (struct.pack("<Q", 2) + b"[]", "its header is not a table"),
        (struct.pack("<Q", 2) + b"{,", "its header is not JSON"),
        (struct.pack("<Q", 2) + b"\xff\xff", "its header is not JSON"),
        (struct.pack("<Q", 2) + b"{}" + b"x", "1 bytes of data where the header promises 0"),
    ],
)
def test_files_that_are_something_else_are_refused(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(BadData, match=words):
        weights.read(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"w": 1}, "description or a type that is not supported"),
        ({"w": {"dtype": "F32", "shape": [2]}}, "description or a type that is not supported"),
        ({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}, "description or a type that is not supported"),
        ({"w": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, "impossible shape"),
        ({"w": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, "impossible shape"),
        ({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}, "impossible shape"),
        ({"w": {"dtype": "F32", "shape": [0, 10**4000], "data_offsets": [0, 0]}}, "impossible shape"),
        ({"w": {"dtype": "F32", "shape": [1] * 33, "data_offsets": [0, 4]}}, "impossible shape"),
        ({"w": {"dtype": "F32", "shape": [2**47, 4], "data_offsets": [0, 8]}}, "does not fill its place"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, "does not fill its place"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, "does not fill its place"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "leaves a hole"),
        (
            {
                "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            },
            "overlaps",
        ),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "8 bytes of data where the header promises 4"),
    ],
)
def test_headers_that_lie_are_refused(path: Path, header: object, words: str) -> None:
    raw(path, json.dumps(header).encode(), bytes(8))
    with pytest.raises(BadData, match=words):
        weights.read(path)


def test_texts_that_are_none_are_refused(path: Path) -> None:
    for metadata in (b"[]", b'{"a":1}', b'"a"', b"null"):
        with pytest.raises(BadData, match="what it says about itself is not text"):
            weights.read(raw(path, b'{"__metadata__":' + metadata + b"}"))


def test_what_a_file_calls_its_tensors_is_told_in_few_words(path: Path) -> None:
    header = {"w" * 100_000: {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}
    with pytest.raises(BadData, match="leaves a hole") as caught:
        weights.read(raw(path, json.dumps(header).encode(), bytes(8)))
    assert len(str(caught.value)) < 200


@in_one_folder
@given(place=st.integers(0, 300), flip=st.integers(1, 255), cut=st.integers(0, 40))
def test_a_damaged_file_is_refused_or_still_a_file_of_tensors(tmp_path: Path, place: int, flip: int, cut: int) -> None:
    path = tmp_path / "file"
    weights.save(path, {"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.float16), "c": np.zeros(0, np.float64)})
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= flip
    path.write_bytes(content[: len(content) - cut])
    try:
        found = weights.read(path)
    except BadData:
        return
    assert sum(array.nbytes for array in found.values()) <= len(content)


def test_pieces_are_the_array() -> None:
    array = np.arange(2 * PIECE + 3, dtype=np.float32).reshape(1, -1)
    parts = list(pieces(array))
    assert [part.size for part in parts] == [PIECE, PIECE, 3]
    np.testing.assert_array_equal(np.concatenate(parts), array.reshape(-1))
    assert all(np.shares_memory(part, array) for part in parts)
    assert [part.tolist() for part in pieces(np.array(7, np.float32))] == [[7.0]]


def test_a_walk_maps_little_of_a_file(path: Path) -> None:
    # tensors much smaller than the folios of a page cache that was filled a megabyte at a time
    weights.save(path, {f"w{index:03}": np.ones(50_000, np.float32) for index in range(160)})
    content = path.read_bytes()
    path.unlink()
    with path.open("wb", buffering=0) as file:
        for begin in range(0, len(content), 1 << 20):
            file.write(content[begin : begin + (1 << 20)])
    with TensorFile(path) as file:
        before, most = _mapped_kib(), 0
        for name in file.names:
            for piece in file.pieces(name):
                piece.sum()
            most = max(most, _mapped_kib() - before)
    assert most < 1024, f"{most} KiB of a file of {len(content) >> 10} KiB were mapped at once"


def _mapped_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssFile:"))


def test_a_file_that_becomes_shorter_under_a_walk_is_refused(path: Path) -> None:
    weights.save(path, {"w": np.ones(3 * PIECE, np.float32)})
    with TensorFile(path) as file:
        walk = file.pieces("w")
        next(walk)
        os.truncate(path, 2 * PIECE * 4)
        with pytest.raises(BadData, match="tensor 'w' cannot be read: its file has become shorter"):
            list(walk)


def test_a_tensor_that_is_not_there_is_said(path: Path) -> None:
    weights.save(path, {"w": np.ones(1, np.float32)})
    with TensorFile(path) as file, pytest.raises(BadData, match="tensor 'v' is missing"):
        list(file.pieces("v"))


def test_a_disk_that_fails_in_the_middle_of_a_piece_says_nothing_of_the_tensor(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.save(path, {"w": np.ones(3 * PIECE, np.float32)})
    fail_from(monkeypatch, path, path.stat().st_size - 2 * PIECE)
    with TensorFile(path) as file, pytest.raises(TryLater, match="tensor 'w' cannot be read: Input/output error"):
        list(file.pieces("w"))


def test_a_copy_is_the_whole_tensor_and_reads_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content: dict[str, Array] = {
        "none": np.zeros((0, 3), np.float32),
        "one": np.array(2, np.float64),
        "w": np.ones((2, 3), np.float16),
    }
    weights.save(path, content)
    with TensorFile(path) as file:
        for name, array in content.items():
            copy = file.copy(name)
            assert (copy.dtype, copy.shape, copy.tolist()) == (array.dtype, array.shape, array.tolist())
        fail_from(monkeypatch, path, path.stat().st_size - 1)
        with pytest.raises(TryLater, match="tensor 'w' cannot be read: Input/output error"):
            file.copy("w")


@pytest.mark.parametrize("byte", [0, 5, 20])
def test_a_disk_that_fails_in_the_middle_of_the_header_says_nothing_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, byte: int
) -> None:
    weights.save(path, {"w": np.ones(3, np.float32)})
    fail_from(monkeypatch, path, byte)
    with pytest.raises(OSError, match="Input/output error"):
        TensorFile(path)
