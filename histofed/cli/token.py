"""`histofed token create`: a join line for one hospital."""

from __future__ import annotations

import argparse
import re

from histofed.base.ids import site_id
from histofed.cli.command import Answer, Commands, Terminal, add_command, add_group, ask
from histofed.cli.tables import moment
from histofed.cli.views import document

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SHORTEST_S = 60
LONGEST_S = 7 * 86400


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group."""
    group = add_group(commands, "token", "Let a hospital join.")
    parser = add_command(
        group,
        "create",
        create,
        "Make a join line for one site. It is a secret until it is used or expires: send it by a channel that you trust; "
        "the hospital feeds it to `histofed-agent enroll --join-line-file -`.",
        common,
    )
    parser.add_argument("--site", required=True, metavar="NAME", help="the hospital's name in the federation")
    parser.add_argument(
        "--again",
        action="store_true",
        help="for a site that has enrolled already: the certificates that it has are revoked when it enrols again",
    )
    parser.add_argument("--ttl", type=duration, default="30m", metavar="TIME", help="how long it can be used: 30m, 2h, 1d")


def duration(text: str) -> int:
    """`30m` as seconds, between a minute and a week. Raises what argparse turns into a usage error."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time from 60s to 7d, such as 30m, 2h or 1d")
    return seconds


def create(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for the token; the join line alone goes to stdout, so that it can be piped."""
    site = site_id(args.site)
    found = ask(args.config, lambda operator: operator.create_token(site, args.ttl, again=args.again))
    note = f"Join line for {found.site}, usable once until {moment(found.expires_at)} UTC:"
    return Answer(document(found), found.join_line, note)
