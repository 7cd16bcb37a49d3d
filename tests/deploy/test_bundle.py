"""The air-gapped bundle: whole or refused, and installed on machines that have no route to anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

from tests.deploy.bundles import bundle
from tests.deploy.debian import lower
from tests.deploy.images import podman
from tests.deploy.machine import Machine
from tests.deploy.packages import ROOT, package, script, version, wheelhouse
from tests.deploy.rootfs import cache

AGENT: Final = "histofed-agent"
TORCH: Final = "histofed-torch"
PLACE: Final = "/root/histofed-bundle"
BAD_DATA: Final = 65
UNAVAILABLE: Final = 69
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
    assert {"images/aggregator.tar", "images/README.md", "k8s/README.md", "k8s/overlays/prod/kustomization.yaml"} <= present
    assert {name for name in present if (whole / name).stat().st_mode & 0o111} == {"install.sh", "k8s/render.py"}
    tar = whole.with_name(f"{whole.name}.tar")
    names = subprocess.run(["tar", "--list", "--file", tar], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"{whole.name}/{name}" for name in present} <= set(names)


def test_the_bill_of_materials_names_every_wheel_by_its_hash(whole: Path) -> None:
    text = (whole / "sbom.cdx.json").read_text()
    assert make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
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


def test_a_wheel_that_is_missing_is_noticed(copied: Path) -> None:
    next((copied / "wheels").glob("rich-*.whl")).unlink()
    done = refused(copied, "tools")
    assert done.returncode == BAD_DATA
    assert "wheels/rich-" in done.stderr


@pytest.mark.parametrize("name", ["debs/histofed-agent_0.2.0-1_amd64.deb", "wheels/pip-99.0-py3-none-any.whl", "a b"])
def test_a_file_that_was_added_is_refused_by_name(copied: Path, name: str) -> None:
    """As after unpacking the next bundle over this one, which leaves two files of a kind."""
    (copied / name).write_text("of another bundle\n")
    done = refused(copied, "agent")
    assert done.returncode == BAD_DATA
    assert done.stderr == (
        f"install.sh: not part of this bundle: {name}; nothing was installed; unpack the bundle into an empty folder\n"
    )


def test_a_link_instead_of_a_folder_is_refused(copied: Path) -> None:
    """Whoever can write where it leads could change what was checked."""
    (copied / "wheels").rename(copied.with_name("elsewhere"))
    (copied / "wheels").symlink_to(copied.with_name("elsewhere"))
    try:
        done = refused(copied, "tools")
    finally:
        shutil.rmtree(copied.with_name("elsewhere"))
    assert done.returncode == BAD_DATA
    assert "not part of this bundle: wheels;" in done.stderr


def test_make_builds_images_for_the_bundle_unless_told_not_to() -> None:
    def commands(*words: str) -> list[str]:
        done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return [Path(word).name for word in done.stdout.split() if word.endswith(".py") or word == "--no-images"]

    assert commands("bundle") == ["wheelhouse.py", "deb.py", "images.py", "bundle.py"]
    assert commands("bundle", "IMAGES=no") == ["wheelhouse.py", "deb.py", "bundle.py", "--no-images"]


def test_a_bundle_without_images_is_asked_for_or_refused(tmp_path: Path) -> None:
    folders = ["--wheelhouse", str(wheelhouse()), "--images", f"{tmp_path}/none", "--out", str(tmp_path)]
    command = [sys.executable, f"{ROOT}/scripts/bundle.py", *folders]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    words = "holds no images; make them with: make images (or go without: make bundle IMAGES=no)"
    assert done.stderr == f"{tmp_path}/none {words}\n"
    assert not list(tmp_path.glob("*.tar"))


def test_wrong_words_are_refused_before_anything(whole: Path) -> None:
    for words in ([], ["agnet"]):
        done = refused(whole, *words)
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


def test_an_upgrade_that_nobody_watches_keeps_what_the_hospital_wrote(whole: Path) -> None:
    """Where dpkg would ask about a file below /etc, and there is no standard input to answer on."""
    old = lower(package(AGENT), conffile="etc/histofed/consent.toml")
    with Machine("bundle-unwatched", binds={whole: PLACE, old.parent: "/media"}) as host:
        host.run("sh", "-c", f"dpkg --install {PLACE}/debs/histofed-torch_*.deb /media/{old.name}", seconds=INSTALL_S)
        host.write("/etc/histofed/consent.toml", 'experiments = ["ours"]\n')
        stand_in(host)
        before = host.main_pid(AGENT)

        host.run("sh", "-c", f"exec {PLACE}/install.sh agent <&-", seconds=INSTALL_S)

        status = host.run("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", AGENT).stdout
        assert status == f"installed {version()}-1"
        assert host.run("cat", "/etc/histofed/consent.toml").stdout == 'experiments = ["ours"]\n'
        assert "What this hospital allows" in host.run("cat", "/etc/histofed/consent.toml.dpkg-dist").stdout
        assert host.main_pid(AGENT) != before, "it ran, so it runs again"


def test_on_debian_new_libraries_alone_stop_the_agent_and_start_it_again(tmp_path: Path) -> None:
    """As a build of torch for GPUs in the place of the one for CPUs."""
    small = small_bundle(tmp_path / "small")
    for name in ("requirements-agent.txt", "requirements-tools.txt"):
        shutil.copy(wheelhouse() / name, small / "wheels")
    shutil.copy(small / "SHA256SUMS", small / "wheels")
    for revision in ("1", "2"):
        script("deb.py", *("--wheelhouse", small / "wheels", "--out", small, "--only", TORCH, "--revision", revision))
    shutil.copy(package(AGENT), small)
    first, second, agent = (f"{PLACE}/{name}_{version()}-{n}_amd64.deb" for name, n in ((TORCH, 1), (TORCH, 2), (AGENT, 1)))

    with machine("bundle-torch", small) as host:
        host.run("dpkg", "--install", first, agent)
        stand_in(host)
        pids = [host.main_pid(AGENT)]
        for files in ([second], [first, agent], [agent, second]):
            said = host.run("dpkg", "--force-downgrade", "--install", *files)
            assert "not started again" not in said.stderr
            pids.append(host.main_pid(AGENT))
        assert len(set(pids)) == len(pids), "each time it was another process"
        assert host.run("sh", "-c", "ls /run/*.was-running", check=False).stdout == ""

        host.run("systemctl", "stop", AGENT)
        host.run("dpkg", "--force-downgrade", "--install", first)
        assert host.show(AGENT, "ActiveState")["ActiveState"] == "inactive", "what did not run is not started"


def test_elsewhere_a_daemon_stops_for_all_that_is_replaced_and_starts_on_its_new_unit(tmp_path: Path) -> None:
    small = small_bundle(tmp_path / "small")
    unit = small / "systemd/histofed-agent.service"
    with machine("bundle-units", small) as host:
        host.run("rm", "--force", "/etc/os-release")
        host.write("/etc/os-release", RHEL)
        host.run(f"{PLACE}/install.sh", "agent")
        stand_in(host)

        unit.write_text(unit.read_text().replace("[Service]\n", "[Service]\nEnvironment=UNIT=next\n"))
        seal(small)
        host.run(f"{PLACE}/install.sh", "agent")
        after = host.main_pid(AGENT)
        assert b"UNIT=next" in Path(f"/proc/{after}/environ").read_bytes().split(b"\0")

        said = host.run(f"{PLACE}/install.sh", "torch").stdout
        assert "stopping histofed-agent.service" in said
        assert "runs again: histofed-agent.service" in said
        assert host.main_pid(AGENT) != after, "its trainers import what was replaced"

        stand_in(host, "/usr/bin/none", start=False)
        done = host.run(f"{PLACE}/install.sh", "agent", check=False)
        assert done.returncode == UNAVAILABLE
        assert "stopped, and not running again: histofed-agent.service; see above and: journalctl" in done.stderr


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


def refused(bundle: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run install.sh here, to which we are not root: one that ought to have refused must install nothing on this machine."""
    command = ["unshare", "--user", f"{bundle}/install.sh", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stand_in(host: Machine, program: str = "/usr/bin/sleep infinity", *, start: bool = True) -> None:
    """Let the agent's unit run something that needs no federation."""
    lines = ["[Unit]", "ConditionPathExists=", "[Service]", "Type=exec", "WatchdogSec=0"]
    lines += ["Restart=no", "ExecStartPre=", "ExecStart=", f"ExecStart={program}"]
    host.write(f"/etc/systemd/system/{AGENT}.service.d/stand-in.conf", "\n".join(lines) + "\n")
    host.run("systemctl", "daemon-reload")
    if start:
        host.run("systemctl", "start", AGENT)


def small_bundle(folder: Path) -> Path:
    """install.sh with locks of one small wheel each: what it does around environments, in seconds."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    for pattern in ("pip-*.whl", "typing_extensions-*.whl"):
        (found,) = wheelhouse().glob(pattern)
        shutil.copy(found, wheels)
    locked = (wheelhouse() / "requirements-torch.txt").read_text().splitlines()
    for name in ("torch", "daemon"):
        (wheels / f"requirements-{name}.txt").write_text(
            "".join(f"{line}\n" for line in locked if line.startswith("typing-extensions=="))
        )
    for name in ("systemd", "man", "completion"):
        shutil.copytree(ROOT / "deploy" / name, folder / name)
    (folder / "samples").mkdir()
    shutil.copy(ROOT / "deploy/debian/histofed-agent/etc/histofed/consent.toml", folder / "samples")
    shutil.copy(ROOT / "deploy/bundle/install.sh", folder)
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """List what is in a bundle now."""
    listing = "find . -type f ! -name SHA256SUMS | cut -c 3- | xargs sha256sum > SHA256SUMS"
    subprocess.run(["sh", "-c", listing], cwd=folder, check=True)


def federation_runs(host: Machine, programs: str = "/usr/bin/") -> None:
    """An aggregator is configured, started, and answers its operator."""
    host.write("/etc/histofed/aggregator.toml", 'public_hosts = ["127.0.0.1"]\n')
    host.run(f"{programs}histofed-aggregator", "init", user="histofed-aggregator")
    host.run("systemctl", "start", "histofed-aggregator")
    operator = "/var/lib/histofed-aggregator/operator/operator.toml"
    told = host.run(f"{programs}histofed", "--config", operator, "status", check=False)
    assert told.returncode in {0, 1}, told.stderr
