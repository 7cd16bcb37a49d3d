"""Makes a federation: its CA, the aggregator's identity, the first operator. Run once, by `histofed-aggregator init`.

STATE/identity/ca.pem, ca.key      the federation's CA; the key never leaves this host
STATE/identity/aggregator.pem      the daemon's own key and certificate (renewed by `lifetime.py`)
STATE/identity/token.key           the key under which join tokens are stored

The CA's key is written last: before that there is no federation, nobody can have enrolled, and `init` begins again. Where a
daemon has run there was a federation, whatever is missing of its CA: that comes from a backup, never from another `init`.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aggregator import lifecycle, operators
from aggregator.config import AggregatorConfig
from histofed.audit import verify
from histofed.backup import journals, swap
from histofed.base import checkup, durable
from histofed.base.clock import Clock
from histofed.base.errors import AlreadyThere, BadData, NotEnrolled, Stale, WentBack
from histofed.base.hashing import sha256_file
from histofed.base.ids import Digest, ExperimentId, Json, check_name, experiment_id
from histofed.base.owner import not_ours, refuse_root, usable
from histofed.pki import keys, tokens
from histofed.pki.authority import CERTIFICATE_FILE, KEY_FILE, Authority, Issued
from histofed.pki.credentials import Credentials
from histofed.weights import TensorFile

TOKEN_FILE: Final = "token.key"  # noqa: S105  # its name


@dataclass(frozen=True)
class Identity:
    """What the daemon needs to be itself."""

    authority: Authority
    credentials: Credentials
    token_key: bytes


def create(config: AggregatorConfig, clock: Clock, operator: str, operator_dir: Path) -> tuple[Identity, Issued]:
    """A new federation in an empty state directory, its first operator's folder, and what was issued to that operator.

    Raises `AlreadyThere` rather than replace a CA, or what is left of one, or an operator's key, `ConfigError` for root in
    another user's folder, and `BadData` for the operator's name, `CannotWriteState` and `NotOurs` for a folder before
    anything of a federation is made.
    """
    refuse_root(config.state_dir, "histofed-aggregator init")
    folder = config.state_dir / "identity"
    if (sentence := lost(config.state_dir)) is not None:
        raise AlreadyThere(sentence)
    if (folder / CERTIFICATE_FILE).exists() and (folder / KEY_FILE).exists():
        raise AlreadyThere(
            f"{folder} holds a federation already; a new CA would lock every enrolled site out "
            "(`histofed-aggregator operator NAME --out DIR` makes another operator)"
        )
    swap.refuse_interrupted(config.state_dir)
    check_name(operator, "operator name")
    for directory in (config.state_dir, folder, operator_dir):
        if not usable(durable.make_directory(directory)):
            raise not_ours(directory)
    _clear_unfinished(folder, operator_dir)
    _refuse_taken(operator_dir)
    authority = Authority.create(config.federation, clock)
    durable.replace(folder / CERTIFICATE_FILE, authority.certificate_pem, mode=0o644)
    durable.replace(folder / TOKEN_FILE, tokens.new_server_key())
    credentials = next_certificate(config, authority)
    credentials.save(own_certificate(config))
    issued = write_operator(operator_dir, operator, config, authority, clock)
    authority.save(folder)
    return Identity(authority, credentials, (folder / TOKEN_FILE).read_bytes()), issued


def _clear_unfinished(folder: Path, operator_dir: Path) -> None:
    """What an `init` that was killed leaves in the way: a key without its certificate (older releases wrote the key first),
    and the key of an operator of the federation that never was."""
    durable.remove(folder / KEY_FILE)
    begun, shown = folder / CERTIFICATE_FILE, operator_dir / "ca.crt"
    if begun.exists() and shown.exists() and begun.read_bytes() == shown.read_bytes():
        durable.remove(operator_dir / "operator.key")


def lost(state: Path) -> str | None:
    """Which files are missing of the identity that a daemon has run with, and where they are; None for any other."""
    folder = state / "identity"
    missing = [name for name in (TOKEN_FILE, CERTIFICATE_FILE, KEY_FILE) if not (folder / name).exists()]
    if not missing or not has_run(state):
        return None
    copied = f"; {CERTIFICATE_FILE} is any operator's ca.crt too" if CERTIFICATE_FILE in missing else ""
    return (
        f"{folder} has lost {' and '.join(missing)} of a federation that has run: put back what is missing from a backup "
        f"(`tar -xOf FILE identity/{missing[-1]}`{copied}); a new CA would lock every enrolled site out"
    )


def has_run(state: Path) -> bool:
    """Whether there is a database, or what only a daemon's life leaves: `init` makes neither."""
    return (state / "state.db").exists() or _left_something(state)


