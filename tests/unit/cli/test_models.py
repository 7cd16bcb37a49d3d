"""Fetching a model over a real connection: signature first, then bytes, and nothing is left behind when either is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from histofed.base.clock import FakeClock, SystemClock
from histofed.cli import statement_file
from histofed.pki.authority import Authority
from tests.support.operator_service import RunningAggregator
from tests.support.signed_models import Federation, SignedModel, signed_model
from tests.unit.cli.conftest import Ran

Histofed = Callable[..., Ran]


@pytest.fixture
def model(aggregator: RunningAggregator, tmp_path: Path) -> SignedModel:
    """A signed model of 3 MB whose parts the aggregator holds."""
    made = signed_model(aggregator.credentials, shared=b"s" * 1000, server=bytes(range(256)) * 12_000)
    for data in (made.shared, made.server):
        (tmp_path / "part").write_bytes(data)
        aggregator.blobs.import_file(tmp_path / "part")
    aggregator.servicer.model = made
    return made


def test_a_model_is_pulled_and_verified(histofed: Histofed, model: SignedModel, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"

    found = histofed("models", "pull", "demo", "--out", str(out), "--json").document

    assert out.read_bytes() == model.server
    assert found["model"]["digest"] == model.digest
    assert (found["part"], found["bytes"], found["verified"]) == ("server", len(model.server), True)
    assert statement_file.read(Path(found["statement_file"])) == model.envelope


def test_a_pulled_model_is_verified_offline(
    histofed: Histofed, model: SignedModel, aggregator: RunningAggregator, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"
    histofed("models", "pull", model.digest[:8], "--out", str(out))
    nowhere = tmp_path / "no-configuration.toml"

    found = histofed("models", "verify", str(out), "--ca", str(config.parent / "ca.crt"), "--json", config=nowhere)

    assert found.document["model"] == model.digest
    assert found.document["statement"]["round"] == 2
    out.write_bytes(model.server[:-1] + b"!")
    assert histofed("models", "verify", str(out), "--ca", str(config.parent / "ca.crt")).code == 65


def test_a_model_outlives_the_certificate_that_signed_it(
    histofed: Histofed, model: SignedModel, aggregator: RunningAggregator, config: Path, tmp_path: Path
) -> None:
    """The aggregator's certificate lives a year; a model is kept for ever."""
    authority = aggregator.federation.authority
    past = FakeClock(SystemClock().now() - timedelta(days=400))
    signer = Federation(Authority(authority.certificate, authority._key, past)).aggregator()
    aggregator.servicer.model = signed_model(signer, model.shared, model.server)
    out, verify = tmp_path / "model.safetensors", ("--ca", str(config.parent / "ca.crt"))

    assert histofed("models", "pull", "demo", "--out", str(out)).code == 0
    assert histofed("models", "verify", str(out), *verify).code == 0
    refused = histofed("models", "verify", str(out), *verify, "--at", SystemClock().now().isoformat())
    assert (refused.code, "was not valid at" in refused.error) == (77, True)


def test_a_model_whose_files_were_removed_is_told_before_anything_is_fetched(
    histofed: Histofed, model: SignedModel, aggregator: RunningAggregator, tmp_path: Path
) -> None:
    aggregator.servicer.removed_at = "2026-01-02T03:04:05.000000Z"
    out = tmp_path / "model.safetensors"
    refused = histofed("models", "pull", "demo", "--out", str(out))
    assert refused.code == 65
    assert "were removed at 2026-01-02 03:04:05 by the aggregator's [retention]" in refused.error
    assert not out.exists()
    assert "removed 2026-01-02 03:04:05" in histofed("models", "list").out


def test_another_part_can_be_pulled(histofed: Histofed, model: SignedModel, tmp_path: Path) -> None:
    out = tmp_path / "shared.safetensors"

    assert "part shared of model" in histofed("models", "pull", "demo", "--out", str(out), "--part", "shared").out
    assert out.read_bytes() == model.shared


def test_a_model_that_somebody_else_signed_is_not_downloaded(
    histofed: Histofed, model: SignedModel, aggregator: RunningAggregator, tmp_path: Path
) -> None:
    aggregator.servicer.model = signed_model(Federation.make().aggregator(), model.shared, model.server)

    found = histofed("models", "pull", "demo", "--out", str(tmp_path / "new" / ".." / "model.safetensors"))
    assert found.code == 65  # the folder `new` is not there

    found = histofed("models", "pull", "demo", "--out", str(tmp_path / "model.safetensors"))
    assert found.code == 77
    assert "not issued by this federation's CA" in found.error
    assert not list(tmp_path.glob("model.safetensors*"))


