"""The root file system on which the deployment is tested: a minimal Debian with systemd, as one tar, made once and kept.

`mmdebstrap` fetches it through the machine's own apt sources. The tar lies in the rig's cache with a key beside it, a digest
of everything below that decides about its content; another key, another tar. Several test runs may ask at the same time.

    python -m tests.deploy.rootfs        # make it and print where it is
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SUITE: Final = "bookworm"
PACKAGES: Final = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "openssl",
    "ca-certificates",
    "iproute2",
    "procps",
)
"""What a hospital's minimal server has, and what looks into it: `ss`, `ps`, `openssl`."""
_LEFT_OUT: Final = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
"""Of Debian's own packages only: what is installed later keeps its manual pages."""
_HOOKS: Final = (
    # mmdebstrap copies the builder's name, which would override that of each machine
    'rm -f "$1/etc/hostname"',
    # what is left out above is written here and would hold for every later package as well
    'rm -f "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"',
    # nobody looks at a console, and its login service would fail on a machine without one
    'ln -sf /dev/null "$1/etc/systemd/system/console-getty.service"',
)
_SOURCES: Final = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))


class MissingTool(RuntimeError):
    """The machine lacks a program; the sentence says which package has it."""


def need(**packages: str) -> None:
    """Raise `MissingTool` unless every program is here, by `program="package"` (`_` in a name stands for `-`)."""
    absent = [package for tool, package in packages.items() if shutil.which(tool.replace("_", "-")) is None]
    if absent:
        raise MissingTool(f"install them first: apt-get install --no-install-recommends {' '.join(sorted(absent))}")


def cache() -> Path:
    """The rig's cache; HISTOFED_RIG_CACHE moves it."""
    folder = Path(os.environ.get("HISTOFED_RIG_CACHE", "build/rig")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rootfs() -> Path:
    """The tar; made when there is none of this content."""
    need(mmdebstrap="mmdebstrap")
    tar = cache() / "rootfs.tar"
    with held(cache() / "rootfs.lock"):
        key_file = tar.with_suffix(".key")
        if not (tar.exists() and key_file.exists() and key_file.read_text() == content_key()):
            key_file.unlink(missing_ok=True)
            _make(tar)
            key_file.write_text(content_key())
    return tar


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Wait until nobody else works behind this lock file."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def content_key() -> str:
    """What decides about the content, as a digest."""
    return hashlib.sha256(repr((SUITE, PACKAGES, _LEFT_OUT, _HOOKS)).encode()).hexdigest()


def _make(tar: Path) -> None:
    part = tar.with_name("rootfs.part.tar")
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    options += [f"--customize-hook={hook}" for hook in _HOOKS]
    options += ['--aptopt=Acquire::Languages "none"', f"--include={','.join(PACKAGES)}"]
    # without sources mmdebstrap asks a mirror of its own choice
    subprocess.run(["mmdebstrap", "--variant=minbase", *options, SUITE, part, _sources()], check=True)
    part.replace(tar)


def _sources() -> Path:
    """The machine's own apt sources."""
    found = next((path for path in _SOURCES if path.exists() and path.read_text().strip()), None)
    if found is None:
        raise MissingTool(f"this machine has no apt sources in {' or '.join(map(str, _SOURCES))}")
    return found


if __name__ == "__main__":
    print(rootfs())
