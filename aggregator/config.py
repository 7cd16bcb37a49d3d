"""The aggregator's configuration, `aggregator.toml`."""

from __future__ import annotations

import re
from ipaddress import ip_address
from itertools import combinations
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from histofed.transport.pace import kept_cap

_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\s/]+):([0-9]{1,5})\Z")


_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(\*\.)?({_LABEL}\.)*(?![0-9]+\Z){_LABEL}\Z")
"""A DNS name, or a whole label's wildcard; what ends in a number is an IP address that is none."""


def _address(value: str) -> str:
    found = _ADDRESS.match(value)
    # gRPC takes a larger port modulo 65536
    if found is None or int(found[2]) > 65535:
        raise ValueError("write it as host:port, an IPv6 host in brackets; a port is at most 65535")
    return value


def _host(value: str) -> str:
    try:
        usable = bool(ip_address(value)) and "%" not in value
    except ValueError:
        usable = len(value) < 254 and _NAME.match(value) is not None
    if not usable:
        raise ValueError("write a DNS name (an international one as xn--...) or an IP address, without scheme and port")
    return value


Address = Annotated[str, AfterValidator(_address)]
"""`host:port`; an IPv6 host in brackets, port 0 for one that is free."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _clash(one: str, other: str) -> bool:
    """Whether two addresses want the same port of the same host, or of all hosts."""
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    if int(port) != int(other_port) or int(port) == 0:
        return False
    hosts = (host, other_host)
    every = "[::]" in hosts or ("0.0.0.0" in hosts and not any(each.startswith("[") for each in hosts))  # noqa: S104
    return host == other_host or every


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

    @model_validator(mode="after")
    def _apart(self) -> Self:
        for (one, its), (other, others) in combinations(self, 2):
            if _clash(its, others):
                raise ValueError(f"{one} = {its} and {other} = {others} cannot both listen; give each a port of its own")
        return self


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

    max_bytes_per_second: Annotated[int, Field(ge=0), AfterValidator(kept_cap)] = 0
    """Of each site, in each direction, all its transfers together; 0 is no cap. Less than 16384 is taken as that."""


class AggregatorConfig(_Table):
    """The whole file."""

    federation: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")] = "histofed"
    """The federation's name; part of every identity, so it never changes."""
    public_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = ("localhost", "127.0.0.1")
    """DNS names and IP addresses under which sites reach this daemon; the first one stands in join lines."""
    state_dir: Path = Path("/var/lib/histofed-aggregator")
    listen: Listen = Listen()
    telemetry: Telemetry = Telemetry()
    retention: RetentionRules = RetentionRules()
    transfer: Transfer = Transfer()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Child processes that may work at the same time (admission, aggregation)."""

    @field_validator("public_hosts")
    @classmethod
    def _for_join_lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one host under which sites reach this daemon")
        if "_" in value[0] or "*" in value[0]:
            raise ValueError(
                "the first one stands in join lines, which take no underscore and no wildcard: name another first"
            )
        return value
