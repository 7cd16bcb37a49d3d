"""The first day of an aggregator and of a hospital, as the two pages in docs/ tell it.

Every command is typed, every shown line must come. The machines have no network but the one between them: what a page
forgets, fails here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from tests.deploy.bundles import bundle
from tests.deploy.machine import Machine
from tests.deploy.packages import ROOT
from tests.deploy.rootfs import cache

PAGES: Final = ROOT / "docs"
STEP_S: Final = 900.0
READERS: Final = 2345
"""The group that may read the tiles."""
_BLOCK: Final = re.compile(r"^ *```console\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.timeout(3600)


@dataclass(frozen=True)
class Step:
    """One command of a page, with what the page says it prints."""

    command: str
    shown: tuple[str, ...]


def test_both_pages_lead_to_a_committed_round() -> None:
    aggregator_page, hospital_page = steps("install-aggregator.md"), steps("install-hospital.md")
    training = next(number for number, step in enumerate(aggregator_page) if "sites list" in step.command)

    with network("firstday") as path, machine("first-aggregator", path) as aggregator, hospital(path) as site:
        follow(aggregator, aggregator_page[:training])
        site.write("/root/join.txt", aggregator.run("cat", "/root/join.txt").stdout, 0o600)
        follow(site, hospital_page)
        follow(aggregator, aggregator_page[training:])

        assert aggregator.run("stat", "--format=%s", "/root/first.safetensors").stdout.strip().isdigit()
        assert (
            "committed" in aggregator.run(*["histofed", "--config", "/root/operator/operator.toml", "rounds", "list"]).stdout
        )


def test_each_page_is_a_page() -> None:
    for name in ("install-aggregator.md", "install-hospital.md"):
        assert len((PAGES / name).read_text().splitlines()) <= 80, f"{name} is longer than a page"


def steps(name: str) -> list[Step]:
    """The commands of a page's console blocks in their order: `# ` begins one, a here-document belongs to it."""
    found: list[Step] = []
    for block in _BLOCK.findall((PAGES / name).read_text()):
        lines = [line[len(block) - len(block.lstrip()) :] for line in block.splitlines()]
        while lines:
            command = lines.pop(0)
            assert command.startswith("# "), f"{name}: not a command: {command}"
            if mark := re.search(r"<<'(\w+)'", command):
                end = lines.index(mark[1]) + 1
                command, lines = "\n".join([command, *lines[:end]]), lines[end:]
            shown = []
            while lines and not lines[0].startswith("# "):
                shown.append(lines.pop(0))
            found.append(Step(command[2:], tuple(shown)))
    assert found, f"{name} has no console block"
    return found


def follow(host: Machine, page: list[Step]) -> None:
    """Type the commands in one shell's folder, one after the other."""
    folder = "/root"
    for step in page:
        if step.command.startswith("cd "):
            folder = host.run("sh", "-c", f"cd {folder} && {step.command} && pwd").stdout.strip()
            continue
        # as on a machine that was hardened
        done = host.run("sh", "-c", f"umask 027 && cd {folder} && {step.command}", seconds=STEP_S)
        for line in step.shown:
            pattern = ".*".join(map(re.escape, line.split("...")))
            printed = done.stdout.splitlines()
            assert any(re.fullmatch(pattern, each.rstrip()) for each in printed), (
                f"{host.name}: {step.command}\nshould print: {line}\nprinted: {done.stdout}{done.stderr}"
            )


@contextmanager
def network(name: str) -> Iterator[str]:
    """A network of its own for the machines, without a route to anywhere."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextmanager
def machine(name: str, path: str, binds: dict[Path, str] | None = None) -> Iterator[Machine]:
    """A Debian with the bundle's tar on a disk, which finds the aggregator by its name."""
    tar = bundle().with_name(f"{bundle().name}.tar")
    with TemporaryDirectory(dir=cache()) as disk:
        os.link(tar, Path(disk, tar.name))
        with Machine(name, binds=binds, disk=(Path(disk), "/root/medium"), network=path) as host:
            host.write("/etc/hosts", "127.0.0.1 localhost aggregator.example.org\n")
            yield host


@contextmanager
def hospital(path: str) -> Iterator[Machine]:
    """A hospital, with a share of tiles for a group."""
    with machine("first-hospital", path, {tiles(): "/srv/histology"}) as host:
        host.run("groupadd", "--gid", str(READERS), "pathology")
        assert host.run("ls", "/srv/histology", user="nobody", check=False).returncode != 0
        yield host


def tiles() -> Path:
    """Drawn once."""
    folder = cache() / "packages" / "tiles"
    if not folder.exists():
        command = [sys.executable, "-m", "histofed.cli.main", "tiles", "make", str(folder)]
        size = ["--patients", "4", "--tiles", "4", "--size", "32"]
        subprocess.run([*command, *size], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 0, READERS)
        path.chmod(0o750 if path.is_dir() else 0o640)
    return folder