def refuse_lost_database(state: Path) -> None:
    """A daemon would begin with a new database, to which every site is a stranger and every model file a stray.

    Raises `WentBack` where one has run; it makes its tables before the first record of its own, and any file.
    """
    sentence = checkup.lost(state / "state.db")
    if sentence is not None and _left_something(state):
        raise WentBack(
            f"{sentence} (`histofed-aggregator restore FILE --replace`); without one, begin a new federation in an empty "
            f"state directory, where every site enrols again: the models are files of {state / 'blobs'}"
        )


def _left_something(state: Path) -> bool:
    """Whether a daemon's life shows in the journal, or in a model's file."""
    if any(record.action != operators.ACTION for record in verify.unproven(state / "journal")):
        return True
    return bool(durable.listing(state / "blobs", "[0-9a-f]" * 64))


def load_authority(config: AggregatorConfig, clock: Clock) -> Authority:
    """The CA of the federation in the state directory. Raises `NotEnrolled` when `init` was not run, or it was lost."""
    folder = config.state_dir / "identity"
    if (sentence := lost(config.state_dir)) is not None:
        raise NotEnrolled(sentence)
    if not (folder / KEY_FILE).exists() or not (folder / CERTIFICATE_FILE).exists():
        raise NotEnrolled(f"{folder} holds no federation; run `histofed-aggregator init` first")
    authority = Authority.load(folder, clock)
    if authority.federation != config.federation:
        raise NotEnrolled(
            f"the state directory belongs to federation {authority.federation!r}, "
            f"the configuration says {config.federation!r}"
        )
    return authority


def load(config: AggregatorConfig, clock: Clock) -> Identity:
    """The federation in the state directory, for the daemon that begins. Raises what `load_authority` raises."""
    authority, folder = load_authority(config, clock), config.state_dir / "identity"
    path = own_certificate(config)
    if not path.exists():
        next_certificate(config, authority).save(path)
    return Identity(authority, own_credentials(folder), (folder / TOKEN_FILE).read_bytes())


def own_credentials(folder: Path) -> Credentials:
    """The daemon's key and certificate, in the folder of its identity. Raises what `Credentials.load` raises."""
    path = folder / "aggregator.pem"
    if not path.exists():
        raise NotEnrolled(f"there is no {path}: start the daemon, which issues it")
    return Credentials.load(path, "remove it, and the daemon's next start issues another one")


def own_certificate(config: AggregatorConfig) -> Path:
    """Where the daemon keeps its key and certificate."""
    return config.state_dir / "identity" / "aggregator.pem"


def next_certificate(config: AggregatorConfig, authority: Authority) -> Credentials:
    """A new key and a certificate of it for this aggregator, under all its public names; nothing is written."""
    key = keys.new_key()
    issued = authority.issue(authority.aggregator(), keys.signing_request(key), hosts=config.public_hosts)
    return Credentials.make(key, issued.certificate_pem, authority.certificate_pem)


