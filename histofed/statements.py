"""What is signed: the meaning of an update and of a model, in one byte form, with a version.

A signature over weights alone could be replayed into another round or under another name. So a site signs the *manifest*
(experiment, round, kind, site, base, weights, encoding, ...), and the aggregator signs the *model statement* (experiment,
round, base, parts, and the weights digest of every update in it). Both travel in a DSSE envelope (`pki/signing.py`).
Readers refuse unknown versions and unknown or missing fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from histofed.base.errors import BadData
from histofed.base.ids import Digest, ExperimentId, Json, RoundKey, SiteId, TaskKey, canonical, digest, sha256
from histofed.base.words import one_line

UPDATE_TYPE: Final = "application/vnd.histofed.update.v1+json"
MODEL_TYPE: Final = "application/vnd.histofed.model.v1+json"
METRIC_NAME: Final = r"[A-Za-z][A-Za-z0-9_.-]{0,39}"
"""What a metric may be called; operators see the name."""
METRICS_LIMIT: Final = 32
SIZE_LIMIT: Final = 1 << 20
"""Bytes of a statement that are read at all."""
MOST: Final = 1 << 40
"""Of tiles, patients or steps: no hospital has as many, and every database holds the number."""
_PLACE_LETTERS: Final = 80
"""Of where in a document something is wrong; its sender chose the words."""

T = TypeVar("T", "UpdateManifest", "ModelStatement")

_strict = ConfigDict(extra="forbid", strict=True)


@checked(frozen=True, config=_strict)
class File:
    """A file by content."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        digest(self.sha256)
        if not 0 <= self.bytes <= MOST:
            raise BadData(f"a file's length is negative or above {MOST}")


@checked(frozen=True, config=_strict)
class UpdateManifest:
    """What one site did in one round, and with which bytes. The site signs it."""

    federation: str
    experiment: str
    experiment_sha256: str
    round: int
    kind: str
    site: str
    attempt: int
    base: str
    """SHA-256 of the shared tensors that training started from."""
    encoding: str
    weights: File | None
    """The update's tensors; None for a result that has none."""
    tiles: int
    patients: int
    steps: int
    metrics: dict[str, float]
    private_round: int
    """The round whose private tensors training started from; 0 for a fresh start."""
    policy_sha256: str
    """The consent policy that allowed it."""
    created_at: str

    @property
    def task(self) -> TaskKey:
        """The task it answers."""
        return TaskKey(RoundKey(ExperimentId(self.experiment), self.round), self.kind, SiteId(self.site))


@checked(frozen=True, config=_strict)
class Contribution:
    """One update inside a model."""

    site: str
    weights_sha256: str
    """The update's tensors; the site's signed manifest, in the aggregator's state and journal, names them too."""
    weight: float
    """Share of what all updates count by, 0-1; all shares sum to 1. Of the average, where the strategy is one."""


@checked(frozen=True, config=_strict)
class ModelStatement:
    """What a global model is and where it comes from. The aggregator signs it; its digest names the model.

    It holds no time, no attempt and nothing random: what was killed and repeated on the way leaves no mark in it.
    """

    federation: str
    experiment: str
    experiment_sha256: str
    recipe: str
    round: int
    base: str
    """Digest of the model before; empty for the first."""
    parts: dict[str, File]
    release: str
    """The part that is the finished product."""
    strategy: str
    contributions: list[Contribution]


@dataclass(frozen=True)
class Outline:
    """What a model's statement says beside its contributions, of which there are as many as sites."""

    base: str
    parts: Mapping[str, File]
    release: str


def encode(statement: UpdateManifest | ModelStatement) -> bytes:
    """The bytes that are signed. Raises `BadData` for a number that is not finite."""
    return canonical(asdict(statement))


def decode_update(payload: bytes) -> UpdateManifest:
    """The manifest in signed bytes. Raises `BadData` saying which field is wrong."""
    manifest = _decode(payload, TypeAdapter(UpdateManifest), "update manifest")
    if any(not math.isfinite(value) for value in manifest.metrics.values()):
        raise BadData("the update manifest has a metric that is not finite")
    if len(manifest.metrics) > METRICS_LIMIT or not all(re.fullmatch(METRIC_NAME, name) for name in manifest.metrics):
        raise BadData(f"the update manifest has more than {METRICS_LIMIT} metrics, or one with an odd name")
    if not all(0 <= count <= MOST for count in (manifest.tiles, manifest.patients, manifest.steps)):
        raise BadData(f"the update manifest has a count that is negative or above {MOST}")
    return manifest


def decode_model(payload: bytes) -> ModelStatement:
    """The statement in signed bytes. Raises `BadData` saying which field is wrong."""
    return _decode(payload, TypeAdapter(ModelStatement), "model statement")


def outline(payload: bytes) -> Outline:
    """The outline of a statement of our own: what was checked before it was signed is not checked again.

    So it takes a fortieth of `decode_model`'s time. Raises `BadData` for what is no statement.
    """
    try:
        found = json.loads(payload)
        parts = {name: File(**file) for name, file in found["parts"].items()}
        return Outline(found["base"], parts, found["release"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadData("a model's statement cannot be read: restore the aggregator's state from a backup") from error


def _decode(payload: bytes, adapter: TypeAdapter[T], what: str) -> T:
    if len(payload) > SIZE_LIMIT:
        raise BadData(f"the {what} is larger than {SIZE_LIMIT} bytes")
    try:
        found: T = adapter.validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = one_line(".".join(str(part) for part in first["loc"]), _PLACE_LETTERS) or "document"
        raise BadData(f"the {what} cannot be read: {where}: {first['msg']}") from error
    if encode(found) != payload:
        raise BadData(f"the {what} is not in canonical form")
    return found


def as_json(statement: UpdateManifest | ModelStatement) -> Mapping[str, Json]:
    """The statement as a JSON document, for people and `--json`."""
    document: Mapping[str, Json] = json.loads(encode(statement))
    return document


def name_of(statement: ModelStatement) -> Digest:
    """The model's name: the digest of its signed bytes."""
    return sha256(encode(statement))
