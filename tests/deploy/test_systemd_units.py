"""The units as they are shipped: exposure, syntax, comments. No machine is booted."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.installed import DEPLOY
from tests.deploy.numbers import Numbers

UNITS = ("histofed-agent", "histofed-aggregator")
EXPOSURE = 1.5


def exposure(unit: Path, numbers: Numbers, what: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    numbers.hold(f"exposure of {what}", float(found[1]), EXPOSURE, "")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_as_shipped_is_hardly_exposed(name: str, numbers: Numbers) -> None:
    exposure(DEPLOY / f"{name}.service", numbers, f"{name}.service")


@pytest.mark.parametrize("drop_in", ["gpu.conf", "egress.conf"])
def test_a_drop_in_leaves_the_agent_hardly_exposed(drop_in: str, tmp_path: Path, numbers: Numbers) -> None:
    unit = tmp_path / "histofed-agent.service"
    more = (DEPLOY / "histofed-agent.service.d" / drop_in).read_text()
    # offline, systemd-analyze reads one file: a section that comes again is as a drop-in is
    unit.write_text((DEPLOY / "histofed-agent.service").read_text() + more)
    exposure(unit, numbers, f"the agent with {drop_in}")


@pytest.mark.parametrize(
    "unit", sorted(DEPLOY.rglob("*.service")) + sorted(DEPLOY.rglob("*.d/*.conf")), ids=lambda unit: unit.name
)
def test_every_directive_has_a_comment_of_its_own(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        clear_by_itself = re.match(r"(Description|Documentation|WantedBy)=", line)
        if line and not line.startswith(("#", "[")) and not clear_by_itself:
            assert before.startswith("# "), f"{unit.name}: nobody says why {line}"
