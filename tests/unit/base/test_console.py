"""The three programs where nobody takes what they print, or somebody interrupts them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from histofed.base.console import BROKEN_PIPE, INTERRUPTED, exit_code_of
from histofed.base.errors import BadData, CannotWriteState, ConfigError, NotEnrolled

COMMANDS = {
    "histofed": ("histofed.cli.main", "presets", "list"),
    "histofed, of an error": ("histofed.cli.main", "audit", "verify", "nowhere", "--json"),
    "histofed-agent": ("agent", "check"),
    "histofed-agent, of an error": ("agent", "status", "--json", "--state-dir", "nowhere"),
    "histofed-aggregator": ("aggregator", "check"),
}
"""What prints something without a daemon."""
ENDS = {
    "histofed.cli.main presets list": 0,
    "histofed.cli.main status --config nowhere.toml": ConfigError.exit_code,
    "agent status --state-dir .": BadData.exit_code,
    "agent enroll --state-dir .": BadData.exit_code,
    "agent run --state-dir .": NotEnrolled.exit_code,
    "aggregator check": 0,
    "aggregator run": NotEnrolled.exit_code,
}
"""What reads, prints, complains and logs, and how it ends here."""


@pytest.fixture(params=["buffered", "unbuffered"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """With containers' habit of not buffering, a command fails at its first letter; without, at its end."""
    return {**os.environ, "HISTOFED_FEDERATION": "demo", "PYTHONUNBUFFERED": "1" if request.param == "unbuffered" else ""}


def ran(command: Sequence[str], out: int, environment: dict[str, str], folder: Path) -> tuple[int, str]:
    """Exit code, and what was said."""
    environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        stdout=out,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=folder,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("program", ["histofed.cli.main", "agent", "aggregator"])
def test_a_full_disk_is_told_of_help_too(program: str, option: str, environment: dict[str, str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code, said = ran((program, option), full.fileno(), environment, tmp_path)
    assert code == CannotWriteState.exit_code
    assert "standard output cannot be written" in said


@pytest.mark.parametrize("program", COMMANDS)
def test_a_full_disk_is_one_sentence_and_its_code(program: str, environment: dict[str, str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code, said = ran(COMMANDS[program], full.fileno(), environment, tmp_path)
    assert code == CannotWriteState.exit_code
    last = said.splitlines()[-1]
    assert last.startswith(
        f"{program.partition(',')[0]}: standard output cannot be written: {os.strerror(errno.ENOSPC)}; make room"
    )
    assert len(said.splitlines()) == 1 + ("error" in program)


@pytest.mark.parametrize("program", COMMANDS)
def test_a_reader_that_is_gone_is_no_error_message(program: str, environment: dict[str, str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        code, said = ran(COMMANDS[program], writer, environment, tmp_path)
    finally:
        os.close(writer)
    assert code == BROKEN_PIPE
    assert len(said.splitlines()) == ("error" in program)


def test_ctrl_c_is_its_code_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        print("so far")
        raise KeyboardInterrupt

    assert exit_code_of("program", interrupted) == INTERRUPTED
    assert capfd.readouterr() == ("so far\n", "")


def test_another_files_refusal_is_not_taken_for_that_of_standard_output(tmp_path: Path) -> None:
    def full() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    with pytest.raises(OSError, match=str(tmp_path)):
        exit_code_of("program", full)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ENDS)
def test_a_closed_stream_changes_no_end(command: str, closed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m {command} {closed}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "HISTOFED_FEDERATION": "demo", "PYTHONPATH": str(Path(__file__).parents[3])},
        cwd=tmp_path,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == ENDS[command], done.stderr
    assert "Traceback" not in done.stderr
