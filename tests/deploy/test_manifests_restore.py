"""The runbook of deploy/k8s/README.md against what is rendered: its pod stands in for the aggregator's, with its claim."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from aggregator.cli import _parser as aggregator_parser
from tests.deploy.images import ROOT
from tests.deploy.manifests import aggregator, objects, of_kind, rendered

README: Final = (ROOT / "deploy/k8s/README.md").read_text(encoding="utf-8")


def test_the_restoring_pod_is_the_aggregators_with_another_command() -> None:
    found = re.search(r"<<END\n(apiVersion: v1\nkind: Pod\n.*?)^END$", README, re.DOTALL | re.MULTILINE)
    assert found is not None
    manifests = objects(rendered("prod"))
    (stateful,) = (each for each in of_kind(manifests, "StatefulSet") if each["metadata"]["name"] == "histofed-aggregator")
    theirs, container = stateful["spec"]["template"]["spec"], aggregator(manifests)
    ours: dict[str, Any] = yaml.safe_load(found[1].replace("$image", container["image"]))["spec"]
    assert theirs["containers"][0] == container, "the runbook takes the image of the first"
    assert ours["securityContext"] == theirs["securityContext"]
    for key in ("image", "securityContext"):
        assert ours["containers"][0][key] == container[key]
    mounts = ours["containers"][0]["volumeMounts"]
    assert [each for each in container["volumeMounts"] if each["name"] in {one["name"] for one in mounts}] == mounts
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    volumes = {each["name"]: each for each in ours["volumes"]}
    claimed = f"{claim['metadata']['name']}-{stateful['metadata']['name']}-0"
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == claimed
    assert [each for each in theirs["volumes"] if each["name"] == "tmp"] == [volumes["tmp"]]


def test_the_runbooks_commands_are_ones_that_exist() -> None:
    typed = re.findall(r"-- histofed-aggregator (.+)$", README, re.MULTILINE)
    assert {line.split()[0] for line in typed} == {"backup", "restore"}
    for line in typed:
        options = aggregator_parser().parse_args(line.split())
        assert str(options.file).startswith("/var/lib/histofed-aggregator/")
        assert not str(options.file).startswith("/var/lib/histofed-aggregator/state")
