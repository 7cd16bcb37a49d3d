"""Checkers of manifests from PyPI, each in an environment of its own in the rig's cache: none of them is ours to ship."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.deploy.rootfs import cache, held

VERSIONS: Final = {"kubernetes-validate": "1.37.0", "checkov": "3.3.30"}


def checker(name: str) -> Path:
    """The program, installed on first use; the failure says what pip said."""
    folder = cache() / f"{name}-{VERSIONS[name]}"
    with held(cache() / f"{name}.lock"):
        if not (folder / "done").exists():
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            _run([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", f"{name}=={VERSIONS[name]}"])
            (folder / "done").touch()
    return folder / "bin" / name


def environment() -> dict[str, str]:
    """This one's, without our code on the path of a tool."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
