"""`histofed presets` and `histofed presets show NAME`: what can be trained by name, and where each value comes from."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from histofed.base.errors import UsageError
from histofed.base.ids import Json
from histofed.cli.command import Answer, Commands, Terminal, add_command
from histofed.cli.tables import table

if TYPE_CHECKING:
    from histofed.recipes.presets import Preset

_LEGEND = (
    "stated: in the paper; derived: from its numbers; reconstructed: the likeliest choice; ours: chosen freely.\n"
    "Tables are the paper's own."
)
_NOT_COMPARABLE = (
    "No distance that histofed measures compares with it: the paper says neither how many images it took nor which tiles "
    "were the reference, and distances of other feature networks, counts or tiles are other scales."
)


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group, which lists when nothing more is said."""
    summary = "List the presets; `presets show NAME` explains one."
    parser = add_command(commands, "presets", list_all, summary, common)
    group = parser.add_subparsers(metavar="COMMAND", required=False, dest="command_of_group")
    add_command(group, "list", list_all, "List the presets: what the paper trained, and ours.", common)
    parser = add_command(
        group, "show", show, "Show every value of a preset, and whether the paper states it or it was reconstructed.", common
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--toml", action="store_true", help="print it as an experiment file to submit")


def list_all(_: argparse.Namespace, __: Terminal) -> Answer:
    """Every preset, a line each."""
    from histofed.recipes import presets

    found = [presets.load(name) for name in presets.names()]
    headings = ("PRESET", "OBJECTIVE", "DISCRIMINATOR", "GENERATOR", "SIZE", "LENGTH", "FEDERATION", "SUMMARY")
    rows = [
        (
            one.name,
            str(one.value("recipe.objective.name")),
            str(one.value("recipe.discriminator.name")),
            str(one.value("recipe.generator")),
            str(one.value("recipe.image_size")),
            _length(one),
            _federation(one),
            one.summary,
        )
        for one in found
    ]
    text = f"{table(headings, rows)}\nWhere a value comes from: histofed presets show PRESET"
    return Answer({"presets": [_summary(one) for one in found]}, text)


def show(args: argparse.Namespace, _: Terminal) -> Answer:
    """One preset. Raises `BadData` for an unknown name, `UsageError` for two forms at once."""
    from histofed.recipes import presets
    from histofed.recipes.presets.experiment_file import experiment_toml

    preset = presets.load(args.name)
    if args.toml and args.json:
        raise UsageError("--toml and --json are two forms of the answer; use one of them")
    if args.toml:
        text = experiment_toml(preset)
        return Answer({"toml": text}, text.rstrip("\n"))
    document = {
        **_summary(preset),
        "values": [
            {"key": key, "value": preset.value(key), "from": source.kind, "why": source.why}
            for key, source in preset.provenance.items()
        ],
        "departures_without_weights": preset.departures(),
        "fid_note": _fid(preset),
    }
    return Answer({"preset": document}, _text(preset))


def _summary(preset: Preset) -> dict[str, Json]:
    return {
        "name": preset.name,
        "summary": preset.summary,
        "objective": preset.value("recipe.objective.name"),
        "discriminator": preset.value("recipe.discriminator.name"),
        "generator": preset.value("recipe.generator"),
        "image_size": preset.value("recipe.image_size"),
        "epochs": preset.epochs,
        "steps": preset.steps,
        "federation": preset.federation,
        "weights": preset.value("weights"),
        "paper_fid": preset.fid,
    }


def _text(preset: Preset) -> str:
    rows = [
        (key, "off" if (value := preset.value(key)) is None else _words(value), source.kind, source.why)
        for key, source in preset.provenance.items()
    ]
    parts = [
        f"{preset.name}: {preset.summary}",
        table(("KEY", "VALUE", "FROM", "WHY"), rows),
        _LEGEND,
        *(f"It wants a file of weights. Without it {sentence}: not the paper's." for sentence in preset.departures()),
        _fid(preset),
    ]
    return "\n\n".join(part for part in parts if part)


def _fid(preset: Preset) -> str:
    """What the paper reports, with the warning that belongs to it; nothing where it reports nothing."""
    if preset.fid is None:
        return ""
    source = preset.provenance["fid"]
    return f"The paper reports FID {preset.fid:.2f} ({source.kind}: {source.why}). {_NOT_COMPARABLE}"


def _length(preset: Preset) -> str:
    return f"{preset.epochs} epochs" if preset.steps is None else f"{preset.steps} steps"


def _federation(preset: Preset) -> str:
    """`2 of 4 sites, 40 rounds`; `-` in central training."""
    if preset.federation is None:
        return "-"
    sites, fraction = preset.value("federation.partition.sites"), preset.value("federation.sampling.fraction")
    rounds = f"{preset.value('federation.rounds')} rounds"
    if not isinstance(sites, int) or not isinstance(fraction, float):
        return rounds
    return f"{math.ceil(sites * fraction)} of {sites} sites, {rounds}"


def _words(value: Json) -> str:
    if isinstance(value, str | int | float | bool):
        return str(value).lower() if isinstance(value, bool) else f"{value}"
    assert value is not None and not isinstance(value, Mapping), "a preset's values are scalars and lists"
    return ", ".join(map(_words, value)) or "none"
