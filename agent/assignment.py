"""What the daemon hands its trainer, and what the trainer hands back: two JSON files that never leave the site.

The assignment holds no attempt and no time, so that a repeated attempt is the same assignment and resumes the same
checkpoint, also when a setting of this site has changed in between. Written with `durable.replace`: a result that is there
is complete. `agent/training.py` (the daemon's side) and `agent/trainer.py` (the child) are the two users.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from histofed.base import durable
from histofed.base.encoding import Encoding
from histofed.base.errors import BadData
from histofed.statements import File

ASSIGNMENT_FILE: Final = "assignment.json"
RESULT_FILE: Final = "result.json"
UPDATE_FILE: Final = "update.safetensors"
PRIVATE_FILE: Final = "private.safetensors"
SHARED_FILE: Final = "shared.safetensors"
CLIPPED_FILE: Final = "clipped.safetensors"
"""The update before it is encoded, where its encoding is not float32."""

_strict = ConfigDict(extra="forbid", strict=True)


@checked(frozen=True, config=_strict)
class Assignment:
    """One training, without a word about which attempt it is."""

    recipe: str
    config: dict[str, Any]
    """The experiment's `[config]` table; the recipe checks it."""
    base: Path
    """The round's global tensors."""
    base_sha256: str
    private: Path | None
    """The site's committed private tensors."""
    private_round: int
    """The round that wrote them; 0 for a fresh start."""
    data: Path | None
    minimum_patients: int
    seed: int
    max_norm: float
    """Largest L2 norm of the update."""
    output: Path
    """Existing folder for checkpoints and results."""
    threads: int
    device: str
    nice: int
    devices: int = 1
    cache: Path | None = None
    """Folder for decoded tiles, shared by all tasks."""
    cache_bytes: int = 0
    encoding: Encoding = "float32"
    """How the update is written."""
    round: int = 1
    """Its place among the rounds that are committed, from 1; a checkpointed assignment of an older release has none."""


@checked(frozen=True, config=_strict)
class Result:
    """What a finished training says beside its tensors."""

    weights: File
    """`update.safetensors` in the output folder: base + clipped difference, in the experiment's encoding."""
    norm_before: float
    norm: float
    clipped: bool
    tiles: int
    patients: int
    steps: int
    metrics: dict[str, float]
    notes: tuple[str, ...]


Document = TypeVar("Document", Assignment, Result)


def write(path: Path, document: Assignment | Result) -> None:
    """Store a document, durable. Raises `CannotWriteState`."""
    durable.replace(path, encode(document))


def encode(document: Assignment | Result) -> bytes:
    """The document as JSON."""
    return TypeAdapter(type(document)).dump_json(document, indent=1)


def same_work(one: Assignment, other: Assignment) -> bool:
    """Whether both ask for the same training, whatever this site's settings for it were.

    Where the tiles lie, how they are cached and what the machine gives is the administrator's to change at any time; whether
    the tiles, or the kind of device, have become others, the fingerprint of a checkpoint tells.
    """
    return _without_settings(one) == _without_settings(other)


def _without_settings(assignment: Assignment) -> bytes:
    plain = replace(assignment, data=None, cache=None, cache_bytes=0, minimum_patients=1)
    # as JSON: one of the two was read from there
    return encode(replace(plain, threads=0, device="", devices=1, nice=0))


def read_assignment(path: Path) -> Assignment:
    """The stored assignment. Raises `BadData`."""
    return _read(path, TypeAdapter(Assignment))


def read_result(path: Path) -> Result:
    """The stored result. Raises `BadData`."""
    return _read(path, TypeAdapter(Result))


def _read(path: Path, adapter: TypeAdapter[Document]) -> Document:
    try:
        document: Document = adapter.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadData(f"{path.name} in the agent's work folder cannot be read ({type(error).__name__})") from error
    return document
