"""Rendered manifests as podman 4.3 plays them, with everything that is lost on the way said.

A cluster does what podman cannot: claims by access mode, policies, probes, disruption budgets, names of services. What has
no counterpart is left out and listed, object by object and field by field, and `tests/deploy/test_pods.py` compares the list
with what it expects, so that nothing new is lost in silence. What has one is put in other words:

- a StatefulSet of one replica is a Pod of its name; its claim templates are claims of the names that a cluster would give
- a claim is a named volume, played from a file of its own: a second play of one that exists fails
- a Secret is a ConfigMap with its data decoded: of a Secret podman mounts the base64 text
- a Service's name is a line in each pod's hosts file
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

Manifest = Mapping[str, Any]

_KINDS_LEFT_OUT: Final = {
    "Namespace": "podman has none; Pod Security is admission's",
    "ServiceAccount": "there is no API server to speak to",
    "Service": "its name is written into the pods' hosts files",
    "NetworkPolicy": "one bridge, on which everybody reaches everybody",
    "PodDisruptionBudget": "nobody evicts",
    "Certificate": "cert-manager's",
    "PodMonitor": "Prometheus operator's",
    "PrometheusRule": "Prometheus operator's",
}
_SET_FIELDS_LEFT_OUT: Final = {
    "serviceName": "no names by service",
    "podManagementPolicy": "one pod",
    "updateStrategy": "the test replaces the pod",
    "persistentVolumeClaimRetentionPolicy": "volumes stay until they are removed by name",
}
_POD_FIELDS_LEFT_OUT: Final = {
    "serviceAccountName": "no accounts",
    "automountServiceAccountToken": "no tokens",
    "enableServiceLinks": "no services",
    "hostUsers": "podman's own user namespaces are no part of kube play here",
    "nodeSelector": "one node",
}
_CONTAINER_FIELDS_LEFT_OUT: Final = {
    "startupProbe": "gRPC probes are unknown to it; the test asks the same question",
    "readinessProbe": "ignored by it",
    "livenessProbe": "needs a timer of the host's systemd; the test asks the same question",
    "imagePullPolicy": "Never: what was built here",
}


@dataclass(frozen=True)
class Converted:
    """What is played, and what was left out of it."""

    pods: Mapping[str, Sequence[Manifest]]
    """By pod: the configuration it mounts, then itself."""
    claims: tuple[Manifest, ...]
    dropped: frozenset[str]
    """`StatefulSet/histofed-aggregator: spec.updateStrategy (why)`, without the names that differ by site or by hash."""

    def play(self, pod: str) -> str:
        """The documents for one `podman kube play`."""
        text: str = yaml.safe_dump_all(self.pods[pod])
        return text


def convert(
    rendered: str, *, images: Mapping[str, str], hosts: Mapping[str, str], secrets: Sequence[Manifest] = ()
) -> Converted:
    """The pods of `rendered`; `images` by the container image's last word, `hosts` by name."""
    manifests = [each for each in yaml.safe_load_all(rendered) if each]
    dropped: set[str] = set()
    configs = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "ConfigMap"}
    configs |= {each["metadata"]["name"]: _opened(each) for each in secrets}
    claims = [each for each in manifests if each["kind"] == "PersistentVolumeClaim"]
    pods: dict[str, Sequence[Manifest]] = {}
    for each in manifests:
        kind = each["kind"]
        if kind in _KINDS_LEFT_OUT:
            dropped.add(f"{kind} ({_KINDS_LEFT_OUT[kind]})")
        elif kind == "StatefulSet":
            pod, templates = _pod(each, images, hosts, dropped)
            claims += templates
            pods[pod["metadata"]["name"]] = [*_mounted(pod, configs), pod]
        elif kind not in ("ConfigMap", "PersistentVolumeClaim"):
            raise ValueError(f"what is a {kind} to podman?")
    return Converted(pods, tuple(_claim(each, dropped) for each in claims), frozenset(dropped))


