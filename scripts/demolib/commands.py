"""The demo drives the federation as a person would: with the commands, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histofed.base.console import INTERRUPTED
from histofed.cli.main import main as histofed

from .daemons import DemoError

BIN = Path(sys.executable).parent


def command(program: str, *arguments: str | Path) -> list[str]:
    """The installed console script of this environment."""
    return [str(BIN / program), *(str(argument) for argument in arguments)]


def run(program: str, *arguments: str | Path, given: str = "") -> str:
    """Run to the end; stdout. Raises `DemoError` with what it said on stderr."""
    ended = subprocess.run(
        command(program, *arguments), input=given, capture_output=True, text=True, check=False, timeout=600
    )
    if ended.returncode:
        raise DemoError(f"{program} {arguments[0]} failed (exit code {ended.returncode}): {ended.stderr.strip()}")
    return ended.stdout


@dataclass(frozen=True)
class Operator:
    """`histofed --config demo/operator.toml ... --json`."""

    config: Path

    def ask(self, *arguments: str | Path) -> dict[str, Any]:
        """The document of a command, run in this process: the demo asks often. Raises `DemoError` with its sentence."""
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = histofed([*map(str, arguments), "--config", str(self.config), "--json"])
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise DemoError(error.getvalue().strip())
        found = json.loads(out.getvalue())
        assert isinstance(found, dict)
        return found

    def watching(self, experiment: str) -> subprocess.Popen[bytes]:
        """The live view, on this terminal."""
        return subprocess.Popen(command("histofed", "rounds", "watch", experiment, "--config", self.config))
