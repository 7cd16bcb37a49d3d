"""Children from a nursery: their own processes in every way, quick to start, and dead when nobody holds their leash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from histofed.base import nursery as nursery_module
from histofed.base.errors import WorkerLost
from histofed.base.nursery import Child, Nursery, end_of_killed_group
from tests.support.processes import children, has_ended, open_descriptors

PROGRAM = """
import os, signal, sys, time
IMPORTED_BY = os.getpid()

def main():
    what = sys.argv[1]
    if what == "facts":
        own = [os.getpid() != IMPORTED_BY, os.getsid(0) == os.getpid(), sys.argv[2] == str(os.getppid())]
        os.write(1, (repr(own) + os.environ["GREETING"] + sys.stdin.read()).encode())
        os.write(3, b"extra")
        print("complaint", file=sys.stderr)
        return 7
    if what == "descriptors":
        os.write(1, " ".join(sorted(os.listdir("/proc/self/fd"))).encode())
    if what == "exit":
        sys.exit(5)
    if what == "raise":
        raise ValueError("of the child")
    if what == "sleep":
        os.write(1, b"x")
        time.sleep(600)
    if what == "grandchild":
        if os.fork() == 0:
            os.write(1, str(os.getpid()).encode() + b" ")
            time.sleep(600)
    return 0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "newborn.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    return "newborn"


@pytest.fixture
def newborn() -> Callable[[], list[int]]:
    """The children of this process since the test began: earlier tests may have left some that live as long as it."""
    before = frozenset(children())
    return lambda: [child for child in children() if child not in before]


@pytest.fixture
async def nursery(module: str) -> AsyncIterator[Nursery]:
    made = Nursery(module, {"GREETING": "hello "})
    yield made
    await made.close()


class Pipes:
    """A file for the child's input, pipes for what it writes."""

    def __init__(self) -> None:
        self.given = os.open(os.devnull, os.O_RDONLY)
        self._pipes = [os.pipe() for _ in range(3)]

    @property
    def theirs(self) -> tuple[int, ...]:
        return self.given, *(write_end for _, write_end in self._pipes)

    async def read(self, number: int, size: int = 4096) -> str:
        return (await asyncio.to_thread(os.read, self._pipes[number - 1][0], size)).decode()

    def close(self) -> None:
        for descriptor in (self.given, *(end for pipe in self._pipes for end in pipe)):
            os.close(descriptor)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    made.close()


async def test_a_child_is_a_process_of_its_own_with_the_descriptors_it_was_given(nursery: Nursery, pipes: Pipes) -> None:
    child = await nursery.start(["facts", "@parent"], pipes.theirs)
    assert child is not None
    assert await child.wait() == 7 == child.returncode
    assert await pipes.read(1) == "[True, True, True]hello "
    assert await pipes.read(2) == "complaint\n"
    assert await pipes.read(3) == "extra"
    await child.close()


async def test_the_second_child_comes_from_the_same_nursery(
    newborn: Callable[[], list[int]], nursery: Nursery, pipes: Pipes
) -> None:
    for _ in range(2):
        child = await nursery.start(["exit"], pipes.theirs)
        assert child is not None
        assert await child.wait() == 5
        await child.close()
    assert len(newborn()) == 1


async def test_an_error_of_the_child_is_its_own(nursery: Nursery, pipes: Pipes) -> None:
    child = await nursery.start(["raise"], pipes.theirs)
    assert child is not None
    assert await child.wait() == 1
    assert "ValueError: of the child" in await pipes.read(2)
    await child.close()
    after = await nursery.start(["exit"], pipes.theirs)
    assert after is not None, "the nursery lives"
    await after.close()


async def test_a_child_has_nothing_open_of_its_siblings(nursery: Nursery, pipes: Pipes) -> None:
    sleeping = await nursery.start(["sleep"], pipes.theirs)
    assert sleeping is not None
    await pipes.read(1)
    child = await nursery.start(["descriptors"], pipes.theirs)
    assert child is not None
    await child.wait()
    # 0 to 3, and the folder that is listed
    assert (await pipes.read(1)).split() == ["0", "1", "2", "3", "4"]
    await child.close()
    await sleeping.close()


async def test_a_signal_is_the_return_code(nursery: Nursery, pipes: Pipes) -> None:
    child = await nursery.start(["sleep"], pipes.theirs)
    assert child is not None
    await pipes.read(1)
    child.send_signal(signal.SIGTERM)
    assert await child.wait() == -signal.SIGTERM
    child.send_signal(signal.SIGTERM)  # it has ended: nothing happens
    await child.close()


