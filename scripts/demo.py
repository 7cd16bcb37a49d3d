#!/usr/bin/env python3
"""`make demo`: a federation of one aggregator and four hospitals on this machine, as real processes with real mutual TLS.

    python scripts/demo.py run    everything from nothing: tiles, certificates, enrolment, training, model, report
    python scripts/demo.py up     start the five daemons again on the same state and leave them running
    python scripts/demo.py down   stop them

`run` leaves no process behind, whatever happens. Its exit code is 0 only when every round committed and the model's
signature was verified. What it does between is what an operator and four hospitals do, with the same commands.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from demolib.commands import Operator
from demolib.daemons import Daemon, DemoError, stop_all
from demolib.experiment import facts_of, require_all_committed, submit, watch
from demolib.federation import (
    daemons_of,
    enrol,
    make_federation,
    start_agents,
    start_aggregator,
    stopped_at_the_end,
    stopped_if_it_fails,
)
from demolib.layout import Layout
from demolib.report import write_report
from demolib.wishes import Wishes, check

from histofed.base.errors import HistofedError

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(sys.executable).with_name("histofed")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three; 0 when all went well."""
    options = _parser().parse_args(argv)
    layout = Layout(options.folder.resolve())
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs begin with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        options.action(layout, options)
    except (DemoError, HistofedError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted; the daemons that it started are stopped, their state is kept\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/demo.py", description="A federation on one machine.")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo", metavar="DIR", help="where everything goes (demo/)")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    start = actions.add_parser("run", help="everything from nothing")
    start.set_defaults(action=_run)
    start.add_argument("--data", type=Path, metavar="DIR", help="real tiles, split over the hospitals by patient")
    start.add_argument("--experiment", type=Path, default=ROOT / "examples/demo.toml", metavar="FILE")
    start.add_argument("--rounds", type=int, metavar="N", help="instead of the experiment's")
    start.add_argument("--size", type=int, metavar="PX", help="edge of the tiles, instead of the experiment's")
    start.add_argument("--patients", type=int, default=4, metavar="N", help="drawn, per class and hospital")
    start.add_argument("--tiles", type=int, default=10, metavar="N", help="drawn, per patient")
    start.add_argument("--seed", type=int, default=0, metavar="S", help="of the drawn tiles, or of the split")
    start.add_argument("--keep", action="store_true", help="one more experiment in the federation that is there")
    actions.add_parser("up", help="start the daemons again").set_defaults(action=_up)
    actions.add_parser("down", help="stop them").set_defaults(action=_down)
    return parser


def _run(layout: Layout, options: argparse.Namespace) -> None:
    """The demo, step by step."""
    wishes = Wishes(
        options.data,
        options.experiment,
        options.rounds,
        options.size,
        options.patients,
        options.tiles,
        options.seed,
        options.keep,
    )
    say, begin = _story(), time.monotonic()
    daemons, operator = daemons_of(layout), Operator(layout.operator)
    check(wishes)
    _clear(layout, daemons, keep=wishes.keep)
    with stopped_at_the_end(daemons, say):
        if not layout.made:
            make_federation(layout, wishes, say)
            start_aggregator(daemons[0], operator, say)
            enrol(layout, operator, say)
        else:
            start_aggregator(daemons[0], operator, say)
        start_agents(daemons, operator, say)

        name = submit(layout, wishes, operator)
        say(f"experiment {name} is submitted; training begins")
        watch(layout, name, operator, daemons)

        say("fetching the model and verifying its signature")
        operator.ask("models", "pull", name, "--out", layout.model)
        verified = operator.ask("models", "verify", layout.model, "--ca", layout.root / "ca.crt")
        facts = facts_of(layout, wishes, name, operator, verified, time.monotonic() - begin)
    write_report(facts, layout)
    require_all_committed(facts)
    say("done: nothing runs any more")
    _show_results(layout)


def _clear(layout: Layout, daemons: Sequence[Daemon], *, keep: bool) -> None:
    """An empty folder, unless it is kept. Refuses to delete a folder that no demo made."""
    if any(daemon.running() for daemon in daemons):
        raise DemoError("the demo's daemons are running: stop them first with `make demo-down`")
    if layout.root.exists() and not keep:
        others = [one for one in layout.root.iterdir() if one != layout.samples or any(one.iterdir())]
        if others and not (layout.root / "aggregator").is_dir():
            raise DemoError(f"{layout.root} holds something that is no demo; name another folder with --folder")
        shutil.rmtree(layout.root)
    # sheets are named by round alone: those of an earlier experiment must not pass for this one's
    shutil.rmtree(layout.samples, ignore_errors=True)
    layout.samples.mkdir(parents=True)


def _up(layout: Layout, _: argparse.Namespace) -> None:
    """Start what does not run, wait until it works, leave it running."""
    if not layout.made:
        raise DemoError("there is no demo here yet: run `make demo` first")
    say, daemons, operator = _story(), daemons_of(layout), Operator(layout.operator)
    with stopped_if_it_fails(daemons):
        start_aggregator(daemons[0], operator, say)
        start_agents(daemons, operator, say)
    say(f"running; try: {_near(PROGRAM)} --config {_near(layout.operator)} status; stop with `make demo-down`")


def _down(layout: Layout, _: argparse.Namespace) -> None:
    say, daemons = _story(), daemons_of(layout)
    running = [daemon.name for daemon in daemons if daemon.running()]
    killed = stop_all(daemons[1:]) + stop_all(daemons[:1])
    if killed:
        raise DemoError(f"did not stop in time and had to be killed: {', '.join(killed)}")
    say(f"stopped {', '.join(running)}" if running else "nothing was running")


def _show_results(layout: Layout) -> None:
    sheets = sorted(layout.samples.glob("round-*.png"))
    for what, path in (
        ("report", layout.report),
        ("samples", sheets[-1] if sheets else layout.samples),
        ("model", layout.model),
        ("logs", layout.aggregator / "log"),
        ("", layout.root / "sites/*/log"),
    ):
        sys.stdout.write(f"  {what:<8} {_near(path)}\n")
    sys.stdout.write(f"  again    make demo-up && {_near(PROGRAM)} --config {_near(layout.operator)} rounds list\n")


def _near(path: Path) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _story() -> Callable[[str], None]:
    """Prints steps with the seconds since the start."""
    begin = time.monotonic()

    def say(sentence: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - begin:5.1f} s] {sentence}\n")
        sys.stdout.flush()

    return say


if __name__ == "__main__":
    sys.exit(main())
