"""Frames on the wire: what protobuf writes and reads, without its copies."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from histofed.transport.frames import Frame, read, write
from histofed.v1 import transfer_pb2

OFFSETS = st.integers(0, 2**63 - 1)
DATA = st.binary(max_size=400)


@st.composite
def uploads(draw: st.DrawFn) -> transfer_pb2.UploadRequest:
    """Any upload message, also such as no agent of ours sends."""
    message = transfer_pb2.UploadRequest(offset=draw(OFFSETS), data=draw(DATA))
    if draw(st.booleans()):
        message.blob.CopyFrom(transfer_pb2.GetUploadRequest(task=draw(st.text("ab/1é", max_size=20)), bytes=draw(OFFSETS)))
    if draw(st.booleans()):
        message.copy.CopyFrom(transfer_pb2.Copy(bytes=draw(OFFSETS), sha256=draw(st.text("0123456789abcdef", max_size=70))))
    return message


def whole(frame: Frame[transfer_pb2.UploadRequest]) -> transfer_pb2.UploadRequest:
    message = transfer_pb2.UploadRequest()
    message.CopyFrom(frame.head)
    message.data = bytes(frame.data)
    return message


@given(uploads())
def test_a_frame_is_what_protobuf_wrote(message: transfer_pb2.UploadRequest) -> None:
    frame = read(transfer_pb2.UploadRequest, message.SerializeToString())

    assert whole(frame) == message
    assert frame.head.data == b""


@given(uploads())
def test_protobuf_reads_what_a_frame_wrote(message: transfer_pb2.UploadRequest) -> None:
    head = transfer_pb2.UploadRequest()
    head.CopyFrom(message)
    head.ClearField("data")

    assert transfer_pb2.UploadRequest.FromString(write(Frame(head, memoryview(message.data)))) == message


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_as_protobuf_does(noise: bytes) -> None:
    same_as_protobuf(noise)


@given(uploads(), st.integers(0, 500))
def test_a_cut_message_is_read_or_refused_as_protobuf_does(message: transfer_pb2.UploadRequest, left: int) -> None:
    same_as_protobuf(message.SerializeToString()[:left])


def same_as_protobuf(noise: bytes) -> None:
    try:
        message = transfer_pb2.UploadRequest.FromString(noise)
    except DecodeError:
        with pytest.raises(DecodeError):
            read(transfer_pb2.UploadRequest, noise)
        return
    assert whole(read(transfer_pb2.UploadRequest, noise)) == message


@pytest.mark.parametrize(
    "unusual",
    [
        pytest.param(b"\x1a\x01a\x1a\x01b", id="data twice: the last counts"),
        pytest.param(b"\x1a\x01a" + b"\x10\x01" * 5000, id="thousands of fields"),
        pytest.param(b"\x1a\x01a\x2b\x2c", id="a group, which nobody writes any more"),
        pytest.param(b"\x1a\x02ab\x79\x01\x02\x03\x04\x05\x06\x07\x08", id="an unknown field of eight bytes"),
        pytest.param(b"\x1a\x02ab\x7d\x01\x02\x03\x04", id="an unknown field of four"),
        pytest.param(b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x1a\x02ab", id="a number of ten bytes, of another type"),
    ],
)
def test_what_no_agent_of_ours_writes_is_read_as_protobuf_does(unusual: bytes) -> None:
    found = read(transfer_pb2.UploadRequest, unusual)

    assert whole(found) == transfer_pb2.UploadRequest.FromString(unusual)


def test_a_key_that_is_too_long_is_refused() -> None:
    same_as_protobuf(b"\x9a\x80\x80\x80\x80\x80\x80\x80\x80\x00\x02ab")


def test_a_number_without_an_end_is_refused() -> None:
    with pytest.raises(DecodeError):
        read(transfer_pb2.UploadRequest, b"\x80" * (1 << 20))


def test_the_data_is_not_copied() -> None:
    message = write(Frame(transfer_pb2.DownloadResponse(offset=7, bytes=9), b"ab"))

    found = read(transfer_pb2.DownloadResponse, message)

    assert isinstance(found.data, memoryview)
    assert found.data.obj is message
    assert (found.head.offset, found.head.bytes, bytes(found.data)) == (7, 9, b"ab")
