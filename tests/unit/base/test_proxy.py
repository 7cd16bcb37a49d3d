"""The way through a proxy: who decides on it, and what is said when it does not open."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from histofed.base.errors import AggregatorUnavailable, ConfigError
from histofed.base.proxy import Proxy, ProxySetting, connect, find

HOST = "aggregator.example.org"
ENVIRONMENT = {"HTTPS_PROXY": "http://proxy.example.org:3128"}


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        (None, {}, None),
        (None, ENVIRONMENT, ("proxy.example.org:3128", "HTTPS_PROXY")),
        (None, {**ENVIRONMENT, "https_proxy": "low:1"}, ("low:1", "https_proxy")),
        (None, {"http_proxy": "http://plain:1"}, None),
        ("none", ENVIRONMENT, None),
        ("http://ours:8080", ENVIRONMENT, ("ours:8080", "the setting proxy")),
        ("ours:8080", {}, ("ours:8080", "the setting proxy")),
        ("http://[2001:db8::1]:8080/", {}, ("[2001:db8::1]:8080", "the setting proxy")),
        (None, {**ENVIRONMENT, "no_proxy": "example.org"}, None),
        (None, {**ENVIRONMENT, "NO_PROXY": "other.org, .example.org"}, None),
        (None, {**ENVIRONMENT, "NO_PROXY": "le.org"}, ("proxy.example.org:3128", "HTTPS_PROXY")),
        (None, {**ENVIRONMENT, "NO_PROXY": "*"}, None),
        ("ours:8080", {"NO_PROXY": HOST}, None),
    ],
)
def test_who_decides(setting: str | None, environ: dict[str, str], expected: tuple[str, str] | None) -> None:
    found = find(ProxySetting(setting), HOST, environ)
    assert (found and (found.address, found.origin)) == expected


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "[::1]"])
def test_the_environment_is_not_asked_about_this_machine(host: str) -> None:
    assert find(ProxySetting(), host, ENVIRONMENT) is None
    assert find(ProxySetting("ours:1"), host, ENVIRONMENT) is not None


@pytest.mark.parametrize(("host", "direct"), [("10.1.2.3", True), ("10.2.2.3", False), ("2001:db8::7", False)])
def test_networks_in_no_proxy(host: str, direct: bool) -> None:
    assert (find(ProxySetting("ours:1"), host, {"no_proxy": "10.1.0.0/16"}) is None) == direct


@pytest.mark.parametrize(
    "url", ["https://proxy:3128", "proxy", "http://proxy", "proxy:0", "proxy:70000", "socks5://p:1", ""]
)
def test_what_is_no_proxy(url: str) -> None:
    with pytest.raises(ConfigError, match="write it as http://HOST:PORT"):
        ProxySetting(url)


def test_a_password_does_not_belong_into_an_address() -> None:
    with pytest.raises(ConfigError, match="proxy_credentials_file") as caught:
        find(ProxySetting(), HOST, {"https_proxy": "http://user:geheim@proxy:1"})
    assert "geheim" not in str(caught.value)


def test_credentials_come_from_a_file_and_are_not_printed(tmp_path: Path) -> None:
    secret(tmp_path / "file", "user:geheim\n")
    found = find(ProxySetting("ours:1", tmp_path / "file"), HOST, {})
    assert found is not None
    assert found.url == "http://user:geheim@ours:1"
    assert "geheim" not in repr(found)


@pytest.mark.parametrize("text", ["", "user", "a b:c"])
def test_a_file_without_credentials(text: str, tmp_path: Path) -> None:
    secret(tmp_path / "file", text)
    with pytest.raises(ConfigError, match="no NAME:PASSWORD"):
        find(ProxySetting("ours:1", tmp_path / "file"), HOST, {})


def test_a_password_may_hold_what_an_address_may_not(tmp_path: Path) -> None:
    """gRPC takes the proxy as a URI, in which these end the address or mean another character."""
    secret(tmp_path / "file", "us@er:p#/?%41:ä\n")
    found = find(ProxySetting("ours:1", tmp_path / "file"), HOST, {})
    assert found is not None
    assert found.url == "http://us%40er:p%23%2F%3F%2541%3A%C3%A4@ours:1"


def test_grpc_says_the_password_that_we_say(tmp_path: Path) -> None:
    """One and the same proxy is asked by gRPC for calls and by ourselves in `doctor`."""
    secret(tmp_path / "file", "us@er:p#/?%41:ä\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        found = find(ProxySetting(f"127.0.0.1:{server.getsockname()[1]}", tmp_path / "file"), HOST, {})
        assert found is not None
        options = [("grpc.enable_http_proxy", 1), ("grpc.http_proxy", found.url)]
        with grpc.insecure_channel(f"{HOST}:8443", options=options) as channel:
            # a call, for a subscription's thread may still ask a channel that was closed, and dies aloud
            call: grpc.Future[bytes] = channel.unary_unary("/any/Thing", None, None).future(b"")
            with server.accept()[0] as peer:
                peer.settimeout(10)
                asked = peer.recv(4096).decode()
            call.cancel()
    wanted = base64.b64encode("us@er:p#/?%41:ä".encode()).decode()
    assert f"Proxy-Authorization: Basic {wanted}" in asked


def test_a_password_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    secret(tmp_path / "file", "user:geheim\n", mode=0o644)
    with pytest.raises(ConfigError, match="everybody can read: chmod 640"):
        find(ProxySetting("ours:1", tmp_path / "file"), HOST, {})


def secret(file: Path, text: str, mode: int = 0o640) -> None:
    file.write_text(text)
    file.chmod(mode)


# --- through it -----------------------------------------------------------------------------------------------------------

Answering = Callable[[bytes], Proxy]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """A proxy that gives one answer and repeats what follows."""
    server = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve(answer: bytes) -> None:
        with server.accept()[0] as peer:
            asked.append(peer.recv(4096))
            peer.sendall(answer)
            while data := peer.recv(4096):
                peer.sendall(data)

    def start(answer: bytes) -> Proxy:
        threading.Thread(target=serve, args=(answer,), daemon=True).start()
        return Proxy("127.0.0.1", server.getsockname()[1], "the setting proxy", "user:geheim")

    yield start
    server.close()
    if asked:
        assert asked[0].startswith(b"CONNECT aggregator.example.org:8443 HTTP/1.1\r\nHost: aggregator.example.org:8443\r\n")
        assert b"Proxy-Authorization: Basic dXNlcjpnZWhlaW0=\r\n" in asked[0]


def test_a_tunnel_carries_what_follows(answering: Answering) -> None:
    proxy = answering(b"HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\nfirst")
    with connect(proxy, HOST, 8443, 5) as tunnel:
        assert tunnel.recv(5) == b"first"
        tunnel.sendall(b"ping")
        assert tunnel.recv(4) == b"ping"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Access violation\r\n\r\n", r"\(403 Access violation\): ask its administrator to allow CONNECT to "),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "it wants NAME:PASSWORD"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "cannot reach the aggregator"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "is no HTTP proxy"),
        (b"HTTP/1.1 2", "is no HTTP proxy"),
    ],
)
def test_what_is_said_when_it_does_not_open(answering: Answering, answer: bytes, words: str) -> None:
    proxy = answering(answer + b"\r\n\r\n" * (not answer.endswith(b"\r\n\r\n")))
    with pytest.raises(AggregatorUnavailable, match=words) as caught:
        connect(proxy, HOST, 8443, 5)
    assert "geheim" not in str(caught.value)


def test_a_proxy_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(AggregatorUnavailable, match="cannot be reached: Connection refused; check its address"):
        connect(Proxy("127.0.0.1", port, "HTTPS_PROXY"), HOST, 8443, 5)


def test_a_proxy_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = Proxy("127.0.0.1", server.getsockname()[1], "HTTPS_PROXY")
        with pytest.raises(AggregatorUnavailable, match="gave no answer"):
            connect(proxy, HOST, 8443, 0.2)
