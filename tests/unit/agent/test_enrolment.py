"""Enrolment where a site has worked before: whose state a join line may be used on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import enrolment
from agent.enrolment import Enrolled, enroll
from agent.layout import Layout
from histofed.audit.journal import Journal
from histofed.base.clock import SystemClock
from histofed.base.errors import BadData
from histofed.pki.credentials import Credentials
from histofed.pki.tokens import JoinLine, make
from histofed.transport.enrolment import Joined
from tests.support.pki import Federation

Enrol = Callable[..., Enrolled]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


@pytest.fixture
def enrol_as(layout: Layout, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> Enrol:
    """Enrol, at an aggregator that takes the line for this site's."""

    def enrol_as(name: str, *, again: bool = False) -> Enrolled:
        async def answered(*_: Any, **__: Any) -> Joined:
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
