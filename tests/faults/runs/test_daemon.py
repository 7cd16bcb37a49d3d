"""The rig's daemons have small transfers, every module of theirs, and nobody else's have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from histofed.transport import limits
from tests.faults.runs.daemon import STRETCH

DAEMON = """
import inspect, json, logging, sys
from histofed.transport import limits, part, sending, unchanged
most = inspect.signature(unchanged.pieces).parameters["most"].default
loud = [each.getEffectiveLevel() == logging.DEBUG for each in (part._log, sending._log, logging.getLogger("asyncio"))]
print(json.dumps([limits.CHUNK, limits.SYNC_EVERY, limits.WINDOW, most, loud, sys.argv[1:], __name__]))
"""


def test_a_daemon_runs_as_itself_with_small_transfers(tmp_path: Path) -> None:
    (tmp_path / "some_daemon.py").write_text(DAEMON)
    command = [sys.executable, "-m", "tests.faults.runs.daemon", "some_daemon", "run"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    chunk, sync_every, window, most, loud, words, name = json.loads(done.stdout)
    assert (chunk, sync_every, most) == (STRETCH, STRETCH, STRETCH)
    assert window >= 2 * sync_every, "a sender must not wait for an acknowledgement nobody owes it"
    assert sync_every >= limits.COPY_LEAST, "a copy fits in a stretch"
    assert (loud, words, name) == ([True, True, False], ["run"], "__main__")
    assert limits.SYNC_EVERY == 32 * limits.MIB
