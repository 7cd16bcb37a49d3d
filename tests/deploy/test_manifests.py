"""The manifests: rendered as a person renders them; held against schemas, a policy, the daemons and a real scrape."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.cli import _parser as agent_parser
from agent.config import load_config
from agent.consent import load_policy
from aggregator.cli import _parser as aggregator_parser
from tests.deploy.images import ROOT
from tests.deploy.manifests import (
    IMAGES,
    OVERLAYS,
    SITES,
    aggregator,
    checked,
    containers,
    objects,
    of_kind,
    render,
    rendered,
)
from tests.deploy.tools import checker, environment
from tests.support.federation import Federation, mean_experiment

pytestmark = pytest.mark.timeout(900)  # checkov is installed on first use
GOLDEN = Path(__file__).parent / "golden"
SUPPORTED = ("1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
"""From the release in which every field that we use is stable (`persistentVolumeClaimRetentionPolicy`)."""
OTHERS = {"Certificate", "PodMonitor", "PrometheusRule"}
"""Kinds of operators, of which Kubernetes has no schema."""


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return objects(rendered(request.param))


# --- rendering ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rendered_as_recorded(overlay: str) -> None:
    """What would be applied, line by line. HISTOFED_UPDATE_GOLDEN=1 records it anew."""
    found, file = rendered(overlay), GOLDEN / f"{overlay}.yaml"
    if os.environ.get("HISTOFED_UPDATE_GOLDEN"):
        file.write_text(found)
    assert found == file.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "give --aggregator NAME@sha256:DIGEST"),
        (("--aggregator=histofed/aggregator:0.1.0",), "is not pinned"),
        (("--aggregator=histofed/aggregator@sha256:abc",), "is not pinned"),
    ],
)
def test_an_image_without_a_digest_is_refused(options: tuple[str, ...], words: str) -> None:
    done = render("prod", *options)
    assert (done.returncode, done.stdout) == (78, "")
    assert words in done.stderr


def test_an_overlay_that_is_none_is_refused() -> None:
    done = render("porod", f"--aggregator={IMAGES['aggregator']}")
    assert done.returncode == 78
    assert "name one of dev, prod" in done.stderr


def test_gpu_component_gives_each_agent_a_gpu(tmp_path: Path) -> None:
    """An overlay of somebody else's that uses ours."""
    here = os.path.relpath(ROOT / "deploy/k8s", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [{here}/overlays/dev]\ncomponents: [{here}/components/gpu-agent]\n"
    )
    found = objects(rendered(str(tmp_path)))
    gpus = [container["resources"]["limits"].get("nvidia.com/gpu") for _, container in containers(found)]
    assert sorted(filter(None, gpus)) == ["1"] * len(SITES)


