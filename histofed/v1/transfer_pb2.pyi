from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetUploadRequest(_message.Message):
    __slots__ = ("task", "sha256", "bytes")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    task: str
    sha256: str
    bytes: int
    def __init__(self, task: _Optional[str] = ..., sha256: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class GetUploadResponse(_message.Message):
    __slots__ = ("committed", "complete")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    committed: int
    complete: bool
    def __init__(self, committed: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("blob", "offset", "data", "copy")
    BLOB_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    blob: GetUploadRequest
    offset: int
    data: bytes
    copy: Copy
    def __init__(self, blob: _Optional[_Union[GetUploadRequest, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., copy: _Optional[_Union[Copy, _Mapping]] = ...) -> None: ...

class Copy(_message.Message):
    __slots__ = ("bytes", "sha256")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    sha256: str
    def __init__(self, bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ("committed", "complete", "held", "max_bytes_per_second", "waiting")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    committed: int
    complete: bool
    held: str
    max_bytes_per_second: int
    waiting: bool
    def __init__(self, committed: _Optional[int] = ..., complete: _Optional[bool] = ..., held: _Optional[str] = ..., max_bytes_per_second: _Optional[int] = ..., waiting: _Optional[bool] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("sha256", "offset", "held", "max_bytes_per_second")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    offset: int
    held: str
    max_bytes_per_second: int
    def __init__(self, sha256: _Optional[str] = ..., offset: _Optional[int] = ..., held: _Optional[str] = ..., max_bytes_per_second: _Optional[int] = ...) -> None: ...

class DownloadResponse(_message.Message):
    __slots__ = ("offset", "data", "bytes", "copy")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    bytes: int
    copy: Copy
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., bytes: _Optional[int] = ..., copy: _Optional[_Union[Copy, _Mapping]] = ...) -> None: ...
