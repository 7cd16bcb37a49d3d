"""The container images: what is in them, who runs, and that they start on a read-only root without any right."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from histofed import __version__
from tests.deploy.images import CONTAINERFILES, PREFIX, build, inspect, podman
from tests.deploy.numbers import Numbers

pytestmark = pytest.mark.timeout(2400)  # the agent's image holds torch, and is built on first use
MEGABYTE = 1_000_000
AGGREGATOR_MB = 600
UID = "64100:64100"
CONFINED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none")
PROBE = (
    "import sys, grpc; from grpc_health.v1 import health_pb2 as m, health_pb2_grpc as s; "
    "c = s.HealthStub(grpc.insecure_channel('127.0.0.1:8081')); "
    "print([c.Check(m.HealthCheckRequest(service=n), wait_for_ready=True, timeout=20).status for n in sys.argv[1:]])"
)


@pytest.fixture(scope="module")
def aggregator() -> str:
    return build("aggregator")


@pytest.fixture(scope="module")
def agent() -> str:
    return build("agent")


@pytest.fixture
def state() -> Iterator[str]:
    """A named volume, as a claim would be."""
    name = f"histofed-test-{uuid.uuid4().hex[:8]}"
    podman("volume", "create", name)
    yield name
    podman("volume", "rm", "--force", name)


@pytest.mark.parametrize("target", ["aggregator", "agent"])
def test_containerfile_is_classic_syntax(target: str) -> None:
    """What every builder reads: no build-time mounts, here-documents, links or syntax directives."""
    lines = (CONTAINERFILES / f"{target}.Containerfile").read_text().splitlines()
    instructions = [line for line in lines if line and not line.lstrip().startswith("#")]
    newer = re.compile(r"<<-?['\"]?[A-Z]|--mount=|--link\b|--chmod=|--chown=|--network=|--security=|COPY --parents")
    assert [line for line in instructions if newer.search(line)] == []
    assert not lines[0].startswith("# syntax=")


@pytest.mark.parametrize("target", ["aggregator", "agent"])
def test_image_says_what_it_is_and_is_nobody(target: str, request: pytest.FixtureRequest) -> None:
    found = inspect(request.getfixturevalue(target))
    labels = found["Labels"]
    assert labels["org.opencontainers.image.title"] == f"histofed-{target}"
    assert labels["org.opencontainers.image.version"] == __version__
    assert {"description", "licenses", "revision"} <= {key.rpartition(".")[2] for key in labels}
    assert found["Config"]["User"] == UID
    assert found["Config"]["Entrypoint"] == [f"histofed-{target}"]


@pytest.mark.parametrize("target", ["aggregator", "agent"])
def test_image_starts_without_rights(target: str, request: pytest.FixtureRequest) -> None:
    image = request.getfixturevalue(target)
    assert podman("run", "--rm", *CONFINED, image, "--version").split() == [f"histofed-{target}", __version__]


def test_aggregator_is_small_and_has_no_torch(aggregator: str, numbers: Numbers) -> None:
    numbers.hold("aggregator image", inspect(aggregator)["Size"] / MEGABYTE, AGGREGATOR_MB, "MB", remark="without torch")
    found = "import importlib.util as u; print([n for n in ('torch', 'timm', 'flwr', 'pip') if u.find_spec(n)])"
    assert podman("run", "--rm", *CONFINED, "--entrypoint", "python3", aggregator, "-c", found).strip() == "[]"


def test_agent_has_its_trainer_and_the_processor_its_instructions(agent: str) -> None:
    print(f"agent image: {inspect(agent)['Size'] / MEGABYTE:.0f} MB")
    # a convolution: what a sandbox that forbids writable and executable memory breaks
    script = (
        "import torch, json; y = torch.nn.Conv2d(3, 8, 3)(torch.ones(1, 3, 16, 16)); "
        "print(json.dumps([list(y.shape), torch.backends.cpu.get_cpu_capability()]))"
    )
    shape, capability = json.loads(podman("run", "--rm", *CONFINED, "--entrypoint", "python3", agent, "-c", script))
    assert shape == [1, 8, 14, 14]
    outside = Path("/proc/cpuinfo").read_text()
    assert (capability == "DEFAULT") == ("avx2" not in outside)


def test_root_is_read_only_and_belongs_to_root(aggregator: str) -> None:
    script = (
        "import os, sys; bad = [r for r, _, f in os.walk('/opt/histofed') if os.access(r, os.W_OK)]; print(os.getuid(), bad)"
    )
    assert podman("run", "--rm", *CONFINED, "--entrypoint", "python3", aggregator, "-c", script).strip() == "64100 []"


def test_aggregator_runs_on_a_volume_and_stops_by_itself(aggregator: str, state: str) -> None:
    """`init`, `run`, the probes that the manifests ask, and a stop in time."""
    mount = f"--volume={state}:/var/lib/histofed-aggregator:U"
    podman("run", "--rm", *CONFINED, mount, aggregator, "init")
    name = f"{state}-run"
    podman("run", "--detach", "--name", name, *CONFINED, mount, "--tmpfs=/tmp", aggregator)
    try:
        answered = podman(
            "exec", name, "/opt/histofed/bin/python", "-c", PROBE, "startup", "liveness", "histofed.v1.FleetService"
        )
        assert answered.strip() == "[1, 1, 1]"
        podman("stop", "--time", "30", name)
        assert inspect_exit(name) == 0
    finally:
        podman("rm", "--force", name)


def test_buildah_builds_the_same(aggregator: str) -> None:
    """The other builder, from the same file: the same labels, user and command line."""
    other = build("aggregator", tag="buildah", engine="buildah")
    try:
        one, two = inspect(aggregator)["Config"], inspect(other)["Config"]
        assert {key: one[key] for key in ("User", "Entrypoint", "Cmd", "Env")} == {
            key: two[key] for key in ("User", "Entrypoint", "Cmd", "Env")
        }
        assert two["Labels"]["org.opencontainers.image.version"] == __version__
        assert two["Labels"]["org.opencontainers.image.revision"] == "test"
    finally:
        podman("rmi", f"{PREFIX}/aggregator:buildah")


def inspect_exit(name: str) -> int:
    """The exit code of a container that has stopped."""
    return int(podman("inspect", "--format", "{{.State.ExitCode}}", name))
