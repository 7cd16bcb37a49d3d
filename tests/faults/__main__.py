"""Random fault runs by seed: `python -m tests.faults --seeds 1-200 [--resume FILE]`.

Each seed is a process of its own in a network namespace of its own; about twenty seconds on two idle cores. With
`--resume` the file says which seeds passed, with which schedule and which code: they are not run again unless the schedule
that the seed draws, or a line of the daemons or of the fault runs, has changed. A seed that fails keeps its folder; its
exit code is 1, as it is where seeds that are there for resumed transfers resumed none. Needs Linux, a C compiler, iproute2,
/dev/net/tun, and root or user namespaces that users may make.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from histofed.base import durable
from tests.faults.runs import seeds
from tests.faults.runs.rig import template
from tests.faults.runs.schedule import Schedule, draw
from tests.faults.runs.shim import build
from tests.faults.runs.transfers import NOTHING, Resumed

_MORE_TRIES: Final = 2
LIMIT_S: Final = 1200.0
"""A seed that takes longer is stuck in the harness itself."""
_TAIL: Final = 25
_TRIED: Final = ("agent", "aggregator", "histofed", "tests/faults/runs", "tests/support")


@dataclass(frozen=True)
class Outcome:
    """How a seed ended."""

    seed: int
    violations: tuple[str, ...]
    seconds: float
    recovery_s: float
    """From the last fault to the end of the experiment."""
    struck: Mapping[str, int]
    """Daemon → calls that its disk refused."""
    exits: tuple[tuple[str, int], ...]
    """Daemons that ended by themselves, with their exit codes."""
    resumed: Resumed = NOTHING


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds; 0 when all passed."""
    options = _parser().parse_args(arguments)
    if missing := wanting():
        print(f"fault runs need {' and '.join(missing)} on this machine", file=sys.stderr)
        return 2
    tried = code()
    passed = _passed(options.resume)
    wanted = [seed for seed in options.seeds if not _proves(passed.get(str(seed), {}), seed, tried)]
    print(f"{len(options.seeds)} seeds, {len(options.seeds) - len(wanted)} passed before with this code", flush=True)
    options.keep.mkdir(parents=True, exist_ok=True)
    if options.resume is not None:
        options.resume.parent.mkdir(parents=True, exist_ok=True)
    failed, resumed = list[int](), NOTHING
    with (
        tempfile.TemporaryDirectory(prefix="histofed-faults-") as name,
        template(Path(name)),
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        outcomes = pool.map(lambda seed: run_seed(seed, Path(name), options.keep), wanted)
        for seed, outcome in zip(wanted, outcomes, strict=False):
            resumed += outcome.resumed
            print(_told(outcome, draw(seed)), flush=True)
            if outcome.violations:
                failed.append(seed)
                if options.stop:
                    pool.shutdown(cancel_futures=True)
                    break
            else:
                # read again: another runner may have written meanwhile
                passed = _passed(options.resume) | {
                    str(seed): {"schedule": fingerprint(draw(seed)), "code": tried, "seconds": outcome.seconds}
                }
                _remember(options.resume, passed)
        meets = set(seeds.MEETING) <= set(wanted) and not failed
        for _ in range(_MORE_TRIES if meets else 0):
            if not resumed.idle:
                break
            # when a fault strikes depends on the machine, too: a slow one may miss every transfer once
            print(f"{resumed}: the seeds whose faults meet transfers run once more", flush=True)
            for outcome in pool.map(lambda seed: run_seed(seed, Path(name), options.keep), seeds.MEETING):
                resumed += outcome.resumed
                failed += [outcome.seed] if outcome.violations else []
    print(f"{len(wanted) - len(failed)} of {len(wanted)} passed" + (f"; failed: {failed}" if failed else ""), end="")
    print(f"; {resumed}", flush=True)
    if idle := meets and resumed.idle:
        print("no part with bytes was opened again: name seeds whose faults meet transfers in tests/faults/runs/seeds.py")
    return 1 if failed or idle else 0


def wanting() -> list[str]:
    """What this machine lacks, in words."""
    programs = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "cc": "a C compiler"}
    missing = [f"{name} ({what})" for name, what in programs.items() if shutil.which(name) is None]
    if not Path("/dev/net/tun").exists():
        missing.append("/dev/net/tun (`modprobe tun`)")
    elif not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        missing.append("root, or the right to open /dev/net/tun")
    return missing