def _pod(
    stateful: Manifest, images: Mapping[str, str], hosts: Mapping[str, str], dropped: set[str]
) -> tuple[dict[str, Any], list[Manifest]]:
    """A StatefulSet's one pod, and the claims of its templates."""
    spec, name = stateful["spec"], stateful["metadata"]["name"]
    if spec["replicas"] != 1:
        raise ValueError(f"{name} has {spec['replicas']} replicas, and a pod is one")
    _drop(spec, _SET_FIELDS_LEFT_OUT, "StatefulSet: spec", dropped)
    template = dict(spec["template"])
    pod = _without(template["spec"], _POD_FIELDS_LEFT_OUT, "Pod: spec", dropped)
    pod["securityContext"] = _without(
        pod["securityContext"],
        {"fsGroupChangePolicy": "a new volume is the container's user's"},
        "Pod: securityContext",
        dropped,
    )
    for kind in ("initContainers", "containers"):
        pod[kind] = [_container(each, images, dropped) for each in pod[kind]]
    templates: list[Manifest] = [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        | {"metadata": {"name": f"{each['metadata']['name']}-{name}-0"}, "spec": each["spec"]}
        for each in spec["volumeClaimTemplates"]
    ]
    pod["volumes"] = [_volume(each, dropped) for each in pod["volumes"]] + [
        {"name": each["metadata"]["name"], "persistentVolumeClaim": {"claimName": f"{each['metadata']['name']}-{name}-0"}}
        for each in spec["volumeClaimTemplates"]
    ]
    pod["hostAliases"] = [{"ip": address, "hostnames": [host]} for host, address in hosts.items()]
    pod["restartPolicy"] = "Always"  # a StatefulSet's pods have it without a word; podman's have it, too, with one
    # init containers run at every start, as in a cluster; podman's own way removes them while they run
    annotations = {"io.podman.annotations.init.container.type": "always"}
    metadata = {"name": name, "labels": template["metadata"]["labels"], "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}, templates


def _container(container: Manifest, images: Mapping[str, str], dropped: set[str]) -> dict[str, Any]:
    found = _without(container, _CONTAINER_FIELDS_LEFT_OUT, "Container", dropped)
    found["image"] = images[container["image"].partition("@")[0].rpartition("/")[2]]
    found["imagePullPolicy"] = "Never"
    # nothing is taken away from the limits that it knows
    found["resources"] = {
        kind: {key: value for key, value in amounts.items() if key in ("cpu", "memory")}
        for kind, amounts in container["resources"].items()
    }
    if any("ephemeral-storage" in amounts for amounts in container["resources"].values()):
        dropped.add("Container.resources.ephemeral-storage (no quota on layers)")
    return found


def _volume(volume: Manifest, dropped: set[str]) -> dict[str, Any]:
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in volume.items()}
    if "emptyDir" in found:
        if found["emptyDir"]:
            dropped.add("Volume.emptyDir.medium and .sizeLimit (an anonymous volume)")
        found["emptyDir"] = {}
    if "secret" in found:
        found["configMap"] = {"name": found.pop("secret")["secretName"]}
        dropped.add("Volume.secret, its mode and .optional (a ConfigMap that must be there)")
    if "persistentVolumeClaim" in found and found["persistentVolumeClaim"].pop("readOnly", False):
        dropped.add("Volume.persistentVolumeClaim.readOnly (the mount says it, too)")
    return found


def _claim(claim: Manifest, dropped: set[str]) -> Manifest:
    spec = claim["spec"]
    dropped.add("PersistentVolumeClaim: spec.accessModes and .storageClassName (a folder of this machine)")
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim["metadata"]["name"]},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": spec["resources"]},
    }


def _mounted(pod: Manifest, configs: Mapping[str, Manifest]) -> Iterator[Manifest]:
    """What the pod's volumes name; a Secret that nobody has made yet is missing, as in a cluster."""
    for volume in pod["spec"]["volumes"]:
        if "configMap" in volume and (found := configs.get(volume["configMap"]["name"])):
            metadata = {"name": found["metadata"]["name"]}
            yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": found["data"]}


def _opened(secret: Manifest) -> Manifest:
    return {**secret, "data": {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}}


def _without(fields: Manifest, left_out: Mapping[str, str], where: str, dropped: set[str]) -> dict[str, Any]:
    _drop(fields, left_out, where, dropped)
    return {key: value for key, value in fields.items() if key not in left_out}


def _drop(fields: Manifest, left_out: Mapping[str, str], where: str, dropped: set[str]) -> None:
    dropped.update(f"{where}.{key} ({why})" for key, why in left_out.items() if key in fields)
