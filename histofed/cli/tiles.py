"""`histofed tiles make`: drawn tiles for a machine without data."""

from __future__ import annotations

import argparse
from pathlib import Path

from histofed.base.errors import UsageError
from histofed.cli.command import Answer, Commands, Terminal, add_command, add_group


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group."""
    group = add_group(commands, "tiles", "Work with tiles.")
    parser = add_command(
        group,
        "make",
        make,
        "Draw H&E-like tiles with classes and patients, in the layout of the published data sets. With --sites each "
        "hospital gets its own folder and stain. The same seed draws the same tiles.",
        common,
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--sites", type=int, default=0, metavar="N", help="draw for site-1 to site-N (default: one set)")
    parser.add_argument("--patients", type=int, default=6, metavar="N", help="per class and site (default 6)")
    parser.add_argument("--tiles", type=int, default=12, metavar="N", help="per patient (default 12)")
    parser.add_argument("--size", type=int, default=96, metavar="PX", help="edge of a tile (default 96)")
    parser.add_argument(
        "--classes",
        type=lambda text: tuple(text.split(",")),
        default=("MSIH", "nonMSIH"),
        metavar="A,B,...",
        help="some of MSIH, nonMSIH, LYM, MUC, STR (default: the first two)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")


def make(args: argparse.Namespace, _: Terminal) -> Answer:
    """Draw. Raises `UsageError` for fewer than no sites, `AlreadyThere` for a folder that is not empty."""
    from histofed.tiles.draw import draw_tiles

    if args.sites < 0:
        raise UsageError("--sites is at least 1, or left out for one set")
    sites = [f"site-{number}" for number in range(1, args.sites + 1)]
    drawn = draw_tiles(args.directory, sites, args.patients, args.tiles, args.size, args.seed, args.classes)
    found = {
        "directory": str(args.directory),
        "sites": drawn.sites,
        "patients": drawn.patients,
        "tiles": drawn.tiles,
        "classes": list(args.classes),
        "size": args.size,
        "seed": args.seed,
    }
    text = f"Drew {drawn.tiles} tiles of {drawn.patients} patients for {drawn.sites} site(s) in {args.directory}"
    return Answer(found, text)
