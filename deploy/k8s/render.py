#!/usr/bin/env python3
"""Render an overlay with its images pinned by digest: what is applied names bits, not tags that somebody may move.

    deploy/k8s/render.py prod --aggregator registry.example.org/histofed/aggregator@sha256:... > histofed.yaml
    kubectl apply --server-side -f histofed.yaml

Needs kustomize 5, by itself or in kubectl from 1.27 on (Debian 13: kubernetes-client). OVERLAY is a name in overlays/, or a
folder of your own that uses them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
PINNED: Final = re.compile(r"(?P<name>[^@\s:]+(:\d+)?[^@\s:]*)(:[\w.-]+)?@(?P<digest>sha256:[0-9a-f]{64})")
LEFT: Final = re.compile(r"^\s*(?:- )?image: (?P<image>histofed/\w+)\s*$", re.MULTILINE)
"""An image of the base that nobody replaced."""


class CannotRender(Exception):
    """What is missing, and what to do."""


def main() -> int:
    """Print the manifests; 78 with a sentence when they cannot be rendered."""
    parser = argparse.ArgumentParser(description="Render an overlay with its images pinned by digest.")
    parser.add_argument("overlay", metavar="OVERLAY", help="dev, prod, or a folder")
    parser.add_argument("--aggregator", metavar="NAME@sha256:DIGEST", help="the aggregator's image")
    parser.add_argument("--agent", metavar="NAME@sha256:DIGEST", help="the agent's image, where the overlay has agents")
    options = parser.parse_args()
    given = {"histofed/aggregator": options.aggregator, "histofed/agent": options.agent}
    try:
        sys.stdout.write(render(options.overlay, {name: image for name, image in given.items() if image}))
    except CannotRender as error:
        sys.stderr.write(f"render.py: {error}\n")
        return 78
    return 0


def render(overlay: str, images: Mapping[str, str]) -> str:
    """The overlay's manifests with these images. Raises `CannotRender`, also for an image that is not pinned."""
    named = HERE / "overlays" / overlay
    folder = named if named.is_dir() else Path(overlay).resolve()
    if not (folder / "kustomization.yaml").exists():
        raise CannotRender(
            f"there is no overlay {overlay}: name one of {_overlays()}, or a folder with a kustomization.yaml"
        )
    with tempfile.TemporaryDirectory(prefix="histofed-render-") as scratch:
        # kustomize resolves links and wants relative paths; nothing is written beside the overlay
        around = Path(scratch).resolve()
        entries = "".join(map(_entry, images, images.values()))
        (around / "kustomization.yaml").write_text(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
            f"resources: [{os.path.relpath(folder, around)}]\n" + (f"images:\n{entries}" if entries else "")
        )
        done = subprocess.run([*_kustomize(), str(around)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotRender(done.stderr.strip())
    if left := LEFT.search(done.stdout):
        option = left["image"].rpartition("/")[2]
        raise CannotRender(f"{overlay} runs the image {left['image']}: give --{option} NAME@sha256:DIGEST")
    return done.stdout


def _entry(name: str, image: str) -> str:
    pinned = PINNED.fullmatch(image)
    if pinned is None:
        raise CannotRender(f"{image!r} is not pinned: write NAME@sha256:DIGEST, with the digest that the push printed")
    return f"  - {{name: {name}, newName: {pinned['name']}, digest: '{pinned['digest']}'}}\n"


def _kustomize() -> list[str]:
    if found := shutil.which("kustomize"):
        return [found, "build"]
    if found := shutil.which("kubectl"):
        return [found, "kustomize"]
    raise CannotRender("neither kustomize nor kubectl is here: install one (Debian 13: kubernetes-client)")


def _overlays() -> str:
    return ", ".join(sorted(path.parent.name for path in HERE.glob("overlays/*/kustomization.yaml")))


if __name__ == "__main__":
    sys.exit(main())
