"""A forgotten `runuser -u USER --`: the aggregator says whose state it is, and root leaves nothing in it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import aggregator.daemon
import aggregator.doctor
import aggregator.restore  # noqa: F401  # what commands import late, which another user may not be able to
from aggregator.cli import main
from aggregator.database import Database
from histofed.base import checkup
from histofed.base.errors import NotOurs
from tests.support.centre import Centre
from tests.support.users import as_nobody, give, needs_root, open_tmp_path

tmp_path = open_tmp_path

pytestmark = needs_root


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    """A federation that has run, its state root's alone."""
    centre = Centre(tmp_path)
    centre.cli("init")
    centre.populate()
    centre.toml.chmod(0o644)
    return centre


COMMANDS = (
    ["init"],
    ["operator", "alice", "--out", "OUT"],
    ["first", "demo", "FILE"],
    ["run"],
    ["backup", "FILE"],
    ["restore", "FILE"],
    ["restore", "--in-place"],
)


def call(centre: Centre, command: list[str]) -> int:
    named = [str(centre.folder / word) if word in {"OUT", "FILE"} else word for word in command]
    return main([*named, "--config", str(centre.toml)])


@pytest.mark.parametrize("command", COMMANDS)
def test_who_is_not_the_owner_is_told_what_to_type(
    centre: Centre, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    with as_nobody():
        assert call(centre, command) == 78
    error = capsys.readouterr().err
    assert f"{centre.state} belongs to root, and this command runs as nobody: as root, put `runuser -u root --`" in error
    assert error.count("\n") == 1


def test_the_doctor_says_it_once_and_goes_on(centre: Centre, capsys: pytest.CaptureFixture[str]) -> None:
    with as_nobody():
        assert call(centre, ["doctor", "--json"]) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert (found["state"]["error"], found["state"]["code"]) == ("NotOurs", 78)
    assert list(found) == ["configuration", "state", "ports", "names"]


@pytest.mark.parametrize("command", COMMANDS)
def test_root_is_told_before_it_makes_anything(
    centre: Centre, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    give(centre.state)
    before = set(centre.folder.rglob("*"))
    assert call(centre, command) == 78
    assert f"runuser -u nobody -- histofed-aggregator {command[0]}" in capsys.readouterr().err
    assert set(centre.folder.rglob("*")) == before


def test_a_lock_that_root_left_is_told_by_its_owner(centre: Centre, capsys: pytest.CaptureFixture[str]) -> None:
    lock = centre.state / "backup.lock"
    lock.touch(0o600)
    give(centre.state)
    os.chown(lock, 0, 0)
    os.chown(centre.folder, 65534, 65534)
    with as_nobody():
        assert call(centre, ["backup", "FILE"]) == 78
        with pytest.raises(NotOurs, match="chown nobody"):
            checkup.state_directory(centre.state, 1, "init")
    error = capsys.readouterr().err
    assert f"{lock} belongs to root, in a folder of nobody, as whom this command runs: as root, chown nobody {lock}" in error
    assert "free space" not in error


def test_a_database_that_root_left_is_told_by_its_owner(centre: Centre) -> None:
    give(centre.state)
    (centre.state / "state.db").chmod(0o600)
    os.chown(centre.state / "state.db", 0, 0)
    with as_nobody(), pytest.raises(NotOurs, match="chown nobody"):
        Database(centre.state / "state.db")
