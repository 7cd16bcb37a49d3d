"""A forgotten `runuser -u USER --`: every command of the agent says whose state it is, and with which exit code it ends."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

import agent.backup
import agent.daemon
import agent.doctor
import agent.enrolment
import agent.restore  # noqa: F401  # what commands import late, which another user may not be able to
from agent.cli import main
from agent.layout import Layout
from agent.state import State
from agent.status import Status, write_status
from histofed.audit.journal import Journal
from histofed.base import durable
from histofed.base.clock import SystemClock
from histofed.base.config import Loaded, load  # noqa: F401
from histofed.base.errors import CannotWriteState, NotOurs
from histofed.base.schema_pydantic import PydanticSchema  # noqa: F401
from tests.support.pki import Federation
from tests.support.users import as_nobody, give, needs_root, open_tmp_path

tmp_path = open_tmp_path

pytestmark = needs_root


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A site that has run, its state root's alone."""
    layout = Layout(durable.make_directory(tmp_path / "state"))
    durable.make_directory(layout.identity.parent)
    Federation().site("north-clinic").save(layout.identity)
    with contextlib.closing(State(layout.state, SystemClock())):
        pass
    with contextlib.closing(Journal(layout.journal, SystemClock(), "agent-north-clinic")) as journal:
        journal.append("agent.started", subject={})
    durable.make_directory(layout.outbox)
    write_status(layout, Status("0.1.0", "north", "a.example:8443", True, "waits", None, 0, "2026", os.getpid()))
    path = tmp_path / "agent.toml"
    path.write_text(f'state_dir = "{layout.root}"\nconsent = "{tmp_path / "consent.toml"}"\n')
    path.chmod(0o644)
    return str(path)


@pytest.mark.parametrize(
    "command", [["status"], ["status", "--live"], ["run"], ["backup", "FILE"], ["restore", "FILE"], ["enroll"]]
)
def test_who_is_not_the_owner_is_told_what_to_type(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    arguments = [str(tmp_path / word) if word == "FILE" else word for word in command]
    with as_nobody():
        assert main([*arguments, "--config", config]) == 78
    error = capsys.readouterr().err
    assert str(tmp_path / "state") in error
    assert "belongs to root, and this command runs as nobody: as root, put `runuser -u root --` before" in error
    assert error.count("\n") == 1


def test_the_doctor_says_it_once_and_goes_on(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with as_nobody():
        assert main(["doctor", "--config", config, "--json"]) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert found["state"]["code"] == 78
    assert f"{tmp_path / 'state'} belongs to root" in found["state"]["words"]
    assert "please report" not in str(found)
    assert list(found)[-1] == "state"


def test_root_is_told_before_it_makes_anything(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    give(state)
    before = set(state.rglob("*"))
    for command in (["run"], ["backup", str(tmp_path / "file")], ["restore", str(tmp_path / "file")]):
        assert main([*command, "--config", config]) == 78
        assert f"runuser -u nobody -- histofed-agent {command[0]}" in capsys.readouterr().err
    assert set(state.rglob("*")) == before
    assert main(["status", "--config", config]) == 0, "root may look"


def test_a_database_that_root_left_is_told_by_its_owner(config: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    give(layout.root)
    os.chown(layout.state, 0, 0)
    with as_nobody(), pytest.raises(NotOurs, match=f"{layout.state} belongs to root, in a folder of nobody.*chown nobody"):
        State(layout.state, SystemClock())
    assert issubclass(NotOurs, CannotWriteState), "who has something to keep treats it as a disk that refuses"
