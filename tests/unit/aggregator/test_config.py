"""What `aggregator.toml` may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.cli import main


def check(folder: Path, text: str) -> int:
    """The exit code of `check`."""
    path = folder / "aggregator.toml"
    path.write_text(f"{text}\n")
    return main(["check", "--config", str(path)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('grpc = "0.0.0.0:99999"', 'aggregator.toml:2: listen.grpc = "0.0.0.0:99999" is not allowed: write it as host:port'),
        ('grpc = "0.0.0.0"', "write it as host:port"),
        ('grpc = "0.0.0.0:8444"', "grpc = 0.0.0.0:8444 and enrolment = 0.0.0.0:8444 cannot both listen"),
        ('grpc = "10.0.0.1:8444"', "grpc = 10.0.0.1:8444 and enrolment = 0.0.0.0:8444 cannot both listen"),
        ('metrics = "127.0.0.1:08081"', "health = 127.0.0.1:8081 and metrics = 127.0.0.1:08081 cannot both listen"),
        ('health = "[::]:8443"', "grpc = 0.0.0.0:8443 and health = [::]:8443 cannot both listen"),
    ],
)
def test_addresses_on_which_nothing_can_listen_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    assert check(tmp_path, f"[listen]\n{text}") == 78
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        'grpc = "10.0.0.1:443"\nenrolment = "10.0.0.2:443"',
        'health = "[::1]:8443"',
        'grpc = "[::1]:8443"\nenrolment = "localhost:65535"',
        "\n".join(f'{name} = "127.0.0.1:0"' for name in ("grpc", "enrolment", "health", "metrics")),
    ],
)
def test_addresses_that_keep_apart_are_taken(tmp_path: Path, text: str) -> None:
    assert check(tmp_path, f"[listen]\n{text}") == 0


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("[]", "aggregator.toml:1: public_hosts = [] is not allowed: name at least one host"),
        ('"hub"', 'public_hosts = "hub" is not allowed: write a list, ["..."]'),
        ('["hub", "_ühospital.de"]', 'aggregator.toml:1: public_hosts.1 = "_ühospital.de" is not allowed: write a DNS name'),
        ('["a b"]', "write a DNS name"),
        ('["https://x.y"]', "write a DNS name"),
        ('["hub.example.org:8443"]', "write a DNS name"),
        ('["hub..example"]', "write a DNS name"),
        ('["300.1.1.1"]', "write a DNS name"),
        ('["fe80::1%eth0"]', "write a DNS name"),
        ('[""]', "write a DNS name"),
        (f'["{"x" * 64}.example"]', "write a DNS name"),
        ('["hub_1"]', "the first one stands in join lines, which take no underscore"),
    ],
)
def test_hosts_that_no_certificate_can_have_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hosts: str, words: str
) -> None:
    assert check(tmp_path, f"public_hosts = {hosts}") == 78
    assert words in capsys.readouterr().err


def test_hosts_of_every_kind_are_taken(tmp_path: Path) -> None:
    hosts = ["hub.example.org", "xn--hospital-n4a.de", "127.0.0.1", "2001:db8::1", "hub_1", "a.b-c.d1", "4you"]
    assert check(tmp_path, f"public_hosts = {hosts}") == 0


def test_check_prints_the_cap_that_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "[transfer]\nmax_bytes_per_second = 1") == 0
    assert "transfer.max_bytes_per_second = 16384 " in capsys.readouterr().out
