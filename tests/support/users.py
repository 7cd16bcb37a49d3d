"""Another user in this process, and a disk that takes nothing: what a command says to who forgot `runuser -u USER --`."""

from __future__ import annotations

import codecs
import contextlib
import os
import subprocess
import tempfile
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


@pytest.fixture
def open_tmp_path() -> Iterator[Path]:
    """For `tmp_path`, where another user must reach it: pytest's folders are its user's alone, and shared between runs."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def give(folder: Path, user: int = NOBODY) -> None:
    """Make a folder and all that is in it a user's."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)


@contextlib.contextmanager
def mounted_read_only(folder: Path) -> Iterator[None]:
    """Inside, nobody can write below `folder`, root neither. Skips the test where nothing may be mounted."""
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
