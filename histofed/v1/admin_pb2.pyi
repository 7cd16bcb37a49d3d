from histofed.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "federation", "now", "started_at", "sites_connected", "sites_enrolled", "experiments", "conditions", "journal_records", "journal_head")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    SITES_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    SITES_ENROLLED_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_RECORDS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_HEAD_FIELD_NUMBER: _ClassVar[int]
    version: str
    federation: str
    now: str
    started_at: str
    sites_connected: int
    sites_enrolled: int
    experiments: _containers.RepeatedCompositeFieldContainer[Experiment]
    conditions: _containers.RepeatedScalarFieldContainer[str]
    journal_records: int
    journal_head: str
    def __init__(self, version: _Optional[str] = ..., federation: _Optional[str] = ..., now: _Optional[str] = ..., started_at: _Optional[str] = ..., sites_connected: _Optional[int] = ..., sites_enrolled: _Optional[int] = ..., experiments: _Optional[_Iterable[_Union[Experiment, _Mapping]]] = ..., conditions: _Optional[_Iterable[str]] = ..., journal_records: _Optional[int] = ..., journal_head: _Optional[str] = ...) -> None: ...

class SubmitExperimentRequest(_message.Message):
    __slots__ = ("toml",)
    TOML_FIELD_NUMBER: _ClassVar[int]
    toml: str
    def __init__(self, toml: _Optional[str] = ...) -> None: ...

class SubmitExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class Experiment(_message.Message):
    __slots__ = ("name", "recipe", "state", "reason", "rounds", "rounds_committed", "sha256", "submitted_by", "created_at", "ended_at", "model_digest", "open_round")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OPEN_ROUND_FIELD_NUMBER: _ClassVar[int]
    name: str
    recipe: str
    state: _types_pb2.ExperimentState
    reason: str
    rounds: int
    rounds_committed: int
    sha256: str
    submitted_by: str
    created_at: str
    ended_at: str
    model_digest: str
    open_round: int
    def __init__(self, name: _Optional[str] = ..., recipe: _Optional[str] = ..., state: _Optional[_Union[_types_pb2.ExperimentState, str]] = ..., reason: _Optional[str] = ..., rounds: _Optional[int] = ..., rounds_committed: _Optional[int] = ..., sha256: _Optional[str] = ..., submitted_by: _Optional[str] = ..., created_at: _Optional[str] = ..., ended_at: _Optional[str] = ..., model_digest: _Optional[str] = ..., open_round: _Optional[int] = ...) -> None: ...

class ListExperimentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListExperimentsResponse(_message.Message):
    __slots__ = ("experiments",)
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    experiments: _containers.RepeatedCompositeFieldContainer[Experiment]
    def __init__(self, experiments: _Optional[_Iterable[_Union[Experiment, _Mapping]]] = ...) -> None: ...

class GetExperimentRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetExperimentResponse(_message.Message):
    __slots__ = ("experiment", "toml")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    TOML_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    toml: str
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ..., toml: _Optional[str] = ...) -> None: ...

class PauseExperimentRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PauseExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class ResumeExperimentRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ResumeExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class CancelExperimentRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CancelExperimentResponse(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ...) -> None: ...

