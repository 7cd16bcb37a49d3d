#!/usr/bin/env python3
"""Gather every wheel that a site installs into one folder: scripts/wheelhouse.py [--out build/wheelhouse].

Downloads what deploy/lock names, each file against its hash; builds the one wheel that no index has, histofed itself;
writes the locks that hold for this folder, and SHA256SUMS. What comes of it installs without a network:

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


def main() -> int:
    """Make the folder again, and put it in the place of the old one when it is whole."""
    parser = argparse.ArgumentParser(description="Gather the wheels of agent, aggregator and tools, with their hashes.")
    parser.add_argument(
        "--out", type=Path, default=sources.ROOT / "build/wheelhouse", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--version", default=sources.version(), metavar="X.Y.Z", help="of histofed's wheel; default: %(default)s"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="an older wheelhouse to take wheels from; default: --out")
    args = parser.parse_args()
    os.umask(0o022)  # a wheel keeps the modes of what is built, and a site's users read them
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(sources.epoch()), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        fresh = Path(scratch) / "wheelhouse"
        download(fresh, args.cache or args.out, Path(scratch), environ)
        build(fresh, Path(scratch), args.version, environ)
        write_locks(fresh)
        write_sums(fresh)
        shutil.rmtree(args.out, ignore_errors=True)
        fresh.rename(args.out)
    args.out.chmod(0o755)
    print(f"{args.out}: {len(list(args.out.glob('*.whl')))} wheels")
    return 0


def download(out: Path, before: Path, scratch: Path, environ: Mapping[str, str]) -> None:
    """Every locked wheel, proven by its hash; what an older wheelhouse has is not fetched again."""
    out.mkdir()
    here = {sha256_of(path): path for path in before.glob("*.whl")}
    everything = {pin.name: pin for path in sorted(LOCKS.glob("requirements-*.txt")) for pin in locks.read(path)}
    missing = []
    for pin in everything.values():
        found = next((here[each] for each in pin.sha256 if each in here), None)
        if found is None:
            missing.append(pin)
        else:
            shutil.copyfile(found, out / found.name)
    if missing:
        wanted = scratch / "wanted.txt"
        wanted.write_text(locks.render(missing, "# wheels"), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        subprocess.run([*pip, "-r", wanted, "-d", out], env=environ, check=True)


def build(out: Path, scratch: Path, version: str, environ: Mapping[str, str]) -> None:
    """histofed's wheel, by the locked setuptools in an environment of its own; the same sources give the same bytes."""
    subprocess.run([sys.executable, "-m", "venv", scratch / "builder"], check=True)
    pip: list[str | Path] = [scratch / "builder/bin/python", "-m", "pip"]
    offline: list[str | Path] = ["--quiet", "--no-index", "--find-links", out]
    subprocess.run([*pip, "install", *offline, "--upgrade", "setuptools"], env=environ, check=True)
    sources.copy(scratch / "histofed", version)
    wheel: list[str | Path] = [*pip, "wheel", *offline, "--no-deps", "--no-build-isolation", "-w", out, scratch / "histofed"]
    subprocess.run(wheel, env=environ, check=True)


def write_locks(out: Path) -> None:
    """The locks of deploy/lock with histofed's own wheel."""
    ours = next(out.glob("histofed-*.whl"))
    pin = Pin("histofed", ours.name.split("-")[1], (sha256_of(ours),))
    for path in sorted(LOCKS.glob("requirements-*.txt")):
        alone = path.stem in {"requirements-torch", "requirements-pip"}
        pins = locks.read(path) if alone else (*locks.read(path), pin)
        text = locks.render(pins, "# made by scripts/wheelhouse.py for the wheels beside this file")
        (out / path.name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
