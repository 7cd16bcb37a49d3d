"""What the daemon asks of a child process, and what comes back: frozen dataclasses and their JSON form.

Both ends are the same release on the same machine, so the JSON is not checked beyond its kind. `aggregator/pool.py` is
the parent's side, `aggregator/worker.py` the child's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from aggregator.aggregate import AggregateJob, AggregateResult, FlowerCall, Kept, Share, UpdateInput
from histofed.base.errors import HistofedError, all_errors
from histofed.base.ids import Json
from histofed.encodings.file import PLAIN, Encoded, Form
from histofed.encodings.loss import Loss
from histofed.recipes.contract import ServerRule
from histofed.weights import Written


@dataclass(frozen=True)
class InitialiseJob:
    """Make an experiment's first shared tensors, and the server tensors that follow them."""

    recipe: str
    config: Mapping[str, Json]
    """The experiment's `[config]` table."""
    seed: int
    out_shared: Path
    out_server: Path
    """Not written where the recipe keeps no server tensors."""
    given: Path | None = None
    """The first shared tensors themselves, made elsewhere: nothing is drawn here, and torch is not needed."""


@dataclass(frozen=True)
class InitialiseResult:
    """The files that were written, durable."""

    shared: Written
    server: Written | None


@dataclass(frozen=True)
class CheckJob:
    """Hash files of ours that are to be built on (`aggregate.check_kept`). Its result is that it has one."""

    files: tuple[Kept, ...]


@dataclass(frozen=True)
class InspectJob:
    """Look at an update's tensors before it may enter (`inspection.check_tensors`)."""

    update: Path
    base: Path
    max_norm: float
    form: Form = PLAIN
    """How the update must be written."""


@dataclass(frozen=True)
class InspectResult:
    """L2 norm of (update - base)."""

    norm: float


Job: TypeAlias = AggregateJob | CheckJob | InitialiseJob | InspectJob
Result: TypeAlias = AggregateResult | InitialiseResult | InspectResult | None

_KINDS: Final[Mapping[type[Job], str]] = {
    AggregateJob: "aggregate",
    CheckJob: "check",
    InitialiseJob: "initialise",
    InspectJob: "inspect",
}


def kind_of(job: Job) -> str:
    """`aggregate`, `check`, `initialise` or `inspect`."""
    return _KINDS[type(job)]


def encode_job(job: Job) -> bytes:
    """The job as a child reads it."""
    return json.dumps({"kind": kind_of(job), "job": job}, default=_plain).encode()


def decode_job(data: bytes) -> Job:
    """The reverse of `encode_job`."""
    document = json.loads(data)
    fields: dict[str, Any] = document["job"]
    match document["kind"]:
        case "aggregate":
            return AggregateJob(
                base=Path(fields["base"]),
                updates=tuple(UpdateInput(one["site"], Path(one["path"]), one["weight"]) for one in fields["updates"]),
                state=_path(fields["state"]),
                rules=tuple(ServerRule(**rule) for rule in fields["rules"]),
                round=fields["round"],
                out_shared=Path(fields["out_shared"]),
                out_server=_path(fields["out_server"]),
                flower=_flower(fields["flower"]),
                form=Form(**fields["form"]),
                step=Form(**fields["step"]) if fields["step"] else None,
                out_step=_path(fields["out_step"]),
                kept=_kept(fields["kept"]),
            )
        case "check":
            return CheckJob(_kept(fields["files"]))
        case "initialise":
            paths = {name: Path(fields[name]) for name in ("out_shared", "out_server")}
            return InitialiseJob(**fields | paths | {"given": _path(fields["given"])})
        case "inspect":
            return InspectJob(Path(fields["update"]), Path(fields["base"]), fields["max_norm"], Form(**fields["form"]))
        case other:
            raise ValueError(f"{other!r} is no kind of job")


def encode_result(result: Result) -> bytes:
    """What a child prints when its job is done."""
    return json.dumps({"result": result}, default=_plain).encode()


def encode_error(error: HistofedError) -> bytes:
    """What a child prints when its job cannot be done."""
    return json.dumps({"error": type(error).__name__, "sentence": str(error)}).encode()


def decode_result(job: Job, data: bytes) -> Result:
    """What a child printed for `job`. Raises the error that the child raised, and `ValueError` for anything else."""
    document = json.loads(data)
    if "error" in document:
        raise _error(document["error"], document["sentence"])
    fields: dict[str, Any] = document["result"]
    match job:
        case AggregateJob():
            shares = tuple(Share(**share) for share in fields["shares"])
            written = Written(**fields["shared"]), _written(fields["server"])
            return AggregateResult(*written, shares, _written(fields["strategy"]), _encoded(fields["step"]))
        case CheckJob():
            return None
        case InitialiseJob():
            return InitialiseResult(Written(**fields["shared"]), _written(fields["server"]))
        case InspectJob():
            return InspectResult(**fields)


def _error(name: str, sentence: str) -> HistofedError:
    return {cls.__name__: cls for cls in all_errors()}[name](sentence)


def _kept(files: list[dict[str, Any]]) -> tuple[Kept, ...]:
    return tuple(Kept(Path(one["path"]), one["sha256"]) for one in files)


def _written(fields: dict[str, Any] | None) -> Written | None:
    return None if fields is None else Written(**fields)


def _encoded(fields: dict[str, Any] | None) -> Encoded | None:
    return None if fields is None else Encoded(Written(**fields["file"]), fields["norm"], Loss(**fields["loss"]))


def _flower(fields: dict[str, Any] | None) -> FlowerCall | None:
    if fields is None:
        return None
    return FlowerCall(**fields | {"state": _path(fields["state"]), "out_state": Path(fields["out_state"])})


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _plain(value: object) -> Json:
    """What json cannot write by itself: paths, tables that are not a dict, and dataclasses."""
    if isinstance(value, Path):
        return str(value)
    return dict(value) if isinstance(value, Mapping) else vars(value)