class ListRoundsRequest(_message.Message):
    __slots__ = ("experiment", "page_size", "page_token")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    page_size: int
    page_token: str
    def __init__(self, experiment: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRoundsResponse(_message.Message):
    __slots__ = ("rounds", "next_page_token")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    next_page_token: str
    def __init__(self, rounds: _Optional[_Iterable[_Union[Round, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetRoundRequest(_message.Message):
    __slots__ = ("experiment", "round")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    round: int
    def __init__(self, experiment: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class GetRoundResponse(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: Round
    def __init__(self, round: _Optional[_Union[Round, _Mapping]] = ...) -> None: ...

class WatchRoundsRequest(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    def __init__(self, experiment: _Optional[str] = ...) -> None: ...

class WatchRoundsResponse(_message.Message):
    __slots__ = ("experiment", "round")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    experiment: Experiment
    round: Round
    def __init__(self, experiment: _Optional[_Union[Experiment, _Mapping]] = ..., round: _Optional[_Union[Round, _Mapping]] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("experiment", "round", "state", "reason", "eligible", "sampled", "admitted", "refused", "model_digest", "base_digest", "opened_at", "deadline", "committed_at", "tasks", "metrics", "quorum", "enough")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    ENOUGH_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    round: int
    state: _types_pb2.RoundState
    reason: str
    eligible: _containers.RepeatedScalarFieldContainer[str]
    sampled: _containers.RepeatedScalarFieldContainer[str]
    admitted: _containers.RepeatedScalarFieldContainer[str]
    refused: _containers.RepeatedCompositeFieldContainer[Refusal]
    model_digest: str
    base_digest: str
    opened_at: str
    deadline: str
    committed_at: str
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    metrics: _containers.ScalarMap[str, float]
    quorum: int
    enough: int
    def __init__(self, experiment: _Optional[str] = ..., round: _Optional[int] = ..., state: _Optional[_Union[_types_pb2.RoundState, str]] = ..., reason: _Optional[str] = ..., eligible: _Optional[_Iterable[str]] = ..., sampled: _Optional[_Iterable[str]] = ..., admitted: _Optional[_Iterable[str]] = ..., refused: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., model_digest: _Optional[str] = ..., base_digest: _Optional[str] = ..., opened_at: _Optional[str] = ..., deadline: _Optional[str] = ..., committed_at: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., quorum: _Optional[int] = ..., enough: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("site", "reason")
    SITE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    site: str
    reason: str
    def __init__(self, site: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("site", "kind", "state", "reason", "attempt", "phase", "done", "total", "losses", "rate", "update_bytes")
    class LossesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SITE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    site: str
    kind: _types_pb2.TaskKind
    state: _types_pb2.TaskState
    reason: str
    attempt: int
    phase: str
    done: int
    total: int
    losses: _containers.ScalarMap[str, float]
    rate: float
    update_bytes: int
    def __init__(self, site: _Optional[str] = ..., kind: _Optional[_Union[_types_pb2.TaskKind, str]] = ..., state: _Optional[_Union[_types_pb2.TaskState, str]] = ..., reason: _Optional[str] = ..., attempt: _Optional[int] = ..., phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., losses: _Optional[_Mapping[str, float]] = ..., rate: _Optional[float] = ..., update_bytes: _Optional[int] = ...) -> None: ...

class ListSitesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSitesResponse(_message.Message):
    __slots__ = ("sites",)
    SITES_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[Site]
    def __init__(self, sites: _Optional[_Iterable[_Union[Site, _Mapping]]] = ...) -> None: ...

class Site(_message.Message):
    __slots__ = ("name", "connected", "enrolled_at", "last_seen_at", "version", "certificate_expires_at", "updates_admitted")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    ENROLLED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_AT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATES_ADMITTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    connected: bool
    enrolled_at: str
    last_seen_at: str
    version: str
    certificate_expires_at: str
    updates_admitted: int
    def __init__(self, name: _Optional[str] = ..., connected: _Optional[bool] = ..., enrolled_at: _Optional[str] = ..., last_seen_at: _Optional[str] = ..., version: _Optional[str] = ..., certificate_expires_at: _Optional[str] = ..., updates_admitted: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("experiment", "page_size", "page_token")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    page_size: int
    page_token: str
    def __init__(self, experiment: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "statement")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    model: Model
    statement: _types_pb2.Envelope
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., statement: _Optional[_Union[_types_pb2.Envelope, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("digest", "experiment", "round", "state", "parts", "created_at", "removed_at")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    REMOVED_AT_FIELD_NUMBER: _ClassVar[int]
    digest: str
    experiment: str
    round: int
    state: _types_pb2.ModelState
    parts: _containers.RepeatedCompositeFieldContainer[ModelPart]
    created_at: str
    removed_at: str
    def __init__(self, digest: _Optional[str] = ..., experiment: _Optional[str] = ..., round: _Optional[int] = ..., state: _Optional[_Union[_types_pb2.ModelState, str]] = ..., parts: _Optional[_Iterable[_Union[ModelPart, _Mapping]]] = ..., created_at: _Optional[str] = ..., removed_at: _Optional[str] = ...) -> None: ...

class ModelPart(_message.Message):
    __slots__ = ("name", "blob", "release")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    name: str
    blob: _types_pb2.Blob
    release: bool
    def __init__(self, name: _Optional[str] = ..., blob: _Optional[_Union[_types_pb2.Blob, _Mapping]] = ..., release: _Optional[bool] = ...) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("site", "ttl_s", "again")
    SITE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    site: str
    ttl_s: int
    again: bool
    def __init__(self, site: _Optional[str] = ..., ttl_s: _Optional[int] = ..., again: _Optional[bool] = ...) -> None: ...

class CreateTokenResponse(_message.Message):
    __slots__ = ("join_line", "expires_at")
    JOIN_LINE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    join_line: str
    expires_at: str
    def __init__(self, join_line: _Optional[str] = ..., expires_at: _Optional[str] = ...) -> None: ...
