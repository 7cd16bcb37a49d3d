"""The overlays as a person renders them, for the tests that read them: what is selected, who reaches whom, what runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy.images import ROOT

IMAGES: Final = {
    "aggregator": f"registry.example.org/histofed/aggregator@sha256:{'a' * 64}",
    "agent": f"registry.example.org/histofed/agent@sha256:{'b' * 64}",
}
OVERLAYS: Final = {"dev": ("aggregator", "agent"), "prod": ("aggregator",)}
SITES: Final = ("east", "north", "south", "west")


def render(overlay: str, *options: str, folder: Path = ROOT / "deploy/k8s") -> subprocess.CompletedProcess[str]:
    """Run render.py, or the one of a copy."""
    command = [sys.executable, str(folder / "render.py"), overlay, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(overlay: str, folder: Path = ROOT / "deploy/k8s") -> str:
    """What it prints, with the images that this overlay runs."""
    names = OVERLAYS.get(overlay, tuple(IMAGES))
    done = render(overlay, *(f"--{name}={IMAGES[name]}" for name in names), folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def of_kind(manifests: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each for each in manifests if each["kind"] == kind]


def containers(manifests: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container with its pod."""
    for each in of_kind(manifests, "StatefulSet"):
        pod = each["spec"]["template"]["spec"]
        for container in pod["initContainers"] + pod["containers"]:
            yield pod, container


def aggregator(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The container that runs it."""
    (found,) = (each for _, each in containers(manifests) if each["name"] == "aggregator")
    return found


def checked(manifests: Sequence[dict[str, Any]], folder: Path) -> dict[str, str]:
    """What `histofed-aggregator check` makes of the rendered map and the container's environment: value by setting."""
    (found,) = (each for each in of_kind(manifests, "ConfigMap") if "aggregator.toml" in each["data"])
    (folder / "aggregator.toml").write_text(found["data"]["aggregator.toml"])
    starter = "import sys; from aggregator.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", starter, "check", "--config", str(folder / "aggregator.toml")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **{each["name"]: each["value"] for each in aggregator(manifests).get("env", [])}},
    )
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^(\S+) = (.*?)    \(", done.stdout, re.MULTILINE))