def run_seed(seed: int, template_folder: Path, keep: Path) -> Outcome:
    """One seed in a process and a network of its own; its folder stays below `keep` when it fails."""
    folder = keep / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    words = [str(seed), str(build(template_folder)), str(template_folder), str(folder)]
    command = [*_in_own_network(), sys.executable, "-m", "tests.faults.runs.one", *words]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        output, complaint = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        output, complaint = "", f"no end within {LIMIT_S:.0f} s: {error}"
    outcome = _outcome(seed, output, complaint, time.monotonic() - begin)
    if not outcome.violations:
        shutil.rmtree(folder)
    return outcome


def fingerprint(schedule: Schedule) -> str:
    """The same for the same schedule; a seed that draws another one is another seed."""
    return hashlib.sha256(repr(schedule).encode()).hexdigest()[:16]


def code() -> str:
    """A digest of what a seed runs: the daemons, what they share, and the fault runs themselves."""
    root = Path(__file__).parents[2]
    sources = sorted(path for name in _TRIED for path in (root / name).rglob("*") if path.suffix in {".py", ".c", ".sql"})
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _proves(found: Mapping[str, Any], seed: int, tried: str) -> bool:
    return bool(found) and (found["schedule"], found.get("code")) == (fingerprint(draw(seed)), tried)


def _in_own_network() -> list[str]:
    unshare = ["unshare", "--net", "--kill-child"]
    return unshare if os.geteuid() == 0 else [*unshare, "--user", "--map-root-user"]


def _outcome(seed: int, output: str, complaint: str, seconds: float) -> Outcome:
    lines = output.splitlines()
    try:
        document: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = "\n".join(complaint.splitlines()[-_TAIL:])
        return Outcome(seed, (f"harness: it ended without a word:\n{last}",), round(seconds, 1), 0.0, {}, ())
    exits = tuple((name, code) for name, code in document["exits"])
    return Outcome(
        seed,
        tuple(document["violations"]),
        document["seconds"],
        document["recovery_s"],
        document["struck"],
        exits,
        Resumed(**document["resumed"]),
    )


def _told(outcome: Outcome, schedule: Schedule) -> str:
    lines = [f"seed {outcome.seed}: {'FAILED' if outcome.violations else 'passed'} in {outcome.seconds} s"]
    lines[0] += f" ({outcome.recovery_s} s after the last fault)"
    lines[0] += f", {', '.join(type(fault).__name__ for _, fault in schedule.faults)}"
    lines[0] += f"; {outcome.resumed}"
    if outcome.exits:
        lines[0] += f"; ended by themselves: {outcome.exits}"
    return "\n".join([*lines, *(f"    {line}" for line in outcome.violations)])


def _passed(file: Path | None) -> dict[str, Any]:
    if file is None or not file.exists():
        return {}
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def _remember(file: Path | None, passed: Mapping[str, Any]) -> None:
    if file is not None:
        durable.replace(file, json.dumps(passed, indent=1, sort_keys=True).encode(), mode=0o644)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=seeds.parse, default="fast", help="for example 1-200, or 3,7,9-12; or `fast`")
    parser.add_argument("--resume", type=Path, help="a file that remembers which seeds passed; those are not run again")
    parser.add_argument("--keep", type=Path, default=Path("build/faults"), help="where failed seeds leave their folders")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time; each waits more than it works")
    parser.add_argument("--stop", action="store_true", help="stop at the first seed that fails")
    return parser


if __name__ == "__main__":
    sys.exit(main())
