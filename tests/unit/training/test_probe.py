"""What the agent's doctor reads about torch, from the process that it starts."""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_probe_names_torch_processor_and_gpus() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "histofed.training.probe"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["torch"]
    assert found["threads"] >= 1
    assert isinstance(found["gpus"], list)
    assert found["cpu"] == found["cpu"].upper()