# --- schemas and policy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schemas_of_supported_versions(overlay: str, version: str, tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(rendered(overlay))
    command = [str(checker("kubernetes-validate")), "--strict", "--kubernetes-version", f"{version}.0", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stdout
    unknown = set(re.findall(r"Couldn't find schema for kind (\w+)", done.stdout + done.stderr))
    assert unknown == OTHERS & {each["kind"] for each in objects(file.read_text())}


def test_schemas_are_strict(tmp_path: Path) -> None:
    """The checker does fail: for a field that nobody knows."""
    file = tmp_path / "rendered.yaml"
    file.write_text(rendered("prod").replace("terminationGracePeriodSeconds", "terminationGracePeriod"))
    command = [str(checker("kubernetes-validate")), "--strict", "--kubernetes-version", "1.33.0", str(file)]
    assert subprocess.run(command, capture_output=True, check=False, env=environment()).returncode == 1


def test_checkov_finds_nothing(tmp_path: Path) -> None:
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(rendered(overlay))
    (tmp_path / "naive.yaml").write_text(NAIVE)
    reports = {}
    for file in tmp_path.glob("*.yaml"):
        command = [
            str(checker("checkov")),
            "--framework",
            "kubernetes",
            "--output",
            "json",
            "--skip-download",
            "--file",
            str(file),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        reports[file.stem] = json.loads(done.stdout)["summary"]
    for overlay in OVERLAYS:
        summary = reports[overlay]
        print(f"checkov, {overlay}: {summary['passed']} passed, {summary['failed']} failed, {summary['skipped']} skipped")
        assert (summary["failed"], summary["skipped"], summary["parsing_errors"]) == (0, 0, 0)
        assert summary["passed"] > 80
    assert reports["naive"]["failed"] > 10


NAIVE = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: naive}
spec:
  selector: {matchLabels: {app: naive}}
  template:
    metadata: {labels: {app: naive}}
    spec:
      containers: [{name: naive, image: "histofed/aggregator:latest"}]
"""


def test_what_the_checkers_do_not_ask(manifests: list[dict[str, Any]]) -> None:
    assert all(each["immutable"] is True for each in of_kind(manifests, "ConfigMap"))
    for each in of_kind(manifests, "StatefulSet"):
        assert [claim["spec"]["accessModes"] for claim in each["spec"]["volumeClaimTemplates"]] == [["ReadWriteOncePod"]]
        assert each["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
        assert each["spec"]["podManagementPolicy"] == "Parallel", "one that is not ready is never repaired"
    for pod, container in containers(manifests):
        assert re.fullmatch(r"registry\.example\.org/histofed/\w+@sha256:[0-9a-f]{64}", container["image"])
        assert container["imagePullPolicy"] == "IfNotPresent", (
            "an image that was loaded onto the node is asked for elsewhere"
        )
        assert (pod["automountServiceAccountToken"], pod["securityContext"]["runAsUser"]) == (False, 64100)
        assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
    (namespace,) = of_kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {each["metadata"].get("namespace", namespace["metadata"]["name"]) for each in manifests} == {
        namespace["metadata"]["name"]
    }
    denied = next(each for each in of_kind(manifests, "NetworkPolicy") if each["metadata"]["name"] == "default-deny")
    assert denied["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_each_hospital_has_its_own_node_tiles_and_join_line() -> None:
    agents = [each for each in of_kind(objects(rendered("dev")), "StatefulSet") if "agent" in each["metadata"]["name"]]
    seen = []
    for each in agents:
        pod = each["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        seen.append(
            (
                pod["nodeSelector"]["histofed/site"],
                volumes["tiles"]["persistentVolumeClaim"]["claimName"],
                volumes["join"]["secret"]["secretName"],
                each["spec"]["selector"]["matchLabels"]["histofed/site"],
            )
        )
    assert sorted(seen) == [(site, f"histofed-tiles-{site}", f"histofed-join-{site}", site) for site in SITES]


# --- what the daemons understand ------------------------------------------------------------------------------------------


def test_configuration_is_what_the_daemon_reads(manifests: list[dict[str, Any]], tmp_path: Path) -> None:
    """`histofed-aggregator check` on the rendered map, with the container's environment."""
    effective = checked(manifests, tmp_path)
    container = aggregator(manifests)
    variables = {each["name"]: each["value"] for each in container.get("env", [])}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    listens = {
        name: int(effective[f"listen.{name}"].strip('"').rpartition(":")[2])
        for name in ("grpc", "enrolment", "health", "metrics")
    }
    assert listens == {
        "grpc": ports["grpc-mtls"],
        "enrolment": ports["enrolment"],
        "health": ports["health"],
        "metrics": ports["metrics"],
    }
    assert all(effective[f"listen.{name}"].startswith('"0.0.0.0:') for name in listens), "a pod is reached from outside"
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert Path(effective["state_dir"].strip('"')).parent == Path(mounts["state"])
    files = [Path(value) for name, value in variables.items() if name.endswith("_FILE")]
    assert all(file.parent == Path(mounts["otlp"]) for file in files)


def test_probes_ask_what_the_aggregator_answers(manifests: list[dict[str, Any]]) -> None:
    container = aggregator(manifests)
    asked = {container[f"{kind}Probe"]["grpc"]["service"] for kind in ("startup", "readiness", "liveness")}
    source = (ROOT / "aggregator/probes.py").read_text()
    assert asked == {"startup", "histofed.v1.FleetService", "liveness"}
    assert all(f'"{service}"' in source for service in asked)


def test_commands_are_ones_that_exist(manifests: list[dict[str, Any]]) -> None:
    for _, container in containers(manifests):
        if "args" in container:
            parser = aggregator_parser() if container["name"] == "aggregator" else agent_parser()
            assert parser.parse_args(container["args"])
        for kind in ("readinessProbe", "livenessProbe"):
            if command := container.get(kind, {}).get("exec", {}).get("command"):
                assert command[0] == "histofed-agent"
                assert agent_parser().parse_args(command[1:])
        if "command" in container:
            found = re.search(r"(histofed-\w+) ([^|]+)", container["command"][2])
            assert found is not None
            parser = {"histofed-aggregator": aggregator_parser, "histofed-agent": agent_parser}[found[1]]()
            assert parser.parse_args(found[2].split())


def test_agents_configuration_and_consent(tmp_path: Path) -> None:
    for each in of_kind(objects(rendered("dev")), "ConfigMap"):
        if "agent.toml" not in each["data"]:
            continue
        for name, text in each["data"].items():
            (tmp_path / name).write_text(text)
        config = load_config(tmp_path / "agent.toml", {}).config
        assert (str(config.data.root), str(config.state_dir)) == ("/srv/histology", "/var/lib/histofed-agent/state")
        assert str(config.consent) == "/etc/histofed/consent.toml"
        assert not load_policy(tmp_path / "consent.toml").missing


# --- alerts ---------------------------------------------------------------------------------------------------------------


def rules() -> Mapping[str, dict[str, Any]]:
    (found,) = of_kind(objects(rendered("prod")), "PrometheusRule")
    return {rule["alert"]: rule for group in found["spec"]["groups"] for rule in group["rules"]}


def test_alerts_use_what_a_scrape_shows(tmp_path: Path) -> None:
    """An aggregator with one site and an open round: every metric and label that an alert names is on the page."""
    with Federation(tmp_path) as federation:
        federation.start_aggregator()
        federation.enrol("north")
        federation.start_agent("north")
        one = "[sampling]\nminimum = 1"
        federation.submit(mean_experiment("alerts", extra=one, config="dimension = 10\nsteps = 1000\ndelay_s = 0.1"))
        federation.wait_until_measured(lambda found: 'histofed_round_deadline_seconds{experiment="alerts"}' in found, 60)
        with urllib.request.urlopen(f"http://127.0.0.1:{federation.ports['metrics']}/metrics", timeout=10) as answer:
            shown = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(shown) for sample in family.samples]
    for alert, rule in rules().items():
        for name, labels in re.findall(r"(histofed_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            wanted = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            found = [sample for sample in samples if sample.name == name]
            assert found, f"{alert}: no {name} in the scrape"
            assert any(wanted.items() <= sample.labels.items() for sample in found), f"{alert}: no {name} with {wanted}"
            for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
                assert label in found[0].labels, f"{alert}: {name} has no label {label}"


def test_every_alert_says_what_to_do() -> None:
    wanted = {"RoundOverdue", "SiteSilent", "JournalCannotBeWritten", "DiskReserveReached", "SiteCertificateExpiring"}
    found = rules()
    assert {f"Histofed{name}" for name in wanted} <= found.keys()
    assert all({"summary", "action"} <= rule["annotations"].keys() for rule in found.values())
    assert "histofed status" in found["HistofedAggregatorCertificateExpiring"]["annotations"]["action"], (
        "it says what failed"
    )
    assert all(rule["labels"]["severity"] in ("warning", "critical") for rule in found.values())
