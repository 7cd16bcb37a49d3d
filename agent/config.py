"""The agent's configuration: `agent.toml`, checked, with every default and its reason.

The site's name is not here: it is in the certificate. No secret is here: keys are files. Every path can be changed, so that
several agents run on one machine (`make demo`). `histofed/base/config.py` finds and merges the sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from histofed.base.config import Loaded, load
from histofed.base.errors import ConfigError
from histofed.base.ids import Json
from histofed.base.proxy import ProxySetting
from histofed.transport.pace import kept_cap

DEFAULT_PATH: Final = Path("/etc/histofed/agent.toml")

_DEVICE = re.compile(r"(auto|cpu|cuda(:(0|[1-9][0-9]*))?)\Z")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}\Z")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Table):
    """Where the hospital's tiles are. Only the trainer opens them, read-only."""

    root: Path | None = None
    """Folder of tiles by class; without one only recipes that read no tiles can run."""
    cache_dir: Path | None = None
    """Where decoded tiles are kept from task to task; `tile-cache` in the state directory where none is named."""
    cache_bytes: Annotated[int, Field(ge=0)] = 10_000_000_000
    """How large that may become: the sets used longest ago are removed. 0 keeps none and decodes for every task."""


class TrainerConfig(_Table):
    """What a training may use of this machine."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` ..."""
    devices: Annotated[int, Field(ge=1, le=16)] = 1
    """GPUs that train together, from the first on; a batch is dealt among them. With `cpu`, processes."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0 leaves the choice to the library."""
    nice: Annotated[int, Field(ge=0, le=19)] = 5
    """How far training steps back behind the machine's other work."""
    stop_seconds: Annotated[float, Field(gt=0, le=250)] = 120.0
    """Time for a checkpoint after SIGTERM; then SIGKILL. The daemon itself gives up after 270, systemd after 300."""

    @field_validator("device")
    @classmethod
    def _known(cls, value: str) -> str:
        if not _DEVICE.match(value):
            raise ValueError("use auto, cpu, cuda or cuda:N")
        return value

    @model_validator(mode="after")
    def _not_one_and_several(self) -> Self:
        if self.devices > 1 and ":" in self.device:
            raise ValueError(f"device {self.device!r} names one device and devices = {self.devices} wants several; use cuda")
        return self


class TransferConfig(_Table):
    """How much of this site's line the agent may use; all transfers together, in bytes (not bits) per second."""

    max_upload_bytes_per_second: Annotated[int, Field(ge=0), AfterValidator(kept_cap)] = 0
    """0 is no cap; less than 16384 is taken as that."""
    max_download_bytes_per_second: Annotated[int, Field(ge=0), AfterValidator(kept_cap)] = 0
    """The aggregator keeps it; a change counts from the next download on."""


class TelemetryConfig(_Table):
    """Traces for auditing; nothing is sent where no endpoint is named."""

    otlp_endpoint: str | None = None
    """`https://host:4317` of an OTLP/gRPC collector."""
    ca_file: Path | None = None
    """CA of the collector; the system's where none is named."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    environment: str = "production"
    """The trace's `deployment.environment.name`."""


class AgentConfig(_Table):
    """The whole file. Unknown keys are errors."""

    aggregator: str | None = None
    """`host:port` of the aggregator's mTLS port; without it, the address that enrolment was told."""
    proxy: str | None = None
    """`http://HOST:PORT` of the proxy on the way to the aggregator; `none` for none; else HTTPS_PROXY of the environment."""
    proxy_credentials_file: Path | None = None
    """`NAME:PASSWORD` for that proxy."""
    state_dir: Path = Path("/var/lib/histofed-agent")
    """Identity, task in hand, outbox, private tensors, journal."""
    consent: Path = Path("/etc/histofed/consent.toml")
    """What this hospital allows; read again for every task."""
    minimum_patients: Annotated[int, Field(ge=1)] = 2
    """Fewer patients than this in a class: this site does not train on it."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    data: DataConfig = DataConfig()
    trainer: TrainerConfig = TrainerConfig()
    transfer: TransferConfig = TransferConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @field_validator("proxy")
    @classmethod
    def _proxy(cls, value: str | None) -> str | None:
        try:
            ProxySetting(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("aggregator")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not (_ADDRESS.match(value) and 0 < int(value.rpartition(":")[2]) < 65536):
            raise ValueError("write it as host:port, for example aggregator.example.org:8443")
        return value


def proxy_setting(config: AgentConfig) -> ProxySetting:
    """What the file says about the way out."""
    return ProxySetting(config.proxy, config.proxy_credentials_file)


def load_config(
    path: Path | None, flags: Mapping[str, Json], environ: Mapping[str, str] | None = None
) -> Loaded[AgentConfig]:
    """Defaults < file and conf.d < HISTOFED_ environment < flags. Raises `ConfigError` with file, line and nearest key.

    Without `path` the default file is read where it exists.
    """
    if path is None and DEFAULT_PATH.exists():
        path = DEFAULT_PATH
    return load(AgentConfig, name="agent", path=path, flags=flags, environ=environ)
