"""BlobService's messages that carry data, with the data kept out of protobuf: on the wire they are what the .proto says.

Protobuf copies a field of bytes when it is set, when the message is written, when it is read, and each time Python asks
for it: a MiB that moves through both ends was copied eight times. Here it is joined to the rest of its message once, and
seen in place in what gRPC received. A message is a list of fields in any order ("Message Structure", protobuf's encoding
guide), so the rest and the data are written one behind the other, and read by leaving the data out.

Used by both ends of a transfer; whoever speaks plain protobuf understands either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from histofed.v1 import transfer_pb2

Head = TypeVar("Head", transfer_pb2.UploadRequest, transfer_pb2.DownloadResponse)
Data = bytes | memoryview
_SERVICE: Final = "histofed.v1.BlobService"
_LENGTH: Final = 2
"""The wire type of bytes."""
_FIELDS: Final = 8
"""More than any of these messages has; what a stranger writes in thousands of fields is protobuf's to read."""
_VARINT_BITS: Final = 63
_KEY_BITS: Final = 28
"""By which the last byte of a key or a length is shifted at most; protobuf refuses longer ones."""


@dataclass(frozen=True, slots=True)
class Frame(Generic[Head]):
    """A message and its data; `head.data` is empty."""

    head: Head
    data: Data = b""


UploadFrame = Frame[transfer_pb2.UploadRequest]
DownloadFrame = Frame[transfer_pb2.DownloadResponse]


class BlobServicer(Protocol):
    """What `serve` calls."""

    async def GetUpload(self, request: transfer_pb2.GetUploadRequest, context: Any) -> transfer_pb2.GetUploadResponse:  # noqa: N802
        """How much of a blob is here."""
        ...

    def Upload(self, requests: AsyncIterator[UploadFrame], context: Any) -> AsyncIterator[transfer_pb2.UploadResponse]:  # noqa: N802
        """Receive a blob."""
        ...

    def Download(self, request: transfer_pb2.DownloadRequest, context: Any) -> AsyncIterator[DownloadFrame]:  # noqa: N802
        """Send a blob."""
        ...


def serve(servicer: BlobServicer, server: grpc.aio.Server) -> None:
    """Have `server` answer BlobService's calls; in the place of protobuf's generated function."""
    handlers = {
        "GetUpload": grpc.unary_unary_rpc_method_handler(
            servicer.GetUpload,
            request_deserializer=transfer_pb2.GetUploadRequest.FromString,
            response_serializer=transfer_pb2.GetUploadResponse.SerializeToString,
        ),
        "Upload": grpc.stream_stream_rpc_method_handler(
            servicer.Upload,
            request_deserializer=_reader(transfer_pb2.UploadRequest),
            response_serializer=transfer_pb2.UploadResponse.SerializeToString,
        ),
        "Download": grpc.unary_stream_rpc_method_handler(
            servicer.Download,
            request_deserializer=transfer_pb2.DownloadRequest.FromString,
            response_serializer=write,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))


def upload_call(channel: grpc.aio.Channel) -> Any:
    """The Upload method of the aggregator behind `channel`; takes frames."""
    return channel.stream_stream(
        f"/{_SERVICE}/Upload",
        request_serializer=write,
        response_deserializer=transfer_pb2.UploadResponse.FromString,
    )


def download_call(channel: grpc.aio.Channel) -> Any:
    """The Download method of the aggregator behind `channel`; gives frames."""
    return channel.unary_stream(
        f"/{_SERVICE}/Download",
        request_serializer=transfer_pb2.DownloadRequest.SerializeToString,
        response_deserializer=_reader(transfer_pb2.DownloadResponse),
    )


def write(frame: Frame[Any]) -> bytes:
    """The message as protobuf writes it, but for the order of its fields."""
    head: bytes = frame.head.SerializeToString()
    if not frame.data:
        return head
    key = _data_field(type(frame.head)) << 3 | _LENGTH
    return b"".join((head, _varint(key), _varint(len(frame.data)), frame.data))


def read(kind: type[Head], message: bytes) -> Frame[Head]:
    """The frame in a message; its data is a view of `message`. Raises protobuf's `DecodeError`."""
    found = _find(message, _data_field(kind))
    if found is None:
        # empty, or written by something unusual, or damaged: protobuf's to tell
        head = kind.FromString(message)
        data = head.data
        head.ClearField("data")
        return Frame(head, data)
    begin, data_begin, end = found
    return Frame(kind.FromString(message[:begin] + message[end:]), memoryview(message)[data_begin:end])


def _reader(kind: type[Head]) -> Callable[[bytes], Frame[Head]]:
    return lambda message: read(kind, message)


def _find(message: bytes, wanted: int) -> tuple[int, int, int] | None:
    """Where the field is, where its bytes begin, and where they end; None unless it is there once, in an orderly message."""
    found, position, fields = None, 0, 0
    try:
        while position < len(message):
            begin, fields = position, fields + 1
            if fields > _FIELDS:
                return None
            key, position = _read_varint(message, position, _KEY_BITS)
            match key & 7:
                case 0:
                    _, position = _read_varint(message, position, _VARINT_BITS)
                case 1:
                    position += 8
                case 2:
                    length, position = _read_varint(message, position, _KEY_BITS)
                    if key >> 3 == wanted:
                        if found is not None:
                            return None
                        found = begin, position, position + length
                    position += length
                case 5:
                    position += 4
                case _:
                    return None
    except IndexError:
        return None
    return found if position == len(message) else None


def _data_field(kind: type[Message]) -> int:
    return kind.DESCRIPTOR.fields_by_name["data"].number


def _read_varint(message: bytes, position: int, most_bits: int) -> tuple[int, int]:
    """The number and where it ends. Raises `IndexError` where the message ends before, or the number does not."""
    value, shift = 0, 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > most_bits:
            raise IndexError("a number without an end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
