"""Disks that refuse and clocks that are set, for one daemon and its children: the harness's side of `shim.c`.

The shim is an LD_PRELOAD library, because the n-th write, fsync or rename may be SQLite's as well as our own, and a wall
clock is read by TLS too. A time namespace moves the monotonic clock only; libfaketime is not on every machine, a C compiler
is. Control is a small file that both sides map.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import shutil
import subprocess
from enum import IntFlag
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("shim.c")
RULES: Final = 8
SHORT: Final = 0
"""Instead of an errno: the write takes half of the bytes."""
FULL_SLOT: Final = 0
"""The rule of a disk that is full for a while; the others are for single calls."""
FOR_EVER: Final = 1 << 40


class Call(IntFlag):
    """Kinds of call that can be struck."""

    WRITE = 1
    SYNC = 2
    RENAME = 4


class _Rule(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("calls", "error", "before", "times", "struck")]


class _Control(ctypes.Structure):
    _fields_ = [("clock_ns", ctypes.c_int64), ("rules", _Rule * RULES)]


def build(folder: Path) -> Path:
    """The compiled shim, made once per version of its source. Needs a C compiler."""
    compiler = shutil.which("cc")
    assert compiler, "fault runs need a C compiler (cc) for tests/faults/runs/shim.c: install gcc or clang"
    target = folder / f"shim-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not target.exists():
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(target), str(SOURCE), "-ldl"], check=True)
    return target


class Shim:
    """The disk and the clock of one daemon."""

    def __init__(self, library: Path, control: Path, below: Path) -> None:
        """Files below `below` are the disk."""
        control.write_bytes(bytes(ctypes.sizeof(_Control)))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_Control))
        self._control = _Control.from_buffer(self._map)
        self._next = FULL_SLOT + 1
        self.environment: Final = {
            "LD_PRELOAD": str(library),
            "FAULTS_CONTROL": str(control),
            "FAULTS_BELOW": f"{below}/",
        }
        """What a process is started with."""

    def set_clock(self, seconds: float) -> None:
        """The wall clock is ahead by so much (behind, when negative); the monotonic clock does not notice."""
        self._control.clock_ns = int(seconds * 1e9)

    def fill_disk(self) -> None:
        """Every write is refused from now on."""
        self._set(FULL_SLOT, Call.WRITE, errno.ENOSPC, 0, FOR_EVER)

    def empty_disk(self) -> None:
        """Writes succeed again."""
        self._control.rules[FULL_SLOT].times = 0

    def strike(self, calls: Call, error: int, before: int, times: int) -> None:
        """Refuse `times` calls after letting `before` of them pass; `error` is an errno, or SHORT."""
        self._set(self._next, calls, error, before, times)
        self._next = self._next % (RULES - 1) + 1

    def heal(self) -> None:
        """No rule strikes any more."""
        for rule in self._control.rules:
            rule.times = 0

    @property
    def struck(self) -> int:
        """Calls that were refused or cut short."""
        return sum(rule.struck for rule in self._control.rules)

    def _set(self, slot: int, calls: Call, error: int, before: int, times: int) -> None:
        rule = self._control.rules[slot]
        rule.times = 0
        rule.calls, rule.error, rule.before = int(calls), error, before
        rule.times = times
