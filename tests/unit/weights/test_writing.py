"""Weights files that are written: the format, the same bytes every time, and back again."""

from __future__ import annotations

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
from histofed.weights import PIECE, Array, TensorFile, pieces

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


DTYPES = [np.dtype(name) for name in ("<f8", "<f4", "<f2", "<i8", "<i4", "u1", "?")]


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text != "__metadata__"
)


TENSORS = st.dictionaries(
    NAMES,
    st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=5,
)


def same(found: dict[str, Array], expected: dict[str, Array]) -> bool:
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape, found[name].tobytes()) == (array.dtype, array.shape, array.tobytes())
        for name, array in expected.items()
    )


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
