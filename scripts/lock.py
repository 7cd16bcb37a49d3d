#!/usr/bin/env python3
"""Lock what is installed at a site: writes deploy/lock/requirements-*.txt (`make lock`; `--check` resolves and compares).

pip resolves all extras once, against constraints.txt and wherever pip itself is told to look, so that the
locks agree with each other; torch is the CPU wheel if that is what pip finds. Wheels only, for CPython 3.11 on x86-64:
the interpreter of Debian 12, and of RHEL 9 by name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packlib.locks import Pin, canonical, render, without

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "deploy/lock"
CLOSURES: Final[Mapping[str, tuple[str, ...]]] = {
    "tools": (),
    "daemon": ("telemetry",),
    "aggregator": ("aggregator",),
    "agent": ("agent",),
}
"""Lock by lock, the extras that it is the closure of. `daemon` is what an agent needs without its trainer."""


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(
        description="Lock the distributions of agent, aggregator and tools by version and hash."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail when a lock is not what pip resolves today"
    )
    args = parser.parse_args()
    wanted = locks(resolve())
    stale = [name for name, text in wanted.items() if not _is(FOLDER / name, text)]
    if args.check:
        for name in stale:
            print(f"{FOLDER / name} is not what pip resolves; run: make lock", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(wanted[name], encoding="utf-8")
    return 0


def resolve() -> list[dict[str, Any]]:
    """pip's report: one entry per distribution, with its metadata and where it would come from."""
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-",
        "--only-binary", ":all:", "-c", str(ROOT / "constraints.txt"),
        f"{ROOT}[agent,aggregator]", "pip",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return found


def locks(report: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The text of every lock, by file name."""
    entries = {canonical(entry["metadata"]["name"]): entry for entry in report}
    pins = {name: _pin(name, entry) for name, entry in entries.items() if name != "histofed"}
    closures = {
        name: tuple(pins[each] for each in _closure(entries, "histofed", extras)) for name, extras in CLOSURES.items()
    }
    closures["pip"] = (pins["pip"],)
    closures["torch"] = without(closures["agent"], closures["daemon"])
    words = "# made by scripts/lock.py from constraints.txt (make lock); for CPython 3.11 on x86-64 Linux\n"
    return {f"requirements-{name}.txt": render(found, words + f"# {_says(name)}") for name, found in closures.items()}


def _says(lock: str) -> str:
    if lock == "torch":
        return "what a trainer needs on top of requirements-daemon.txt, which two packages can share"
    if lock == "pip":
        return "what installs the others where there is no pip"
    extras = ",".join(CLOSURES[lock])
    return f"everything that histofed{f'[{extras}]' if extras else ''} imports"


def _closure(entries: Mapping[str, Mapping[str, Any]], name: str, extras: Sequence[str]) -> set[str]:
    """The names that `name[extras]` requires, with all that those require."""
    seen: set[tuple[str, str]] = set()
    waiting = [(name, extra) for extra in ("", *extras)]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        waiting.extend(_required(entries, *at))
    return {each for each, _ in seen} - {"histofed"}


def _required(entries: Mapping[str, Mapping[str, Any]], name: str, extra: str) -> Iterator[tuple[str, str]]:
    for line in entries[name]["metadata"].get("requires_dist", ()):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for each in ("", *sorted(requirement.extras)):
                yield canonical(requirement.name), each


def _pin(name: str, entry: Mapping[str, Any]) -> Pin:
    return Pin(name, entry["metadata"]["version"], (entry["download_info"]["archive_info"]["hashes"]["sha256"],))


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
