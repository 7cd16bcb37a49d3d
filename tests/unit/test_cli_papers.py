"""Man pages and completion are what the parsers say, and the shells understand them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMMANDS = ("histofed", "histofed-agent", "histofed-aggregator")


def test_they_are_current() -> None:
    command = [sys.executable, str(ROOT / "scripts/cli_papers.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("histofed-agent ", {"run", "enroll", "doctor", "--version"}),
        ("histofed-agent doctor --", {"--json", "--config"}),
        ("histofed-agent doc", {"doctor"}),
        ("histofed rounds ", {"list", "watch"}),
        ("histofed --config x rounds ", {"list", "watch"}),
        ("histofed-aggregator backup --", {"--check"}),
    ],
)
def test_bash_completes(typed: str, offered: set[str]) -> None:
    """bash itself answers, as it would on Tab."""
    words = typed.split(" ")
    function = "_" + words[0].replace("-", "_")
    script = (
        f"source {DEPLOY}/completion/{words[0]}.bash; COMP_WORDS=({' '.join(words[:-1])} '{words[-1]}'); "
        f"COMP_CWORD={len(words) - 1}; {function}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert offered <= set(done.stdout.split()), done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_every_paper(command: str) -> None:
    section = "1" if command == "histofed" else "8"
    manual = (DEPLOY / "man" / f"{command}.{section}").read_text().replace("\\-", "-")
    shown = subprocess.run(
        [sys.executable, "-c", _HELP.format(command=command)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert shown
    for name in shown:
        assert f".SS {command} {name}" in manual
        for shell in (f"{command}.bash", f"_{command}", f"{command}.fish"):
            assert name in (DEPLOY / "completion" / shell).read_text()


_HELP = """
import sys
sys.path.insert(0, '.')
from histofed.cli.main import build_parser
from agent.cli import _parser as agent
from aggregator.cli import _parser as aggregator
parser = {{'histofed': build_parser, 'histofed-agent': agent, 'histofed-aggregator': aggregator}}['{command}']()
choices = next(action for action in parser._actions if action.choices).choices
print(*choices)
"""
