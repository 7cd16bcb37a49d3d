"""What a daemon asks of the C library, seen from outside."""

from __future__ import annotations

import subprocess
import sys

_MESSAGES = """
import resource, sys
from histofed.base.heap import share_heap
if sys.argv[1] == "shared":
    share_heap()
bytes(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    held = [bytearray(b"x") * (1 << 20) for _ in range(3)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_PAGES = 256
"""Of one message of a MiB."""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _MESSAGES, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_of_messages_is_not_taken_from_the_kernel_each_time() -> None:
    """600 messages of a MiB: the pages of the three that were held at once, and little more."""
    assert faults("shared") < 3 * _PAGES * 4 < faults("left alone")


_PIECES = """
from histofed.base.heap import Heap, resident_bytes, share_heap
share_heap()
heap = Heap()
held = [bytearray(b"x") * (64 << 10) for _ in range(1600)]
kept = held[::50]
del held
before = resident_bytes()
heap.give_back()
after = resident_bytes()
few = [bytearray(b"x") * (64 << 10) for _ in range(100)]
del few
between = resident_bytes()
heap.give_back()
print(before - after, between - resident_bytes(), sum(map(sum, kept)) == len(kept) * (64 << 10) * ord("x"))
"""


def test_pieces_between_what_lasts_are_given_back_when_they_are_many() -> None:
    """100 MiB in pieces of 64 KiB, each fiftieth of which lasts; then six, which are kept for the next messages."""
    done = subprocess.run([sys.executable, "-c", _PIECES], capture_output=True, text=True, check=True)
    many, few, whole = done.stdout.split()
    assert int(many) > 80 << 20
    assert int(few) == 0
    assert whole == "True"
