"""A Debian package from a folder: control, md5sums, conffiles, maintainer scripts, the papers that policy asks for.

`dpkg-deb` alone puts it together, so that it can be built where there is no debhelper; what debhelper would generate for a
service stands in `deploy/debian/daemon.*`, in full, with its reasons.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Final

ARCHITECTURE: Final = "amd64"
MAINTAINER: Final = "histofed maintainers <maintainers@histofed.example.org>"
"""Who answers for a package; DEBFULLNAME and DEBEMAIL, as for Debian's own tools, name another one."""


@dataclass(frozen=True)
class Release:
    """What all packages of one build have in common."""

    version: str
    epoch: int
    """Time of everything in them, in seconds."""


def build(root: Path, name: str, release: Release, out: Path) -> Path:
    """Turn the folder `root`, with its `DEBIAN/control`, into a package below `out`."""
    _papers(root, name, release)
    _modes(root)
    control = root / "DEBIAN"
    text = (control / "control").read_text(encoding="utf-8")
    fields = f"Package: {name}\nVersion: {release.version}\nArchitecture: {ARCHITECTURE}\nMaintainer: {maintainer()}\n"
    (control / "control").write_text(f"{fields}Installed-Size: {installed_kib(root)}\n{text}", encoding="utf-8")
    files = sorted(
        path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and control not in path.parents
    )
    sums = [f"{_md5(path)}  {path.relative_to(root)}\n" for path in files]
    (control / "md5sums").write_text("".join(sums), encoding="utf-8")
    conffiles = [f"/{path.relative_to(root)}\n" for path in files if path.is_relative_to(root / "etc")]
    if conffiles:
        (control / "conffiles").write_text("".join(conffiles), encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{name}_{release.version}_{ARCHITECTURE}.deb"
    # level 2: torch is a quarter larger than at 6 and takes a tenth of the time; Debian's lintian knows no zstd yet
    command: list[str | Path] = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z2", "--build", root, target]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(release.epoch)}
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    return target


def maintainer() -> str:
    """Name and address for control file and changelog."""
    name, _, address = MAINTAINER.rstrip(">").partition(" <")
    return f"{os.environ.get('DEBFULLNAME', name)} <{os.environ.get('DEBEMAIL', address)}>"


def installed_kib(root: Path) -> int:
    """What the package takes on disk, as policy counts it: files in whole KiB, one for everything else."""
    return sum(
        -(-path.lstat().st_size // 1024) if path.is_file() and not path.is_symlink() else 1 for path in _shipped(root)
    )


def _shipped(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.relative_to(root).parts[0] != "DEBIAN")


def compressed(target: Path, text: str) -> None:
    """A text as policy wants it: gzip without a time in it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(text.encode())


def _papers(root: Path, name: str, release: Release) -> None:
    moment = format_datetime(datetime.fromtimestamp(release.epoch, UTC))
    words = f"{name} ({release.version}) stable; urgency=medium\n\n  * See /usr/share/doc/{name}/changelog.gz.\n\n"
    compressed(root / f"usr/share/doc/{name}/changelog.Debian.gz", f"{words} -- {maintainer()}  {moment}\n")


def _modes(root: Path) -> None:
    """Modes that depend neither on the builder's umask nor on what a wheel says: commands run, nothing else does."""
    scripts = {root / "DEBIAN" / name for name in ("preinst", "postinst", "prerm", "postrm")}
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path in scripts or path.parent.name == "bin" else 0o644)
    root.chmod(0o755)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def place(source: Path, target: Path) -> None:
    """Copy one file, with the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
