"""What a hospital's server pays for an agent that waits: memory and CPU of the idle daemon.

    python -m bench.idle [--seconds 20] [--json FILE]

A real agent, enrolled at a real aggregator on this machine, connected and waiting for work. The baseline of its memory is
an interpreter that has imported grpc and nothing else, in the same run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.result import Result, at_most, hand_over
from tests.support.federation import Federation

COMMAND = "python -m bench.idle"
TARGET_MB = 100.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long it is watched (default: 20)")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as name:
        hand_over(measure(Path(name), options.seconds), options.json)


def measure(folder: Path, seconds: float) -> list[Result]:
    """Watch one agent."""
    with Federation(folder) as federation:
        federation.start_aggregator()
        federation.enrol("north")
        agent = federation.start_agent("north")
        agent.wait_notified("waits for work")
        before, begin = cpu_seconds(agent.pid), time.monotonic()
        time.sleep(seconds)
        share = 100 * (cpu_seconds(agent.pid) - before) / (time.monotonic() - begin)
        resident = resident_mb(agent.pid)
    return [
        at_most("idle agent, resident memory", resident, "MB", TARGET_MB, COMMAND, bare_mb()),
        at_most("idle agent, CPU", share, "% of a core", None, COMMAND, None),
    ]


def bare_mb() -> float:
    """Resident memory of an interpreter with grpc."""
    program = "import grpc.aio; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return parse_resident(done.stdout)


def resident_mb(pid: int) -> float:
    """VmRSS of a process, in MB (10^6 bytes)."""
    return parse_resident(Path(f"/proc/{pid}/status").read_text())


def parse_resident(status: str) -> float:
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
