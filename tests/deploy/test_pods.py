"""The aggregator and two hospitals as real pods, from the manifests that are shipped: a federation, deaths, replacements.

What a cluster would do and podman cannot is in `converter.py`, by name; the test does the kubelet's part by asking the same
probes. The rounds are the paper's GAN on tiles drawn for the test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from histofed.tiles.draw import draw_tiles
from tests.deploy.images import build, podman
from tests.deploy.pods import AGGREGATOR, STATE, Cluster, until
from tests.support.federation import gan_experiment

pytestmark = pytest.mark.timeout(3600)  # two images may have to be built first

SITES = ("north", "south")
ROUNDS = 3
LEFT_OUT = {
    "Container.imagePullPolicy",
    "Container.livenessProbe",
    "Container.readinessProbe",
    "Container.resources.ephemeral-storage",
    "Container.startupProbe",
    "Namespace",
    "NetworkPolicy",
    "PersistentVolumeClaim: spec.accessModes and .storageClassName",
    "Pod: securityContext.fsGroupChangePolicy",
    "Pod: spec.automountServiceAccountToken",
    "Pod: spec.enableServiceLinks",
    "Pod: spec.hostUsers",
    "Pod: spec.nodeSelector",
    "Pod: spec.serviceAccountName",
    "PodDisruptionBudget",
    "Service",
    "ServiceAccount",
    "StatefulSet: spec.persistentVolumeClaimRetentionPolicy",
    "StatefulSet: spec.podManagementPolicy",
    "StatefulSet: spec.serviceName",
    "StatefulSet: spec.updateStrategy",
    "Volume.emptyDir.medium and .sizeLimit",
    "Volume.persistentVolumeClaim.readOnly",
    "Volume.secret, its mode and .optional",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    images = {"aggregator": build("aggregator"), "agent": build("agent")}
    with Cluster(tmp_path_factory.mktemp("pods"), images) as found:
        yield found


def agent(site: str) -> str:
    return f"histofed-agent-{site}"


def test_what_the_converter_leaves_out_is_known(cluster: Cluster) -> None:
    assert {each.partition(" (")[0] for each in cluster.converted().dropped} == LEFT_OUT


def test_a_federation_of_pods_outlives_its_pods(cluster: Cluster, tmp_path: Path) -> None:
    # 1. the aggregator makes its federation, and its probes answer
    cluster.play(AGGREGATOR)
    assert [cluster.probe(name) for name in ("startup", "liveness", "histofed.v1.FleetService")] == [1, 1, 1]
    ca = cluster.run(AGGREGATOR, "sha256sum", f"{STATE}/state/identity/ca.pem")

    # 2. it has no right, and nothing but its volume to write to
    status = Path(f"/proc/{cluster.process(AGGREGATOR)}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["64100"] * 4
    assert (facts["CapBnd"], facts["NoNewPrivs"], facts["Seccomp"]) == ("0" * 16, "1", "2")
    assert "Read-only file system" in podman(
        "exec", cluster.container(AGGREGATOR), "sh", "-c", "touch /opt/histofed/x 2>&1", check=False
    )

    # 3. two hospitals with tiles of their own enrol by themselves, with the join lines that they were sent
    for seed, site in enumerate(SITES):
        draw_tiles(
            cluster.folder_of(f"histofed-tiles-{site}"), patients_per_class=3, tiles_per_patient=2, size=32, seed=seed
        )
        cluster.invite(site)
        cluster.play(agent(site))
    for site in SITES:
        until(partial(ready, cluster, site), f"{site} is connected")
        assert cluster.run(agent(site), "histofed-agent", "status", "--live").startswith(f"site          {site}")
        assert "Read-only" in cluster.run(agent(site), "sh", "-c", "touch /srv/histology/x 2>&1 || true")

    # 4. this aggregator has no torch: the first weights are drawn in a hospital's image and brought
    experiment = gan_experiment("pods", SITES, rounds=ROUNDS, steps=2)
    script = "cat > /tmp/e.toml && histofed experiments draw /tmp/e.toml --out /tmp/w >&2 && cat /tmp/w | base64"
    weights = cluster.run(agent(SITES[0]), "sh", "-c", script, text=experiment)
    given = f"base64 -d > {STATE}/w && histofed-aggregator first pods {STATE}/w && rm {STATE}/w"
    cluster.run(AGGREGATOR, "sh", "-c", given, text=weights)
    cluster.run(AGGREGATOR, "sh", "-c", f"cat > {STATE}/e.toml", text=experiment)
    cluster.histofed("experiments", "submit", f"{STATE}/e.toml")

    # 5. a round is committed; then the aggregator is killed, and its pod's restart goes on
    until(lambda: committed(cluster, 1), "round 1 is committed", 600)
    first = models(cluster)
    before = cluster.kill(AGGREGATOR)
    until(lambda: cluster.process(AGGREGATOR) not in (0, before), "the aggregator is started again")
    assert cluster.probe("histofed.v1.FleetService") == 1
    assert models(cluster)[: len(first)] == first

    # 6. a hospital is killed in the middle of whatever it does
    before = cluster.kill(agent(SITES[0]))
    until(lambda: cluster.process(agent(SITES[0])) not in (0, before), "the agent is started again")
    until(lambda: committed(cluster, 2), "round 2 is committed", 600)

    # 7. both kinds of pod are replaced; their volumes are what they are
    for pod in (AGGREGATOR, agent(SITES[1])):
        cluster.down(pod)
        cluster.play(pod)
    assert cluster.run(AGGREGATOR, "sha256sum", f"{STATE}/state/identity/ca.pem") == ca
    until(lambda: committed(cluster, 3), "round 3 is committed", 600)
    assert models(cluster)[: len(first)] == first
    until(lambda: "finished" in cluster.histofed("experiments", "list"), "the experiment is finished")

    # 8. over deaths and replacements the journal is one chain
    cluster.histofed("audit", "verify", f"{STATE}/state/journal")


def ready(cluster: Cluster, site: str) -> bool:
    """The readiness probe of the manifest."""
    done = podman("exec", cluster.container(agent(site)), "histofed-agent", "status", check=False)
    return ", connected" in done


def committed(cluster: Cluster, number: int) -> bool:
    return cluster.rounds("pods").get(number) == "committed"


def models(cluster: Cluster) -> list[str]:
    """Digests of the experiment's models, oldest first."""
    return [each["digest"] for each in json.loads(cluster.histofed("models", "list", "pods", "--json"))["models"]]
