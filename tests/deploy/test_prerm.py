"""What the packages' prerm makes of a daemon's state: whether an upgrade starts it again afterwards."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.images import ROOT

DEBIAN = ROOT / "deploy/debian"
RUNS = ("active", "activating", "reloading")
"""`activating` is also a daemon that failed and waits for its restart (`Restart=`): nobody stopped it."""
STATES = (*RUNS, "deactivating", "failed", "inactive")

SYSTEMCTL = """\
#!/bin/sh
# `is-active` ends well for an active unit alone, also with --quiet; what it prints tells more
case "$*" in
*--quiet*) ;;
*) echo "$STATE" ;;
esac
[ "$STATE" = active ] || [ "$STATE" = reloading ] || exit 3
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Its /run, and a service manager whose word is a variable."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name, text in (("systemctl", SYSTEMCTL), ("deb-systemd-invoke", '#!/bin/sh\necho "$@" >>"$CALLS"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def upgrade(machine: Path, script: str, state: str) -> tuple[bool, bool]:
    """Whether an upgrade has marked the agent to be started again, and stopped it."""
    text = (DEBIAN / script).read_text().replace("@PACKAGE@", "histofed-agent").replace("/run/", f"{machine}/run/")
    path = f"{machine}/bin:{os.environ['PATH']}"
    calls = machine / "calls"
    calls.touch()
    command = ["sh", "-c", text, "prerm", "upgrade", "0.2"]
    subprocess.run(command, check=True, env={"PATH": path, "STATE": state, "CALLS": str(calls)})
    return (machine / "run/histofed-agent.was-running").exists(), "stop histofed-agent.service" in calls.read_text()


@pytest.mark.parametrize("state", STATES)
def test_a_daemon_that_runs_or_waits_for_its_restart_runs_after_an_upgrade(machine: Path, state: str) -> None:
    assert upgrade(machine, "daemon.prerm", state) == (state in RUNS, True)


@pytest.mark.parametrize("state", STATES)
def test_so_does_one_whose_libraries_are_replaced(machine: Path, state: str) -> None:
    assert upgrade(machine, "histofed-torch/prerm", state) == (state in RUNS, state in (*RUNS, "deactivating"))
