"""Upgrades: what an older release wrote is opened, and goes on; what a newer one wrote is refused in words, untouched."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest

from histofed import __version__
from histofed.base.hashing import sha256_file
from tests.support.federation import Federation
from tests.upgrade.record import SITES, STATES

RELEASES = sorted(STATES.glob("*.tar.gz"))


@pytest.fixture(params=RELEASES, ids=[path.name.removesuffix(".tar.gz") for path in RELEASES])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Federation, dict[str, Any]]:
    """A federation whose state directories are of that release; nothing runs yet."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path / "recorded", filter="data")
    federation = Federation(tmp_path)
    (tmp_path / "recorded/aggregator").rename(federation.state)
    for site in SITES:
        federation.write_site(site)
        (tmp_path / "recorded" / site).rename(federation.site(site) / "state")
    operator = federation.operator / "operator.toml"
    lines = [line for line in operator.read_text().splitlines() if not line.startswith("aggregator")]
    operator.write_text("\n".join([f'aggregator = "{federation.address}"', *lines]) + "\n")
    return federation, json.loads((tmp_path / "recorded/facts.json").read_text())


def test_this_release_is_recorded() -> None:
    """Before its tag: `python -m tests.upgrade.record`."""
    assert f"{__version__}.tar.gz" in {path.name for path in RELEASES}


def test_an_older_state_goes_on(older: tuple[Federation, dict[str, Any]], tmp_path: Path) -> None:
    """Aggregator first, agents later: the order of every upgrade."""
    federation, facts = older
    with federation:
        federation.start_aggregator()
        # the recorded certificates last a week, an operator's ninety days: both are renewed by hand, as after a long pause
        federation.daemons["aggregator"].stop()
        config = str(federation.aggregator_config)
        federation.command("aggregator.cli", "operator", "again", "--out", str(tmp_path / "operator"), "--config", config)
        for file in (tmp_path / "operator").iterdir():
            (federation.operator / file.name).write_bytes(file.read_bytes())
        federation.start_aggregator()
        assert federation.parts("finished") == facts["parts"]
        for site in SITES:
            line = federation.join_line(site, again=True)
            (federation.site(site) / "line").write_text(line)
            agent = str(federation.site(site) / "agent.toml")
            federation.command(
                "agent.cli", "enroll", "--again", "--config", agent, "--join-line-file", str(federation.site(site) / "line")
            )
        federation.start_agents(*SITES)
        ended = federation.wait_until_ended("open")
        assert ended["experiment"]["state"] == "finished"
        federation.command("histofed.cli.main", "audit", "verify", str(federation.state / "journal"))
        for site in SITES:
            federation.command("histofed.cli.main", "audit", "verify", str(federation.site(site) / "state/journal"))


def test_an_aggregators_newer_state_is_refused(older: tuple[Federation, dict[str, Any]]) -> None:
    federation, _ = older
    database = federation.state / "state.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = sha256_file(database)
    with federation:
        said = federation.run("aggregator.cli", "run", "--config", str(federation.aggregator_config), code=78)
    assert "the state was written by a newer histofed (schema 9999): install that release again" in said
    assert sha256_file(database) == before


def test_an_agents_newer_state_is_refused(older: tuple[Federation, dict[str, Any]]) -> None:
    federation, _ = older
    database = federation.site("north") / "state/state.db"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = sha256_file(database)
    said = federation.run("agent.cli", "run", "--config", str(federation.site("north") / "agent.toml"), code=78)
    assert "was written by a newer histofed (schema 99" in said
    assert sha256_file(database) == before