def test_a_statement_that_was_changed_is_not_believed(
    histofed: Histofed, model: SignedModel, aggregator: RunningAggregator, tmp_path: Path
) -> None:
    changed = replace(model.envelope, payload=model.envelope.payload.replace(b'"round":2', b'"round":9'))
    aggregator.servicer.model = replace(model, envelope=changed)

    found = histofed("models", "pull", "demo", "--out", str(tmp_path / "model.safetensors"))

    assert found.code == 65
    assert "changed after signing" in found.error
    assert not list(tmp_path.glob("model.safetensors*"))


def test_bytes_that_are_not_the_signed_ones_are_thrown_away(
    histofed: Histofed, model: SignedModel, aggregator: RunningAggregator, tmp_path: Path
) -> None:
    digest = next(d for d in aggregator.blobs.digests() if aggregator.blobs.size(d) == len(model.server))
    path = aggregator.blobs.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"x" * len(model.server))

    found = histofed("models", "pull", "demo", "--out", str(tmp_path / "model.safetensors"))

    assert found.code == 65
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "model.safetensors.statement.json").exists()


def test_an_unknown_model_and_a_missing_folder(histofed: Histofed, model: SignedModel, tmp_path: Path) -> None:
    assert histofed("models", "pull", "ffff", "--out", str(tmp_path / "m")).code == 65
    found = histofed("models", "pull", "demo", "--out", str(tmp_path / "no/m"))
    assert found.code == 65
    assert "make it first" in found.error


def test_a_file_that_is_no_pulled_model_is_kept(histofed: Histofed, model: SignedModel, tmp_path: Path) -> None:
    out = tmp_path / "thesis.txt"
    out.write_text("years of work")

    refused = histofed("models", "pull", "demo", "--out", str(out))

    assert refused.code == 65
    assert "no model that was pulled" in refused.error
    assert "name a new file" in refused.error
    assert out.read_text() == "years of work"


@pytest.mark.parametrize("before", [None, "shared"], ids=["new", "in the place of another part"])
def test_a_pull_that_was_killed_can_be_repeated(
    histofed: Histofed, model: SignedModel, config: Path, tmp_path: Path, before: str | None
) -> None:
    out = tmp_path / "model.safetensors"
    pull = ("models", "pull", "demo", "--out", str(out))
    if before:
        histofed(*pull, "--part", before)
    killed = subprocess.run(
        [sys.executable, "-m", "histofed.cli.main", "--config", str(config), *pull],
        env={**os.environ, "HISTOFED_FAILPOINTS": "blob.complete=kill"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert out.read_bytes() == model.server

    assert histofed(*pull).code == 0
    assert histofed("models", "verify", str(out), "--ca", str(config.parent / "ca.crt")).code == 0


def test_a_model_replaces_the_one_pulled_before(histofed: Histofed, model: SignedModel, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert histofed("models", "pull", "demo", "--out", str(out), "--part", "shared").code == 0

    assert histofed("models", "pull", "demo", "--out", str(out)).code == 0
    assert out.read_bytes() == model.server


def test_a_folder_is_no_file(histofed: Histofed, model: SignedModel, tmp_path: Path) -> None:
    refused = histofed("models", "pull", "demo", "--out", str(tmp_path))

    assert refused.code == 65
    assert f"{tmp_path} is a folder; name a file in it" in refused.error


def test_models_are_listed(histofed: Histofed, model: SignedModel) -> None:
    (found,) = histofed("models", "list", "--json").document["models"]
    assert found["digest"] == model.digest
    assert {part["name"]: part["release"] for part in found["parts"]} == {"shared": False, "server": True}

    assert "server 3.1 MB (to be released)" in histofed("models", "list", "demo").out


def test_models_are_listed_page_by_page(histofed: Histofed, model: SignedModel, aggregator: RunningAggregator) -> None:
    aggregator.servicer.pages_of_models = 3
    assert len(histofed("models", "list", "--json").document["models"]) == 3


@pytest.mark.parametrize("text", ["yesterday", "2026-01-01T12:00:00", "2026-13-01T00:00:00Z"])
def test_a_time_without_a_zone_is_a_usage_error(histofed: Histofed, text: str, tmp_path: Path) -> None:
    assert histofed("models", "verify", str(tmp_path / "m"), "--ca", "ca.crt", "--at", text).code == 2
