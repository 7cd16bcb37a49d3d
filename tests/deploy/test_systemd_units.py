"""The units as they are shipped: exposure, syntax, comments, sample configuration. No machine is booted."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.consent import load_policy
from aggregator.config import AggregatorConfig
from histofed.base.config import explain, load
from tests.deploy.installed import DEPLOY
from tests.deploy.numbers import Numbers

UNITS = ("histofed-agent", "histofed-aggregator")
MODELS = {"agent": AgentConfig, "aggregator": AggregatorConfig}
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


@pytest.mark.parametrize("name", MODELS)
def test_the_sample_configuration_names_every_key_and_no_other(name: str, tmp_path: Path) -> None:
    sample = (DEPLOY / "conf" / f"{name}.toml").read_text()
    file = tmp_path / f"{name}.toml"
    file.write_text(sample)
    model: type = MODELS[name]
    as_shipped = explain(load(model, name=name, path=file, flags={}, environ={}))
    # every key is there, behind a `#` where the default is right
    file.write_text("\n".join(_uncommented(sample)))
    whole = explain(load(model, name=name, path=file, flags={}, environ={}))
    unnamed = [setting.key for setting in whole if setting.source == "default"]
    assert not unnamed, f"{name}.toml does not name {unnamed}"
    examples = {"aggregator", "data.root"}
    shipped = {setting.key: setting.value for setting in as_shipped}
    differ = [s.key for s in whole if shipped[s.key] != s.value and shipped[s.key] != "not set" and s.key not in examples]
    assert not differ, f"{name}.toml shows other values than the defaults for {differ}"


def test_the_sample_consent_is_one(tmp_path: Path) -> None:
    policy = load_policy(DEPLOY / "conf" / "consent.toml")
    assert not policy.missing
    assert policy.consent.maximum_steps > 0


def _uncommented(sample: str) -> Iterator[str]:
    """Settings and tables without the `#` right before them; sentences begin with `# `."""
    for line in sample.splitlines():
        yield line[1:] if re.match(r"#[\[a-z]", line) else line
