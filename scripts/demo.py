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
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demolib.commands import Operator, command, run
from demolib.daemons import Daemon, DemoError, stop_all
from demolib.layout import CLASSES, SITES, Layout, Ports, write_aggregator, write_experiment, write_site
from demolib.report import Facts, write_report

from histofed.base.errors import HistofedError

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
"""A daemon that does not answer by then has failed; a loaded machine takes 10."""
SILENT_SECONDS = 10.0
"""Before a reader is told what is waited for, and again and again."""
SHEET_SEED = 7
"""The same noise on every sheet, so that a column shows one sample growing up."""


@dataclass(frozen=True)
class Wishes:
    """What the caller asked for."""

    data: Path | None
    experiment: Path
    rounds: int | None
    size: int | None
    patients: int
    tiles: int
    seed: int
    keep: bool


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
        sys.stderr.write("demo: interrupted; the daemons are stopped, their state is kept\n")
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
    daemons, operator = _daemons(layout), Operator(layout.operator)
    _check(wishes)
    _clear(layout, daemons, keep=wishes.keep)
    with _stopped_at_the_end(daemons, say):
        if not layout.made:
            _make_federation(layout, wishes, say)
            _start_aggregator(daemons[0], operator, say)
            _enrol(layout, operator, say)
        else:
            _start_aggregator(daemons[0], operator, say)
        _start_agents(daemons, operator, say)

        name = _submit(layout, wishes, operator)
        say(f"experiment {name} is submitted; training begins")
        _watch(layout, name, operator, daemons)

        say("fetching the model and verifying its signature")
        operator.ask("models", "pull", name, "--out", layout.model)
        verified = operator.ask("models", "verify", layout.model, "--ca", layout.root / "ca.crt")
        facts = _facts(layout, wishes, name, operator, verified, time.monotonic() - begin)
    write_report(facts, layout)
    _require_all_committed(facts)
    say("done: nothing runs any more")
    _show_results(layout)


def _check(wishes: Wishes) -> None:
    """What was asked for can be used; nothing of an earlier demo is removed before. Raises `DemoError`, `BadData`."""
    if not wishes.experiment.is_file():
        raise DemoError(f"there is no experiment file {wishes.experiment}")
    if wishes.data is None:
        return
    if not wishes.data.is_dir():
        raise DemoError(f"there is no folder of tiles {wishes.data}")
    from histofed.tiles.folder import scan
    from histofed.tiles.split import assign

    assign(scan(wishes.data.resolve(), CLASSES), SITES, wishes.seed)


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


def _make_federation(layout: Layout, wishes: Wishes, say: Callable[[str], None]) -> None:
    """Tiles, configuration files, the CA, the aggregator's and the operator's certificates."""
    _make_tiles(layout, wishes, say)
    write_aggregator(layout, Ports.find())
    for site in SITES:
        write_site(layout, site, largest_size=256, steps=2000)
    say("making the federation: its CA, the aggregator's certificate, the operator's certificate")
    run("histofed-aggregator", "init", "--config", layout.aggregator_config, "--operator-dir", layout.root)


def _make_tiles(layout: Layout, wishes: Wishes, say: Callable[[str], None]) -> None:
    if wishes.data is not None:
        from histofed.tiles.split import split_by_patient

        counts = split_by_patient(wishes.data.resolve(), CLASSES, SITES, wishes.seed, layout.tiles)
        words = ", ".join(f"{site} {count}" for site, count in counts.items())
        say(f"split the tiles of {wishes.data} over four hospitals, by patient: {words}")
        return
    from histofed.tiles.draw import draw_tiles

    say("drawing H&E-like tiles for four hospitals, each with its own stain (DATA=DIR uses real ones)")
    drawn = draw_tiles(layout.tiles, SITES, wishes.patients, wishes.tiles, wishes.size or 64, wishes.seed)
    say(f"drew {drawn.tiles} tiles of {drawn.patients} patients")


def _daemons(layout: Layout) -> list[Daemon]:
    """The aggregator first."""
    aggregator = command("histofed-aggregator", "run", "--config", layout.aggregator_config)
    agents = [
        Daemon(f"agent {site}", layout.site(site), command("histofed-agent", "run", "--config", layout.agent_config(site)))
        for site in SITES
    ]
    return [Daemon("aggregator", layout.aggregator, aggregator), *agents]


@contextlib.contextmanager
def _stopped_at_the_end(daemons: Sequence[Daemon], say: Callable[[str], None]) -> Iterator[None]:
    """Agents first, so that the aggregator hears them leave. Raises `DemoError` when one had to be killed."""
    try:
        yield
    finally:
        say("stopping the daemons")
        killed = stop_all(daemons[1:]) + stop_all(daemons[:1])
    if killed:
        raise DemoError(f"did not stop in time and had to be killed: {', '.join(killed)}")


def _start_aggregator(aggregator: Daemon, operator: Operator, say: Callable[[str], None]) -> None:
    say("starting the aggregator")
    aggregator.start()
    _until("the aggregator answers", lambda: _answers(operator), [aggregator], say)


def _enrol(layout: Layout, operator: Operator, say: Callable[[str], None]) -> None:
    """A join line per hospital, handed over on stdin: a secret never stands in a command line."""
    for site in SITES:
        line = operator.ask("token", "create", "--site", site, "--ttl", "30m")["join_line"]
        config = layout.agent_config(site)
        run("histofed-agent", "enroll", "--config", config, "--join-line-file", "-", given=f"{line}\n")
    say(f"enrolled {', '.join(SITES)}: each made its key itself and got a certificate for seven days")


