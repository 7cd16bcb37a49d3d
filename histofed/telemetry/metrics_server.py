"""The port at which Prometheus scrapes: plain HTTP, one page, a thread for each connection and few of them.

Whoever reaches the port needs no certificate, and threads are what children are made of too: a connection that says nothing,
or has not done after some seconds, is cut, and one more than the port takes is closed at once. Made by `metrics.py`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from histofed.base.clock import SystemClock
from histofed.base.errors import ConfigError

CONNECTIONS: Final = 8
"""At once; a scrape takes some milliseconds, and few ask every some seconds."""
IDLE_S: Final = 5.0
"""Seconds in which a connection must say something, or take something."""
WHOLE_S: Final = 10.0
"""Seconds in which it must have said and taken all: whoever says a byte now and then would keep it for ever."""


class MetricsServer:
    """An HTTP server that knows one page."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        try:
            self._server = make_server(host, port, make_wsgi_app(registry), _of_family(host, port), _Connection)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served on {host}:{port}: {error.strerror}; choose another address or port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that was bound, also where 0 was asked for."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop answering and release the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._clock = SystemClock()
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._mutex = threading.Lock()
        self._begun: dict[Any, float] = {}
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, while there is one for it."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Talk with the other end, in the thread."""
        with self._mutex:
            self._begun[request] = self._clock.monotonic()
        try:
            super().finish_request(request, client_address)
        finally:
            with self._mutex:
                del self._begun[request]
            self._free.release()

    def service_actions(self) -> None:
        """Twice a second: cut the connections that take too long, none of which is closed meanwhile."""
        now = self._clock.monotonic()
        with self._mutex:
            for request, begun in self._begun.items():
                if now - begun > WHOLE_S:
                    with contextlib.suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut or said nothing is nobody's trouble here, nor is one for which there is no thread."""


class _ServerOfVersion6(_Server):
    address_family = socket.AF_INET6


class _Connection(WSGIRequestHandler):
    def setup(self) -> None:
        self.request.settimeout(IDLE_S)
        super().setup()

    def log_message(self, *message: object) -> None:
        """Requests are not logged."""


def _of_family(host: str, port: int) -> type[_Server]:
    """The server for the address. Raises `OSError` for a name that is none."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    return _ServerOfVersion6 if family is socket.AF_INET6 else _Server
