"""The files of `[telemetry]` are read, or refused in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from histofed.base.errors import ConfigError
from histofed.telemetry.collector import read_tls


@dataclass(frozen=True)
class Named:
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None


def test_what_is_named_is_read_in_grpcs_order(tmp_path: Path) -> None:
    for name in ("ca", "certificate", "key"):
        (tmp_path / name).write_text(name)
    assert read_tls(Named(tmp_path / "ca", tmp_path / "certificate", tmp_path / "key")) == (b"ca", b"key", b"certificate")
    assert read_tls(Named()) == (None, None, None)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone \(named in \[telemetry\]\) cannot be read: No such file"):
        read_tls(Named(ca_file=tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"\(named in \[telemetry\]\) cannot be read: Is a directory"):
        read_tls(Named(ca_file=tmp_path))


def test_a_certificate_and_its_key_go_together(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("pem")
    for half in (Named(certificate_file=tmp_path / "file"), Named(key_file=tmp_path / "file")):
        with pytest.raises(ConfigError, match="go together: set both or neither"):
            read_tls(half)
