"""A machine with a real systemd: systemd-nspawn on the one root file system, whatever it writes is gone afterwards.

All machines share one unpacked tree, each behind an overlay of its own in memory (`--volatile=overlay`), so a machine boots
in a second and costs no disk but the one it may be given. The host needs no systemd of its own: the way in is `nsenter`.
Files come in by read-only binds, or are written through /proc/PID/root. Nothing here sleeps for an event that can be
awaited: units are waited for by `systemctl`, everything else by the machine's journal, followed line by line.

On a host with version 1 cgroups nspawn does not enforce limits of memory, CPU and tasks inside; nothing here asks it to.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from tests.deploy.rootfs import cache, content_key, held, need, rootfs

BOOT_S: Final = 60.0
COMMAND_S: Final = 120.0
_CLEAN: Final = ("env", "--ignore-environment", "--chdir=/", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")
_POWER_OFF: Final = signal.SIGRTMIN + 4
Entry = Mapping[str, Any]
"""One entry of a journal."""


def tree() -> Path:
    """The unpacked root file system that machines share and never write to."""
    tar = rootfs()
    folder = cache() / f"tree-{content_key()[:12]}"
    with held(cache() / "tree.lock"):
        if not folder.exists():
            part = folder.with_suffix(".part")
            subprocess.run(["rm", "-rf", part], check=True)
            with tarfile.open(tar) as archive:
                # devices and owners are wanted, and we made the archive ourselves
                archive.extractall(part, numeric_owner=True, filter="fully_trusted")  # noqa: S202
            part.rename(folder)
    return folder


class Machine:
    """One machine; a context manager that boots it and powers it off."""

    def __init__(
        self,
        name: str,
        *,
        binds: Mapping[Path, str] | None = None,
        disk: tuple[Path, str] | None = None,
        network: str | None = None,
    ) -> None:
        """`binds` are seen read-only inside, `disk` is written to; `network` is a namespace's path, else `lo` is alone."""
        need(systemd_nspawn="systemd-container", nsenter="util-linux", ip="iproute2")
        self.name = name
        self._binds = [f"--bind-ro={source}:{target}" for source, target in (binds or {}).items()]
        if disk is not None:
            self._binds.append(f"--bind={disk[0]}:{disk[1]}")
        self._network = network
        self._closing = ExitStack()
        self.boot_s = 0.0

    def __enter__(self) -> Machine:
        network = f"--network-namespace-path={self._network}" if self._network else "--private-network"
        self._console = cache() / f"{self.name}-{os.getpid()}.console"
        began = time.monotonic()
        with self._closing, self._console.open("wb") as console:
            self._closing.callback(self._console.unlink, missing_ok=True)
            # without systemd on the host there is nobody to register with; hence no scope of its own either
            # the inner systemd filters addresses (IPAddressDeny=) by bpf(2), which nspawn forbids by itself
            alone = [
                "--system-call-filter=bpf",
                "--register=no",
                "--keep-unit",
                "--volatile=overlay",
                "--resolv-conf=off",
                network,
            ]
            names = [f"--directory={tree()}", f"--machine={self.name}", f"--hostname={self.name}"]
            nspawn = subprocess.Popen(
                ["systemd-nspawn", "--quiet", *alone, *names, *self._binds, "--boot"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
            self._closing.callback(self._power_off, nspawn)
            self.leader = self._wait_for_leader(nspawn)
            # an installer writes this file on every machine; a minimal root file system has none
            self.write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.name}\n")
            self.write("/run/systemd/journald.conf.d/bell.conf", "[Journal]\nForwardToSyslog=yes\n")
            self.run("systemctl", "restart", "systemd-journald")
            self.run("systemctl", "is-system-running", "--wait", check=False, seconds=BOOT_S)
            self._closing = self._closing.pop_all()
        self.boot_s = time.monotonic() - began
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """Where a file of the machine is seen from outside."""
        return Path(f"/proc/{self.leader}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Write a file as root."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def entering(self, user: str = "root") -> list[str]:
        """What stands before a command that runs inside."""
        inside = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]
        return [*inside, *_CLEAN, *(["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] * (user != "root"))]

    def run(
        self,
        *command: str,
        user: str = "root",
        check: bool = True,
        text: str | None = None,
        seconds: float = COMMAND_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end. Fails with both streams when it does not exit with 0, unless told otherwise."""
        done = subprocess.run(
            [*self.entering(user), *command], input=text or "", capture_output=True, text=True, timeout=seconds, check=False
        )
        assert not check or done.returncode == 0, (
            f"{self.name}: {' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.log()}"
        )
        return done

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        wanted = [f"--property={name}" for name in properties]
        lines = self.run("systemctl", "show", unit, *wanted).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def main_pid(self, unit: str) -> int:
        """The unit's main process, as the host numbers it."""
        pid = int(self.show(unit, "MainPID")["MainPID"])
        assert pid > 1, f"{unit} does not run on {self.name}:\n{self.log()}"
        return self._outer(pid)

    def entries(self, *matches: str) -> list[Entry]:
        """What `journalctl` finds for these matches, oldest first."""
        done = self.run("journalctl", "--output=json", "--no-pager", "--all", *matches)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def log(self, lines: int = 60) -> str:
        """The end of the journal, for a failed test."""
        command = [*self.entering(), "journalctl", "--no-pager", "--output=short-monotonic", f"--lines={lines}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False).stdout

    @contextmanager
    def reading(self, *command: str) -> Iterator[IO[bytes]]:
        """What a command inside prints, as it comes; it is killed at the end."""
        # no PID namespace: into one of processes nsenter would have to fork, and a kill would miss the command
        entering = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--"]
        process = subprocess.Popen([*entering, *_CLEAN, *command], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    @contextmanager
    def following(self) -> Iterator[Follower]:
        """The journal from now on, to wait for what will be said; one at a time."""
        bell = self.path("/run/systemd/journal/syslog")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ringing:
            ringing.bind(str(bell))
            try:
                yield Follower(self, ringing)
            finally:
                bell.unlink()

    # --- outside ------------------------------------------------------------------------------------------------------

    def _wait_for_leader(self, nspawn: subprocess.Popen[bytes]) -> int:
        """The inner systemd: nspawn's child, once it has become that program and can be asked."""
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline:
            assert nspawn.poll() is None, f"{self.name} does not boot:\n{self._console.read_text()}"
            for child in children.read_text().split():
                self.leader = int(child)
                # nobody announces the moment at which the inner bus listens
                if self._answers(int(child)):
                    return int(child)
            time.sleep(0.02)
        raise AssertionError(f"{self.name} did not boot in {BOOT_S} s:\n{self._console.read_text()}")

    def _answers(self, child: int) -> bool:
        try:
            is_systemd = Path(f"/proc/{child}/comm").read_text().strip() == "systemd"
        except OSError:
            return False
        return is_systemd and self.path("/run/dbus/system_bus_socket").exists()

    def _outer(self, pid: int) -> int:
        """The host's number for the machine's process `pid`."""
        namespace = Path(f"/proc/{self.leader}/ns/pid").readlink()
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                line = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:"))
                if line.split()[-1] == str(pid) and (status.parent / "ns/pid").readlink() == namespace:
                    return int(status.parent.name)
            except (OSError, StopIteration):
                continue
        raise AssertionError(f"{self.name} has no process {pid}")

    def _power_off(self, nspawn: subprocess.Popen[bytes]) -> None:
        if nspawn.poll() is None and hasattr(self, "leader"):
            os.kill(self.leader, _POWER_OFF)
            try:
                nspawn.wait(30)
            except subprocess.TimeoutExpired:
                os.kill(self.leader, signal.SIGKILL)
        nspawn.kill()
        nspawn.wait()


class Follower:
    """The journal of a machine as it grows.

    journald forwards every line to the socket where a syslog daemon would listen, which says that there is something to
    read. (`journalctl --follow` waits for a change of the file, of which not every kernel tells.)
    """

    def __init__(self, machine: Machine, bell: socket.socket) -> None:
        self._machine = machine
        self._bell = bell
        self._unread: list[Entry] = []
        self._cursor = machine.entries("--lines=1")[-1]["__CURSOR"]

    def wait(self, wanted: Callable[[Entry], bool], what: str, seconds: float = 60.0) -> Entry:
        """The next entry that is as wanted; what came before it is not looked at again."""
        deadline = time.monotonic() + seconds
        while True:
            while self._unread:
                if wanted(entry := self._unread.pop(0)):
                    return entry
            self._read()
            left = deadline - time.monotonic()
            if not self._unread and (left <= 0 or not select.select([self._bell], [], [], left)[0]):
                words = f"{self._machine.name}: not in the journal within {seconds} s: {what}"
                raise AssertionError(f"{words}\n{self._machine.log()}")

    def wait_said(self, words: str, seconds: float = 60.0) -> Entry:
        """The next entry whose message contains `words`."""
        return self.wait(lambda entry: words in str(entry.get("MESSAGE", "")), words, seconds)

    def _read(self) -> None:
        """Whatever is new; the bell is silenced first, so that what comes meanwhile rings again."""
        while select.select([self._bell], [], [], 0)[0]:
            self._bell.recv(65536)
        # the bell rings a moment before the line is in the file
        self._machine.run("journalctl", "--sync")
        self._unread = self._machine.entries(f"--after-cursor={self._cursor}")
        if self._unread:
            self._cursor = self._unread[-1]["__CURSOR"]


def monotonic(entry: Entry) -> float:
    """When the journal received an entry, by the clock of `time.monotonic`, which machines share with their host."""
    return int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6


def wait_for_end(process: int, seconds: float) -> bool:
    """Wait until a process of the host has ended."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
