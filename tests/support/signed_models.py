"""A small federation with a real CA and a signed model, for tests of whoever verifies one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from histofed.base.clock import Clock, SystemClock
from histofed.base.ids import Digest, sha256
from histofed.pki import keys
from histofed.pki.authority import Authority
from histofed.pki.credentials import Credentials
from histofed.pki.identity import Identity
from histofed.pki.signing import Envelope, sign
from histofed.statements import MODEL_TYPE, Contribution, File, ModelStatement, encode


@dataclass(frozen=True)
class Federation:
    """A CA and whoever it certified."""

    authority: Authority

    @classmethod
    def make(cls, name: str = "test", clock: Clock | None = None) -> Federation:
        """A new one."""
        return cls(Authority.create(name, clock or SystemClock()))

    def member(self, identity: Identity, hosts: tuple[str, ...] = ()) -> Credentials:
        """Credentials of a member."""
        key = keys.new_key()
        issued = self.authority.issue(identity, keys.signing_request(key), hosts=hosts)
        return Credentials.make(key, issued.certificate_pem, self.authority.certificate_pem)

    def aggregator(self) -> Credentials:
        """Credentials of the aggregator on this machine."""
        return self.member(self.authority.aggregator(), ("localhost", "127.0.0.1"))

    def operator(self, name: str = "alice") -> Credentials:
        """Credentials of an operator."""
        return self.member(self.authority.operator(name))

    def write_operator(self, folder: Path, address: str, name: str = "alice") -> Path:
        """`operator.toml` and its three files; returns its path."""
        credentials = self.operator(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "operator.key").touch(mode=0o600)
        (folder / "operator.key").write_bytes(credentials.key_pem)
        (folder / "operator.crt").write_bytes(credentials.certificate_pem)
        (folder / "ca.crt").write_bytes(credentials.ca_pem)
        toml = folder / "operator.toml"
        toml.write_text(
            f'aggregator = "{address}"\ncertificate = "operator.crt"\nkey = "operator.key"\nca = "ca.crt"\n',
            encoding="utf-8",
        )
        return toml


@dataclass(frozen=True)
class SignedModel:
    """A model of two parts."""

    shared: bytes
    server: bytes
    envelope: Envelope

    @property
    def digest(self) -> Digest:
        """Its name."""
        return sha256(self.envelope.payload)


def signed_model(signer: Credentials, shared: bytes = b"shared tensors", server: bytes = b"server tensors") -> SignedModel:
    """A model of round 2 of `demo`; `server` is the finished product."""
    statement = ModelStatement(
        federation=signer.federation,
        experiment="demo",
        experiment_sha256="aa" * 32,
        recipe="gan",
        round=2,
        base="bb" * 32,
        parts={"shared": File(sha256(shared), len(shared)), "server": File(sha256(server), len(server))},
        release="server",
        strategy="fedavg",
        contributions=[Contribution("north", "dd" * 32, 0.5), Contribution("west", "ff" * 32, 0.5)],
    )
    return SignedModel(shared, server, sign(MODEL_TYPE, encode(statement), signer))
