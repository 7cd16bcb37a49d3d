#!/usr/bin/env python3
"""Put everything that a site without a network needs into one folder and one tar: scripts/bundle.py (`make bundle`).

Both have the version in their names, so that the next bundle is unpacked beside this one.

install.sh        checks, then installs
SHA256SUMS        of every file
debs/             Debian 12
wheels/           everywhere else, with locks that hold their hashes
images/           container images, unless it was made without; how to load them
k8s/              manifests, and the script that renders them
weights.txt       published files that presets start from: names and digests, never the files
sbom.cdx.json     CycloneDX
systemd/ man/ completion/ samples/ docs/   what a package would bring besides
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from packlib import sources, wheels
from packlib.checksums import write_sums
from packlib.package import place
from packlib.sbom import sbom

from histofed.recipes.presets.files import load, names

NAME: Final = "histofed-bundle"
DEPLOY: Final = sources.ROOT / "deploy"
BUILD: Final = sources.ROOT / "build"
COMMANDS: Final = ("install.sh", "render.py")
DOCUMENTS: Final = ("docs/install-hospital.md", "docs/install-aggregator.md", "docs/backup.md", "CHANGELOG.md", "LICENSE")


def main() -> int:
    """Put it together from what `make wheelhouse deb images` made."""
    parser = argparse.ArgumentParser(description="Make the air-gapped bundle from wheelhouse, packages and images.")
    parser.add_argument("--wheelhouse", type=Path, default=BUILD / "wheelhouse", metavar="DIR")
    parser.add_argument("--debs", type=Path, default=BUILD / "deb", metavar="DIR")
    parser.add_argument("--images", type=Path, default=BUILD / "images", metavar="DIR")
    parser.add_argument("--no-images", action="store_true", help="leave container images out: no site will run any")
    parser.add_argument("--out", type=Path, default=BUILD / "bundle", metavar="DIR")
    args = parser.parse_args()
    folder = args.out / f"{NAME}-{wheels.version(args.wheelhouse)}"
    try:
        fill(folder, args.wheelhouse, args.debs, None if args.no_images else args.images)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    target = folder.with_name(f"{folder.name}.tar")
    pack(folder, target)
    print(f"{target}: {target.stat().st_size / 1e6:.0f} MB")
    return 0


def fill(bundle: Path, wheelhouse: Path, debs: Path, images: Path | None) -> None:
    """Every file of the bundle, the list of checksums last. Raises `FileNotFoundError` in words."""
    version = wheels.version(wheelhouse)
    saved = None if images is None else _saved(images)
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(wheelhouse, bundle / "wheels", ignore=shutil.ignore_patterns("SHA256SUMS"))
    for name in ("torch", "agent", "aggregator", "tools"):
        found = sorted(debs.glob(f"histofed-{name}_{version}-*_amd64.deb"))
        if len(found) != 1:
            words = f"{debs} holds {len(found)} packages histofed-{name} {version}, wanted is one"
            raise FileNotFoundError(f"{words}; make them with: make deb")
        place(found[0], bundle / "debs" / found[0].name)
    _images(bundle / "images", saved)
    (bundle / "weights.txt").write_text("".join(f"{line}\n" for line in weights()), encoding="utf-8")
    (bundle / "sbom.cdx.json").write_text(sbom(wheelhouse, version, sources.epoch()), encoding="utf-8")
    for folder in ("systemd", "man", "completion", "k8s"):
        shutil.copytree(DEPLOY / folder, bundle / folder, ignore=shutil.ignore_patterns("__pycache__"))
    place(DEPLOY / "debian/histofed-agent/etc/histofed/consent.toml", bundle / "samples/consent.toml")
    for name in DOCUMENTS:
        place(sources.ROOT / name, bundle / "docs" / Path(name).name)
    place(DEPLOY / "bundle/install.sh", bundle / "install.sh")
    for path in bundle.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.name in COMMANDS else 0o644)
    write_sums(bundle)


def _saved(images: Path) -> list[Path]:
    """What `make images` saved. Raises `FileNotFoundError`: a bundle without images is one that somebody asked for."""
    if found := sorted(images.glob("*.tar")):
        return found
    raise FileNotFoundError(f"{images} holds no images; make them with: make images (or go without: make bundle IMAGES=no)")


def _images(target: Path, saved: Sequence[Path] | None) -> None:
    """The images, and how to load them; a text that says so where none are wanted."""
    target.mkdir()
    if saved is None:
        words = "This bundle was made without container images; `make bundle` makes one with them.\n"
        (target / "NONE.txt").write_text(words, encoding="utf-8")
        return
    for path in saved:
        place(path, target / path.name)
    place(DEPLOY / "container/README.md", target / "README.md")


def weights() -> Iterator[str]:
    """The published files that presets start from: a bundle never holds them, a hospital brings them in its own way."""
    yield "# file  SHA-256 begins with  what it is, and who publishes it under which licence"
    wanted = {found for name in names() if (found := load(name).wants_weights) is not None}
    for each in sorted(wanted, key=lambda found: found.file):
        terms = "published by the torchvision project: its terms, and those of ImageNet, hold"
        yield f"{each.file}  {each.sha256_prefix}  {each.model}; {terms}"


def pack(bundle: Path, target: Path) -> None:
    """One tar, not compressed: what is in it is. The same content gives the same bytes."""
    moment = sources.epoch()

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = moment
        return member

    part = target.with_suffix(".part")
    with tarfile.open(part, mode="w") as archive:
        for path in (bundle, *sorted(bundle.rglob("*"))):
            archive.add(path, arcname=str(path.relative_to(bundle.parent)), recursive=False, filter=plain)
    part.rename(target)


if __name__ == "__main__":
    sys.exit(main())
