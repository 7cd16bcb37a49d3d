"""`prod` without what a cluster lacks: lines removed from its kustomization, as deploy/k8s/README.md says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.deploy.images import ROOT
from tests.deploy.manifests import checked, containers, objects, of_kind, rendered

KINDS: dict[str, set[str]] = {
    "prometheus-operator": {"PodMonitor", "PrometheusRule"},
    "opentelemetry": set(),
    "cert-manager": {"Certificate"},
}
"""What each component brings that only an operator understands."""


def prod_without(removed: tuple[str, ...], folder: Path) -> str:
    """Rendered from a copy, in which the removed components' lines are gone; `components:` stays, if need be empty."""
    shutil.copytree(ROOT / "deploy/k8s", folder)
    file = folder / "overlays/prod/kustomization.yaml"
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.strip() not in {f"- ../../components/{name}" for name in removed}]
    assert len(lines) - len(kept) == len(removed)
    file.write_text("".join(kept))
    return rendered("prod", folder)


@pytest.mark.parametrize(
    "removed",
    [
        (),
        ("prometheus-operator",),
        ("cert-manager",),
        ("opentelemetry", "cert-manager"),
        ("prometheus-operator", "opentelemetry", "cert-manager"),
    ],
    ids=lambda removed: " ".join(removed) or "nothing",
)
def test_prod_without_a_component_asks_for_nothing_of_it(removed: tuple[str, ...], tmp_path: Path) -> None:
    manifests = objects(prod_without(removed, tmp_path / "k8s"))
    left = KINDS.keys() - set(removed)
    kinds = {each["kind"] for each in manifests}
    assert kinds & set().union(*KINDS.values()) == set().union(*(KINDS[name] for name in left))
    secrets = {
        each["secret"]["secretName"] for pod, _ in containers(manifests) for each in pod["volumes"] if "secret" in each
    }
    assert secrets == ({"histofed-aggregator-otlp"} if "cert-manager" in left else set())
    policies = {each["metadata"]["name"] for each in of_kind(manifests, "NetworkPolicy")}
    assert ("histofed-aggregator-metrics" in policies) == ("prometheus-operator" in left)
    assert ("histofed-aggregator-traces" in policies) == ("opentelemetry" in left)

    endpoint = checked(manifests, tmp_path)["telemetry.otlp_endpoint"].strip('"')
    assert bool(endpoint) == ("opentelemetry" in left)


def test_the_readme_names_what_prod_needs() -> None:
    """Each component of the overlay, and each object of somebody else's that a component counts on."""
    (needs,) = re.findall(r"^## What prod needs\n(.*?)^## ", (ROOT / "deploy/k8s/README.md").read_text(), re.M | re.S)
    text = (ROOT / "deploy/k8s/overlays/prod/kustomization.yaml").read_text()
    assert set(re.findall(r"^  - \.\./\.\./components/(\S+)$", text, re.M)) == KINDS.keys()
    manifests = objects(rendered("prod"))
    (certificate,) = of_kind(manifests, "Certificate")
    issuer = certificate["spec"]["issuerRef"]
    wanted = {*KINDS, "monitoring", "collector", "observability", certificate["spec"]["secretName"]}
    assert {words for words in wanted if f"`{words}`" not in needs} == set()
    assert f"{issuer['kind']} `{issuer['name']}`" in needs
