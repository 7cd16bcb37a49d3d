"""A daemon of the rig, with small transfers: `python -m tests.faults.runs.daemon agent run --config FILE`.

It is the product's daemon, all of it, but for the stretch between two syncs of a transfer, its chunk and its window. They
are megabytes, and the updates of the fault runs at most 1.6 MB: no part would hold a byte when a daemon dies or a link is
cut. Nothing in the product reads them from an environment or a file, so they are set here, before its modules are
imported. Its transfers tell each offset in the log (`transfers.py` reads it); everything else is told at the usual level.
"""

from __future__ import annotations

import logging
import runpy
import sys
from typing import Final
from unittest import mock

from histofed.transport import limits

STRETCH: Final = 64 * limits.KIB
"""25 stretches make the largest update, four the middle one; far more would leave single disk faults to transfers alone."""
RATE: Final = 512 * limits.KIB
"""Bytes per second of each site: the largest update is on its way for three seconds, so that faults meet it there."""


def small_transfers() -> None:
    """For this process, for good."""
    mock.patch.multiple(limits, CHUNK=STRETCH, SYNC_EVERY=STRETCH, WINDOW=2 * STRETCH).start()
    for module in ("sending", "part"):
        logging.getLogger(f"histofed.transport.{module}").setLevel(logging.DEBUG)


if __name__ == "__main__":
    small_transfers()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
