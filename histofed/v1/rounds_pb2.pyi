from histofed.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("version", "capabilities", "instance", "experiments", "history")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    version: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    instance: str
    experiments: _containers.RepeatedScalarFieldContainer[str]
    history: History
    def __init__(self, version: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., instance: _Optional[str] = ..., experiments: _Optional[_Iterable[str]] = ..., history: _Optional[_Union[History, _Mapping]] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("version", "capabilities", "identity", "now", "ended_experiments", "history")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    ENDED_EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    version: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    identity: str
    now: str
    ended_experiments: _containers.RepeatedScalarFieldContainer[str]
    history: History
    def __init__(self, version: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., identity: _Optional[str] = ..., now: _Optional[str] = ..., ended_experiments: _Optional[_Iterable[str]] = ..., history: _Optional[_Union[History, _Mapping]] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("epoch", "records", "head")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    records: int
    head: str
    def __init__(self, epoch: _Optional[int] = ..., records: _Optional[int] = ..., head: _Optional[str] = ...) -> None: ...

class WaitForWorkRequest(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    def __init__(self, instance: _Optional[str] = ...) -> None: ...

class WaitForWorkResponse(_message.Message):
    __slots__ = ("offer", "withdrawal", "beat")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWAL_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    offer: TaskOffer
    withdrawal: TaskWithdrawal
    beat: Beat
    def __init__(self, offer: _Optional[_Union[TaskOffer, _Mapping]] = ..., withdrawal: _Optional[_Union[TaskWithdrawal, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TaskOffer(_message.Message):
    __slots__ = ("task", "kind", "attempt", "experiment_toml", "experiment_sha256", "base", "settled_round", "deadline", "traceparent", "history", "backup_round", "steps", "rounds_committed", "complete_backup_round")
    TASK_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_TOML_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_SHA256_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    SETTLED_ROUND_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    BACKUP_ROUND_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_BACKUP_ROUND_FIELD_NUMBER: _ClassVar[int]
    task: str
    kind: _types_pb2.TaskKind
    attempt: int
    experiment_toml: str
    experiment_sha256: str
    base: _types_pb2.Blob
    settled_round: int
    deadline: str
    traceparent: str
    history: History
    backup_round: int
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    rounds_committed: int
    complete_backup_round: int
    def __init__(self, task: _Optional[str] = ..., kind: _Optional[_Union[_types_pb2.TaskKind, str]] = ..., attempt: _Optional[int] = ..., experiment_toml: _Optional[str] = ..., experiment_sha256: _Optional[str] = ..., base: _Optional[_Union[_types_pb2.Blob, _Mapping]] = ..., settled_round: _Optional[int] = ..., deadline: _Optional[str] = ..., traceparent: _Optional[str] = ..., history: _Optional[_Union[History, _Mapping]] = ..., backup_round: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., rounds_committed: _Optional[int] = ..., complete_backup_round: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("from_sha256", "blob")
    FROM_SHA256_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    from_sha256: str
    blob: _types_pb2.Blob
    def __init__(self, from_sha256: _Optional[str] = ..., blob: _Optional[_Union[_types_pb2.Blob, _Mapping]] = ...) -> None: ...

class TaskWithdrawal(_message.Message):
    __slots__ = ("task", "reason")
    TASK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task: str
    reason: str
    def __init__(self, task: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class AcceptTaskRequest(_message.Message):
    __slots__ = ("task", "attempt", "policy_sha256")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    POLICY_SHA256_FIELD_NUMBER: _ClassVar[int]
    task: str
    attempt: int
    policy_sha256: str
    def __init__(self, task: _Optional[str] = ..., attempt: _Optional[int] = ..., policy_sha256: _Optional[str] = ...) -> None: ...

class AcceptTaskResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeclineTaskRequest(_message.Message):
    __slots__ = ("task", "attempt", "reason", "policy_sha256")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    POLICY_SHA256_FIELD_NUMBER: _ClassVar[int]
    task: str
    attempt: int
    reason: str
    policy_sha256: str
    def __init__(self, task: _Optional[str] = ..., attempt: _Optional[int] = ..., reason: _Optional[str] = ..., policy_sha256: _Optional[str] = ...) -> None: ...

class DeclineTaskResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportProgressRequest(_message.Message):
    __slots__ = ("task", "attempt", "phase", "done", "total", "losses", "rate")
    class LossesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    task: str
    attempt: int
    phase: str
    done: int
    total: int
    losses: _containers.ScalarMap[str, float]
    rate: float
    def __init__(self, task: _Optional[str] = ..., attempt: _Optional[int] = ..., phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., losses: _Optional[_Mapping[str, float]] = ..., rate: _Optional[float] = ...) -> None: ...

class ReportProgressResponse(_message.Message):
    __slots__ = ("wanted", "reason")
    WANTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    wanted: bool
    reason: str
    def __init__(self, wanted: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class SubmitUpdateRequest(_message.Message):
    __slots__ = ("task", "attempt", "manifest")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    task: str
    attempt: int
    manifest: _types_pb2.Envelope
    def __init__(self, task: _Optional[str] = ..., attempt: _Optional[int] = ..., manifest: _Optional[_Union[_types_pb2.Envelope, _Mapping]] = ...) -> None: ...

class SubmitUpdateResponse(_message.Message):
    __slots__ = ("state", "reason", "history")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    state: _types_pb2.TaskState
    reason: str
    history: History
    def __init__(self, state: _Optional[_Union[_types_pb2.TaskState, str]] = ..., reason: _Optional[str] = ..., history: _Optional[_Union[History, _Mapping]] = ...) -> None: ...

class FailTaskRequest(_message.Message):
    __slots__ = ("task", "attempt", "reason", "retryable")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    task: str
    attempt: int
    reason: str
    retryable: bool
    def __init__(self, task: _Optional[str] = ..., attempt: _Optional[int] = ..., reason: _Optional[str] = ..., retryable: _Optional[bool] = ...) -> None: ...

class FailTaskResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
