"""`histofed train`: train a generator in one place, where the tiles are. No federation is needed."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from histofed.base.clock import SystemClock
from histofed.base.errors import BadData, Cancelled, UsageError
from histofed.base.ids import Json
from histofed.cli.command import Answer, Commands, Terminal, add_command
from histofed.cli.tables import fields, losses, span
from histofed.cli.training_show import TrainingShow, training_show

if TYPE_CHECKING:
    from histofed.recipes.gan.settings import Settings

GO_ON: Final = "run the same command again to go on"


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the command; `common` without `--config`, which here names a file of settings."""
    parser = add_command(
        commands,
        "train",
        train,
        "Train a generator in one place. Everything goes to OUT: model.safetensors (the generator), run.json (what was run "
        "and whether it is the paper's), sample sheets, a TensorBoard log and a checkpoint. Ctrl-C keeps what was done; the "
        "same command goes on from there, on a CPU with the same result, bit for bit.",
        common,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--preset", metavar="NAME", help="one of `histofed presets`, for example default")
    what.add_argument(
        "--config", dest="settings", type=Path, metavar="FILE", help="a TOML file with a table [recipe] instead"
    )
    what.add_argument(
        "--set", action="append", default=[], type=_assignment, metavar="KEY=VALUE", help="change a value, e.g. batch=16"
    )
    what.add_argument("--steps", type=int, metavar="N", help="train for N steps instead")
    what.add_argument("--epochs", type=int, metavar="N", help="train for N passes over the tiles instead")
    what.add_argument("--init", choices=("random",), help="start at random where the preset wants a weights file")
    what.add_argument("--weights", type=Path, metavar="FILE", help="the weights file that the preset wants")
    what.add_argument("--weights-sha256", metavar="HEX", help="the SHA-256 that the weights file must have")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="(default 0)")
    where = parser.add_argument_group("where, and how much now")
    where.add_argument("--data", type=Path, required=True, metavar="DIR", help="the tiles; see `histofed data check`")
    where.add_argument("--out", type=Path, metavar="DIR", help="(default runs/NAME)")
    where.add_argument("--max-steps", type=int, metavar="N", help="stop after N steps now, and keep them")
    where.add_argument("--restart", action="store_true", help="forget what OUT holds of an earlier run")
    where.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")
    where.add_argument("--devices", type=int, default=1, metavar="N", help="so many GPUs at once (default 1)")
    where.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: torch chooses)")
    where.add_argument("--sheet-every", type=int, default=200, metavar="N", help="steps between sample sheets (default 200)")
    where.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (default 60)"
    )
    where.add_argument("--cache", type=Path, metavar="DIR", help="decoded tiles (default ~/.cache/histofed/tiles)")


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key.strip(), value.strip()


def train(args: argparse.Namespace, terminal: Terminal) -> Answer:
    """Train or go on. Raises what `train_centrally` raises, `UsageError` and `BadData`."""
    _check_numbers(args)
    settings = _settings(args)
    out = args.out or Path("runs") / settings.name.replace("/", "-")
    _check_out(out)
    clock = SystemClock()
    with training_show(terminal, clock) as show, _stop_on_signals(show) as stop:
        show.phase("starting")
        # torch takes seconds; nothing before this line needs it
        from histofed.recipes.gan.central import train_centrally
        from histofed.recipes.gan.central_task import CentralTask
        from histofed.tiles.store import TileStore, default_directory

        task = CentralTask(
            settings=settings,
            data=args.data,
            out=out,
            seed=args.seed,
            device=args.device,
            devices=args.devices,
            threads=args.threads,
            max_steps=args.max_steps,
            sheet_every=args.sheet_every,
            checkpoint_seconds=args.checkpoint_every,
            store=TileStore(args.cache or default_directory(os.environ)),
            restart=args.restart,
        )
        try:
            record = train_centrally(task, show, stop, clock)
        except Cancelled as error:
            raise Cancelled(f"{str(error).partition(';')[0]}; {GO_ON}") from error
    return _answer(record, out)


def _check_numbers(args: argparse.Namespace) -> None:
    least = {"max_steps": 1, "threads": 0, "sheet_every": 0, "checkpoint_every": 0, "seed": 0}
    for name, smallest in least.items():
        found = getattr(args, name)
        if found is not None and not smallest <= found < 2**63:
            raise UsageError(f"--{name.replace('_', '-')} is at least {smallest} and below 2^63; {found} was given")


def _check_out(out: Path) -> None:
    """OUT is a folder, or will be one. Raises `BadData` for a file, there or on the way."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadData(f"{there} is a file, and --out takes a folder: name another one")


def _settings(args: argparse.Namespace) -> Settings:
    from histofed.recipes.gan.settings import Changes, from_file, from_preset, parse_value
    from histofed.recipes.presets import load

    if (args.preset is None) == (args.settings is None):
        raise UsageError("say what to train: either --preset NAME (`histofed presets` lists them) or --config FILE")
    changes = Changes(
        steps=args.steps,
        epochs=args.epochs,
        values={key: parse_value(value) for key, value in args.set},
        random_start=args.init == "random",
        weights=args.weights,
        weights_sha256=args.weights_sha256,
    )
    if args.preset is not None:
        return from_preset(load(args.preset), changes)
    return from_file(args.settings, changes)


@contextlib.contextmanager
def _stop_on_signals(show: TrainingShow) -> Iterator[_Stop]:
    stop = _Stop(show)
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    """True after Ctrl-C or SIGTERM; the second one ends at once, and so does the first while there is nothing to keep."""

    def __init__(self, show: TrainingShow) -> None:
        self._show, self._asked = show, False

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked or not self._show.training:
            raise KeyboardInterrupt
        # nothing is printed here: the signal may have come in the middle of a print
        self._asked = True

    def __call__(self) -> bool:
        if self._asked:
            self._show.phase("stopping: keeping what was done")
        return self._asked


def _answer(record: Mapping[str, Json], out: Path) -> Answer:
    found: dict[str, Any] = dict(record)
    paths = {
        "model": str(out / "model.safetensors"),
        "sheet": str(out / "samples" / "latest.png"),
        "record": str(out / "run.json"),
        "checkpoint": str(out / "checkpoint.safetensors"),
        "tensorboard": str(out / "tensorboard"),
    }
    kept = ("state", "settings", "paper", "not_the_papers", "step", "steps", "images", "seconds", "losses", "notes")
    document = {**{key: found[key] for key in kept}, "out": str(out), "files": paths}
    finished = found["state"] == "finished"
    head = f"{'Trained' if finished else 'Stopped after'} {found['step']} of {found['steps']} steps"
    lines: Sequence[tuple[str, str]] = [
        ("images", f"{found['images']} in {span(found['seconds'])}"),
        ("mean losses", losses(found["losses"])),
        ("model", paths["model"]),
        ("sample sheet", paths["sheet"]),
        ("record", paths["record"]),
        *(("note", note) for note in found["notes"]),
    ]
    if found["settings"].startswith("paper/"):
        lines = [*lines, ("the paper's", "yes, as far as it can be told" if found["paper"] else "no")]
        lines = [*lines, *(("because", reason) for reason in found["not_the_papers"])]
    return Answer(document, f"{head}\n{fields(lines)}", note="" if finished else f"histofed: {GO_ON}")
