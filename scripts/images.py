#!/usr/bin/env python3
"""Build the container images from the wheelhouse and save them for the bundle: scripts/images.py (`make images`).

    histofed/aggregator:VERSION    build/images/aggregator.tar
    histofed/agent:VERSION         build/images/agent.tar

Version and revision are labels of the image, so that a pod can be traced to its source. The tests build and save theirs here
too, with a base of their own, under a name of their own.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packlib import sources, wheels

BUILD: Final = sources.ROOT / "build"
TARGETS: Final = ("aggregator", "agent")


def main() -> int:
    """Build, then save what was asked for; the builder's exit code where it fails."""
    args = _arguments()
    try:
        version = wheels.version(args.wheelhouse)
        if shutil.which(args.engine) is None:
            raise FileNotFoundError(
                f"there is no {args.engine}; install it, or bundle without images: make bundle IMAGES=no"
            )
        for target in args.only or TARGETS:
            image = f"{args.repository}/{target}:{args.tag or version}"
            if not args.save_only:
                subprocess.run(_build(args, target, image, version), check=True)
            if args.out is not None:
                save(args.engine, image, args.out / f"{target}.tar")
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{args.engine} failed, see above", file=sys.stderr)
        return error.returncode
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the container images from the wheelhouse, and save them.")
    parser.add_argument("--wheelhouse", type=Path, default=BUILD / "wheelhouse", metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="DIR", help="save them here, as docker archives (default: do not save)")
    parser.add_argument("--only", action="append", choices=TARGETS, help="may be given several times; default: both")
    parser.add_argument("--engine", default="podman", help="podman, buildah or docker (default: podman)")
    parser.add_argument("--repository", default="histofed", help="what stands before /aggregator and /agent")
    parser.add_argument("--tag", help="default: histofed's version in the wheelhouse")
    parser.add_argument("--revision", help="the source's revision, for the label (default: what git says)")
    parser.add_argument("--base", metavar="IMAGE", help="the root file system below (default: that of the Containerfile)")
    parser.add_argument("--locks", metavar="NAMES", help="locks of the wheelhouse to install (default: the Containerfile's)")
    parser.add_argument("--save-only", action="store_true", help="save what was built before")
    parser.add_argument("--option", action="append", default=[], metavar="OPTION", help="handed to the builder as it stands")
    return parser.parse_args()


def _build(args: argparse.Namespace, target: str, image: str, version: str) -> list[str]:
    """The builder's command line."""
    values = {"VERSION": version, "REVISION": args.revision or revision(), "BASE": args.base, "LOCKS": args.locks}
    given = [f"--build-arg={name}={value}" for name, value in values.items() if value]
    file = sources.ROOT / f"deploy/container/{target}.Containerfile"
    return [args.engine, "build", "--file", str(file), "--tag", image, *given, *args.option, str(args.wheelhouse)]


def revision() -> str:
    """The commit that is checked out, `-dirty` when files differ from it. Raises `FileNotFoundError` without a history."""
    command: Sequence[str] = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    done = subprocess.run(command, cwd=sources.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise FileNotFoundError("there is no git history to take the image's revision from; name it: --revision COMMIT")
    return done.stdout.strip()


def save(engine: str, image: str, target: Path) -> None:
    """One image as one file, in place when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    # podman writes into no file that is there
    part.unlink(missing_ok=True)
    subprocess.run([engine, "save", "--output", str(part), image], check=True)
    part.replace(target)
    print(f"{image}: {target}")


if __name__ == "__main__":
    sys.exit(main())
