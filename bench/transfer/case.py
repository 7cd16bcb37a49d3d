"""One case in two processes of its own, and the CPU that both spend on the transfer.

What runs in such a process stands outside `__main__`: a spawned process imports no package's `__main__`. What it needs is
imported before its clock starts.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe

from bench.transfer.setting import Setting


def run(server: Callable[[Setting, Pipe], None], client: Callable[[Setting, int], None], setting: Setting) -> float:
    """One case in two fresh processes; CPU seconds of the transfer, both ends together."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    ours2, theirs2 = spawn.Pipe()
    serving = spawn.Process(target=_serve, args=(server, setting, theirs))
    serving.start()
    port = ours.recv()
    calling = spawn.Process(target=_call, args=(client, setting, port, theirs2))
    calling.start()
    client_s = ours2.recv()
    ours.send("stop")
    server_s = ours.recv()
    for process in (calling, serving):
        process.join()
        if process.exitcode:
            sys.exit(f"a process of the benchmark failed with {process.exitcode}")
    return float(client_s + server_s)


def _serve(server: Callable[[Setting, Pipe], None], setting: Setting, pipe: Pipe) -> None:
    before = cpu_s()
    server(setting, pipe)  # sends its port, returns when told to stop
    pipe.send(cpu_s() - before)


def _call(client: Callable[[Setting, int], None], setting: Setting, port: int, pipe: Pipe) -> None:
    before = cpu_s()
    client(setting, port)
    pipe.send(cpu_s() - before)


def cpu_s() -> float:
    """User and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
