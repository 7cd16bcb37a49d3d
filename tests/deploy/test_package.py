"""The Debian packages on a real systemd: a first installation, an upgrade, what an administrator said, removal and purge."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.debian import install, lower, machine
from tests.deploy.machine import Machine
from tests.deploy.numbers import Numbers
from tests.deploy.packages import EPOCH, OLD, package, version, wheelhouse
from tests.deploy.rootfs import need

LIMIT_GB: Final = 1.5
"""Agent's packages and what they become on disk, without CUDA (issue 5)."""
DAEMON: Final = "histofed-aggregator"
AGENT: Final = "histofed-agent"
STATE: Final = f"/var/lib/{DAEMON}"
JUDGES: Final = """
import torch
from histofed.models.registry import build_discriminator
print(tuple(build_discriminator("resnet18", 64, 2)(torch.ones(4, 3, 64, 64)).validity_B.shape))
"""
"""One of timm's networks, with the package's own libraries."""

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A Debian on which nothing of ours has ever been."""
    with machine(request.node.name[5:25].replace("_", "-").strip("-")) as host:
        yield host


def make_federation(host: Machine) -> None:
    """A configured aggregator that runs."""
    host.write("/etc/histofed/aggregator.toml", 'public_hosts = ["127.0.0.1"]\n')
    host.run("runuser", "-u", DAEMON, "--", DAEMON, "init")
    host.run("systemctl", "start", DAEMON)


def state(host: Machine, unit: str = DAEMON) -> tuple[str, str]:
    """(is it enabled, is it active)"""
    enabled = host.run("systemctl", "is-enabled", unit, check=False).stdout.strip()
    return enabled, host.show(unit, "ActiveState")["ActiveState"]


def test_an_agent_is_installed_and_not_started_until_it_is_configured(host: Machine, numbers: Numbers) -> None:
    agent, torch = package(AGENT), package("histofed-torch")

    install(host, torch, agent)

    assert state(host, AGENT) == ("enabled", "inactive")
    host.run("systemctl", "start", AGENT)
    assert state(host, AGENT) == ("enabled", "inactive"), "without agent.toml a start is skipped quietly"
    assert host.run(AGENT, "--version").stdout == f"{AGENT} {version()}\n"
    assert host.run("stat", "--format=%U %a", f"/var/lib/{AGENT}").stdout == f"{AGENT} 700\n"
    assert host.run("dpkg", "--verify", AGENT, "histofed-torch").stdout == ""
    assert host.run("/opt/histofed/agent/bin/python3", "-I", "-c", JUDGES).stdout == "(4,)\n"
    assert host.run("gzip", "--test", f"/usr/share/man/man8/{AGENT}.8.gz").returncode == 0

    sizes = host.run("dpkg-query", "--show", "--showformat=${Installed-Size}\n", AGENT, "histofed-torch").stdout.split()
    on_disk = int(host.run("du", "--summarize", "--block-size=1", "/opt/histofed").stdout.split()[0])
    whole = on_disk + agent.stat().st_size + torch.stat().st_size
    numbers.hold("agent: packages and environment on disk", whole / 1e9, LIMIT_GB, "GB", remark="without CUDA")
    assert abs(sum(map(int, sizes)) * 1024 - on_disk) < 0.1 * on_disk, "Installed-Size is what it takes"


def test_an_upgrade_restarts_what_ran_and_keeps_configuration_and_state(host: Machine) -> None:
    install(host, package(DAEMON, OLD))
    make_federation(host)
    assert host.run(DAEMON, "--version").stdout == f"{DAEMON} {OLD}\n"
    before = host.main_pid(DAEMON)
    authority = host.run("sha256sum", f"{STATE}/identity/ca.key").stdout

    said = install(host, package(DAEMON))

    assert host.run(DAEMON, "--version").stdout == f"{DAEMON} {version()}\n"
    assert state(host) == ("enabled", "active"), said
    assert host.main_pid(DAEMON) != before
    assert host.run("sha256sum", f"{STATE}/identity/ca.key").stdout == authority
    assert "127.0.0.1" in host.run("cat", "/etc/histofed/aggregator.toml").stdout
    assert host.show(DAEMON, "NRestarts")["NRestarts"] == "0", "stopped and started, not killed and restarted"


def test_an_upgrade_heeds_what_the_administrator_said(host: Machine) -> None:
    old, new = package(DAEMON, OLD), package(DAEMON)
    install(host, old)
    make_federation(host)

    host.run("systemctl", "disable", "--now", DAEMON)
    install(host, new)
    assert state(host) == ("disabled", "inactive"), "disabled and stopped stays so"

    host.run("systemctl", "start", DAEMON)
    install(host, old, options=("--force-downgrade",))
    assert state(host) == ("disabled", "active"), "started by hand, so it runs again, and is still not enabled"

    host.run("systemctl", "mask", DAEMON)
    said = install(host, new)
    assert state(host) == ("masked", "inactive")
    assert f"{DAEMON}.service is masked: not started again" in said

    host.run("systemctl", "unmask", DAEMON)
    host.run("systemctl", "start", DAEMON)
    host.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    install(host, new)
    assert state(host) == ("disabled", "active"), "what policy-rc.d forbids to stop goes on"


def test_an_upgrade_that_cannot_start_again_says_so_and_is_installed(host: Machine) -> None:
    install(host, package(DAEMON, OLD))
    make_federation(host)
    host.write("/etc/histofed/aggregator.toml", 'public_hots = ["127.0.0.1"]\n')

    said = install(host, package(DAEMON))

    assert f"{DAEMON}.service did not start again" in said
    assert host.run("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}", DAEMON).stdout.strip() == "ii"
    assert "public_hosts" in host.log(), "the journal names the nearest key"


def test_a_consent_file_that_the_hospital_wrote_is_kept(host: Machine) -> None:
    new = package(AGENT)
    old = lower(new, conffile="etc/histofed/consent.toml")
    options = ("--force-depends",)  # libraries of trainers have no part in this
    install(host, old, options=options)
    host.write("/etc/histofed/consent.toml", 'experiments = ["ours"]\n')

    install(host, new, options=(*options, "--force-confdef", "--force-confold"))

    assert host.run("cat", "/etc/histofed/consent.toml").stdout == 'experiments = ["ours"]\n'
    assert "What this hospital allows" in host.run("cat", "/etc/histofed/consent.toml.dpkg-dist").stdout


def test_remove_keeps_the_federation_and_so_does_purge(host: Machine) -> None:
    install(host, package(DAEMON))
    make_federation(host)

    host.run("dpkg", "--remove", DAEMON)
    assert host.run("systemctl", "is-active", DAEMON, check=False).stdout.strip() == "inactive"
    assert host.run("ls", f"/usr/bin/{DAEMON}", "/opt/histofed/aggregator", check=False).returncode != 0
    host.run("test", "-f", "/etc/histofed/aggregator.toml")
    host.run("test", "-f", f"{STATE}/identity/ca.key")

    install(host, package(DAEMON))
    host.run("systemctl", "start", DAEMON)
    purged = host.run("dpkg", "--purge", DAEMON)

    assert f"stay in {STATE}; to end the federation: rm -r {STATE}" in purged.stderr + purged.stdout
    host.run("test", "-f", f"{STATE}/identity/ca.key")
    host.run("test", "-d", f"{STATE}/journal")
    wanted = host.run("find", "/etc/systemd/system", "-name", f"{DAEMON}*").stdout
    assert wanted == "", "no link of the unit is left"


def test_purge_of_an_agent_keeps_the_journal_alone(host: Machine) -> None:
    install(host, package(AGENT), options=("--force-depends",))
    folder = f"/var/lib/{AGENT}"
    for name in ("journal/000001.jsonl", "identity/agent.pem", "private/first/0001.safetensors", "tile-cache/a", "state.db"):
        host.write(f"{folder}/{name}", "patient-adjacent\n")
    host.write(f"/var/cache/{AGENT}/tiles", "patient-adjacent\n")

    host.run("dpkg", "--remove", AGENT)
    host.run("test", "-f", f"{folder}/identity/agent.pem")
    purged = host.run("dpkg", "--purge", AGENT)

    assert host.run("find", folder, "-type", "f").stdout.split() == [f"{folder}/journal/000001.jsonl"]
    assert f"the audit journal stays in {folder}/journal" in purged.stderr + purged.stdout
    assert host.run("ls", "/etc/histofed", f"/var/cache/{AGENT}", check=False).stdout == ""


@pytest.mark.parametrize("name", ["histofed-torch", AGENT, DAEMON, "histofed-tools"])
def test_lintian_finds_no_error(name: str) -> None:
    need(lintian="lintian")
    done = subprocess.run(
        # run as root, which lintian warns about, and on packages with thousands of overridden tags
        ["lintian", "--allow-root", "--fail-on", "error", "--tag-display-limit", "0", package(name)],
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith("E:")]
    assert done.returncode == 0 and not errors, "\n".join(errors) + done.stderr


def test_the_same_sources_give_the_same_wheel(tmp_path: Path) -> None:
    first = next(wheelhouse().glob("histofed-*.whl"))
    again = tmp_path / "again"
    script = Path(__file__).parents[2] / "scripts/wheelhouse.py"
    environ = {"SOURCE_DATE_EPOCH": EPOCH, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(script.parents[1])}
    command = ["sh", "-c", f"umask 077; exec {sys.executable} {script} --out {again} --cache {wheelhouse()}"]
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)

    assert next(again.glob("histofed-*.whl")).read_bytes() == first.read_bytes()
