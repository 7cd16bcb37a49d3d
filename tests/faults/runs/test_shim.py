"""The disk that refuses and the clock that is set, on a process that is not histofed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.runs.shim import SHORT, Call, Shim, build

WRITER = """
import json, os, sys, time
folder, found = sys.argv[1], []
def attempt(what):
    try:
        found.append(what())
    except OSError as error:
        found.append(-error.errno)
file = os.open(f"{folder}/a", os.O_CREAT | os.O_RDWR)
for _ in range(4):
    attempt(lambda: os.write(file, b"12345678"))
attempt(lambda: os.fsync(file))
attempt(lambda: os.fsync(file))
attempt(lambda: os.rename(f"{folder}/a", f"{folder}/b"))
print(json.dumps([found, time.time(), time.monotonic()]))
"""


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    (tmp_path / "disk").mkdir()
    (tmp_path / "elsewhere").mkdir()
    return Shim(build(tmp_path), tmp_path / "control", tmp_path / "disk")


def written(shim: Shim, folder: Path) -> tuple[list[int | None], float, float]:
    """What the calls of a process answered, errnos as negative numbers; its two clocks."""
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder)],
        env=os.environ | shim.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found, wall, monotonic = json.loads(done.stdout)
    return found, wall, monotonic


def test_the_nth_calls_are_refused_and_the_others_are_not(shim: Shim, tmp_path: Path) -> None:
    shim.strike(Call.WRITE, errno.EIO, before=1, times=2)
    shim.strike(Call.SYNC, errno.ENOSPC, before=0, times=1)
    found, _, _ = written(shim, tmp_path / "disk")
    assert found == [8, -errno.EIO, -errno.EIO, 8, -errno.ENOSPC, None, None]
    assert shim.struck == 3


def test_a_short_write_takes_half(shim: Shim, tmp_path: Path) -> None:
    shim.strike(Call.WRITE, SHORT, before=2, times=1)
    assert written(shim, tmp_path / "disk")[0] == [8, 8, 4, 8, None, None, None]


def test_a_rename_is_refused(shim: Shim, tmp_path: Path) -> None:
    shim.strike(Call.RENAME, errno.EIO, before=0, times=1)
    assert written(shim, tmp_path / "disk")[0][-1] == -errno.EIO


def test_a_full_disk_is_one_until_it_is_emptied(shim: Shim, tmp_path: Path) -> None:
    shim.fill_disk()
    assert written(shim, tmp_path / "disk")[0][:4] == [-errno.ENOSPC] * 4
    shim.empty_disk()
    assert written(shim, tmp_path / "disk")[0][:4] == [8] * 4


def test_files_elsewhere_are_left_alone(shim: Shim, tmp_path: Path) -> None:
    shim.fill_disk()
    shim.strike(Call.SYNC | Call.RENAME, errno.EIO, before=0, times=9)
    assert written(shim, tmp_path / "elsewhere")[0] == [8, 8, 8, 8, None, None, None]


def test_the_wall_clock_is_set_and_the_monotonic_one_is_not(shim: Shim, tmp_path: Path) -> None:
    _, wall, monotonic = written(shim, tmp_path / "disk")
    shim.set_clock(-6 * 3600.0)
    _, set_back, after = written(shim, tmp_path / "elsewhere")
    assert -6 * 3600.0 <= set_back - wall < -6 * 3600.0 + 60
    assert 0 < after - monotonic < 60
