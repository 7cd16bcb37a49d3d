#!/usr/bin/env python3
"""Build the Debian packages from the wheelhouse: scripts/deb.py [--only histofed-agent] (`make deb`).

    histofed-torch        /opt/histofed/torch, the libraries of trainers, shared by the other three
    histofed-agent        /opt/histofed/agent, the unit, its user, man page, completion
    histofed-aggregator   /opt/histofed/aggregator, the same
    histofed-tools        /opt/histofed/tools, the operator's command line

Needs no network, no root and no debhelper: dpkg-deb, and a CPython 3.11 to install and compile with. The same sources,
wheels and SOURCE_DATE_EPOCH give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packlib import environment, locks, package, papers, sources
from packlib.package import Release, place

DEPLOY: Final = sources.ROOT / "deploy"
DEBIAN: Final = DEPLOY / "debian"
PACKAGES: Final = ("histofed-torch", "histofed-agent", "histofed-aggregator", "histofed-tools")
SAMPLES: Final = {"histofed-agent": ("agent.toml", "consent.toml"), "histofed-aggregator": ("aggregator.toml",)}
DAEMONS: Final = {"histofed-agent": "agent.cli", "histofed-aggregator": "aggregator.cli"}


def main() -> int:
    """Build what was asked for."""
    if sys.version_info[:2] != (3, 11):
        print(
            f"the packages are for Python 3.11, and this is {sys.version.split()[0]}; run it with python3.11",
            file=sys.stderr,
        )
        return 1
    parser = argparse.ArgumentParser(description="Build the Debian packages from the wheelhouse.")
    parser.add_argument("--wheelhouse", type=Path, default=sources.ROOT / "build/wheelhouse", metavar="DIR")
    parser.add_argument("--out", type=Path, default=sources.ROOT / "build/deb", metavar="DIR")
    parser.add_argument("--only", action="append", choices=PACKAGES, help="may be given several times; default: all")
    parser.add_argument("--revision", default="1", metavar="N", help="Debian revision (default: 1)")
    args = parser.parse_args()
    if not (args.wheelhouse / "SHA256SUMS").exists():
        print(f"there is no wheelhouse in {args.wheelhouse}; make it with: make wheelhouse", file=sys.stderr)
        return 1
    ours = next(pin for pin in locks.read(args.wheelhouse / "requirements-tools.txt") if pin.name == "histofed")
    release = Release(f"{ours.version}-{args.revision}", sources.epoch())
    for name in args.only or PACKAGES:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / name
            _fill(root, name, args.wheelhouse)
            print(package.build(root, name, release, args.out))
    return 0


def _fill(root: Path, name: str, wheelhouse: Path) -> None:
    """Everything that the package puts on a machine, and its control files."""
    short = name.removeprefix("histofed-")
    folder = root / environment.PREFIX.relative_to("/") / short
    if name == "histofed-torch":
        environment.make(folder, wheelhouse, "torch")
        libraries = folder
    else:
        _environment(folder, name, wheelhouse)
        libraries = environment.site(folder)
        _around_command(root, "histofed" if name == "histofed-tools" else name)
    environment.compile_all(libraries, root)
    if name in DAEMONS:
        _around_daemon(root, name)
    _control(root, name, wheelhouse)
    notes = papers.copyright_of(DEBIAN / "copyright", libraries, Path("/") / libraries.relative_to(root))
    documents = root / "usr/share/doc" / name
    documents.mkdir(parents=True, exist_ok=True)
    (documents / "copyright").write_text(notes, encoding="utf-8")
    package.compressed(documents / "changelog.gz", (sources.ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def _environment(folder: Path, name: str, wheelhouse: Path) -> None:
    """An environment with its one command; an agent's trainer libraries are the layer's."""
    lock = {"histofed-agent": "daemon"}.get(name, name.removeprefix("histofed-"))
    environment.interpreter(folder)
    packages = environment.site(folder)
    packages.rmdir()
    environment.make(packages, wheelhouse, lock)
    environment.see_layer(folder)
    command, module = ("histofed", "histofed.cli.main") if name == "histofed-tools" else (name, DAEMONS[name])
    environment.command(folder, command, module, environment.PREFIX / folder.name)


def _around_command(root: Path, command: str) -> None:
    """What makes a command usable: its place in PATH, man page, completion."""
    short = {"histofed": "tools"}.get(command, command.removeprefix("histofed-"))
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin" / command).symlink_to(environment.PREFIX / short / "bin" / command)
    section = "1" if command == "histofed" else "8"
    manual = (DEPLOY / "man" / f"{command}.{section}").read_text(encoding="utf-8")
    package.compressed(root / f"usr/share/man/man{section}/{command}.{section}.gz", manual)
    place(DEPLOY / "completion" / f"{command}.bash", root / "usr/share/bash-completion/completions" / command)
    place(DEPLOY / "completion" / f"_{command}", root / "usr/share/zsh/vendor-completions" / f"_{command}")
    place(DEPLOY / "completion" / f"{command}.fish", root / "usr/share/fish/vendor_completions.d" / f"{command}.fish")


def _around_daemon(root: Path, name: str) -> None:
    """The unit, its user and folders, the samples, the files under /etc that are the administrator's."""
    systemd = DEPLOY / "systemd"
    place(systemd / f"{name}.service", root / f"lib/systemd/system/{name}.service")
    place(systemd / f"sysusers.d/{name}.conf", root / f"usr/lib/sysusers.d/{name}.conf")
    place(systemd / f"tmpfiles.d/{name}.conf", root / f"usr/lib/tmpfiles.d/{name}.conf")
    examples = root / f"usr/share/doc/{name}/examples"
    for each in sorted((systemd / f"{name}.service.d").glob("*.conf")):
        place(each, examples / f"{name}.service.d" / each.name)
    for each in sorted((DEBIAN / name / "etc").rglob("*")):
        if each.is_file():
            place(each, root / "etc" / each.relative_to(DEBIAN / name / "etc"))
    for sample in SAMPLES[name]:
        place(systemd / "conf" / sample, examples / sample)
    package.compressed(root / f"usr/share/doc/{name}/NEWS.Debian.gz", (DEBIAN / name / "NEWS").read_text(encoding="utf-8"))


