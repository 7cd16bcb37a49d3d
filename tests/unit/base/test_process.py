"""What a daemon asks of the C library, seen from outside."""

from __future__ import annotations

import subprocess
import sys

_MESSAGES = """
import resource, sys
from histofed.base.process import share_heap
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