def _start_agents(daemons: Sequence[Daemon], operator: Operator, say: Callable[[str], None]) -> None:
    for daemon in daemons[1:]:
        daemon.start()
    _until("four hospitals are connected", lambda: operator.ask("status")["sites_connected"] == len(SITES), daemons, say)
    say("four agents are connected over mutual TLS 1.3")


def _answers(operator: Operator) -> bool:
    try:
        operator.ask("status")
    except DemoError:
        return False
    return True


def _until(what: str, true: Callable[[], bool], daemons: Sequence[Daemon], say: Callable[[str], None]) -> None:
    """Wait until it is true, and say what for when it takes long. Raises `DemoError` when a daemon ends or time is up."""
    deadline = time.monotonic() + START_SECONDS
    told = time.monotonic() + SILENT_SECONDS
    while not true():
        if time.monotonic() > told:
            told += SILENT_SECONDS
            say(f"waiting until {what}; the last lines of the logs:")
            for daemon in daemons:
                sys.stdout.write(f"          {daemon.name}: {daemon.tail(1).strip()[:400]}\n")
        for daemon in daemons:
            daemon.require()
        if time.monotonic() > deadline:
            logs = "\n".join(f"{daemon.log}:\n{daemon.tail(4)}" for daemon in daemons)
            raise DemoError(f"waited {START_SECONDS:.0f} s until {what}, in vain; the ends of the logs:\n{logs}")
        time.sleep(0.3)


def _submit(layout: Layout, wishes: Wishes, operator: Operator) -> str:
    """Submit under the next free name: demo, demo-2, ..."""
    there = {one["name"] for one in operator.ask("experiments", "list")["experiments"]}
    name = next(name for name in ("demo", *(f"demo-{number}" for number in range(2, 1000))) if name not in there)
    source = wishes.experiment.read_text(encoding="utf-8")
    write_experiment(source, layout, name=name, rounds=wishes.rounds, size=wishes.size)
    operator.ask("experiments", "submit", layout.experiment)
    return name


def _watch(layout: Layout, name: str, operator: Operator, daemons: Sequence[Daemon]) -> None:
    """The live view to the experiment's end; a sample sheet for each model as it appears."""
    view = operator.watching(name)
    try:
        while view.poll() is None:
            for daemon in daemons:
                daemon.require()
            _draw_sheets(layout, name, operator)
            with contextlib.suppress(subprocess.TimeoutExpired):
                view.wait(2.0)
    finally:
        if view.poll() is None:
            view.terminate()
            view.wait()
    if view.returncode:
        raise DemoError(f"experiment {name} did not finish; see {daemons[0].log}")
    _draw_sheets(layout, name, operator)


def _draw_sheets(layout: Layout, name: str, operator: Operator) -> None:
    """One per model that has none yet; the tensors are pulled, verified, drawn and thrown away."""
    for model in operator.ask("models", "list", name)["models"]:
        target = layout.sheet(model["round"])
        if target.exists() or not any(part["release"] for part in model["parts"]):
            continue
        tensors = layout.samples / ".tensors"
        operator.ask("models", "pull", model["digest"], "--out", tensors)
        script = Path(__file__).resolve().parent / "demolib/sheet.py"
        drawing = [sys.executable, str(script), str(layout.experiment), str(tensors), str(SHEET_SEED), str(target)]
        ended = subprocess.run(drawing, capture_output=True, text=True, check=False, timeout=600)
        for file in layout.samples.glob(".tensors*"):
            file.unlink()
        if ended.returncode:
            raise DemoError(f"the sample sheet of round {model['round']} could not be drawn: {ended.stderr.strip()}")


def _facts(
    layout: Layout, wishes: Wishes, name: str, operator: Operator, verified: dict[str, object], seconds: float
) -> Facts:
    rounds = [one["round"] for one in operator.ask("rounds", "list", name)["rounds"]]
    return Facts(
        experiment=operator.ask("experiments", "show", name),
        rounds=[operator.ask("rounds", "show", name, str(number))["round"] for number in rounds],
        sites=operator.ask("sites", "list")["sites"],
        status=operator.ask("status"),
        verified=verified,
        sheets={number: layout.sheet(number) for number in (0, *rounds) if layout.sheet(number).exists()},
        data="real tiles, split by patient" if wishes.data else "drawn tiles",
        seconds=seconds,
    )


def _require_all_committed(facts: Facts) -> None:
    committed = [one["round"] for one in facts.rounds if one["state"] == "committed"]
    wanted = facts.experiment["experiment"]["rounds"]
    missing = [number for number in committed if number not in facts.sheets]
    if len(committed) != wanted:
        raise DemoError(f"{len(committed)} of {wanted} rounds committed")
    if missing:
        raise DemoError(f"rounds without a sample sheet: {missing}")


def _up(layout: Layout, _: argparse.Namespace) -> None:
    """Start what does not run, wait until it works, leave it running."""
    if not layout.made:
        raise DemoError("there is no demo here yet: run `make demo` first")
    say, daemons, operator = _story(), _daemons(layout), Operator(layout.operator)
    try:
        _start_aggregator(daemons[0], operator, say)
        _start_agents(daemons, operator, say)
    except BaseException:
        stop_all(daemons)
        raise
    say(f"running; try: histofed --config {_near(layout.operator)} status; stop with `make demo-down`")


def _down(layout: Layout, _: argparse.Namespace) -> None:
    say, daemons = _story(), _daemons(layout)
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
    sys.stdout.write(f"  again    make demo-up && histofed --config {_near(layout.operator)} rounds list\n")


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
