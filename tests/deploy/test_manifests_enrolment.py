"""The init containers: when the agent's spends a join line, and when either lets the pod go on without."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from histofed.backup.swap import PLAN
from histofed.base.clock import FakeClock
from histofed.pki.authority import Authority
from histofed.pki.credentials import Credentials
from histofed.pki.keys import signing_request
from tests.deploy.images import ROOT
from tests.deploy.manifests import containers, objects, rendered
from tests.support.federation import Federation


def test_a_site_whose_certificate_has_ended_comes_back_with_a_new_join_line(tmp_path: Path) -> None:
    """The init container of the manifest, start by start: no line, a line, the same line, another one after the end."""
    with Federation(tmp_path) as federation:
        federation.start_aggregator()
        federation.write_site("north")
        identity, line = federation.site("north") / "state/identity/agent.pem", federation.site("north") / "line"
        assert init_of_north(federation, line) != 0

        line.write_text(federation.join_line("north"))
        federation.join_line("spare")  # as long as another token is open, so is the port
        assert init_of_north(federation, line) == 0
        first = Credentials.load(identity)
        assert init_of_north(federation, line) == 0

        line.write_text(federation.join_line("north", again=True))
        assert init_of_north(federation, line) == 0
        assert Credentials.load(identity).serial == first.serial, "a valid identity is kept, and the line is not spent"

        authority = Authority.load(federation.state / "identity", FakeClock(datetime.now(UTC) - timedelta(days=30)))
        issued = authority.issue(authority.site("north"), signing_request(first.key))
        Credentials.make(first.key, issued.certificate_pem, authority.certificate_pem).save(identity)
        assert init_of_north(federation, line) == 0
        assert Credentials.load(identity).not_after > datetime.now(UTC)


@pytest.mark.parametrize(
    ("name", "program"),
    [("enroll", "agent"), ("init", "aggregator")],
)
def test_a_restore_that_was_interrupted_is_left_to_the_daemon(tmp_path: Path, name: str, program: str) -> None:
    """The identity before is aside already, and the new one not yet in its place."""
    (tmp_path / PLAN).write_text("decided")
    (command,) = {tuple(each["command"]) for _, each in containers(objects(rendered("dev"))) if each["name"] == name}
    place = f"/var/lib/histofed-{program}/state"
    assert place in command[2]
    # whatever the program itself says: without its Secret it does not come as far as the state
    text = command[2].replace(place, str(tmp_path)).replace(f"histofed-{program}", "false")
    assert subprocess.run([*command[:2], text], check=False).returncode == 0
    (tmp_path / PLAN).unlink()
    assert subprocess.run([*command[:2], text], check=False).returncode != 0


def init_of_north(federation: Federation, line: Path) -> int:
    """The exit code of the init container `enroll`, with the site's folder in the place of the pod's."""
    (command,) = {tuple(each["command"]) for _, each in containers(objects(rendered("dev"))) if each["name"] == "enroll"}
    text = command[2]
    for inside, here in (
        ("histofed-agent enroll", f"{sys.executable} -m agent enroll"),
        ("/etc/histofed/agent.toml", str(federation.site("north") / "agent.toml")),
        ("/run/histofed/join/line", str(line)),
        ("/var/lib/histofed-agent/state", str(federation.site("north") / "state")),
    ):
        assert inside in text
        text = text.replace(inside, here)
    return subprocess.run([*command[:2], text], check=False, cwd=ROOT).returncode
