"""Who is selected, and who reaches whom, in the overlays as they are rendered.

podman enforces no policy (`converter.py` leaves them out), and one that fits nobody is valid to every checker: what it does
then is close everything. So each selector is held against the labels of the pods themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.deploy.manifests import OVERLAYS, SITES, containers, objects, of_kind, rendered

Object = dict[str, Any]

CLUSTER_DNS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
}
"""As every distribution labels it; one label more, and it is nobody."""
NEIGHBOURS: Mapping[str, set[str]] = {"dev": set(), "prod": {"monitoring", "observability"}}
"""Namespaces of the cluster's that an overlay names as a whole."""
AGENTS = {f"histofed-agent-{site}" for site in SITES}
PODS = {"dev": {"histofed-aggregator", *AGENTS}, "prod": {"histofed-aggregator"}}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> tuple[str, Sequence[Object]]:
    return request.param, objects(rendered(request.param))


def pods(manifests: Sequence[Object]) -> dict[str, Object]:
    """The labels of each set's pod, by the set's name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in of_kind(manifests, "StatefulSet")
    }


def chosen(selector: Object, manifests: Sequence[Object]) -> set[str]:
    """The pods that a selector of labels fits; an empty one fits all."""
    assert selector.keys() <= {"matchLabels"}, "this test reads no expressions"
    wanted = selector.get("matchLabels", {})
    return {name for name, labels in pods(manifests).items() if wanted.items() <= labels.items()}


def rules(policy: Object) -> Iterator[tuple[Object, Sequence[Object]]]:
    """Each rule of a policy with its peers; none means everybody."""
    for kind, word in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(kind, ()):
            yield rule, rule.get(word, ())


def test_each_selector_fits_its_own_pods(overlay: tuple[str, Sequence[Object]]) -> None:
    """An agent's set, budget and policy are of that agent alone; what is the aggregator's is no agent's."""
    name, manifests = overlay
    selectors = [(each, each["spec"]["podSelector"]) for each in of_kind(manifests, "NetworkPolicy")]
    selectors += [(each, {"matchLabels": each["spec"]["selector"]}) for each in of_kind(manifests, "Service")]
    for kind in ("StatefulSet", "PodDisruptionBudget", "PodMonitor"):
        selectors += [(each, each["spec"]["selector"]) for each in of_kind(manifests, kind)]
    seen = {(each["kind"], each["metadata"]["name"]): chosen(selector, manifests) for each, selector in selectors}
    assert seen.pop(("NetworkPolicy", "default-deny")) == PODS[name]
    for (kind, found), fits in seen.items():
        wanted = {found} if found in AGENTS else {"histofed-aggregator"}
        assert fits == wanted, f"{kind} {found} selects {sorted(fits)}"
    for kind in ("StatefulSet", "PodDisruptionBudget", "NetworkPolicy"):
        assert {found for each, found in seen if each == kind} >= PODS[name], f"a pod without a {kind} of its own"


def test_each_peer_of_a_policy_is_somebody(overlay: tuple[str, Sequence[Object]]) -> None:
    name, manifests = overlay
    neighbours: set[str] = set()
    for policy in of_kind(manifests, "NetworkPolicy"):
        for _, peers in rules(policy):
            for peer in peers:
                if peer.keys() == {"podSelector"}:
                    assert chosen(peer["podSelector"], manifests), f"{policy['metadata']['name']}: nobody is {peer}"
                elif peer.keys() == {"namespaceSelector"}:
                    (neighbour,) = peer["namespaceSelector"]["matchLabels"].items()
                    assert neighbour[0] == "kubernetes.io/metadata.name"
                    neighbours.add(neighbour[1])
                else:
                    assert peer == CLUSTER_DNS, policy["metadata"]["name"]
    assert neighbours == NEIGHBOURS[name]


def test_each_agent_reaches_the_aggregator_and_dns_and_nobody_else() -> None:
    manifests = objects(rendered("dev"))
    policies = {each["metadata"]["name"]: each for each in of_kind(manifests, "NetworkPolicy")}
    (ports,) = (found["ports"] for _, found in containers(manifests) if found["name"] == "aggregator")
    served = {port["name"]: port["containerPort"] for port in ports if port["name"] in ("grpc-mtls", "enrolment")}
    (entry,) = policies["histofed-aggregator"]["spec"]["ingress"]
    assert entry.keys() == {"ports"}, "the aggregator asks who it is by TLS, not by address"
    assert {port["port"] for port in entry["ports"]} == set(served)
    for agent in AGENTS:
        spec = policies[agent]["spec"]
        assert (spec["policyTypes"], spec["ingress"]) == (["Ingress", "Egress"], [])
        reached = {
            (
                "dns" if peer == CLUSTER_DNS else " ".join(chosen(peer["podSelector"], manifests)),
                port["port"],
                port["protocol"],
            )
            for rule, peers in rules(policies[agent])
            for peer in peers
            for port in rule["ports"]
        }
        assert reached == {("histofed-aggregator", port, "TCP") for port in served.values()} | {
            ("dns", 53, protocol) for protocol in ("TCP", "UDP")
        }
