"""The way out of a hospital: an HTTP proxy that opens a tunnel (CONNECT) to the aggregator, or says why not.

Who decides, first to last: the setting (`none` is: no proxy, whatever the environment says), then `https_proxy` or
`HTTPS_PROXY` of the environment. `no_proxy` names hosts that are reached without one in either case, because gRPC asks it,
too. The proxy sees an address, a port, and TLS from end to end; it cannot read or change a byte. A name and a password for
it come from a file, never from a URL or the environment, which every process of the machine could read.

Called by whoever opens a connection (`transport/channel.py`), looks for the CA of a join line (`pki/enrol.py`) or says why
there is none (`transport/diagnose.py`).
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

from histofed.base.errors import AggregatorUnavailable, ConfigError

NONE: Final = "none"
ANSWER_LIMIT: Final = 16 << 10
"""Bytes of a proxy's answer that are read before we take it for something else."""
_URL: Final = re.compile(r"(?:http://)?(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})/?")
_VARIABLES: Final = ("https_proxy", "HTTPS_PROXY")
_EXCEPTIONS: Final = ("no_proxy", "NO_PROXY")


@dataclass(frozen=True)
class ProxySetting:
    """What the configuration says; nothing is: ask the environment."""

    url: str | None = None
    credentials_file: Path | None = None
    """`name:password` in one line, for a proxy that wants to know who asks."""

    def __post_init__(self) -> None:
        """Raises `ConfigError`."""
        if self.url is not None and self.url != NONE:
            _parse(self.url, "proxy")


ENVIRONMENT: Final = ProxySetting()
"""No setting: a proxy is what the environment says."""


@dataclass(frozen=True)
class Proxy:
    """Where the tunnel begins."""

    host: str
    port: int
    origin: str
    """Who named it: `the setting proxy`, `HTTPS_PROXY`."""
    credentials: str = field(default="", repr=False)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """As gRPC takes it, credentials and all; never printed."""
        if not self.credentials:
            return f"http://{self.address}"
        # gRPC reads a URI: a bare `#` or `/` in a password ends the address, and the proxy is passed over without a word
        name, _, password = self.credentials.partition(":")
        return f"http://{quote(name, safe='')}:{quote(password, safe='')}@{self.address}"

    def tunnel(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """A connection to `host`:`port` through the proxy. Blocks. Raises `AggregatorUnavailable`, in words."""
        try:
            plain = socket.create_connection((self.host.strip("[]"), self.port), timeout_s)
        except OSError as error:
            raise AggregatorUnavailable(
                f"the proxy {self.address} ({self.origin}) cannot be reached: {error.strerror or error}; check its address, "
                f"or set proxy = {NONE!r} where none is needed"
            ) from error
        try:
            plain.sendall(self._request(host, port))
            self._read_answer(plain, host, port)
        except OSError as error:
            plain.close()
            raise AggregatorUnavailable(
                f"the proxy {self.address} ({self.origin}) gave no answer for {host}:{port}: {error.strerror or error}"
            ) from error
        except AggregatorUnavailable:
            plain.close()
            raise
        return plain

    def _request(self, host: str, port: int) -> bytes:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        known = ""
        if self.credentials:
            known = f"Proxy-Authorization: Basic {base64.b64encode(self.credentials.encode()).decode()}\r\n"
        return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{known}\r\n".encode()

    def _read_answer(self, plain: socket.socket, host: str, port: int) -> None:
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < ANSWER_LIMIT:
            more = plain.recv(1)  # a byte at a time: what follows the answer belongs to TLS
            if not more:
                break
            answer += more
        status = re.match(rb"HTTP/1\.[01] (\d{3})(?: ([ -~]{0,60}))?", answer)
        if status is None:
            raise AggregatorUnavailable(f"{self.address} ({self.origin}) is no HTTP proxy: it does not answer as one")
        code, reason = int(status[1]), (status[2] or b"").decode().strip()
        if code == 200:
            return
        refused = f"the proxy {self.address} ({self.origin}) refuses to connect to {host}:{port} ({code} {reason})"
        if code == 407:
            raise AggregatorUnavailable(f"{refused}: it wants NAME:PASSWORD; write them into a proxy_credentials_file")
        if code in (403, 405):
            raise AggregatorUnavailable(f"{refused}: ask its administrator to allow CONNECT to {host}, port {port}")
        raise AggregatorUnavailable(
            f"{refused}: it cannot reach the aggregator; check the address, or ask its administrator"
        )


def find(setting: ProxySetting, host: str, environ: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy on the way to `host`; None for the straight way. Raises `ConfigError`."""
    surroundings = os.environ if environ is None else environ
    if setting.url == NONE or _excepted(host, _first(surroundings, _EXCEPTIONS)[1]):
        return None
    origin, url = ("the setting proxy", setting.url) if setting.url else _first(surroundings, _VARIABLES)
    if not url:
        return None
    if setting.url is None and _is_loopback(host):
        return None  # the environment's proxy is for the world outside
    proxy_host, port = _parse(url, origin)
    return Proxy(proxy_host, port, origin, _credentials(setting.credentials_file))


def connect(proxy: Proxy | None, host: str, port: int, timeout_s: float) -> socket.socket:
    """A TCP connection; blocks. Raises `OSError` on the straight way, `AggregatorUnavailable` through the proxy."""
    if proxy is None:
        return socket.create_connection((host, port), timeout_s)
    return proxy.tunnel(host, port, timeout_s)


def _parse(url: str, origin: str) -> tuple[str, int]:
    if "@" in url:
        raise ConfigError(f"{origin} holds a name or a password: write it without, and name a proxy_credentials_file")
    parts = _URL.fullmatch(url)
    if parts is None or not 0 < int(parts["port"]) < 65536:
        raise ConfigError(f"{origin} = {url!r} is no proxy: write it as http://HOST:PORT, or {NONE!r}")
    return parts["host"], int(parts["port"])


def _credentials(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"proxy_credentials_file {file} cannot be read: {error}") from error
    # the group may: a file of root's that the daemon's group reads is a usual way to hand over a secret
    if mode & stat.S_IRWXO:
        raise ConfigError(f"proxy_credentials_file {file} holds a password that everybody can read: chmod 640 (or 600)")
    if not re.fullmatch(r"[^:\s]+:\S+", text):
        raise ConfigError(f"proxy_credentials_file {file} holds no NAME:PASSWORD in one line")
    return text


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    return next(((name, environ[name]) for name in names if environ.get(name)), (names[0], ""))


def _excepted(host: str, exceptions: str) -> bool:
    """Whether `no_proxy` names the host: itself, a domain above it, a network, or `*`."""
    bare = host.strip("[]").lower()
    for entry in filter(None, (each.strip().lower() for each in exceptions.split(","))):
        if entry == "*" or bare == entry.lstrip(".") or bare.endswith("." + entry.lstrip(".")) or _within(bare, entry):
            return True
    return False


def _within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    bare = host.strip("[]").lower()
    return bare == "localhost" or _within(bare, "127.0.0.0/8") or bare == "::1"
