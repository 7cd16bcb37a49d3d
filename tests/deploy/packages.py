"""The packages and the bundle that the tests install: built by the repository's own scripts, once per content, in the cache.

What decides about a result is hashed, and another digest builds again. The libraries of trainers take minutes and depend
on the locks alone, so they have a key of their own.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.deploy.rootfs import cache, held

ROOT: Final = Path(__file__).resolve().parents[2]
OLD: Final = "0.0.9"
"""The lower version that is upgraded."""
EPOCH: Final = "1767225600"
"""Everything built for a test has one time, or each commit would be another content."""
_LIBRARIES: Final = (
    "deploy/lock",
    "deploy/debian/histofed-torch",
    "deploy/debian/lintian-overrides",
    *(f"scripts/packlib/{name}.py" for name in ("environment", "locks", "package", "papers")),
)
_SCRIPTS: Final = ("scripts/wheelhouse.py", "scripts/deb.py", "scripts/packlib/sources.py", "scripts/packlib/checksums.py")
_BUNDLE: Final = ("scripts/bundle.py", "scripts/packlib/sbom.py", "docs", "CHANGELOG.md")
_CODE: Final = ("pyproject.toml", "histofed", "agent", "aggregator", "deploy/debian", "deploy/systemd")


def version() -> str:
    """What this tree calls itself."""
    text = (ROOT / "histofed/__init__.py").read_text()
    return next(line.split('"')[1] for line in text.splitlines() if line.startswith("__version__"))


def wheelhouse(of: str | None = None) -> Path:
    """The wheels with histofed's own at a version; this tree's by default."""
    wanted = of or version()
    folder = cache() / "packages" / f"wheelhouse-{wanted}"

    def make() -> None:
        _script("wheelhouse.py", "--out", folder, "--version", wanted, "--cache", cache() / "wheelhouse")

    return _current(folder, _digest(_CODE + _SCRIPTS + _LIBRARIES), make)


def package(name: str, of: str | None = None) -> Path:
    """A package's file."""
    wanted = of or version()
    wheels = wheelhouse(wanted)
    folder = cache() / "packages" / f"{name}-{wanted}"

    def make() -> None:
        _script("deb.py", "--wheelhouse", wheels, "--out", folder, "--only", name)

    parts = _LIBRARIES if name == "histofed-torch" else _CODE + _SCRIPTS + _LIBRARIES
    return next(_current(folder, _digest(parts), make).glob("*.deb"))


def bundle() -> Path:
    """The bundle's folder; its tar lies beside it."""
    names = ("histofed-torch", "histofed-agent", "histofed-aggregator", "histofed-tools")
    files = [package(name) for name in names]
    wheels = wheelhouse()
    folder = cache() / "packages" / "bundle"

    def make() -> None:
        debs = cache() / "packages" / "debs"
        debs.mkdir(exist_ok=True)
        for old in debs.iterdir():
            old.unlink()
        for file in files:
            os.link(file, debs / file.name)
        _script("bundle.py", "--wheelhouse", wheels, "--debs", debs, "--images", ROOT / "build/images", "--out", folder)

    return (
        _current(folder, _digest((*_CODE, *_SCRIPTS, *_LIBRARIES, *_BUNDLE, "deploy/bundle", "deploy/completion")), make)
        / "histofed-bundle"
    )


def _current(folder: Path, key: str, make: object) -> Path:
    """`folder`, made again when it is of another content."""
    assert callable(make)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = folder.with_name(folder.name + ".key")
    with held(folder.with_name(folder.name + ".lock")):
        if not (mark.exists() and mark.read_text() == key and folder.exists()):
            mark.unlink(missing_ok=True)
            subprocess.run(["rm", "-rf", folder], check=True)
            make()
            mark.write_text(key)
    return folder


def _script(name: str, *arguments: str | Path) -> None:
    environ = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"


def _digest(parts: Iterable[str]) -> str:
    """Of every file of these parts, by name and content."""
    found = hashlib.sha256()
    for path in sorted(file for part in parts for file in _files(ROOT / part)):
        found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return [each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts]
