"""Arming failpoints in this process, as HISTOFED_FAILPOINTS does at its start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from histofed.base import failpoints


@contextlib.contextmanager
def armed(monkeypatch: pytest.MonkeyPatch, text: str) -> Iterator[None]:
    """As long as the block lasts."""
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "_armed", failpoints._parse(text))
        yield
