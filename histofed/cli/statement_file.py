"""A model's signed statement beside the model: a DSSE envelope as JSON, readable without histofed.

`{"payloadType", "payload": base64, "signatures": [{"sig": base64, "cert": PEM}]}`, the DSSE JSON form
(secure-systems-lab/dsse, envelope.md) with the signer's certificate in it.
Written by `models pull`, read by `models verify`.
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
from pathlib import Path

from histofed.base.errors import BadData, NotFound
from histofed.pki.signing import Envelope

SIZE_LIMIT = 2 << 20
"""Bytes of a statement file that are read at all."""


def beside(model: Path) -> Path:
    """`model.safetensors` → `model.safetensors.statement.json`."""
    return model.with_name(model.name + ".statement.json")


def encode(envelope: Envelope) -> bytes:
    """The file's bytes."""
    document = {
        "payloadType": envelope.payload_type,
        "payload": base64.b64encode(envelope.payload).decode(),
        "signatures": [
            {
                "sig": base64.b64encode(envelope.signature).decode(),
                "cert": ssl.DER_cert_to_PEM_cert(envelope.certificate),
            }
        ],
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def decode(data: bytes) -> Envelope:
    """The envelope in a file's bytes; nothing is verified here. Raises `BadData`."""
    try:
        document = json.loads(data)
        (signature,) = document["signatures"]
        return Envelope(
            payload_type=_text(document["payloadType"]),
            payload=base64.b64decode(_text(document["payload"]), validate=True),
            signature=base64.b64decode(_text(signature["sig"]), validate=True),
            certificate=ssl.PEM_cert_to_DER_cert(_text(signature["cert"])),
        )
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
        raise BadData(f"the statement is not a DSSE envelope with one signature ({error}); pull the model again") from error


def read(path: Path) -> Envelope:
    """The envelope in a file. Raises `NotFound`, `BadData`."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise BadData(f"{path} is larger than {SIZE_LIMIT} bytes, so it is not a model statement")
        return decode(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"there is no statement at {path}; `histofed models pull` writes it beside the model") from error
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value
