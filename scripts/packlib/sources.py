"""A clean copy of what is built: the packages and their papers, without what a build leaves behind.

A wheel is made from such a copy, because setuptools writes into the folder that it builds and picks up what an earlier build
left there; the copy may also carry another version number, which the upgrade test needs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("histofed", "agent", "aggregator")
PAPERS: Final = ("pyproject.toml", "README.md", "LICENSE")
_VERSION: Final = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


def version() -> str:
    """What `histofed --version` says of this tree."""
    found = _VERSION.search((ROOT / "histofed/__init__.py").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError('histofed/__init__.py has no line __version__ = "..."; restore it')
    return found[1]


def epoch() -> int:
    """The time that everything built is stamped with: SOURCE_DATE_EPOCH, else that of the last commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise ValueError("no SOURCE_DATE_EPOCH and no git history to take the time of a build from; set SOURCE_DATE_EPOCH")
    return int(done.stdout)


def copy(target: Path, as_version: str) -> None:
    """Packages and papers to `target`, with modes that do not depend on the builder's umask."""
    target.mkdir(parents=True)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in PAPERS:
        shutil.copyfile(ROOT / name, target / name)
    initial = target / "histofed/__init__.py"
    text = initial.read_text(encoding="utf-8")
    initial.write_text(_VERSION.sub(f'__version__ = "{as_version}"', text), encoding="utf-8")
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
