"""`histofed sites list`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from histofed.cli.command import Answer, Commands, Terminal, add_command, add_group, ask
from histofed.cli.tables import moment, table
from histofed.cli.views import Site, document


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group."""
    group = add_group(commands, "sites", "See the hospitals of the federation.")
    add_command(group, "list", list_all, "List every site that ever enrolled, by name.", common)


def list_all(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for the sites."""
    found = ask(args.config, lambda operator: operator.sites())
    text = site_table(found) if found else "No site has enrolled yet: histofed token create --site NAME"
    return Answer({"sites": [document(one) for one in found]}, text)


def site_table(found: Sequence[Site]) -> str:
    """One line per site."""
    rows = [
        (
            one.name,
            "connected" if one.connected else "away",
            one.version or "-",
            moment(one.last_seen_at),
            moment(one.enrolled_at),
            moment(one.certificate_expires_at),
            str(one.updates_admitted),
        )
        for one in found
    ]
    return table(("SITE", "LINK", "VERSION", "LAST SEEN", "ENROLLED", "CERTIFICATE UNTIL", "UPDATES"), rows)