async def test_closing_kills_the_child_and_what_it_started(nursery: Nursery, pipes: Pipes) -> None:
    child = await nursery.start(["grandchild"], pipes.theirs)
    assert child is not None
    grandchild = int((await pipes.read(1)).strip())
    await child.wait()
    await child.close()
    assert await asyncio.to_thread(has_ended, grandchild, 10)


async def test_a_child_that_sigkill_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in uninterruptible sleep, where no test can bring a process; this one has no process at all."""
    monkeypatch.setattr(nursery_module, "KILLED_S", 0.05)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        child = Child(2**22 + 1, *await asyncio.open_connection(sock=ours))
        with pytest.raises(WorkerLost, match=r"process 4194305 did not end .* restart this machine"):
            await child.close()
        heard = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(theirs, 1), 20)
        assert heard == b"", "the nursery learns that nobody holds the leash"
    await child.wait()


def leading(program: str) -> subprocess.Popen[bytes]:
    """A process that leads a group of its own and has said that it is there."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    return process


async def test_a_group_has_ended_when_its_processes_have_though_nobody_buries_them() -> None:
    """Orphans are buried by the first process, which in a container may be the agent."""
    with leading("print('here')") as process:
        assert await asyncio.to_thread(has_ended, process.pid, 20)
        os.killpg(process.pid, 0)  # it is still there, as a zombie
        await end_of_killed_group(process.pid)
    await end_of_killed_group(process.pid)


@pytest.mark.parametrize(
    "program",
    [
        "import time; print('here', flush=True); time.sleep(600)",
        # as a thread that hangs in a GPU's driver: of the process only a zombie is seen
        "import ctypes, threading\nlibc = ctypes.CDLL(None)\nthreading.Thread(target=libc.sleep, args=(600,)).start()\n"
        "print('here', flush=True); libc.pthread_exit(None)",
    ],
    ids=["whole", "one thread"],
)
async def test_a_process_of_the_group_that_goes_on_is_told(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(nursery_module, "KILLED_S", 0.3)
    with leading(program) as process:
        with pytest.raises(WorkerLost, match=rf"process {process.pid} of the group .* did not end .* restart this machine"):
            await end_of_killed_group(process.pid)
        process.kill()


async def test_a_child_of_a_killed_nursery_is_told_as_killed_and_another_nursery_follows(
    newborn: Callable[[], list[int]], nursery: Nursery, pipes: Pipes
) -> None:
    child = await nursery.start(["sleep"], pipes.theirs)
    assert child is not None
    await pipes.read(1)
    (process,) = newborn()
    os.kill(process, signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    await child.close()
    after = await nursery.start(["exit"], pipes.theirs)
    assert after is not None
    assert await after.wait() == 5
    await after.close()


async def test_without_a_nursery_the_answer_is_none(
    newborn: Callable[[], list[int]], pipes: Pipes, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = Nursery("histofed.no_such_module", {})
    assert await nowhere.start(["exit"], pipes.theirs) is None
    assert "started the long way" in caplog.text
    await nowhere.close()
    assert newborn() == []


async def test_a_nursery_that_hangs_is_not_waited_for(
    newborn: Callable[[], list[int]],
    nursery: Nursery,
    pipes: Pipes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = await nursery.start(["exit"], pipes.theirs)
    assert first is not None
    await first.close()
    monkeypatch.setattr(nursery_module, "_START_S", 0.2)
    (process,) = newborn()
    os.kill(process, signal.SIGSTOP)
    assert await nursery.start(["exit"], pipes.theirs) is None
    assert "no child of the newborn nursery" in caplog.text


async def test_cancelling_a_start_leaves_no_child(nursery: Nursery, pipes: Pipes) -> None:
    starting = asyncio.create_task(nursery.start(["sleep"], pipes.theirs))
    await asyncio.sleep(0)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    child = await nursery.start(["exit"], pipes.theirs)
    assert child is not None
    assert await child.wait() == 5
    await child.close()


async def test_no_descriptor_is_left_open(nursery: Nursery, pipes: Pipes) -> None:
    async def once() -> None:
        child = await nursery.start(["exit"], pipes.theirs)
        assert child is not None
        await child.wait()
        await child.close()

    await once()
    before = open_descriptors()
    await once()
    assert open_descriptors() == before


def test_nursery_and_child_die_with_the_daemon(module: str) -> None:
    program = (
        "import asyncio, os\nfrom histofed.base.nursery import Nursery\n"
        "async def main():\n"
        "    nursery = Nursery('newborn', {'GREETING': ''})\n"
        "    child = await nursery.start(['sleep'], (0, 1, 2))\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        child = int(daemon.stdout.readline().replace(b"x", b""))
        (process,) = children(daemon.pid)
        daemon.kill()
    assert has_ended(process, 10)
    assert has_ended(child, 10)
