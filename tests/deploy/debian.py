"""Machines on which our packages are installed with dpkg, from a medium that holds every one that the tests built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.deploy.machine import Machine
from tests.deploy.rootfs import cache

INSTALL_S: Final = 600.0
_MEDIUM: Final = "/media"


def machine(name: str, binds: Mapping[Path, str] | None = None) -> Machine:
    """A Debian on which nothing of ours has ever been."""
    return Machine(name, binds={cache() / "packages": _MEDIUM, **(binds or {})})


def install(host: Machine, *files: Path, options: tuple[str, ...] = ()) -> str:
    """`dpkg --install`, without anybody to answer questions; gives both streams."""
    inside = [f"{_MEDIUM}/{file.relative_to(cache() / 'packages')}" for file in files]
    done = host.run("dpkg", *options, "--install", *inside, seconds=INSTALL_S)
    return done.stdout + done.stderr
