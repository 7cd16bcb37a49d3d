"""`histofed-aggregator`: make a federation, run it, look at its configuration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from histofed import __version__
from histofed.base.clock import SystemClock
from histofed.base.errors import HistofedError

if TYPE_CHECKING:
    from aggregator.config import AggregatorConfig
    from histofed.base.config import Loaded

DEFAULT_CONFIG: Final = Path("/etc/histofed/aggregator.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code of the one table (`histofed/base/errors.py`)."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except HistofedError as error:
        sys.stderr.write(f"histofed-aggregator: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="histofed-aggregator",
        description="The centre of a federation: samples sites, averages their updates, keeps the journal.",
    )
    parser.add_argument("--version", action="version", version=f"histofed-aggregator {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make the federation's CA, the aggregator's certificate and a first operator")
    init.add_argument("--operator", default="admin", metavar="NAME", help="the first operator's name (default: admin)")
    init.add_argument(
        "--operator-dir", type=Path, metavar="DIR", help="where the operator's files go (default: STATE/operator)"
    )
    init.set_defaults(run=_init)

    operator = commands.add_parser("operator", help="issue a certificate to an operator")
    operator.add_argument("name", metavar="NAME")
    operator.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder for operator.toml, certificate and key"
    )
    operator.set_defaults(run=_operator)

    run = commands.add_parser("run", help="run the daemon")
    run.set_defaults(run=_run)

    check = commands.add_parser("check", help="print each effective setting and where it comes from")
    check.set_defaults(run=_check)

    words = "say what is wrong and what to do; changes nothing; exit code 1 when something is wrong"
    doctor = commands.add_parser("doctor", help=words, description=words)
    doctor.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    doctor.set_defaults(run=_doctor)

    for command in (init, operator, run, check, doctor):
        command.add_argument("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}")
    return parser


def _load(options: argparse.Namespace) -> Loaded[AggregatorConfig]:
    from aggregator.config import AggregatorConfig
    from histofed.base.config import load

    path = options.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    return load(AggregatorConfig, name="aggregator", path=path, flags={})


def _init(options: argparse.Namespace) -> int:
    from aggregator import setup

    config = _load(options).config
    identity = setup.create(config, SystemClock())
    folder = options.operator_dir or config.state_dir / "operator"
    setup.write_operator(folder, options.operator, config, identity.authority, SystemClock())
    sys.stdout.write(
        f"federation {config.federation}: CA SHA-256 {identity.authority.sha256}\n"
        f"operator {options.operator}: {folder / 'operator.toml'} (copy the folder to the operator's machine)\n"
        "next: histofed-aggregator run\n"
    )
    return 0


def _operator(options: argparse.Namespace) -> int:
    from aggregator import setup

    config, clock = _load(options).config, SystemClock()
    issued = setup.write_operator(options.out, options.name, config, setup.load(config, clock).authority, clock)
    sys.stdout.write(f"operator {options.name}: {options.out / 'operator.toml'}, valid until {issued.not_after:%Y-%m-%d}\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    from aggregator.daemon import AggregatorService
    from histofed.base.daemon import Daemon
    from histofed.telemetry.logs import configure

    config = _load(options).config
    configure(config.log_level)
    return Daemon("histofed-aggregator", AggregatorService(config, SystemClock())).main()


def _check(options: argparse.Namespace) -> int:
    from histofed.base.config import explain

    for setting in explain(_load(options)):
        sys.stdout.write(f"{setting.key} = {setting.value}    ({setting.source})\n")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from aggregator.doctor import checks
    from histofed.base.doctor import diagnosis

    clock = SystemClock()
    findings = diagnosis(lambda: checks(_load(options), clock))
    sys.stdout.write(findings.render(as_json=options.json))
    return findings.exit_code
