"""The aggregator's configuration, `aggregator.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s/]+):\d{1,5}$")]
"""`host:port`; an IPv6 host in brackets."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(_Table):
    """Where the daemon listens."""

    grpc: Address = "0.0.0.0:8443"
    """Sites and operators, mutual TLS."""
    enrolment: Address = "0.0.0.0:8444"
    """Enrolment, open only while a join token is valid."""
    health: Address = "127.0.0.1:8081"
    """grpc.health.v1, plaintext, nothing else."""
    metrics: Address = "127.0.0.1:9464"
    """Prometheus, plaintext, nothing else."""


class Telemetry(_Table):
    """Traces; off when there is no endpoint."""

    otlp_endpoint: str = ""
    """`https://collector:4317` (OTLP/gRPC)."""
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    environment: str = "production"


class RetentionRules(_Table):
    """How much of the past stays on this disk. The audit journal and every model's signed statement always stay."""

    models: Annotated[int, Field(ge=1)] = 50
    """Newest models of each experiment whose files stay; released ones stay besides."""
    bytes: Annotated[int, Field(ge=0)] = 100_000_000_000
    """Model files of all experiments together; above it older ones go too. 0 is no limit."""
    rounds: Annotated[int, Field(ge=1)] = 1000
    """Newest rounds of each experiment whose events and signed manifests stay."""
    reserve_bytes: Annotated[int, Field(ge=0)] = 256 * 2**20
    """Free space that is left to journal and database: below it no round begins and no update is taken."""


class Transfer(_Table):
    """How fast models and updates travel."""

    max_bytes_per_second: Annotated[int, Field(ge=0)] = 0
    """Of each site, in each direction, all its transfers together; 0 is no cap. Less than 16384 is taken as that."""


class AggregatorConfig(_Table):
    """The whole file."""

    federation: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")] = "histofed"
    """The federation's name; part of every identity, so it never changes."""
    public_hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    """DNS names and IP addresses under which sites reach this daemon; the first one stands in join lines."""
    state_dir: Path = Path("/var/lib/histofed-aggregator")
    listen: Listen = Listen()
    telemetry: Telemetry = Telemetry()
    retention: RetentionRules = RetentionRules()
    transfer: Transfer = Transfer()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Child processes that may work at the same time (admission, aggregation)."""
