"""`histofed status`: the aggregator in one screen."""

from __future__ import annotations

import argparse

from histofed.cli.command import Answer, Commands, Terminal, add_command, ask
from histofed.cli.experiments import experiment_table
from histofed.cli.tables import between, fields, moment, span
from histofed.cli.views import Status, document


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the command."""
    add_command(commands, "status", run, "Show the aggregator in one screen.", common)


def run(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for the status."""
    found = ask(args.config, lambda operator: operator.status())
    return Answer(document(found), render(found))


def render(found: Status) -> str:
    """The screen: a few facts, what is wrong, what runs."""
    up = between(found.started_at, found.now)
    facts = [
        ("federation", found.federation),
        ("aggregator", f"histofed {found.version}" + (f", up {span(up.total_seconds())}" if up else "")),
        ("clock", f"{moment(found.now)} UTC"),
        ("sites", f"{found.sites_connected} connected of {found.sites_enrolled} enrolled"),
        ("journal", f"{found.journal_records} records" + (f", head {found.journal_head}" if found.journal_head else "")),
    ]
    facts += [("attention", sentence) for sentence in found.conditions] or [("condition", "all is well")]
    running = experiment_table(found.experiments) if found.experiments else "No experiment is running."
    return f"{fields(facts)}\n\n{running}"
