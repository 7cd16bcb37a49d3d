"""Another user in this process: what a command says to who forgot `runuser -u USER --`."""

from __future__ import annotations

import codecs
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

NOBODY: Final = 65534
codecs.lookup("idna")  # what is looked up and not found is remembered: names could not be resolved in later tests

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root can become another user")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Run the block as user 65534. What it imports must be imported before: an interpreter may lie in root's home."""
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


@contextlib.contextmanager
def reachable(folder: Path) -> Iterator[Path]:
    """Let everybody pass through the folders above: pytest's are its user's alone."""
    closed = [each for each in (folder, *folder.parents) if not each.stat().st_mode & 0o001]
    modes = {each: each.stat().st_mode & 0o7777 for each in closed}
    for each in closed:
        each.chmod(modes[each] | 0o055)
    try:
        yield folder
    finally:
        for each, mode in modes.items():
            each.chmod(mode)


def give(folder: Path, user: int = NOBODY) -> None:
    """Make a folder and all that is in it a user's."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
