"""The wheels and packages that the tests install: built by the repository's own scripts, once per content, in the cache.

What decides about a result is hashed, and another digest builds again. The libraries of trainers take minutes and depend
on the locks alone, so they have a key of their own.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from tests.deploy.rootfs import cache, held

ROOT: Final = Path(__file__).resolve().parents[2]
OLD: Final = "0.0.9"
"""The lower version that is upgraded."""
EPOCH: Final = "1767225600"
"""Everything built for a test has one time, or each commit would be another content."""
LIBRARIES: Final = (
    "deploy/lock",
    "deploy/debian/histofed-torch",
    "deploy/debian/lintian-overrides",
    "deploy/debian/run-again",
    *(f"scripts/packlib/{name}.py" for name in ("environment", "locks", "package", "papers")),
)
SCRIPTS: Final = ("scripts/wheelhouse.py", "scripts/deb.py", "scripts/packlib/sources.py", "scripts/packlib/checksums.py")
CODE: Final = ("pyproject.toml", "histofed", "agent", "aggregator", "deploy/debian", "deploy/systemd")


def version() -> str:
    """What this tree calls itself."""
    text = (ROOT / "histofed/__init__.py").read_text()
    return next(line.split('"')[1] for line in text.splitlines() if line.startswith("__version__"))


def wheelhouse(of: str | None = None) -> Path:
    """The wheels with histofed's own at a version; this tree's by default."""
    wanted = of or version()
    folder = cache() / "packages" / f"wheelhouse-{wanted}"

    def make() -> None:
        script("wheelhouse.py", "--out", folder, "--version", wanted, "--cache", cache() / "wheelhouse")

    return current(folder, digest(CODE + SCRIPTS + LIBRARIES), make)


def package(name: str, of: str | None = None) -> Path:
    """A package's file."""
    wanted = of or version()
    wheels = wheelhouse(wanted)
    folder = cache() / "packages" / f"{name}-{wanted}"

    def make() -> None:
        script("deb.py", "--wheelhouse", wheels, "--out", folder, "--only", name)

    parts = LIBRARIES if name == "histofed-torch" else CODE + SCRIPTS + LIBRARIES
    return next(current(folder, digest(parts), make).glob("*.deb"))


def current(folder: Path, key: str, make: Callable[[], None]) -> Path:
    """`folder`, made again when it is of another content."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held(folder.with_name(folder.name + ".lock")):
        if not (key_of(folder) == key and folder.exists()):
            _mark(folder).unlink(missing_ok=True)
            subprocess.run(["rm", "-rf", folder], check=True)
            make()
            _mark(folder).write_text(key)
    return folder


def key_of(folder: Path) -> str:
    """Of which content a folder is; empty when it was not made to its end."""
    return _mark(folder).read_text() if _mark(folder).exists() else ""


def _mark(folder: Path) -> Path:
    return folder.with_name(folder.name + ".key")


def script(name: str, *arguments: str | Path) -> None:
    environ = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"


def digest(parts: Iterable[str], *more: str) -> str:
    """Of every file of these parts, by name and content, and of what else decides."""
    found = hashlib.sha256(repr(more).encode())
    for path in sorted(file for part in parts for file in _files(ROOT / part)):
        found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return [each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts]
