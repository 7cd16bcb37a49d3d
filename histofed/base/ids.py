"""Names and digests: what may be written in a certificate, a folder name or a span attribute, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NewType, TypeAlias

from histofed.base.errors import BadData

SiteId = NewType("SiteId", str)
"""A hospital's name in the federation, for example `north-clinic`."""
ExperimentId = NewType("ExperimentId", str)
"""An experiment's name, unique in the federation for ever."""
Digest = NewType("Digest", str)
"""SHA-256 of a file or a document: 64 lower-case hexadecimal digits."""

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""A JSON value; documents that are signed hold only finite numbers."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")
_ROUND = re.compile(r"(?:0|[1-9][0-9]{0,8})\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def check_name(text: str, what: str = "name") -> str:
    """A site's or experiment's name: 1-40 of a-z, 0-9 and '-', no '-' at either end. Raises `BadData`."""
    if not _NAME.match(text):
        raise BadData(
            f"{what} {text[:60]!r} is not allowed: use 1 to 40 lower-case letters, digits and '-', "
            "beginning and ending with a letter or digit"
        )
    return text


def site_id(text: str) -> SiteId:
    """`text` as a site's name. Raises `BadData`."""
    return SiteId(check_name(text, "site name"))


def experiment_id(text: str) -> ExperimentId:
    """`text` as an experiment's name. Raises `BadData`."""
    return ExperimentId(check_name(text, "experiment name"))


def digest(text: str) -> Digest:
    """`text` as a digest; anything that could name a path is refused. Raises `BadData`."""
    if not _DIGEST.match(text):
        raise BadData(f"{text[:80]!r} is not a SHA-256 digest (64 lower-case hexadecimal digits)")
    return Digest(text)


def sha256(data: bytes) -> Digest:
    """The digest of bytes in memory."""
    return Digest(hashlib.sha256(data).hexdigest())


def canonical(document: Mapping[str, Json]) -> bytes:
    """The one byte form of a JSON document: sorted keys, no spaces, UTF-8, no NaN. What is hashed or signed is this."""
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise BadData(f"a document with a number that is not finite cannot be signed ({error})") from error


@dataclass(frozen=True, order=True)
class RoundKey:
    """One round of one experiment; `number` counts from 1 and is never used twice."""

    experiment: ExperimentId
    number: int

    def __str__(self) -> str:
        return f"{self.experiment}/{self.number}"

    @classmethod
    def parse(cls, text: str) -> RoundKey:
        """The reverse of `str`. Raises `BadData`."""
        name, _, number = text.partition("/")
        if not _ROUND.match(number):
            raise BadData(f"{text[:120]!r} is not a round (EXPERIMENT/ROUND)")
        return cls(experiment_id(name), int(number))


@dataclass(frozen=True, order=True)
class TaskKey:
    """What makes messages idempotent: experiment, round, kind and site. The attempt is not part of it."""

    round: RoundKey
    kind: str
    site: SiteId

    def __str__(self) -> str:
        return f"{self.round}/{self.kind}/{self.site}"

    @classmethod
    def parse(cls, text: str) -> TaskKey:
        """The reverse of `str`. Raises `BadData`."""
        parts = text.split("/")
        if len(parts) != 4 or not _ROUND.match(parts[1]) or parts[2] not in TASK_KINDS:
            raise BadData(f"{text[:120]!r} is not a task (EXPERIMENT/ROUND/KIND/SITE)")
        return cls(RoundKey(experiment_id(parts[0]), int(parts[1])), parts[2], site_id(parts[3]))


TASK_KINDS = ("train", "evaluate")
"""Kinds of task; only `train` is scheduled today."""
