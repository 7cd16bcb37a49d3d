"""The air-gapped bundle: whole or refused, and installed on machines that have no route to anywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.bundles import bundle
from tests.deploy.images import podman
from tests.deploy.machine import Machine
from tests.deploy.packages import version
from tests.deploy.rootfs import cache

PLACE: Final = "/root/histofed-bundle"
BAD_DATA: Final = 65
INSTALL_S: Final = 900.0
RHEL: Final = 'ID="rhel"\nVERSION_ID="9.4"\nPRETTY_NAME="a machine that is no Debian"\n'

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def whole() -> Path:
    """The bundle as `make bundle` makes it."""
    return bundle()


@pytest.fixture
def copied(whole: Path) -> Iterator[Path]:
    """A copy that a test may damage: links, so that only what is replaced costs anything."""
    target = cache() / "packages" / "copied-bundle"
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "--archive", "--link", whole, target], check=True)
    yield target
    shutil.rmtree(target)


@pytest.fixture
def store() -> Iterator[tuple[str, ...]]:
    """The options for a podman with images and containers of its own, which are none."""
    # podman takes no path of more than 50 characters
    with tempfile.TemporaryDirectory(prefix="histofed-") as folder:
        options = ("--root", f"{folder}/store", "--runroot", f"{folder}/run")
        yield options
        podman(*options, "rmi", "--all", "--force")
        if Path(folder, "store/overlay").is_mount():
            subprocess.run(["umount", f"{folder}/store/overlay"], check=True)


def machine(name: str, folder: Path) -> Machine:
    """A machine with the bundle on a medium, and no network but itself."""
    return Machine(name, binds={folder: PLACE})


def test_everything_is_listed_and_no_weights_are_inside(whole: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=whole, check=True)
    listed = {line.split("  ", 1)[1] for line in (whole / "SHA256SUMS").read_text().splitlines()}
    present = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert present - listed == {"SHA256SUMS"}
    assert not [name for name in present if name.endswith((".pth", ".safetensors", ".bin", ".ckpt"))]
    assert "vit_b_16-c867db91.pth  c867db91" in (whole / "weights.txt").read_text()
    assert "images/aggregator.tar" in present
    tar = whole.with_name(f"histofed-bundle-{version()}.tar")
    names = subprocess.run(["tar", "--list", "--file", tar], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"histofed-bundle/{name}" for name in present} <= set(names)


def test_the_bill_of_materials_names_every_wheel_by_its_hash(whole: Path) -> None:
    document = json.loads((whole / "sbom.cdx.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    sums = (line.split("  ", 1) for line in (whole / "SHA256SUMS").read_text().splitlines())
    wheels = {digest for digest, name in sums if name.endswith(".whl")}
    assert {each["hashes"][0]["content"] for each in document["components"]} == wheels
    assert all(each["purl"].startswith("pkg:pypi/") and each["licenses"] for each in document["components"])
    required = {each["ref"]: each.get("dependsOn", []) for each in document["dependencies"]}
    assert any(name.startswith("grpcio==") for name in required[f"histofed=={version()}"])


def test_a_corrupted_wheel_is_refused_in_words_and_nothing_is_installed(copied: Path) -> None:
    wheel = next((copied / "wheels").glob("grpcio-*.whl"))
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.unlink()
    wheel.write_bytes(content)

    with machine("bundle-corrupted", copied) as host:
        done = host.run(f"{PLACE}/install.sh", "aggregator", "tools", check=False)

        assert done.returncode == BAD_DATA
        assert done.stderr == (
            f"install.sh: not what was bundled: wheels/{wheel.name}; nothing was installed; copy the bundle again\n"
        )
        assert host.run("ls", "/opt", "/etc/histofed", check=False).stdout.replace("/opt:", "").strip() == ""
        assert host.run("dpkg-query", "--show", "histofed-aggregator", check=False).returncode != 0


def test_a_wheel_that_was_added_or_is_missing_is_noticed(copied: Path) -> None:
    next((copied / "wheels").glob("rich-*.whl")).unlink()
    done = subprocess.run([copied / "install.sh", "tools"], capture_output=True, text=True, check=False)
    assert done.returncode == BAD_DATA
    assert "wheels/rich-" in done.stderr


def test_wrong_words_are_refused_before_anything(whole: Path) -> None:
    for words in ([], ["agnet"]):
        done = subprocess.run([whole / "install.sh", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "agent, aggregator, tools, torch" in done.stderr


def test_an_image_comes_from_the_bundle_and_starts(whole: Path, store: tuple[str, ...]) -> None:
    """On a host whose podman has never seen one."""
    assert podman(*store, "images", "--quiet") == ""
    podman(*store, "load", "--quiet", "--input", str(whole / "images/aggregator.tar"), seconds=INSTALL_S)
    (image,) = podman(*store, "images", "--quiet").split()
    said = podman(*store, "run", "--rm", "--pull=never", "--network=none", "--read-only", image, "--version")
    assert said.split() == ["histofed-aggregator", version()]


def test_debian_installs_without_any_route(whole: Path) -> None:
    with machine("bundle-debian", whole) as host:
        assert host.run("ip", "route").stdout == ""
        host.run(f"{PLACE}/install.sh", "tools", "aggregator", seconds=INSTALL_S)

        assert host.run("dpkg", "--verify", "histofed-aggregator", "histofed-tools").stdout == ""
        federation_runs(host)


def test_another_distribution_installs_from_the_wheels_without_any_route(whole: Path) -> None:
    with machine("bundle-elsewhere", whole) as host:
        host.run("rm", "--force", "/etc/os-release")
        host.write("/etc/os-release", RHEL)
        assert host.run("ip", "route").stdout == ""
        host.run(f"{PLACE}/install.sh", "agent", "aggregator", "tools", seconds=INSTALL_S)

        assert host.run("dpkg-query", "--show", "histofed-agent", check=False).returncode != 0
        assert host.run("/usr/local/bin/histofed-agent", "--version").stdout == f"histofed-agent {version()}\n"
        assert host.run("/opt/histofed/agent/bin/python3", "-I", "-c", "import torch; print(1)").stdout == "1\n"
        host.run("systemctl", "start", "histofed-agent")
        assert host.show("histofed-agent", "ActiveState")["ActiveState"] == "inactive", "not configured: skipped quietly"
        federation_runs(host, programs="/usr/local/bin/")

        before = host.main_pid("histofed-aggregator")
        host.run(f"{PLACE}/install.sh", "aggregator", seconds=INSTALL_S)
        assert host.main_pid("histofed-aggregator") != before, "installed again: what ran runs again"


def federation_runs(host: Machine, programs: str = "/usr/bin/") -> None:
    """An aggregator is configured, started, and answers its operator."""
    host.write("/etc/histofed/aggregator.toml", 'public_hosts = ["127.0.0.1"]\n')
    host.run(f"{programs}histofed-aggregator", "init", user="histofed-aggregator")
    host.run("systemctl", "start", "histofed-aggregator")
    operator = "/var/lib/histofed-aggregator/operator/operator.toml"
    told = host.run(f"{programs}histofed", "--config", operator, "status", check=False)
    assert told.returncode in {0, 1}, told.stderr
