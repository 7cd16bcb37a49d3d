"""Machines on which histofed is installed the way a package does it: programs, units, users, directories.

The environment is that of the running interpreter, seen read-only; the code is this tree's. What packages and the bundle
add to that has tests of its own.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Final

from tests.deploy.machine import Machine
from tests.deploy.rootfs import MissingTool, need

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "deploy" / "systemd"
PACKAGES: Final = ("histofed", "agent", "aggregator")
PROGRAMS: Final = {
    "histofed": "histofed.cli.main",
    "histofed-agent": "agent.cli",
    "histofed-aggregator": "aggregator.cli",
}
_PREFIX: Final = "/opt/histofed"
_PYTHON: Final = "3.11"
"""What the root file system has; compiled packages are for exactly one version."""


def machine(name: str, *, network: str | None = None, binds: dict[Path, str] | None = None) -> Machine:
    """A machine that sees environment and code; `install` makes them commands and services."""
    need(systemd_sysusers="systemd")
    if sysconfig.get_python_version() != _PYTHON:
        raise MissingTool(f"the machines have Python {_PYTHON}: run the tests with that, not with {sys.version.split()[0]}")
    library = {Path(sysconfig.get_paths()["purelib"]): f"{_PREFIX}/library"}
    code = {ROOT / package: f"{_PREFIX}/code/{package}" for package in PACKAGES}
    return Machine(name, binds=library | code | (binds or {}), network=network)


def install(machine: Machine) -> None:
    """What a package's files and maintainer scripts do."""
    machine.write(f"{_PREFIX}/pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")
    machine.write(f"{_PREFIX}/lib/python{_PYTHON}/site-packages/histofed.pth", f"{_PREFIX}/code\n{_PREFIX}/library\n")
    machine.run("mkdir", "-p", f"{_PREFIX}/bin")
    machine.run("ln", "-s", f"/usr/bin/python{_PYTHON}", f"{_PREFIX}/bin/python3")
    for program, module in PROGRAMS.items():
        start = f"import sys\nfrom {module} import main\nsys.exit(main())\n"
        machine.write(f"{_PREFIX}/bin/{program}", f"#!{_PREFIX}/bin/python3\n{start}", 0o755)
        machine.run("ln", "-s", f"{_PREFIX}/bin/{program}", f"/usr/bin/{program}")
    for source in sorted(DEPLOY.glob("*.service")):
        machine.write(f"/usr/lib/systemd/system/{source.name}", source.read_text())
    for kind in ("sysusers.d", "tmpfiles.d"):
        for source in sorted((DEPLOY / kind).iterdir()):
            machine.write(f"/usr/lib/{kind}/{source.name}", source.read_text())
    machine.run("systemd-sysusers")
    machine.run("systemd-tmpfiles", "--create")
    machine.run("systemctl", "daemon-reload")


def drop_in(machine: Machine, unit: str, name: str, text: str) -> None:
    """What an administrator's `systemctl edit` makes."""
    machine.write(f"/etc/systemd/system/{unit}.service.d/{name}.conf", text)
    machine.run("systemctl", "daemon-reload")
