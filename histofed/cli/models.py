"""`histofed models list | pull | verify`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from histofed.base.errors import AlreadyThere, DigestMismatch, NotFound
from histofed.base.ids import Digest, Json
from histofed.cli.command import Answer, Commands, Terminal, add_command, add_group, ask, refuse_unwritable
from histofed.cli.tables import fields, moment, size, table
from histofed.cli.views import Model, document

if TYPE_CHECKING:
    from histofed.cli.client import OperatorClient
    from histofed.cli.verification import VerifiedModel
    from histofed.statements import File


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group."""
    group = add_group(commands, "models", "List, fetch and verify global models.")
    parser = add_command(group, "list", list_all, "List global models, oldest first.", common)
    parser.add_argument("experiment", nargs="?", default="", metavar="EXPERIMENT", help="only of this experiment")
    parser = add_command(
        group,
        "pull",
        pull,
        "Fetch a model: verify the aggregator's signature, download, verify SHA-256. Writes FILE and FILE.statement.json. "
        "An interrupted download goes on where it stopped. A model that was pulled before is replaced, another file never.",
        common,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="digest, its beginning (4 digits or more), or an experiment's name for its newest model",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to put it")
    parser.add_argument("--part", choices=("shared", "server"), help="default: the part that is the finished product")
    parser = add_command(group, "verify", verify, "Verify a pulled model offline.", common)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--ca", type=Path, required=True, metavar="FILE", help="the federation's CA certificate, PEM")
    parser.add_argument("--statement", type=Path, metavar="FILE", help="default: FILE.statement.json")
    parser.add_argument(
        "--at",
        type=instant,
        metavar="TIME",
        help="the moment at which the signer's certificate must be valid (default: any in its life)",
    )


def instant(text: str) -> datetime:
    """An RFC 3339 time with its zone. Raises what argparse turns into a usage error."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time with its zone, such as 2026-01-31T12:00:00Z")
    return found


def list_all(args: argparse.Namespace, _: Terminal) -> Answer:
    """Ask for the models."""
    found = ask(args.config, lambda operator: operator.models(args.experiment))
    return Answer({"models": [document(one) for one in found]}, model_table(found) if found else "There is no model yet.")


def pull(args: argparse.Namespace, terminal: Terminal) -> Answer:
    """Ask for the statement, verify it, fetch the part that it names."""
    refuse_unwritable(args.out)
    _require_own(args.out)
    meter = Meter(terminal)
    model, verified, part, file = ask(args.config, lambda operator: fetch(operator, args.model, args.part, args.out, meter))
    from histofed.cli import statement_file

    statement = statement_file.beside(args.out)
    found: dict[str, Json] = {
        "model": document(model),
        "file": str(args.out),
        "statement_file": str(statement),
        "part": part,
        "sha256": file.sha256,
        "bytes": file.bytes,
        "verified": True,
    }
    text = (
        f"{args.out}: part {part} of model {verified.digest[:12]} ({model.experiment}, round {model.round}), "
        f"{size(file.bytes)}\nSignature and SHA-256 verified; statement in {statement}"
    )
    return Answer(found, text)


def _require_own(target: Path) -> None:
    """Raises `AlreadyThere` for a file that no `pull` wrote."""
    from histofed.cli import statement_file

    if target.exists() and not statement_file.beside(target).exists():
        raise AlreadyThere(
            f"{target} is there, and no model that was pulled: it has no {statement_file.beside(target).name} beside it; "
            "name a new file"
        )


async def fetch(
    operator: OperatorClient, name: str, part: str | None, target: Path, meter: Meter
) -> tuple[Model, VerifiedModel, str, File]:
    """Statement, signature, bytes, in this order: what is not signed is not downloaded.

    Raises `NotFound`, `NotAuthorised` for a wrong signer, `DigestMismatch` when statement and model do not belong together.
    """
    from histofed.base.clock import SystemClock
    from histofed.cli import statement_file
    from histofed.cli.verification import verify_statement
    from histofed.pki.keys import certificate_from_pem

    model, envelope = await operator.model(name)
    verified = verify_statement(envelope, certificate_from_pem(operator.credentials.ca_pem, "CA certificate"))
    if verified.digest != model.digest:
        raise DigestMismatch(
            f"the aggregator sent the statement of model {verified.digest[:12]} for model {model.digest[:12]}; "
            "nothing was written"
        )
    part, file = verified.part(part)
    if model.removed_at:
        raise NotFound(
            f"the files of model {model.digest[:12]} were removed at {moment(model.removed_at)} by the aggregator's "
            "[retention]; `histofed models list` shows which are still there"
        )
    with _known_as_pulled(target, statement_file.encode(envelope)):
        await operator.download(Digest(file.sha256), file.bytes, target, SystemClock(), meter)
    meter.done()
    return model, verified, part, file


@contextlib.contextmanager
def _known_as_pulled(target: Path, statement: bytes) -> Iterator[None]:
    """The block makes `target`, whose statement is there no later, lest a `pull` that is killed be refused when repeated.

    One that replaces a model leaves the old statement beside the old model until the new one is there.
    """
    from histofed.base import durable
    from histofed.cli import statement_file

    beside, new = statement_file.beside(target), not target.exists()
    if new:
        durable.replace(beside, statement, mode=0o644)
    try:
        yield
    except BaseException:
        if new and not target.exists():
            durable.remove(beside)
        raise
    durable.replace(beside, statement, mode=0o644)


def verify(args: argparse.Namespace, _: Terminal) -> Answer:
    """Check file, statement and signature with nothing but the CA."""
    from histofed.cli import statement_file
    from histofed.cli.verification import load_ca, verify_file, verify_statement
    from histofed.statements import as_json

    envelope = statement_file.read(args.statement or statement_file.beside(args.file))
    model = verify_statement(envelope, load_ca(args.ca), args.at)
    part, file = verify_file(args.file, model)
    found: dict[str, Json] = {
        "model": model.digest,
        "part": part,
        "sha256": file.sha256,
        "bytes": file.bytes,
        "statement": as_json(model.statement),
        "verified": True,
    }
    facts = [
        ("verified", f"{args.file} is part {part} of the model, {size(file.bytes)}"),
        ("model", model.digest),
        ("federation", model.statement.federation),
        ("experiment", f"{model.statement.experiment}, round {model.statement.round}"),
        ("updates", ", ".join(f"{one.site} {one.weight:.3f}" for one in model.statement.contributions) or "none"),
    ]
    return Answer(found, fields(facts))


class Meter:
    """One line on stderr that counts bytes, for a person only."""

    def __init__(self, terminal: Terminal) -> None:
        self._error = terminal.error
        self._live = terminal.error.isatty()
        self._percent = -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(1, total)
        if self._live and percent != self._percent:
            self._percent = percent
            self._error.write(f"\r{size(done)} of {size(total)}\x1b[K")
            self._error.flush()

    def done(self) -> None:
        """Take the line back."""
        if self._live:
            self._error.write("\r\x1b[K")


def model_table(found: Sequence[Model]) -> str:
    """One line per model."""
    rows = [
        (
            one.digest[:12],
            one.experiment,
            str(one.round),
            one.state,
            _parts(one),
            moment(one.created_at),
        )
        for one in found
    ]
    return table(("MODEL", "EXPERIMENT", "ROUND", "STATE", "PARTS", "CREATED"), rows)


def _parts(model: Model) -> str:
    if model.removed_at:
        return f"removed {moment(model.removed_at)}"
    return ", ".join(f"{part.name} {size(part.bytes)}{' (to be released)' if part.release else ''}" for part in model.parts)
