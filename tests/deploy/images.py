"""Images for the tests, built from what is on this machine: Debian packages below, the wheelhouse above, nothing pulled.

podman and buildah run as on a machine without systemd and with hybrid cgroups, which crun refuses: runc, cgroupfs, events
in a file (`containers.conf` in the rig's cache). The base image is made once and kept as a tar; images are built again when
the Containerfile, the wheelhouse's locks or the base have changed, which a label says.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.deploy.packages import wheelhouse
from tests.deploy.rootfs import MissingTool, cache, held, need

ROOT: Final = Path(__file__).parents[2]
CONTAINERFILES: Final = ROOT / "deploy/container"
PREFIX: Final = "localhost/histofed-test"
KEY: Final = "histofed.test.key"
"""The label that says of what an image was built."""
_PACKAGES: Final = ("python3", "python3-venv", "libstdc++6", "ca-certificates")
_LEFT_OUT: Final = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
_SOURCES: Final = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
_CONTAINERS_CONF: Final = """\
[containers]
# the default ones need CAP_SYS_RESOURCE, which a container without rights does not have
default_ulimits = ["nofile=10000:10000", "nproc=9000:9000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
BUILD_S: Final = 1800.0


def podman(*arguments: str, check: bool = True, text: str | None = None, seconds: float = 120.0) -> str:
    """Run podman; what it prints. Fails with both streams unless it exits with 0."""
    need(podman="podman", buildah="buildah", runc="runc", conmon="conmon")
    return run_tool(["podman", *arguments], check=check, text=text, seconds=seconds)


def run_tool(command: Sequence[str], *, check: bool = True, text: str | None = None, seconds: float = 120.0) -> str:
    """Run podman, buildah or what else reads containers.conf."""
    done = subprocess.run(
        command, input=text or "", capture_output=True, text=True, timeout=seconds, check=False, env=_environment()
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def inspect(image: str) -> dict[str, Any]:
    """What podman knows of an image."""
    found: dict[str, Any] = json.loads(podman("image", "inspect", image))[0]
    return found


def base() -> str:
    """A small Debian with python3, imported as an image."""
    need(mmdebstrap="mmdebstrap")
    key = _digest(_PACKAGES, _LEFT_OUT)[:12]
    name, tar = f"{PREFIX}/base:{key}", cache() / f"image-base-{key}.tar"
    with held(cache() / "image-base.lock"):
        if not tar.exists():
            _make_base(tar)
        if not _exists(name):
            podman("import", "--quiet", str(tar), name)
    return name


def build(
    target: str,
    *,
    locks: str | None = None,
    tag: str = "1",
    engine: str = "podman",
    fresh: bool = False,
) -> str:
    """The image of `aggregator` or `agent`, by podman or buildah; `locks` replaces its own."""
    image, below, wheels = f"{PREFIX}/{target}:{tag}", base(), wheelhouse()
    file = CONTAINERFILES / f"{target}.Containerfile"
    key = _digest(file.read_text(), (wheels / "SHA256SUMS").read_text(), below, locks)
    with held(cache() / "images.lock"):
        if fresh or not _exists(image) or (inspect(image).get("Labels") or {}).get(KEY) != key:
            # layers: of torch they are gigabytes; chroot: no cgroups of its own; network: pip has no index to ask
            options = ["--layers=false", "--isolation=chroot", "--network=host", "--quiet", "--pull=never"]
            given = ["--engine", engine, "--base", below, *(["--locks", locks] if locks else [])]
            given += [f"--option={option}" for option in (*options, f"--label={KEY}={key}")]
            images_script(target, tag, "--wheelhouse", str(wheels), *given)
    return image


def save(target: str, folder: Path) -> None:
    """A built image as `make images` leaves it in a folder."""
    images_script(target, "1", "--wheelhouse", str(wheelhouse()), "--save-only", "--out", str(folder))


def images_script(target: str, tag: str, *arguments: str) -> None:
    """What `make images` runs, for one image under our names."""
    named = ["--only", target, "--repository", PREFIX, "--tag", tag, "--revision", "test"]
    run_tool([sys.executable, str(ROOT / "scripts/images.py"), *named, *arguments], seconds=BUILD_S)


def _make_base(tar: Path) -> None:
    part = tar.with_suffix(".part.tar")
    sources = next((path for path in _SOURCES if path.exists() and path.read_text().strip()), None)
    if sources is None:
        raise MissingTool(f"this machine has no apt sources in {' or '.join(map(str, _SOURCES))}")
    subprocess.run(
        ["mmdebstrap", "--variant=essential", '--aptopt=Acquire::Languages "none"']
        + [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
        + [f"--include={','.join(_PACKAGES)}", '--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"']
        + ["bookworm", str(part), str(sources)],
        check=True,
        capture_output=True,
    )
    part.replace(tar)


def _exists(image: str) -> bool:
    done = subprocess.run(["podman", "image", "exists", image], env=_environment(), check=False)
    return done.returncode == 0


def _environment() -> Mapping[str, str]:
    """The machine's, with our containers.conf."""
    path = cache() / "containers.conf"
    if not path.exists() or path.read_text() != _CONTAINERS_CONF:
        path.write_text(_CONTAINERS_CONF)
    return {**os.environ, "CONTAINERS_CONF": str(path)}


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
