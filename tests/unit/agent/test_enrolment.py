"""Enrolment where a site has worked before: whose state a join line may be used on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import enrolment
from agent.enrolment import Enrolled, enroll
from agent.layout import Layout
from agent.restore import restore
from histofed.audit.journal import Journal
from histofed.backup import snapshot
from histofed.base import durable
from histofed.base.clock import SystemClock
from histofed.base.errors import AlreadyThere, BadData
from histofed.pki.credentials import Credentials
from histofed.pki.tokens import JoinLine, make
from histofed.transport.enrolment import Joined
from tests.support.pki import Federation

Enrol = Callable[..., Enrolled]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


@pytest.fixture
def asked() -> list[str]:
    """Whose lines were spent."""
    return []


@pytest.fixture
def enrol_as(layout: Layout, federation: Federation, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> Enrol:
    """Enrol, at an aggregator that takes the line for this site's."""

    def enrol_as(name: str, *, again: bool = False) -> Enrolled:
        async def answered(*_: Any, **__: Any) -> Joined:
            asked.append(name)
            return Joined(federation.site(name), "127.0.0.1:1")

        monkeypatch.setattr(enrolment, "enrol", answered)
        line = JoinLine("127.0.0.1", 1, make(), federation.authority.sha256)
        return enroll(str(line), layout, None, SystemClock(), again=again)

    return enrol_as


def run_as(layout: Layout, name: str) -> None:
    """A daemon of this site has run here."""
    journal = Journal(layout.journal, SystemClock(), f"agent-{name}")
    journal.append("agent.started", subject={"site": name})
    journal.close()


def test_a_state_without_its_identity_does_not_become_another_sites(layout: Layout, enrol_as: Enrol) -> None:
    run_as(layout, "north")
    with pytest.raises(BadData, match=r"for west, .* holds the journal .* of north: ask for another line, for north"):
        enrol_as("west")
    assert not layout.identity.exists()
    assert not layout.aggregator.exists()


def test_an_identity_is_not_replaced_by_another_sites(layout: Layout, enrol_as: Enrol) -> None:
    enrol_as("north")
    run_as(layout, "north")
    before = layout.identity.read_bytes()
    with pytest.raises(BadData, match="used up"):
        enrol_as("west", again=True)
    assert layout.identity.read_bytes() == before


def test_a_site_comes_back_to_its_own_state(layout: Layout, enrol_as: Enrol) -> None:
    run_as(layout, "north")
    enrol_as("north")
    enrol_as("north", again=True)
    assert Credentials.load(layout.identity).identity.name == "north"


def test_an_identity_that_has_never_worked_may_be_replaced_by_another_sites(layout: Layout, enrol_as: Enrol) -> None:
    enrol_as("north")
    assert enrol_as("west", again=True).identity.endswith("/site/west")


def test_in_the_middle_of_a_restore_the_line_is_not_spent(layout: Layout, enrol_as: Enrol, asked: list[str]) -> None:
    """What enrolment wrote would stand in the way of the restored identity, at every start of the daemon."""
    durable.make_directory(layout.root)
    (layout.root / "restore.json").write_text("{}")
    with pytest.raises(AlreadyThere, match="a restore was interrupted"):
        enrol_as("north")
    (layout.root / "restore.json").unlink()
    with snapshot.alone(layout.root, "histofed-agent restore"), pytest.raises(AlreadyThere, match="histofed-agent restore"):
        enrol_as("north")
    assert not asked
    assert not layout.identity.parent.exists()


def test_no_restore_begins_while_a_site_enrols(
    layout: Layout, enrol_as: Enrol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Credentials.save

    def saved(credentials: Credentials, path: Path) -> None:
        with pytest.raises(AlreadyThere, match="histofed-agent enroll"):
            restore(layout, tmp_path / "backup", SystemClock())
        save(credentials, path)

    monkeypatch.setattr(Credentials, "save", saved)
    enrol_as("north")
    assert layout.identity.exists()
