"""How long `make demo` takes from an environment that is built, and whether it is the federation it should be.

    python -m bench.demo [--json FILE]

The same script as `make demo`, in a folder of its own, with drawn tiles. The folder is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.result import Result, at_most, hand_over

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python -m bench.demo"
TARGET_S = 300.0
ROUNDS, SITES, SAMPLED = 3, 4, (2, 3)
"""At least so many rounds, exactly so many hospitals, so many of them sampled in each round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as name:
        hand_over(measure(Path(name) / "demo"), options.json)


def measure(folder: Path) -> list[Result]:
    """Run the demo once, then ask what it left behind."""
    demo = [sys.executable, "scripts/demo.py", "--folder", str(folder)]
    begin = time.monotonic()
    subprocess.run([*demo, "run"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begin
    subprocess.run([*demo, "up"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    try:
        rounds, sites = ask(folder, "rounds")["rounds"], ask(folder, "sites")["sites"]
    finally:
        subprocess.run([*demo, "down"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    committed = [each for each in rounds if each["state"] == "committed"]
    odd = [each for each in committed if len(each["sampled"]) not in SAMPLED]
    return [
        at_most("make demo", seconds, "s", TARGET_S, COMMAND),
        exactly("make demo, committed rounds", len(committed), ROUNDS, len(committed) >= ROUNDS),
        exactly("make demo, hospitals", len(sites), SITES, len(sites) == SITES),
        exactly("make demo, rounds not of 2-3 sampled sites", len(odd), 0, not odd),
    ]


def exactly(name: str, value: int, target: int, met: bool) -> Result:
    """A row that counts."""
    return Result(name, value, "", target, met, None, COMMAND)


def ask(folder: Path, what: str) -> Any:
    """`histofed WHAT list --json` as the demo's operator."""
    histofed = str(Path(sys.executable).parent / "histofed")
    command = [histofed, "--config", str(folder / "operator.toml"), "--json", what, "list"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


if __name__ == "__main__":
    main()
