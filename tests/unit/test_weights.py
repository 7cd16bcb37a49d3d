"""Weights files: what is written is the format, the same every time; what is read is checked before it is believed."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histofed import weights
from histofed.base.errors import BadData, CannotWriteState
from histofed.base.hashing import sha256_file
from histofed.weights import PIECE, Array, TensorFile, check_same_meaning, difference, parse_header, pieces

DTYPES = [np.dtype(name) for name in ("<f8", "<f4", "<f2", "<i8", "<i4", "u1", "?")]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text != "__metadata__"
)
TENSORS = st.dictionaries(
    NAMES,
    st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=5,
)
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def raw(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def same(found: dict[str, Array], expected: dict[str, Array]) -> bool:
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape, found[name].tobytes()) == (array.dtype, array.shape, array.tobytes())
        for name, array in expected.items()
    )


# -- writing and reading back ------------------------------------------------------------------------------------------


@in_one_folder
@given(tensors=TENSORS)
def test_tensors_come_back_as_they_went(tmp_path: Path, tensors: dict[str, Array]) -> None:
    path = tmp_path / "file"
    written = weights.save(path, tensors)
    assert same(weights.read(path), tensors)
    assert written == weights.Written(sha256_file(path), path.stat().st_size)


@in_one_folder
@given(tensors=TENSORS)
def test_the_reference_library_reads_what_we_write(tmp_path: Path, tensors: dict[str, Array]) -> None:
    path = tmp_path / "file"
    weights.save(path, tensors)
    assert same(safetensors.numpy.load(path.read_bytes()), tensors)


@in_one_folder
@given(tensors=TENSORS)
def test_we_read_what_the_reference_library_writes(tmp_path: Path, tensors: dict[str, Array]) -> None:
    path = tmp_path / "file"
    path.write_bytes(safetensors.numpy.save(tensors, {"made": "elsewhere"}))
    assert same(weights.read(path), tensors)


def test_equal_tensors_give_equal_bytes(path: Path) -> None:
    one: dict[str, Array] = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(1.5, np.float64)}
    strided = np.asfortranarray(one["b"])
    assert weights.save(path, one) == weights.save(path.with_name("other"), {"a": one["a"], "b": strided})


def test_the_form_of_a_file_is_fixed(path: Path) -> None:
    weights.save(path, {"w": np.array([1, 2], np.float32)})
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '
    assert path.read_bytes() == struct.pack("<Q", 56) + header + struct.pack("<ff", 1, 2)


def test_texts_in_the_header_come_back_and_leave_the_tensors_alone(path: Path) -> None:
    weights.save(path, {"w": np.array([1, 2], np.float32)}, {"state": '{"step": 3}', "about": "ünïcode"})
    with TensorFile(path) as file:
        assert file.metadata == {"about": "ünïcode", "state": '{"step": 3}'}
        assert file.array("w").tolist() == [1, 2]
    with safetensors.safe_open(path, "numpy") as reference:
        assert reference.metadata() == {"about": "ünïcode", "state": '{"step": 3}'}
    weights.save(path, {"w": np.array([1, 2], np.float32)})
    with TensorFile(path) as file:
        assert file.metadata == {}


def test_texts_that_are_none_are_refused(path: Path) -> None:
    for metadata in (b"[]", b'{"a":1}', b'"a"', b"null"):
        with pytest.raises(BadData, match="what it says about itself is not text"):
            weights.read(raw(path, b'{"__metadata__":' + metadata + b"}"))


def test_a_stream_may_come_in_any_pieces(path: Path) -> None:
    data = np.arange(3 * PIECE + 7, dtype=np.float32)
    whole = weights.save(path, {"w": data})
    specs = [("w", "F32", data.shape)]
    assert weights.save_stream(path, specs, pieces(data)) == whole
    assert weights.save_stream(path, specs, np.array_split(data, 11)) == whole


def test_a_piece_may_be_reused_by_its_maker(path: Path) -> None:
    def reusing() -> Iterator[Array]:
        buffer = np.empty(1 << 20, np.float32)
        for value in range(8):
            buffer[:] = value
            yield buffer

    written = weights.save_stream(path, [("w", "F32", (8 << 20,))], reusing())
    assert written.sha256 == sha256_file(path)


def test_a_stream_that_fails_leaves_what_was_there(path: Path) -> None:
    def failing() -> Iterator[Array]:
        yield np.zeros(2, np.float32)
        raise BadData("no more")

    weights.save(path, {"w": np.ones(4, np.float32)})
    before = path.read_bytes()
    with pytest.raises(BadData, match="no more"):
        weights.save_stream(path, [("w", "F32", (4,))], failing())
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_stream_of_the_wrong_length_is_our_mistake(path: Path) -> None:
    with pytest.raises(AssertionError, match="8 bytes of tensors where the header promises 16"):
        weights.save_stream(path, [("w", "F32", (4,))], [np.zeros(2, np.float32)])
    assert not path.exists()


def test_types_that_cannot_be_stored_are_refused(path: Path) -> None:
    with pytest.raises(BadData, match="tensor 'w' has type complex64, which cannot be stored"):
        weights.save(path, {"w": np.zeros(2, np.complex64)})


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotWriteState, match="No such file"):
        weights.save(tmp_path / "gone" / "file", {"w": np.zeros(1, np.float32)})


def test_a_header_above_the_limit_is_not_written(path: Path) -> None:
    with pytest.raises(BadData, match="too many tensors"):
        weights.save(path, {f"{index:0200}": np.zeros(1, np.float32) for index in range(5000)})
    assert not path.exists()


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


# -- damaged and hostile files -----------------------------------------------------------------------------------------


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
        ({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, "does not fill its place"),
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


def test_a_header_nested_beyond_reason_is_refused() -> None:
    with pytest.raises(BadData, match="not JSON"):
        parse_header(b'{"w":' + b"[" * 200_000, 0)


ENTRIES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from(["F32", "F16", "U8"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "other"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
NEARLY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F64", "bad"]) | ENTRIES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | ENTRIES,
        "data_offsets": st.lists(st.integers(-4, 40), min_size=2, max_size=2) | ENTRIES,
    }
)


@given(header=st.dictionaries(st.text(max_size=3), NEARLY | ENTRIES, max_size=4) | ENTRIES, size=st.integers(0, 40))
@settings(max_examples=500)
def test_a_header_is_refused_or_covers_its_data_exactly(header: object, size: int) -> None:
    try:
        specs = parse_header(json.dumps(header).encode(), size)
    except BadData:
        return
    covered = sorted(place for spec in specs for place in range(spec.begin, spec.end))
    assert covered == list(range(size))


@given(header=st.binary(max_size=60), size=st.integers(0, 40))
def test_any_bytes_are_refused_or_a_header(header: bytes, size: int) -> None:
    try:
        specs = parse_header(header, size)
    except BadData:
        return
    assert sum(spec.end - spec.begin for spec in specs) == size


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


# -- comparing ---------------------------------------------------------------------------------------------------------


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
    assert most < 12 * 1024, f"{most} KiB of a file of {len(content) >> 10} KiB were mapped at once"


def _mapped_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssFile:"))


def test_the_difference_is_taken_over_all_tensors_in_double_precision(tmp_path: Path) -> None:
    large = np.full(PIECE + 5, 1e8, np.float32)
    weights.save(tmp_path / "base", {"a": large, "b": np.zeros(2, np.float16)})
    weights.save(tmp_path / "update", {"a": np.nextafter(large, np.float32(2e8)), "b": np.full(2, 3, np.float16)})
    with TensorFile(tmp_path / "update") as update, TensorFile(tmp_path / "base") as base:
        found = difference(update, base)
    assert found.norm == pytest.approx(((PIECE + 5) * 8.0**2 + 2 * 9.0) ** 0.5, rel=1e-12)
    assert found.not_finite == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_difference_that_is_not_finite_names_its_tensors(tmp_path: Path, value: float) -> None:
    weights.save(tmp_path / "base", {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)})
    weights.save(tmp_path / "update", {"a": np.zeros(2, np.float32), "b": np.array([1, value], np.float32)})
    with TensorFile(tmp_path / "update") as update, TensorFile(tmp_path / "base") as base:
        found = difference(update, base)
        assert difference(update, update).not_finite == ("b",), "also where both hold the same value"
    assert found.norm == np.inf
    assert found.not_finite == ("b",)


def test_only_floating_tensors_have_a_difference(tmp_path: Path) -> None:
    weights.save(tmp_path / "base", {"a": np.zeros(2, np.int32)})
    with (
        TensorFile(tmp_path / "base") as base,
        pytest.raises(BadData, match="of type I32 cannot be averaged; only floating tensors are shared"),
    ):
        check_same_meaning(base, base)
