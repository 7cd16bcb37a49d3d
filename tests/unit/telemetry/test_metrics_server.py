"""The metrics port: few threads whoever connects, and a scrape when they have gone."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from histofed.telemetry import metrics_server
from histofed.telemetry.metrics import PrometheusMetrics
from histofed.telemetry.metrics_server import CONNECTIONS, MetricsServer


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    serving = PrometheusMetrics().serve("127.0.0.1", 0)
    yield serving
    serving.close()


@contextlib.contextmanager
def silent(server: MetricsServer, count: int) -> Iterator[list[socket.socket]]:
    """Connections that ask for nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10)) for _ in range(count)]


def scrape(server: MetricsServer, host: str = "127.0.0.1") -> bytes:
    with urllib.request.urlopen(f"http://{host}:{server.port}/metrics", timeout=10) as answer:
        page: bytes = answer.read()
        return page


def test_connections_that_ask_for_nothing_take_few_threads(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "IDLE_S", 60)
    before = threading.active_count()
    with silent(server, CONNECTIONS + 20) as connections:
        assert [one.recv(1) for one in connections[CONNECTIONS:]] == [b""] * 20, "closed at once"
        assert threading.active_count() <= before + CONNECTIONS


def test_connections_that_ask_for_nothing_are_cut(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics_server, "IDLE_S", 0.05)
    with silent(server, CONNECTIONS) as connections:
        assert [one.recv(1) for one in connections] == [b""] * CONNECTIONS
        assert b"histofed_rounds_total" in scrape(server)
    assert capfd.readouterr() == ("", "")


def test_connections_that_never_come_to_an_end_are_cut(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """However often they say something."""
    monkeypatch.setattr(metrics_server, "WHOLE_S", 0.2)
    with silent(server, CONNECTIONS) as connections:
        assert all(map(cut_while_it_talks, connections))
        assert b"histofed_rounds_total" in scrape(server)
    assert capfd.readouterr() == ("", "")


def cut_while_it_talks(connection: socket.socket) -> bool:
    """A byte of a header again and again, for some seconds at most."""
    connection.settimeout(0.05)
    with contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        for _ in range(100):
            with contextlib.suppress(TimeoutError):
                return connection.recv(1) == b""
            connection.sendall(b"a")
        return False
    return True


def test_an_address_of_version_6_serves_too() -> None:
    with contextlib.closing(PrometheusMetrics().serve("::1", 0)) as server:
        assert b"histofed_rounds_total" in scrape(server, "[::1]")
