"""`histofed experiments submit | draw | list | show | pause | resume | cancel`."""

from __future__ import annotations

import argparse
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histofed.base.errors import AlreadyThere, BadData
from histofed.cli.command import Answer, Commands, Terminal, add_command, add_group, ask
from histofed.cli.tables import fields, moment, quoted, short, table
from histofed.cli.views import Experiment, document

if TYPE_CHECKING:
    from histofed.cli.client import OperatorClient

SIZE_LIMIT = 64 * 1024
"""Bytes of an experiment file; `histofed.base.experiment.SIZE_LIMIT`, whose pydantic is too slow to import here."""


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group."""
    group = add_group(commands, "experiments", "Submit, list and steer experiments.")
    parser = add_command(
        group, "submit", submit, "Submit an experiment; the same file again is the same experiment.", common
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="experiment file, TOML")
    add_command(group, "list", list_all, "List all experiments, newest first.", common)
    parser = add_command(group, "show", show, "Show one experiment and its file.", common)
    parser.add_argument("name", metavar="NAME")
    parser = add_command(group, "draw", draw, "Draw an experiment's first weights, as the aggregator would.", common)
    parser.add_argument("file", type=Path, metavar="FILE", help="experiment file, TOML")
    parser.add_argument("--out", type=Path, required=True, metavar="WEIGHTS", help="a new file, safetensors")
    for name, handler, summary in (
        ("pause", pause, "Begin no new round until it is resumed; an open round goes on to its end or its deadline."),
        ("resume", resume, "Go on with the next round."),
        ("cancel", cancel, "End it for good: its open round is abandoned, and the sites stop what they do for it."),
    ):
        parser = add_command(group, name, handler, summary, common)
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("--reason", default="", metavar="TEXT", help="for the journal and for whoever looks")


def submit(args: argparse.Namespace, _: Terminal) -> Answer:
    """Send the file; the aggregator checks it and says why when it cannot run."""
    toml = read_experiment(args.file)
    found, strangers = ask(args.config, lambda operator: _submit(operator, toml))
    if found.ended:
        raise AlreadyThere(
            f"experiment {found.name} was submitted before and is {found.state}: nothing begins. "
            "A new run needs a new name in the file"
        )
    text = f"Experiment {found.name} is {found.state}: {found.rounds} rounds of recipe {found.recipe}."
    config = f"--config {shlex.quote(str(args.config))} " if args.config else ""
    watch = f"Watch it with: histofed {config}rounds watch {found.name}"
    note = f"histofed: not enrolled yet: {', '.join(strangers)}; is the name in [sampling] right?" if strangers else ""
    return Answer({"experiment": document(found), "not_enrolled": [*strangers]}, f"{text}\n{watch}", note=note)


async def _submit(operator: OperatorClient, toml: str) -> tuple[Experiment, list[str]]:
    """The experiment, and the sites that its file names and that are not enrolled."""
    found = await operator.submit(toml)
    named = _named_sites(toml)
    enrolled = {site.name for site in await operator.sites()} if named else set()
    return found, sorted(named - enrolled)


def _named_sites(toml: str) -> frozenset[str]:
    """What `[sampling] sites` says; the aggregator has checked the file."""
    return frozenset(tomllib.loads(toml).get("sampling", {}).get("sites", ()))


def draw(args: argparse.Namespace, _: Terminal) -> Answer:
    """Make here what an aggregator without torch is then given: `histofed-aggregator first NAME WEIGHTS`."""
    from histofed.base.experiment import parse_experiment
    from histofed.base.hashing import sha256_file
    from histofed.base.seeds import seed
    from histofed.recipes.registry import recipe

    found = parse_experiment(read_experiment(args.file))
    if args.out.exists():
        raise AlreadyThere(f"{args.out} exists: name a new file")
    try:
        workshop = recipe(found.file.recipe).workshop()
    except ImportError as error:
        raise BadData(f"recipe {found.file.recipe} cannot draw here ({error}): install histofed[agent]") from error
    workshop.initialise(found.file.recipe_config, seed("initialise", found.name), args.out)
    digest = sha256_file(args.out)
    text = f"{args.out}: the first weights of {found.name}, SHA-256 {digest}"
    next_step = f"Next, at the aggregator: histofed-aggregator first {found.name} WEIGHTS"
    return Answer({"experiment": found.name, "sha256": digest}, f"{text}\n{next_step}")


def list_all(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for all experiments."""
    found = ask(args.config, lambda operator: operator.experiments())
    text = experiment_table(found) if found else "There is no experiment yet: histofed experiments submit FILE"
    return Answer({"experiments": [document(one) for one in found]}, text)


def show(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for one experiment."""
    found, toml = ask(args.config, lambda operator: operator.experiment(args.name))
    facts = [
        ("experiment", found.name),
        ("recipe", found.recipe),
        ("state", found.state + (f": {found.reason}" if found.reason else "")),
        ("rounds", f"{found.rounds_committed} of {found.rounds} committed" + _open(found)),
        ("model", found.model_digest or "-"),
        ("file", f"SHA-256 {found.sha256}"),
        ("submitted", f"{moment(found.created_at)} by {found.submitted_by}"),
        ("ended", moment(found.ended_at)),
    ]
    return Answer({"experiment": document(found), "toml": toml}, f"{fields(facts)}\n\n{quoted(toml)}")


def pause(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for a pause, and say what still goes on."""
    found = ask(args.config, lambda operator: operator.pause(args.name, args.reason))
    if found.ended:  # its last round was committed in this moment
        return _steered(found, "there is nothing to pause")
    if found.open_round:
        return _steered(found, f"round {found.open_round}, which is open, goes on to its end or its deadline; none follows")
    return _steered(found, f"no round is open, and none begins until: histofed experiments resume {found.name}")


def resume(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask it to go on."""
    found = ask(args.config, lambda operator: operator.resume(args.name, args.reason))
    begins = (
        f"round {found.open_round} is open" if found.open_round else "the next round begins when enough sites are present"
    )
    return _steered(found, begins)


def cancel(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for its end."""
    found = ask(args.config, lambda operator: operator.cancel(args.name, args.reason))
    return _steered(found, f"{found.rounds_committed} of {found.rounds} rounds were committed, and their models stay")


def _steered(found: Experiment, words: str) -> Answer:
    return Answer({"experiment": document(found)}, f"Experiment {found.name} is {found.state}: {words}.")


def read_experiment(path: Path) -> str:
    """The file's text. Raises `BadData` when it cannot be an experiment."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise BadData(f"{path} is larger than {SIZE_LIMIT} bytes, so it is not an experiment file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text, so it is not an experiment file") from error


def _open(found: Experiment) -> str:
    return f", round {found.open_round} is open" if found.open_round else ""


def experiment_table(found: Sequence[Experiment]) -> str:
    """One line per experiment."""
    rows = [
        (
            one.name,
            one.recipe,
            one.state,
            f"{one.rounds_committed}/{one.rounds}",
            short(one.model_digest),
            moment(one.created_at),
            one.reason,
        )
        for one in found
    ]
    return table(("EXPERIMENT", "RECIPE", "STATE", "ROUNDS", "MODEL", "CREATED", "REASON"), rows)
