"""Bytes, CPU time and error of every encoding, on the plain updates of a committed round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from aggregator.aggregate import AggregateJob, UpdateInput, aggregate
from bench.encodings.rehearsal import MAX_NORM, Round
from bench.result import Result, at_most
from histofed.base.encoding import ENCODINGS, Encoding
from histofed.base.hashing import sha256_file
from histofed.encodings.file import Form, encode_file, open_encoded
from histofed.weights import TensorFile

COMMAND: Final = "python -m bench.encodings"
BYTES_TARGET: Final = 0.5
REPEATS: Final = 3
WIDTHS: Final[Mapping[Encoding, int]] = {"bfloat16": 2, "bfloat16-delta": 2, "float32-delta": 4}
"""Bytes of a value before lossless coding."""


@dataclass(frozen=True)
class Cost:
    """What one encoding did to one round's updates; sites' means."""

    encoding: Encoding
    ratio: float
    """Of float32's bytes."""
    encode_ms: float
    decode_ms: float
    """CPU milliseconds for each MB of float32, the quickest of some."""
    relative: float
    largest: float
    """Of the aggregate against that of float32 updates: L2 norm of the error / of what the round changed; any weight."""
    same: bool
    """Encoded twice, the same bytes."""


def costs(one: Round, scratch: Path) -> list[Cost]:
    """Every encoding but float32."""
    exact = scratch / "exact"
    aggregate(_job(one, one.updates, Form(), exact))
    return [_cost(one, encoding, exact, scratch) for encoding in ENCODINGS if encoding != "float32"]


def rows(found: list[Cost], where: str) -> Iterator[Result]:
    """As `make bench` shows them; the target is the issue's."""
    for one in found:
        target = BYTES_TARGET if one.encoding == "bfloat16-delta" else None
        about = f"{one.encoding}, {where}"
        yield at_most(f"update bytes / float32 ({about})", one.ratio, "x", target, COMMAND)
        coded = one.ratio * 4 / WIDTHS[one.encoding]
        yield at_most(f"lossless coding alone ({about})", coded, "x", None, COMMAND, float(WIDTHS[one.encoding]))
        yield at_most(f"aggregate's largest error ({about})", one.largest, "", None, COMMAND)
        yield at_most(f"aggregate's relative error ({about})", one.relative, "", None, COMMAND)
        yield at_most(f"CPU per MB of float32, site ({about})", one.encode_ms, "ms", None, COMMAND)
        yield at_most(f"CPU per MB of float32, aggregator ({about})", one.decode_ms, "ms", None, COMMAND)


def both_ways(one: Round) -> float:
    """Bytes of a round, up and down, to sites that kept the model before: / float32's. For a round of encoded updates."""
    assert one.step is not None, "encoded updates make steps"
    up = sum(update.stat().st_size for update in one.updates.values()) / len(one.updates)
    return (up + one.step.stat().st_size) / (2 * one.base.stat().st_size)


def _cost(one: Round, encoding: Encoding, exact: Path, scratch: Path) -> Cost:
    form = Form(encoding, sha256_file(one.base))
    megabytes = one.base.stat().st_size / 1e6
    files, ratios, encode_s, decode_s, same = {}, [], [], [], True
    for site, update in one.updates.items():
        files[site] = target = scratch / f"{site}-{encoding}"
        written = [encode_file(update, one.base, form, MAX_NORM, target) for _ in range(2)]
        same = same and written[0] == written[1]
        ratios.append(written[0].loss.ratio)
        encode_s.append(_quickest(lambda: encode_file(update, one.base, form, MAX_NORM, target)))  # noqa: B023  # called at once
        decode_s.append(_quickest(lambda: _read(target, one.base, form)))  # noqa: B023  # called at once
    rounded = scratch / f"next-{encoding}"
    aggregate(_job(one, files, form, rounded))
    relative, largest = _error(rounded, exact, one.base)
    count = len(ratios)
    return Cost(
        encoding,
        sum(ratios) / count,
        1e3 * sum(encode_s) / count / megabytes,
        1e3 * sum(decode_s) / count / megabytes,
        relative,
        largest,
        same,
    )


def _job(one: Round, files: Mapping[str, Path], form: Form, target: Path) -> AggregateJob:
    inputs = tuple(UpdateInput(site, path, 1) for site, path in files.items())
    return AggregateJob(one.base, inputs, None, (), one.number, target, None, form=form)


def _read(path: Path, base: Path, form: Form) -> None:
    with TensorFile(base) as old, open_encoded(path, old, form) as file:
        for name in file.specs:
            for _ in file.pieces(name):
                pass


def _quickest(work: Callable[[], object]) -> float:
    """CPU seconds: other work on the machine only ever adds to them."""
    taken = []
    for _ in range(REPEATS):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def _error(rounded: Path, exact: Path, base: Path) -> tuple[float, float]:
    with TensorFile(rounded) as coded, TensorFile(exact) as plain, TensorFile(base) as old:
        error = np.concatenate([(coded.copy(name).astype(np.float64) - plain.array(name)).ravel() for name in old.names])
        step = np.concatenate([(plain.array(name).astype(np.float64) - old.array(name)).ravel() for name in old.names])
    return float(np.linalg.norm(error) / np.linalg.norm(step)), float(np.abs(error).max())
