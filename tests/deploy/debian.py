"""Machines on which our packages are installed with dpkg, from a medium that holds every one that the tests built."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.deploy.machine import Machine
from tests.deploy.packages import OLD
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


def lower(file: Path, *, conffile: str) -> Path:
    """The same package at the lower version, whose `conffile` had other words."""
    folder = cache() / "packages" / "lower"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run(["dpkg-deb", "--raw-extract", file, folder / "tree"], check=True)
    control = folder / "tree/DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*$", f"Version: {OLD}-1", control.read_text(), flags=re.MULTILINE))
    (folder / "tree" / conffile).write_text("# other words\n")
    built = folder / f"{file.name.partition('_')[0]}_{OLD}-1_amd64.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(folder / "tree"), str(built)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder / "tree")
    return built
