"""A blob that is here already, from which bytes may be copied instead of sent. Both ends open theirs with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from histofed.base.ids import Digest


@dataclass(frozen=True)
class Held:
    """A complete file, by content."""

    sha256: Digest
    path: Path


@contextlib.contextmanager
def opened(path: Path | None) -> Iterator[int | None]:
    """The file's descriptor for reading; None where there is none to be read: then bytes are sent, that is all."""
    try:
        descriptor = None if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)
