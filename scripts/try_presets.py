"""Run every preset for a few steps on drawn tiles, each as a person would: `histofed train` in a process of its own.

    .venv/bin/python scripts/try_presets.py [--batch N] [--steps 2] [NAME ...]

Trunks start at random, because the published weights files are not here; `run.json` of each run records that. `--batch`
makes it bearable on a small machine (a step of ViT-B/16 at the preset's 32 is 10 TFLOP) and is recorded as a departure too.
Exit code 1 when a preset does not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from histofed.recipes import presets
from histofed.tiles.draw import draw_tiles


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--batch", type=int, help="instead of the preset's")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory(prefix="histofed-presets-") as name:
        scratch = Path(name)
        draw_tiles(scratch / "tiles", patients_per_class=3, tiles_per_patient=4, size=224)
        for preset in options.names or presets.names():
            began = time.monotonic()
            ok = _run(preset, scratch, options.steps, options.batch)
            failed += [] if ok else [preset]
            print(f"{preset:32} {'ran' if ok else 'FAILED':8} {time.monotonic() - began:6.0f} s", flush=True)
    return 1 if failed else 0


def _run(preset: str, scratch: Path, steps: int, batch: int | None) -> bool:
    """Whether the run ended well and its record says what it was."""
    out = scratch / preset
    command = [sys.executable, "-m", "histofed.cli.main", "train", "--preset", preset, "--data", str(scratch / "tiles")]
    command += ["--out", str(out), "--max-steps", str(steps), "--init", "random", "--cache", str(scratch / "cache")]
    command += ["--set", f"batch={batch}"] if batch else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        return False
    record = json.loads((out / "run.json").read_text())
    return bool(record["paper"] is False and (out / "model.safetensors").exists() and (out / "samples/latest.png").exists())


if __name__ == "__main__":
    sys.exit(main())
