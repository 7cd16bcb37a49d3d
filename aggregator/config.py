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


class AggregatorConfig(_Table):
    """The whole file."""

    federation: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")] = "histofed"
    """The federation's name; part of every identity, so it never changes."""
    public_hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    """DNS names and IP addresses under which sites reach this daemon; the first one stands in join lines."""
    state_dir: Path = Path("/var/lib/histofed")
    listen: Listen = Listen()
    telemetry: Telemetry = Telemetry()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Child processes that may work at the same time (admission, aggregation)."""
