"""The operator's file, `operator.toml`: where the aggregator is, and which certificate to show it.

    aggregator = "federation.example.org:8443"
    certificate = "operator.crt"     # PEM; this path and the next two are relative to the file
    key = "operator.key"             # 0600
    ca = "ca.crt"

Looked for at `--config`, then HISTOFED_CONFIG, then ~/.config/histofed/operator.toml. Standard library only: pydantic would
take most of the 0.4 s that `histofed status` may take to start.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from histofed.base.config import load
from histofed.base.errors import ConfigError

VARIABLE = "HISTOFED_CONFIG"


@dataclass(frozen=True)
class OperatorConfig:
    """A checked operator.toml; paths are absolute."""

    aggregator: str
    """`host:port` of the aggregator's mTLS port."""
    certificate: Path
    key: Path
    ca: Path


def find(given: Path | None) -> Path:
    """The file to read. Raises `ConfigError` when there is none, saying where it was looked for."""
    if given is not None:
        chosen = given
    elif os.environ.get(VARIABLE):
        chosen = Path(os.environ[VARIABLE])
    else:
        chosen = Path.home() / ".config" / "histofed" / "operator.toml"
    if chosen.is_dir():
        raise ConfigError(f"{chosen} is a folder: name its file, {chosen / 'operator.toml'}")
    if not chosen.is_file():
        raise ConfigError(
            f"there is no operator configuration at {chosen}; name one with --config FILE or {VARIABLE} "
            "(`histofed-aggregator init` writes the first)"
        )
    return chosen


def load_operator(given: Path | None) -> OperatorConfig:
    """Find and check the file. Raises `ConfigError`."""
    path = find(given)
    raw = load(OperatorConfig, name="operator", path=path, flags={}, environ={}).config
    host, _, port = raw.aggregator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f'{path}: aggregator = "{raw.aggregator}" is not HOST:PORT')
    folder = path.resolve().parent
    return OperatorConfig(raw.aggregator, folder / raw.certificate, folder / raw.key, folder / raw.ca)