def _control(root: Path, name: str, wheelhouse: Path) -> None:
    """Control file, maintainer scripts, lintian's overrides."""
    control = root / "DEBIAN"
    control.mkdir(parents=True)
    text = (DEBIAN / name / "control").read_text(encoding="utf-8")
    (control / "control").write_text(text.replace("@TRAINER@", trainer(wheelhouse)), encoding="utf-8")
    for script in ("postinst", "prerm", "postrm"):
        # a package's own script, or the one of all daemons
        source = DEBIAN / f"daemon.{script}" if name in DAEMONS else DEBIAN / name / script
        if source.exists():
            (control / script).write_text(_filled(source, name), encoding="utf-8")
    overrides = root / "usr/share/lintian/overrides" / name
    overrides.parent.mkdir(parents=True)
    parts: Sequence[Path] = (DEBIAN / "lintian-overrides", DEBIAN / name / "lintian-overrides")
    overrides.write_text("".join(part.read_text(encoding="utf-8") for part in parts if part.exists()), encoding="utf-8")


def _filled(script: Path, name: str) -> str:
    """A maintainer script with its package's name and the parts that scripts share."""
    purge = DEBIAN / name / "purge"
    words = script.read_text(encoding="utf-8").replace("@RUN_AGAIN@", _text(DEBIAN / "run-again"))
    words = words.replace("@PURGE@", _text(purge) if purge.exists() else "")
    return words.replace("@PACKAGE@", name)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8").rstrip("\n")


def trainer(wheelhouse: Path) -> str:
    """The virtual package that ties an agent to libraries of the same lock; a CUDA build of torch has the same name."""
    pins = locks.read(wheelhouse / "requirements-agent.txt")
    public = sorted(f"{pin.name}=={pin.version.partition('+')[0]}" for pin in pins if pin.name != "histofed")
    return f"histofed-trainer-{hashlib.sha256(chr(10).join(public).encode()).hexdigest()[:12]}"


if __name__ == "__main__":
    sys.exit(main())
