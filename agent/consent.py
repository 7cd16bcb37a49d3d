"""What this hospital allows: `consent.toml`, written by the hospital, decides about every task before anything else happens.

What is not written is not allowed; a missing file allows nothing. The file is read again for every offer, so a changed
policy, or a removed file, is the hospital's veto from the next task on, without a restart. `decide` is pure: the same file
and the same experiment give the same answer, and the file's digest goes into the audit journal and the signed manifest.

    experiments = ["tcga-*"]              # names; * stands for anything
    recipes = ["gan"]
    models = ["generator:*", "discriminator:cnn"]
    image_sizes = "32..256"               # pixels, or a list: [64, 128]
    classes = ["MSIH", "nonMSIH"]
    maximum_steps = 2000                  # optimiser steps in one task
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from histofed.base import toml
from histofed.base.errors import ConfigError, Unreadable, passes
from histofed.base.experiment import Experiment
from histofed.base.ids import Digest, sha256
from histofed.recipes.contract import Demands

EXAMPLE: Final = (
    'experiments = ["*"], recipes = ["gan"], models = ["*"], image_sizes = "32..256", classes = ["*"], maximum_steps = 2000'
)
_RANGE = re.compile(r"([0-9]{1,6})\.\.([0-9]{1,6})\Z")


class Consent(BaseModel):
    """The file's content."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    experiments: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Patterns over the networks that an experiment would build, for example `generator:*`."""
    image_sizes: str | tuple[int, ...] = ()
    """Edges of tiles in pixels: `"32..256"` or a list."""
    classes: tuple[str, ...] = ()
    """Patterns over the classes whose tiles may be read."""
    maximum_steps: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps in one task."""

    @field_validator("experiments", "recipes", "models", "classes", mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            example = value if isinstance(value, str) else "*"
            raise ValueError(f"write a list of texts, {json.dumps([example], ensure_ascii=False)}")
        return tuple(value)

    @field_validator("image_sizes", mode="before")
    @classmethod
    def _sizes(cls, value: object) -> object:
        if isinstance(value, list | tuple) and all(type(each) is int for each in value):
            return tuple(value)
        found = _RANGE.match(value) if isinstance(value, str) else None
        if not found or int(found[1]) > int(found[2]):
            raise ValueError('write a range as "32..256" or a list as [64, 128]')
        return value

    def allows_size(self, pixels: int) -> bool:
        """Whether tiles of this edge may be read."""
        if isinstance(self.image_sizes, str):
            least, most = self.image_sizes.split("..")
            return int(least) <= pixels <= int(most)
        return pixels in self.image_sizes


@dataclass(frozen=True)
class Policy:
    """What the hospital's file says, and which file said it."""

    consent: Consent
    sha256: Digest
    """Of the file's bytes; of no bytes where there is no file."""
    missing: bool = False


@dataclass(frozen=True)
class Decision:
    """The site's answer to one experiment."""

    allowed: bool
    reason: str
    """In words for the operator; empty when it is allowed."""
    policy_sha256: Digest


def load_policy(path: Path) -> Policy:
    """The policy as it is now. Raises `ConfigError` with file and line when it cannot be used; then nothing is allowed."""
    try:
        data = path.read_bytes()  # once: the digest is to be that of the bytes that decide
    except (FileNotFoundError, NotADirectoryError):
        return Policy(Consent(), sha256(b""), missing=True)
    except OSError as error:
        raise toml.unreadable(path, error) from error
    file = toml.parse(path, data)
    known = tuple(Consent.model_fields)
    for key in file.values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"{path}:{file.line((key,))}: there is no key {key!r}; {hint}")
    try:
        consent = Consent.model_validate(file.values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}:{file.line(first['loc'])}: {first['loc'][0]!r} is not allowed: {message}") from error
    return Policy(consent, sha256(data))


def policy_of_now(path: Path) -> Policy:
    """As `load_policy`, but raises `Unreadable` where what keeps the file from being read passes: that decides nothing."""
    try:
        return load_policy(path)
    except ConfigError as error:
        if isinstance(cause := error.__cause__, OSError) and passes(cause):
            raise Unreadable(f"the consent file cannot be read now: {cause.strerror}; nothing is sent meanwhile") from error
        raise


def policy_in_force(path: Path) -> Digest | None:
    """The digest of the policy as it is now; None where it cannot be used. Raises `Unreadable` where that passes."""
    try:
        return policy_of_now(path).sha256
    except ConfigError:
        return None


def decide(policy: Policy, experiment: Experiment, demands: Demands) -> Decision:
    """May this experiment run here? Every reason against it is named. Pure."""
    if policy.missing:
        return Decision(
            False,
            f"this site has no consent file, so nothing is allowed; its consent.toml could say: {EXAMPLE}",
            policy.sha256,
        )
    reasons = tuple(_reasons(policy.consent, experiment, demands))
    if not reasons:
        return Decision(True, "", policy.sha256)
    return Decision(False, "the consent of this site does not allow " + "; nor ".join(reasons), policy.sha256)


def _reasons(consent: Consent, experiment: Experiment, demands: Demands) -> Iterable[str]:
    if not _matches(experiment.name, consent.experiments):
        yield f"the experiment {experiment.name!r} ({_told(consent.experiments)})"
    if not _matches(experiment.file.recipe, consent.recipes):
        yield f"the recipe {experiment.file.recipe!r} ({_told(consent.recipes)})"
    for model in demands.models:
        if not _matches(model, consent.models):
            yield f"the model {model!r} ({_told(consent.models)})"
    if demands.image_size is not None and not consent.allows_size(demands.image_size):
        sizes = (consent.image_sizes,) if isinstance(consent.image_sizes, str) else tuple(map(str, consent.image_sizes))
        yield f"tiles of {demands.image_size} pixels ({_told(sizes)})"
    for name in demands.classes:
        if not _matches(name, consent.classes):
            yield f"the class {name!r} ({_told(consent.classes)})"
    if demands.steps > consent.maximum_steps:
        yield f"{demands.steps} steps in one task (allowed: {consent.maximum_steps})"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _told(patterns: tuple[str, ...]) -> str:
    return f"allowed: {', '.join(patterns) if patterns else 'none'}"
