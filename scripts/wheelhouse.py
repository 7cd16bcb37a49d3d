#!/usr/bin/env python3
"""Gather every wheel that a site installs into one folder: scripts/wheelhouse.py [--out build/wheelhouse].

Downloads what deploy/lock names, each file against its hash; builds the two that no index has as wheels (histofed itself,
and systemd-python, with gcc, pkg-config and libsystemd-dev); writes the locks that hold for this folder, and SHA256SUMS.
What comes of it installs without a network:

    pip install --no-index --find-links build/wheelhouse --require-hashes -r build/wheelhouse/requirements-agent.txt
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from packlib import locks, sources
from packlib.checksums import sha256_of, write_sums
from packlib.locks import Pin

LOCKS: Final = sources.ROOT / "deploy/lock"
SOURCE_ONLY: Final = "systemd-python"


def main() -> int:
    """Make the folder again from nothing; downloads are taken from pip's cache where it has them."""
    parser = argparse.ArgumentParser(description="Gather the wheels of agent, aggregator and tools, with their hashes.")
    parser.add_argument(
        "--out", type=Path, default=sources.ROOT / "build/wheelhouse", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--version", default=sources.version(), metavar="X.Y.Z", help="of histofed's wheel; default: %(default)s"
    )
    args = parser.parse_args()
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(sources.epoch()), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        fresh = Path(scratch) / "wheelhouse"
        download(fresh, Path(scratch), environ)
        build(fresh, Path(scratch), args.version, environ)
        write_locks(fresh)
        write_sums(fresh)
        shutil.rmtree(args.out, ignore_errors=True)
        fresh.rename(args.out)
    args.out.chmod(0o755)
    print(f"{args.out}: {len(list(args.out.glob('*.whl')))} wheels")
    return 0


def download(out: Path, scratch: Path, environ: Mapping[str, str]) -> None:
    """Every locked wheel, proven by its hash."""
    everything = {pin.name: pin for path in sorted(LOCKS.glob("requirements-*.txt")) for pin in locks.read(path)}
    del everything[SOURCE_ONLY]
    wanted = scratch / "wanted.txt"
    wanted.write_text(locks.render(everything.values(), "# wheels"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    subprocess.run([*pip, "-r", wanted, "-d", out], env=environ, check=True)


def build(out: Path, scratch: Path, version: str, environ: Mapping[str, str]) -> None:
    """The wheels that are made here, by the locked setuptools in an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", scratch / "builder"], check=True)
    pip = [scratch / "builder/bin/python", "-m", "pip"]
    subprocess.run(
        [*pip, "install", "--quiet", "--upgrade", "--no-index", "--find-links", out, "setuptools"], env=environ, check=True
    )
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out]

    sources.copy(scratch / "histofed", version)
    subprocess.run([*wheel, "--no-index", scratch / "histofed"], env=environ, check=True)

    pin = next(pin for pin in locks.read(LOCKS / "requirements-daemon.txt") if pin.name == SOURCE_ONLY)
    wanted = scratch / "source-only.txt"
    wanted.write_text(locks.render([pin], "# sources"), encoding="utf-8")
    # neither debug information nor a search path, which would name this machine's folders
    compiler = {"CFLAGS": "-g0", "LDSHARED": "cc -shared -Wl,--build-id=none -Wl,--strip-all"}
    subprocess.run(
        [*wheel, "--no-binary", SOURCE_ONLY, "--require-hashes", "-r", wanted], env={**environ, **compiler}, check=True
    )


def write_locks(out: Path) -> None:
    """The locks with the hashes of the wheels that lie here, histofed's own among them."""
    built = {locks.canonical(path.name.split("-")[0]): path for path in out.glob("*.whl")}
    for path in sorted(LOCKS.glob("requirements-*.txt")):
        pins = [_here(pin, built[SOURCE_ONLY]) if pin.name == SOURCE_ONLY else pin for pin in locks.read(path)]
        if path.stem != "requirements-torch":
            ours = built["histofed"]
            pins.append(Pin("histofed", ours.name.split("-")[1], (sha256_of(ours),)))
        heading = "# made by scripts/wheelhouse.py for the wheels beside this file"
        (out / path.name).write_text(locks.render(pins, heading), encoding="utf-8")


def _here(pin: Pin, wheel: Path) -> Pin:
    return Pin(pin.name, pin.version, (sha256_of(wheel),))


if __name__ == "__main__":
    sys.exit(main())
