"""The development overlay as real pods on this machine: podman and runc, from what `render.py` printed.

Every name of a hospital's volume, network and pod is podman's own and is removed at the end, whatever happened.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.converter import Converted, convert
from tests.deploy.images import ROOT, inspect, podman

NETWORK: Final = "histofed-test-pods"
SUBNET: Final = "10.91.7.0/24"
ADDRESS: Final = "10.91.7.10"
AGGREGATOR: Final = "histofed-aggregator"
STATE: Final = "/var/lib/histofed-aggregator"
_OPERATOR: Final = f"{STATE}/state/operator/operator.toml"
READY_S: Final = 120.0


def render(overlay: str, images: Mapping[str, str]) -> str:
    """What `deploy/k8s/render.py` prints, with the digests of these images."""
    options = [f"--{name}=histofed.example.org/histofed/{name}@{inspect(image)['Digest']}" for name, image in images.items()]
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/k8s/render.py", overlay, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Cluster:
    """Pods, their volumes and their network; a context manager that leaves nothing behind."""

    def __init__(self, folder: Path, images: Mapping[str, str]) -> None:
        self._folder = folder
        self._images = images
        self._rendered = render("dev", images)
        self._secrets: list[Mapping[str, Any]] = []

    def __enter__(self) -> Cluster:
        self._clear()
        podman("network", "create", "--subnet", SUBNET, NETWORK)
        (self._folder / "claims.yaml").write_text("---\n".join(_documents(self.converted().claims)))
        podman("kube", "play", str(self._folder / "claims.yaml"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            for pod in self.converted().pods:
                print(f"--- {pod}\n{self.log(pod)}")
        self._clear()

    def converted(self) -> Converted:
        """The overlay for podman, with the secrets that are there by now."""
        return convert(self._rendered, images=self._images, hosts={AGGREGATOR: ADDRESS}, secrets=self._secrets)

    # --- pods ---------------------------------------------------------------------------------------------------------

    def play(self, pod: str) -> None:
        """Start a pod; its init container has ended well when this returns."""
        file = self._folder / f"{pod}.yaml"
        file.write_text(self.converted().play(pod))
        address = ("--ip", ADDRESS) if pod == AGGREGATOR else ()
        podman("kube", "play", "--network", NETWORK, *address, str(file))

    def down(self, pod: str) -> None:
        """Stop and remove a pod; its volumes stay."""
        try:
            podman("kube", "down", str(self._folder / f"{pod}.yaml"), seconds=330)
        except AssertionError as error:
            # podman 4.3 may stop a pod and then find its /dev/shm busy; asked once more, it removes it
            if "device or resource busy" not in str(error):
                raise
            podman("pod", "rm", "--force", pod)

    def kill(self, pod: str) -> int:
        """SIGKILL the pod's main process, as no manager would; its number."""
        process = self.process(pod)
        assert process > 1
        subprocess.run(["kill", "-KILL", str(process)], check=True)
        return process

    def process(self, pod: str) -> int:
        """The main process of the pod, as the host numbers it; 0 while there is none."""
        return int(podman("inspect", "--format", "{{.State.Pid}}", self.container(pod)))

    def container(self, pod: str) -> str:
        """The one container that runs in it."""
        return f"{pod}-{'aggregator' if pod == AGGREGATOR else 'agent'}"

    def run(self, pod: str, *command: str, check: bool = True, text: str | None = None, seconds: float = 120) -> str:
        """Run a command in a pod, as `kubectl exec` does."""
        return podman("exec", "--interactive", self.container(pod), *command, check=check, text=text, seconds=seconds)

    def log(self, pod: str) -> str:
        """The end of what it printed."""
        done = subprocess.run(
            ["podman", "logs", "--tail", "40", self.container(pod)], capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    # --- the federation -----------------------------------------------------------------------------------------------

    def histofed(self, *command: str, seconds: float = 120) -> str:
        """The operator's command line, in the aggregator's pod."""
        return self.run(AGGREGATOR, "histofed", "--config", _OPERATOR, *command, seconds=seconds)

    def rounds(self, experiment: str) -> dict[int, str]:
        """The state of each round, by number."""
        found = json.loads(self.histofed("rounds", "list", "--json"))["rounds"]
        return {each["round"]: each["state"] for each in found if each["experiment"] == experiment}

    def invite(self, site: str) -> None:
        """A join line, as the Secret that the site's pod mounts."""
        self.secret(f"histofed-join-{site}", self.histofed("token", "create", "--site", site).strip())

    def secret(self, name: str, line: str) -> None:
        """As `kubectl create secret` makes it: encoded."""
        data = {"line": base64.b64encode(line.encode()).decode()}
        self._secrets.append(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque", "data": data}
        )

    def folder_of(self, claim: str) -> Path:
        """Where a volume's files are on this machine."""
        return Path(podman("volume", "inspect", "--format", "{{.Mountpoint}}", claim).strip())

    def probe(self, service: str, seconds: float = READY_S) -> int:
        """What the kubelet's probe of the aggregator hears; waits until anybody answers."""
        with grpc.insecure_channel(f"{ADDRESS}:8081") as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, wait_for_ready=True, timeout=seconds)
            return int(answer.status)

    def _clear(self) -> None:
        pods = podman("pod", "ps", "--format", "{{.Name}}").split()
        ours = NETWORK in podman("network", "ls", "--format", "{{.Name}}").split()
        # what an interrupted test left is on the test's network; anything else is somebody's federation
        assert ours or not any(pod.startswith("histofed-a") for pod in pods), f"this machine runs pods of its own: {pods}"
        for pod in pods:
            if pod.startswith("histofed-a"):
                podman("pod", "rm", "--force", "--time", "5", pod)
        for claim in self.converted().claims:
            podman("volume", "rm", "--force", claim["metadata"]["name"])
        for kept in podman("volume", "ls", "--format", "{{.Name}}").split():
            if kept.startswith("histofed-a") or kept.startswith("histofed-join-"):
                podman("volume", "rm", "--force", kept)
        podman("network", "rm", "--force", NETWORK)


def until(true: Callable[[], bool], words: str, seconds: float = READY_S, every: float = 0.5) -> None:
    """Ask again and again; for what nobody announces."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {words}"
        time.sleep(every)


def _documents(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    return [yaml.safe_dump(each) for each in manifests]
