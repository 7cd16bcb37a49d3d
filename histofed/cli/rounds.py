"""`histofed rounds list | show | watch`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from histofed.base.errors import UsageError
from histofed.cli.command import Answer, Commands, Finished, Terminal, add_command, add_group, ask
from histofed.cli.tables import between, encoding, fields, losses, moment, short, size, span, table, trained
from histofed.cli.views import Round, Task, document, round_in_list


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group."""
    group = add_group(commands, "rounds", "List and watch rounds.")
    parser = add_command(group, "list", list_all, "List rounds, oldest first.", common)
    parser.add_argument("experiment", nargs="?", default="", metavar="EXPERIMENT", help="only of this experiment")
    parser = add_command(group, "show", show, "Show one round with each site's task.", common)
    parser.add_argument("experiment", metavar="EXPERIMENT")
    parser.add_argument("round", type=number, metavar="ROUND")
    parser = add_command(
        group,
        "watch",
        watch,
        "Watch an experiment until it ends, or is paused with no round open: a live view, or a line per change when stdout "
        "is no terminal. With --json one document per line. Exits 65 when it failed or was cancelled, 75 when it is paused.",
        common,
    )
    parser.add_argument("experiment", metavar="EXPERIMENT")
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="give up when the aggregator cannot be reached for so long (default 600)",
    )


def number(text: str) -> int:
    """A round's number. Raises what argparse turns into a usage error."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a round, such as 3")
    return int(text)


def list_all(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for the rounds."""
    found = ask(args.config, lambda operator: operator.rounds(args.experiment))
    return Answer(
        {"rounds": [round_in_list(one) for one in found]}, round_table(found) if found else "There is no round yet."
    )


def show(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for one round."""
    found = ask(args.config, lambda operator: operator.round(args.experiment, args.round))
    facts = [
        ("round", f"{found.experiment}/{found.round}"),
        ("state", found.state + (f": {found.reason}" if found.reason else "")),
        ("opened", moment(found.opened_at)),
        ("deadline", moment(found.deadline)),
        ("committed", moment(found.committed_at)),
        ("eligible", ", ".join(found.eligible)),
        ("sampled", ", ".join(found.sampled)),
        ("admitted", ", ".join(found.admitted)),
        ("needs", f"{found.quorum} admitted updates, closes at {found.enough}"),
        *(("refused", f"{refusal.site}: {refusal.reason}") for refusal in found.refused),
        ("base", found.base_digest or "-"),
        ("model", found.model_digest or "-"),
        ("metrics", losses(trained(found.metrics))),
        *(("encoding", text) for text in encoding(found.metrics)),
    ]
    return Answer({"round": document(found)}, f"{fields(facts)}\n\n{task_table(found.tasks)}")


def watch(args: argparse.Namespace, terminal: Terminal) -> Finished:
    """Follow the experiment; the terminal decides how. Raises `UsageError`."""
    from histofed.cli.watch import run

    if not args.patience >= 0:
        raise UsageError("--patience is at least 0 seconds")
    return run(args.config, args.experiment, args.patience, terminal, as_json=args.json)


def round_table(found: Sequence[Round]) -> str:
    """One line per round."""
    rows = []
    for one in found:
        took = between(one.opened_at, one.committed_at)
        rows.append(
            (
                one.experiment,
                str(one.round),
                one.state,
                f"{len(one.admitted)}/{len(one.sampled)}",
                ", ".join(one.sampled),
                span(took.total_seconds()) if took else "-",
                losses(trained(one.metrics)),
                short(one.model_digest),
                one.reason or "; ".join(f"{refusal.site}: {refusal.reason}" for refusal in one.refused),
            )
        )
    headings = ("EXPERIMENT", "ROUND", "STATE", "ADMITTED", "SAMPLED", "TOOK", "MEANS", "MODEL", "REASON")
    return table(headings, rows)


def task_table(tasks: Sequence[Task]) -> str:
    """One line per site of a round."""
    rows = [
        (
            one.site,
            one.kind,
            one.state,
            str(one.attempt),
            f"{one.phase} {one.done}/{one.total}" if one.phase else "-",
            size(one.update_bytes) if one.update_bytes else "-",
            losses(one.losses),
            one.reason,
        )
        for one in tasks
    ]
    return table(("SITE", "KIND", "STATE", "ATTEMPT", "PHASE", "UPDATE", "LOSSES", "REASON"), rows)
