"""What an agent may say of itself when it says hello. `aggregator/services/rounds.py` asks, before it believes any of it."""

from __future__ import annotations

import re
from typing import Final

from histofed import __version__
from histofed.base.errors import BadData, VersionMismatch
from histofed.v1 import rounds_pb2

EXPERIMENTS_LIMIT: Final = 1000
"""Experiments that one agent asks about."""
_VERSION: Final = re.compile(r"(\d{1,4})\.(\d{1,4})(?!\d)[\w.+-]{0,30}", re.ASCII)
"""What an agent may call its version, which operators see; MAJOR and MINOR are the ones that count."""
_INSTANCE: Final = re.compile(r"[A-Za-z0-9-]{8,64}")


def check_hello(request: rounds_pb2.HelloRequest) -> None:
    """Raises `BadData` for what no agent says, `VersionMismatch` for one that is newer than this aggregator."""
    _check_version(request.version)
    if not _INSTANCE.fullmatch(request.instance):
        raise BadData("the agent's instance must be 8 to 64 letters, digits or '-'")
    if len(request.experiments) > EXPERIMENTS_LIMIT:
        raise BadData(f"an agent asks about at most {EXPERIMENTS_LIMIT} experiments at once")


def _check_version(theirs: str) -> None:
    """Agents may be older, never newer (MAJOR.MINOR). Raises `VersionMismatch`, and `BadData` for what is no version."""
    found = _VERSION.fullmatch(theirs)
    if found is None:
        raise BadData(f"{theirs[:40]!r} is not a version (MAJOR.MINOR.PATCH)")
    if tuple(map(int, found.groups())) > tuple(int(part) for part in __version__.split(".")[:2]):
        raise VersionMismatch(
            f"this agent is histofed {theirs}, newer than the aggregator's {__version__}: "
            "upgrade the aggregator first, or install the agent of its release"
        )
