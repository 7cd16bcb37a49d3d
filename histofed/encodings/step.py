"""A new model as what it adds to the one before: fewer bytes for a site that holds that one.

The file is an encoded update's (`file.py`): its base is the model before, its tensors are the new model's. It is written
while the model is: where the encoding rounds, the rounded model *is* the model, so that whoever applies the step has the
very bytes that the aggregator signed. `aggregator/aggregate.py` writes steps, `agent/steps.py` applies them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from histofed.base import durable
from histofed.base.encoding import STEPS, Encoding
from histofed.base.errors import BadData
from histofed.base.hashing import StreamDigest
from histofed.encodings.file import DecodedFile, Encoded, Form, encoded_header
from histofed.encodings.loss import Tally
from histofed.encodings.planes import pack
from histofed.encodings.words import transform
from histofed.weights import Array, TensorFile, Tensors, Written, dtype_of, save_stream


def step_form(encoding: Encoding, base: str) -> Form | None:
    """How an experiment whose updates are in `encoding` tells its new models; None where it does not tell them as steps."""
    return Form(STEPS[encoding], base) if encoding in STEPS else None


class Step:
    """A step that is being written; made by `writing_step`."""

    def __init__(self, base: TensorFile, form: Form, digest: StreamDigest, write: Callable[[bytes], int]) -> None:
        self._base = base
        self._form = form
        self._digest = digest
        self._write = write
        self._tally = Tally()
        self._bytes = 0

    def through(self, pieces: Iterable[Array]) -> Iterator[Array]:
        """The new model's pieces as they are to be stored, written into the step on their way.

        `pieces` are those of every tensor, by name, as `TensorFile.pieces` gives them; finite. Raises `BadData` when a value
        is too far from the base's for the encoding.
        """
        self._add(encoded_header(self._form))
        new = iter(pieces)
        for name, spec in self._base.specs.items():
            coder = transform(self._form.encoding, dtype_of(spec))
            for old, value in zip(self._base.pieces(name), new, strict=False):
                words = coder.encode(value, old)
                stored = value if coder.exact else coder.decode(words, old)
                self._tally.add(value, stored, old)
                self._add(pack(words))
                yield stored
        if not math.isfinite(self._tally.norm):
            raise BadData(f"the new model cannot be told as a step in {self._form.encoding!r}: a difference is too large")

    def _add(self, data: bytes) -> None:
        self._digest.update(memoryview(data))
        self._bytes += self._write(data)

    def finish(self) -> Encoded:
        """What was written, once all of it went through."""
        plain = sum(spec.end - spec.begin for spec in self._base.specs.values())
        loss = self._tally.loss(self._bytes / plain if plain else 1.0)
        return Encoded(Written(self._digest.finish(), self._bytes), self._tally.norm, loss)


@contextlib.contextmanager
def writing_step(path: Path, base: TensorFile, form: Form) -> Iterator[Step]:
    """Write a step to `path`: atomic, durable when the block has ended. Raises `CannotWriteState`."""
    with StreamDigest() as digest, durable.writing(path) as file:
        yield Step(base, form, digest, file.write)


def apply_steps(base: Path, steps: Sequence[tuple[Path, Form]], target: Path) -> Written:
    """Write the model that is reached from the one in `base` by `steps`, oldest first, to `target`: durable.

    Raises `BadData` for a step that is damaged or begins elsewhere, and `CannotWriteState`. The caller compares the digest.
    """
    with contextlib.ExitStack() as stack:
        tensors: Tensors = stack.enter_context(TensorFile(base))
        for path, form in steps:
            tensors = stack.enter_context(DecodedFile(path, tensors, form))
        specs = [spec.meaning for spec in tensors.specs.values()]
        return save_stream(target, specs, _all_pieces(tensors))


def _all_pieces(tensors: Tensors) -> Iterator[Array]:
    for name in tensors.specs:
        yield from tensors.pieces(name)
