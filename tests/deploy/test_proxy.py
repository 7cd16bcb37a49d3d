"""A hospital behind a real proxy (tinyproxy): enrolment and rounds through CONNECT, and what is said when it refuses."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.rootfs import need
from tests.support.federation import Federation, free_ports, mean_experiment


class Tinyproxy:
    """The proxy, on the loopback, with the ports to which it opens tunnels."""

    def __init__(self, folder: Path, open_ports: list[int], more: str = "") -> None:
        need(tinyproxy="tinyproxy")
        (self.port,) = free_ports(1)
        self._log = folder / f"tinyproxy-{self.port}.log"
        config = folder / f"tinyproxy-{self.port}.conf"
        ports = "".join(f"ConnectPort {port}\n" for port in open_ports)
        config.write_text(
            f"Port {self.port}\nListen 127.0.0.1\nTimeout 600\nAllow 127.0.0.1\nLogLevel Connect\n"
            f'LogFile "{self._log}"\n{ports}{more}\n'
        )
        self._process = subprocess.Popen(["tinyproxy", "-d", "-c", config], stdout=subprocess.DEVNULL)
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.close()
            raise

    def _wait_until_it_listens(self) -> None:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except ConnectionRefusedError:
                assert time.monotonic() < end, "tinyproxy did not start"
                assert self._process.poll() is None, "tinyproxy ended"
                time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tunnels(self) -> set[int]:
        """The ports that were asked for."""
        return set(map(int, re.findall(r"CONNECT [^ :]+:(\d+) HTTP", self._log.read_text())))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with Federation(tmp_path) as found:
        found.start_aggregator()
        yield found


def behind(federation: Federation, proxy: Tinyproxy, extra: str = "") -> None:
    """Site `north`, whose file names the proxy."""
    federation.write_site("north", extra=f'proxy = "{proxy.url}"\n{extra}')


def doctor(federation: Federation, code: int) -> str:
    return federation.command("agent.cli", "doctor", "--config", str(federation.site("north") / "agent.toml"), code=code).out


def test_a_site_works_through_the_proxy(federation: Federation, tmp_path: Path) -> None:
    ports = [federation.ports["grpc"], federation.ports["enrolment"]]
    proxy = Tinyproxy(tmp_path, ports)
    try:
        behind(federation, proxy)
        federation.enroll("north", federation.join_line("north"))
        federation.start_agent("north")
        federation.submit(mean_experiment("through", rounds=2, extra="[sampling]\nminimum = 1"))
        ended = federation.wait_until_ended("through")
        assert ended["experiment"]["state"] == "finished"
        assert proxy.tunnels() == set(ports)
        assert f"through the proxy 127.0.0.1:{proxy.port}" in doctor(federation, code=0) + doctor(federation, code=0)
    finally:
        proxy.close()


def test_a_proxy_that_refuses_the_port(federation: Federation, tmp_path: Path) -> None:
    """What most hospitals' proxies do with ports other than 443."""
    proxy = Tinyproxy(tmp_path, [443])
    try:
        behind(federation, proxy)
        done = federation.enroll("north", federation.join_line("north"), code=69)
        port = federation.ports["enrolment"]
        assert f"refuses to connect to localhost:{port} (403" in done.error
        assert f"ask its administrator to allow CONNECT to localhost, port {port}" in done.error
    finally:
        proxy.close()


def test_a_proxy_that_wants_a_password(federation: Federation, tmp_path: Path) -> None:
    ports = [federation.ports["grpc"], federation.ports["enrolment"]]
    proxy = Tinyproxy(tmp_path, ports, more="BasicAuth hospital geheim")
    try:
        behind(federation, proxy)
        line = federation.join_line("north")
        done = federation.enroll("north", line, code=69)
        assert "it wants NAME:PASSWORD; write them into a proxy_credentials_file" in done.error
        (tmp_path / "credentials").write_text("hospital:geheim\n")
        (tmp_path / "credentials").chmod(0o600)
        behind(federation, proxy, extra=f'proxy_credentials_file = "{tmp_path / "credentials"}"\n')
        federation.enroll("north", line)
        agent = federation.start_agent("north")
        assert agent.wait_logged("connected")
    finally:
        proxy.close()


def test_a_proxy_that_goes_away_is_named(federation: Federation, tmp_path: Path) -> None:
    proxy = Tinyproxy(tmp_path, [federation.ports["grpc"], federation.ports["enrolment"]])
    try:
        behind(federation, proxy)
        federation.enroll("north", federation.join_line("north"))
    finally:
        proxy.close()
    assert f"the proxy 127.0.0.1:{proxy.port} (the setting proxy) cannot be reached" in doctor(federation, code=1)
