"""Flower in a virtual environment of its own, `.bench-venv`, made when it is first needed.

Its pins (protobuf, rich, click, ...) have no place in the project's environment, and a peer should not run on ours.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bench-venv"


def flower_python() -> Path:
    """The interpreter that has Flower. Raises `CalledProcessError` when it cannot be installed (pip has said why)."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["peers"]
    python, stamp = FOLDER / "bin" / "python", FOLDER / ".peers"
    if not stamp.exists() or stamp.read_text() != str(wanted):
        print(f"installing {', '.join(wanted)} in {FOLDER.name} (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *wanted], check=True)
        stamp.write_text(str(wanted))
    return python
