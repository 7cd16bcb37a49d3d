"""Hospitals that join, or try to: tokens, digests, identities that are used twice, agents without an aggregator."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from histofed.base.errors import NotAuthorised
from histofed.pki.credentials import Credentials
from histofed.transport.channel import open_connection
from histofed.transport.enrolment import renew
from tests.e2e.conftest import NewFederation
from tests.support.federation import Federation, mean_experiment

CONNECTED = '"msg": "connected to'
"""In an agent's log."""


@pytest.fixture(scope="module")
def welcoming(new_federation: NewFederation) -> Federation:
    """An aggregator that new hospitals may try to join."""
    federation = new_federation()
    federation.start_aggregator()
    return federation


def newcomer(federation: Federation, name: str) -> Path:
    """The files of a hospital that is not enrolled yet."""
    federation.write_site(name)
    return federation.site(name) / "state/identity/agent.pem"


def test_a_token_works_once(welcoming: Federation) -> None:
    first, second = newcomer(welcoming, "first"), newcomer(welcoming, "second")
    line = welcoming.join_line("first")
    welcoming.join_line("spare")  # as long as another token is open, so is the port
    done = welcoming.enroll("first", line)
    assert "enrolled as spiffe://test/site/first" in done.out
    assert first.stat().st_mode & 0o777 == 0o600

    refused = welcoming.enroll("second", line, code=77)
    assert refused.error == ("histofed-agent: the join token is unknown, used or expired; ask the operator for a new one\n")
    assert not second.exists()
    assert line.split()[2] not in welcoming.daemons["aggregator"].log.read_text(), "a token is a secret"


def test_enrolling_again_ends_what_a_thief_has(welcoming: Federation) -> None:
    identity = newcomer(welcoming, "robbed")
    welcoming.enroll("robbed", welcoming.join_line("robbed"))
    copied = Credentials.load(identity)
    stolen = asyncio.run(renewed(welcoming, copied))
    again = ("enroll", "--again", "--config", str(welcoming.site("robbed") / "agent.toml"), "--join-line-file", "-")
    welcoming.run("agent.cli", *again, text=welcoming.join_line("robbed", again=True))

    for each in (copied, stolen):
        with pytest.raises(NotAuthorised, match="was revoked"):
            asyncio.run(renewed(welcoming, each))
    assert asyncio.run(renewed(welcoming, Credentials.load(identity)))


async def renewed(federation: Federation, credentials: Credentials) -> Credentials:
    async with open_connection(federation.address, credentials) as connection:
        return await renew(connection, credentials)


def test_a_token_expires(welcoming: Federation) -> None:
    newcomer(welcoming, "tardy")
    line = welcoming.join_line("tardy")
    welcoming.join_line("spare")
    with sqlite3.connect(welcoming.state / "state.db") as database:
        database.execute("UPDATE tokens SET expires_at = '2020-01-01T00:00:00.000000Z' WHERE site = 'tardy'")
    database.close()
    assert "expired" in welcoming.enroll("tardy", line, code=77).error


def test_a_line_with_another_digest_leads_to_nobody_and_spends_no_token(welcoming: Federation) -> None:
    identity = newcomer(welcoming, "careful")
    line = welcoming.join_line("careful")
    wrong = " ".join([*line.split()[:3], "ab" * 32])
    refused = welcoming.enroll("careful", wrong, code=77)
    assert "is not of the federation in the join line" in refused.error
    assert "ask the operator for a new line" in refused.error
    assert not identity.exists()
    welcoming.enroll("careful", line)


def test_the_port_is_closed_without_a_token(welcoming: Federation) -> None:
    newcomer(welcoming, "late")
    line = welcoming.join_line("late")
    with sqlite3.connect(welcoming.state / "state.db") as database:
        database.execute("DELETE FROM tokens")
    database.close()
    welcoming.daemons["aggregator"].wait_logged("the enrolment port is closed")
    assert "has an open token" in welcoming.enroll("late", line, code=69).error


def test_another_operator_comes_while_the_aggregator_runs(welcoming: Federation) -> None:
    folder = welcoming.folder / "bea"
    config = ("--config", str(welcoming.aggregator_config))
    assert "valid until" in welcoming.command("aggregator.cli", "operator", "bea", "--out", str(folder), *config).out
    welcoming.command("histofed.cli.main", "--config", str(folder / "operator.toml"), "status")
    journal = "".join(path.read_text() for path in (welcoming.state / "journal").iterdir())
    assert journal.count('"identity":"spiffe://test/operator/bea"') == 1


def test_a_line_that_is_none_is_refused_before_anything_is_sent(welcoming: Federation) -> None:
    newcomer(welcoming, "sloppy")
    assert "copy the whole line" in welcoming.enroll("sloppy", "histofed1 localhost:1", code=65).error


def test_an_agent_without_identity_says_how_to_get_one(welcoming: Federation) -> None:
    newcomer(welcoming, "nobody")
    agent = welcoming.launch_agent("nobody")
    assert agent.wait_ended() == 77
    assert "enrol first, with a join line of the operator" in agent.tail(3)


def test_a_second_agent_with_the_same_identity_is_sent_away(welcoming: Federation) -> None:
    honest = welcoming.start_agent("north")
    honest.wait_logged(CONNECTED)
    copy = welcoming.site("copy")
    welcoming.write_site("copy")
    shutil.copytree(welcoming.site("north") / "state/identity", copy / "state/identity")

    second = welcoming.start_agent("copy")
    line = json.loads(second.wait_logged("not connected"))
    assert "another agent is connected as site north" in line["msg"]
    assert "enrol it under a name of its own" in line["msg"]
    assert second.stop() == 0

    welcoming.submit(mean_experiment("undisturbed", 1, extra='[sampling]\nminimum = 1\nsites = ["north"]'))
    assert welcoming.wait_until_ended("undisturbed")["experiment"]["state"] == "finished"
    assert not honest.logged("not connected")
    assert honest.stop() == 0


def test_two_agents_cannot_share_one_state(welcoming: Federation) -> None:
    agent = welcoming.start_agent("south")
    second = welcoming.launch_agent("south")
    assert second.wait_ended() == 65
    assert "another process uses" in second.tail(5)
    assert agent.stop() == 0


def test_an_agent_waits_for_its_aggregator_and_says_so(new_federation: NewFederation) -> None:
    federation = new_federation()
    # a daemon under a watchdog tells its status more often than every five seconds
    agent = federation.start_agent("north", {"WATCHDOG_USEC": "1000000"})
    status = agent.wait_notified("STATUS=not connected")
    assert f"nobody listens at {federation.address}" in status
    warning = json.loads(agent.wait_logged("not connected"))
    assert warning["level"] == "warning"
    assert "next try in" in warning["msg"]
    shown = federation.command("agent.cli", "status", "--config", str(federation.site("north") / "agent.toml"), code=1)
    assert "not connected" in shown.out

    federation.start_aggregator()
    agent.wait_logged(CONNECTED)
    assert agent.stop(signal.SIGTERM) == 0
