"""The bundle that the tests install, with the aggregator's image in it; made once per content, in the cache.

The agent's image would add 1.3 GB of what is in the bundle as wheels already, and comes into a bundle in the same way.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tests.deploy.images import build, inspect, save
from tests.deploy.packages import CODE, LIBRARIES, SCRIPTS, current, digest, key_of, package, script, version, wheelhouse
from tests.deploy.rootfs import cache

PACKAGES: Final = ("histofed-torch", "histofed-agent", "histofed-aggregator", "histofed-tools")
_PARTS: Final = (
    "scripts/bundle.py",
    "scripts/packlib/sbom.py",
    "scripts/packlib/wheels.py",
    "deploy/container/README.md",
    "deploy/k8s",
    "docs",
    "CHANGELOG.md",
    "deploy/bundle",
    "deploy/completion",
)


def bundle() -> Path:
    """The bundle's folder; its tar lies beside it."""
    files = [package(name) for name in PACKAGES]
    wheels, images = wheelhouse(), saved_images()
    folder = cache() / "packages" / "bundle"

    def make() -> None:
        debs = cache() / "packages" / "debs"
        debs.mkdir(exist_ok=True)
        for old in debs.iterdir():
            old.unlink()
        for file in files:
            os.link(file, debs / file.name)
        script("bundle.py", "--wheelhouse", wheels, "--debs", debs, "--images", images, "--out", folder)

    return (
        current(folder, digest((*CODE, *SCRIPTS, *LIBRARIES, *_PARTS), key_of(images)), make)
        / f"histofed-bundle-{version()}"
    )


def saved_images() -> Path:
    """A folder of images as `make images` leaves it."""
    image = build("aggregator")
    folder = cache() / "packages" / "images"

    return current(folder, digest(("scripts/images.py",), str(inspect(image)["Id"])), lambda: save("aggregator", folder))
