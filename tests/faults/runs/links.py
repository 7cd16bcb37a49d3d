"""Each site in a network of its own, joined to the aggregator's by a link in user space that can be cut, slowed and lossy.

A process of its own (`python -m tests.faults.runs.links SITE ...`) makes a network namespace per site and a TUN device at
each end of its link, and carries the packets itself: kernels without sch_netem are common in small machines. It needs
CAP_NET_ADMIN over the namespace that it is started in, which `unshare --net` gives to root and `unshare --map-root-user
--net` to everybody where the kernel lets users make namespaces; it needs /dev/net/tun and iproute2. Nothing has a name, so
nothing stays behind: all ends with this process, which ends when its standard input does.

It prints one line of JSON, site → file descriptor of its namespace, then reads lines of JSON: a site and its rules.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.faults.runs.wire import Rules, Wire

UP, DOWN = "up", "down"
"""From the site to the aggregator; back."""
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET: Final = 0x40000000
_PACKETS_AT_ONCE: Final = 64
_libc = ctypes.CDLL(None, use_errno=True)


def hub_address(index: int) -> str:
    """The aggregator's address on the link of the index-th site."""
    return f"10.88.{index + 1}.1"


def _site_address(index: int) -> str:
    return f"10.88.{index + 1}.2"


class _Link:
    """One site's two devices and what happens between them."""

    def __init__(self, index: int, random: Random) -> None:
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.site_end, self.namespace = _in_new_namespace(here, index)
        self.hub_end = _open_tun(f"hub{index}")
        _ip("addr", "add", f"{hub_address(index)}/24", "dev", f"hub{index}")
        _ip("link", "set", f"hub{index}", "up")
        os.close(here)
        self.wires = {UP: Wire(random), DOWN: Wire(random)}
        self._ends = {UP: (self.site_end, self.hub_end), DOWN: (self.hub_end, self.site_end)}

    def take_in(self, way: str) -> None:
        """Read what one end sends."""
        source, _ = self._ends[way]
        with contextlib.suppress(BlockingIOError):
            for _ in range(_PACKETS_AT_ONCE):
                self.wires[way].send(os.read(source, 65536), time.monotonic())

    def give_out(self) -> None:
        """Hand over what is due."""
        for way, wire in self.wires.items():
            for packet in wire.arrived(time.monotonic()):
                # a device whose queue is full loses the packet, as a router would
                with contextlib.suppress(OSError):
                    os.write(self._ends[way][1], packet)


def _in_new_namespace(here: int, index: int) -> tuple[int, int]:
    """A new network namespace with a TUN device in it; both as file descriptors. This process is back `here` afterwards."""
    _check(_libc.unshare(_CLONE_NEWNET))
    try:
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        device = _open_tun("site")
        _ip("addr", "add", f"{_site_address(index)}/24", "dev", "site")
        _ip("link", "set", "site", "up")
        _ip("link", "set", "lo", "up")
    finally:
        _check(_libc.setns(here, _CLONE_NEWNET))
    return device, namespace


def _open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _serve(links: dict[str, _Link]) -> None:
    """Carry packets and follow orders until standard input ends."""
    selector = selectors.DefaultSelector()
    for link in links.values():
        selector.register(link.site_end, selectors.EVENT_READ, (link, UP))
        selector.register(link.hub_end, selectors.EVENT_READ, (link, DOWN))
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    orders = b""
    while True:
        for key, _ in selector.select(_until_due(links)):
            if key.data is not None:
                link, way = key.data
                link.take_in(way)
            elif not (data := os.read(sys.stdin.fileno(), 65536)):
                return
            else:
                *whole, orders = (orders + data).split(b"\n")
                for line in whole:
                    _follow(links, json.loads(line))
        for link in links.values():
            link.give_out()


def _follow(links: dict[str, _Link], order: dict[str, Any]) -> None:
    for way, rules in order["rules"].items():
        links[order["site"]].wires[way].rules = Rules(**rules)


def _until_due(links: dict[str, _Link]) -> float | None:
    dues = [due for link in links.values() for wire in link.wires.values() if (due := wire.next_due) is not None]
    return max(0.0, min(dues) - time.monotonic()) if dues else None


class Links:
    """The process that carries the packets, as the rig sees it; a context manager."""

    def __init__(self, sites: Sequence[str], seed: int, around: Sequence[str] = ()) -> None:
        """`around` stands before the command, for example `unshare --net`: the process has the aggregator's network."""
        command = [*around, sys.executable, "-m", __spec__.name, str(seed), *sites]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "no link between network namespaces: root or user namespaces, /dev/net/tun and iproute2 are needed"
        self._namespaces: dict[str, int] = json.loads(line)

    @property
    def hub(self) -> str:
        """The aggregator's network, as a path."""
        return f"/proc/{self._process.pid}/ns/net"

    def network(self, site: str) -> str:
        """The site's network, as a path."""
        return f"/proc/{self._process.pid}/fd/{self._namespaces[site]}"

    def entering(self, site: str) -> list[str]:
        """What stands before a command that runs in the site's network."""
        return ["nsenter", f"--net={self.network(site)}"]

    def treat(self, site: str, up: Rules, down: Rules) -> None:
        """From now on the site's packets are treated so."""
        assert self._process.stdin is not None
        order = {"site": site, "rules": {UP: asdict(up), DOWN: asdict(down)}}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main(seed: str, *sites: str) -> None:
    """The process: make the links, say so, serve."""
    assert Path("/dev/net/tun").exists(), "fault runs need /dev/net/tun: `modprobe tun`"
    random = Random(f"links of fault run {seed}")
    links = {site: _Link(index, random) for index, site in enumerate(sites)}
    print(json.dumps({site: link.namespace for site, link in links.items()}), flush=True)
    _serve(links)


if __name__ == "__main__":
    main(*sys.argv[1:])