def write_operator(folder: Path, name: str, config: AggregatorConfig, authority: Authority, clock: Clock) -> Issued:
    """An operator's folder: `operator.toml`, certificate, key, CA; copy it to the operator's machine.

    Raises `AlreadyThere` rather than overwrite a key, and `TryLater` when the daemon runs and does not journal the issue.
    """
    _refuse_taken(folder)
    durable.make_directory(folder)
    key = keys.new_key()
    issued = authority.issue(authority.operator(name), keys.signing_request(key))
    _audit(config, clock, issued)
    durable.replace(folder / "ca.crt", authority.certificate_pem)
    durable.replace(folder / "operator.crt", issued.certificate_pem)
    durable.replace(
        folder / "operator.toml",
        f'aggregator = "{public_address(config)}"\ncertificate = "operator.crt"\nkey = "operator.key"\n'
        'ca = "ca.crt"\n'.encode(),
    )
    # last: a folder with a key is whole, and one without may be written again
    durable.replace(folder / "operator.key", keys.key_pem(key))
    return issued


def _refuse_taken(folder: Path) -> None:
    if (folder / "operator.key").exists():
        raise AlreadyThere(f"{folder} holds an operator's key already; name another folder")


def _audit(config: AggregatorConfig, clock: Clock, issued: Issued) -> None:
    """No audit, no action: an operator's certificate is in the journal, a running daemon's too, before it is on disk."""
    state = config.state_dir
    subject: dict[str, Json] = {"identity": issued.identity.uri, "serial": issued.serial}
    try:
        with durable.lock(state / "lock", "histofed-aggregator operator"):
            durable.make_directory(state / "journal")
            journals.note(state / "journal", clock, instance(state), subject, "", operators.ACTION)
    except AlreadyThere:
        operators.have_noted(state, clock, issued)


def first_weights(state: Path) -> Path:
    """The folder of first weights that were drawn elsewhere, one file per experiment."""
    return state / "first"


def give_first(config: AggregatorConfig, experiment: str, weights: Path) -> Digest:
    """Keep a copy of `weights` as what `experiment` will begin with, once it is submitted. The daemon may run.

    Raises `BadData` for a name or a file that is none, `Stale` for an experiment that was submitted, also meanwhile,
    `AlreadyThere` for one that has some.
    """
    name, database = experiment_id(experiment), config.state_dir / "state.db"
    _refuse_submitted(database, name)
    target = durable.make_directory(first_weights(config.state_dir)) / f"{name}.safetensors"
    if target.exists():
        raise AlreadyThere(f"experiment {experiment} has first weights already: remove {target} to give others")
    try:
        with TensorFile(weights):
            pass
        with weights.open("rb") as source, durable.writing(target) as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except BadData as error:
        raise BadData(f"{weights} gives no first weights: {error}") from error
    except OSError as error:
        raise BadData(f"{weights} cannot be read: {error.strerror}") from error
    try:
        # the daemon looks for them once, when the experiment is submitted: only now is it certain that they were here then
        _refuse_submitted(database, name)
    except Stale as error:
        # they stay: its first model may be made of them at this moment, and what is not read goes when there is one
        raise Stale(
            f"experiment {experiment} was submitted at this moment: `histofed models list` tells which first weights it "
            "has; where they are not these, cancel it and give them to one under another name"
        ) from error
    return sha256_file(target)


def _refuse_submitted(database: Path, name: ExperimentId) -> None:
    if not database.exists():
        return  # no daemon has run yet
    query = "SELECT state, EXISTS (SELECT 1 FROM models WHERE experiment = name) FROM experiments WHERE name = ?"
    with checkup.opened(database) as connection:
        row = connection.execute(query, (name,)).fetchone()
    if row is not None:
        state, has_model = row
        begun = "has begun" if has_model else "is submitted"
        why = begun if state in lifecycle.OPEN else f"is {state}"
        raise Stale(f"experiment {name} {why}, and first weights are given before: give them to one under another name")


def instance(state: Path) -> str:
    """A random name of this state directory, for the journal and the traces."""
    path = state / "instance"
    if not path.exists():
        durable.replace(path, str(uuid.uuid4()).encode())
    return path.read_text()


def public_address(config: AggregatorConfig) -> str:
    """HOST:PORT where sites and operators reach the mTLS port."""
    host, port = config.public_hosts[0], config.listen.grpc.rpartition(":")[2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
