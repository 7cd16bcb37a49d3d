"""The allow-list: every span, attribute and metric that may leave a process, with its unit and what its values may be.

Nothing here can name a patient, a slide, a file or a path. A value that does not fit its rule is dropped and counted,
never repaired: what looks like an identifier is treated as one. `tracing.py` and `metrics.py` are the only doors, and
both ask `keep`. To send something new, add it here, where a reviewer sees it.

Units are UCUM, as OpenTelemetry asks for.
"""

from __future__ import annotations

import builtins
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from histofed.base.encoding import ENCODINGS
from histofed.base.errors import all_errors
from histofed.base.ids import TASK_KINDS

Value: TypeAlias = bool | int | float | str


class Rule(Protocol):
    """What a value may be."""

    def allows(self, value: object) -> bool: ...


@dataclass(frozen=True)
class Name:
    """A site's or an experiment's name: chosen by an operator, and nothing that has the look of an identifier.

    The barcodes of TCGA are names too if one writes them in small letters, and so are a record number and a date of
    birth; so these, and any run of seven digits or more, are refused.
    """

    _pattern = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")
    _identifier = re.compile(r"tcga-|\d{7}|\d{2,4}-\d{1,2}-\d{1,4}")

    def allows(self, value: object) -> bool:
        return isinstance(value, str) and bool(self._pattern.match(value)) and not self._identifier.search(value)


@dataclass(frozen=True)
class Pattern:
    """A text of a fixed form."""

    pattern: re.Pattern[str]

    def allows(self, value: object) -> bool:
        return isinstance(value, str) and bool(self.pattern.fullmatch(value))


@dataclass(frozen=True)
class OneOf:
    """A word from a closed list."""

    words: frozenset[str]

    def allows(self, value: object) -> bool:
        return isinstance(value, str) and value in self.words


@dataclass(frozen=True)
class Count:
    """A whole number, not negative, exact in a double."""

    def allows(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


@dataclass(frozen=True)
class Number:
    """A finite number."""

    def allows(self, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def allows(self, value: object) -> bool:
        return isinstance(value, bool)


# -- spans: the way of one round -----------------------------------------------------------------------------------------

ROUND_SAMPLE: Final = "round.sample"
TASK_OFFER: Final = "task.offer"
TASK_CONSENT: Final = "task.consent"
TASK_DOWNLOAD: Final = "task.download"
TASK_TRAIN: Final = "task.train"
TASK_UPLOAD: Final = "task.upload"
TASK_ADMIT: Final = "task.admit"
ROUND_AGGREGATE: Final = "round.aggregate"
ROUND_COMMIT: Final = "round.commit"

SPANS: Final = (
    ROUND_SAMPLE,
    TASK_OFFER,
    TASK_CONSENT,
    TASK_DOWNLOAD,
    TASK_TRAIN,
    TASK_UPLOAD,
    TASK_ADMIT,
    ROUND_AGGREGATE,
    ROUND_COMMIT,
)
"""Every span, in the order of a round."""
OTHER: Final = "other"
"""What a span or a label is called whose own name may not be told."""

# -- attributes of spans -------------------------------------------------------------------------------------------------

EXPERIMENT_ID: Final = "histofed.experiment.id"
ROUND_NUMBER: Final = "histofed.round.number"
TASK_KIND: Final = "histofed.task.kind"
SITE_ID: Final = "histofed.site.id"
ATTEMPT: Final = "histofed.attempt"
MODEL_DIGEST: Final = "histofed.model.digest"
MODEL_BYTES: Final = "histofed.model.bytes"
UPDATE_BYTES: Final = "histofed.update.bytes"
UPDATE_SHA256: Final = "histofed.update.sha256"
UPDATE_NORM: Final = "histofed.update.norm"
UPDATE_CLIPPED: Final = "histofed.update.clipped"
UPDATE_ENCODING: Final = "histofed.update.encoding"
STEPS: Final = "histofed.steps"
TILES_BUCKET: Final = "histofed.tiles.bucket"
RESUMED: Final = "histofed.resumed"
SITES_ELIGIBLE: Final = "histofed.sites.eligible"
SITES_SAMPLED: Final = "histofed.sites.sampled"
UPDATES_ADMITTED: Final = "histofed.updates.admitted"
UPDATES_REFUSED: Final = "histofed.updates.refused"
OUTCOME: Final = "histofed.outcome"
ERROR_CODE: Final = "histofed.error.code"
ERROR_TYPE: Final = "error.type"
"""OpenTelemetry's own name: the class of the error, never its words."""

OUTCOMES: Final = frozenset({"ok", "declined", "refused", "rejected", "expired", "abandoned", "failed", "cancelled"})
ERROR_TYPES: Final = frozenset(
    {cls.__name__ for cls in all_errors()}
    | {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)}
    | {"CancelledError"}
)
TILES_BUCKETS: Final = ("0-99", "100-999", "1000-9999", "10000-99999", "100000-")
_DIGEST: Final = Pattern(re.compile(r"[0-9a-f]{64}"))


@dataclass(frozen=True)
class Attribute:
    """What an attribute's values may be, and their unit."""

    rule: Rule
    unit: str = ""


ATTRIBUTES: Final[Mapping[str, Attribute]] = {
    EXPERIMENT_ID: Attribute(Name()),
    ROUND_NUMBER: Attribute(Count(), "{round}"),
    TASK_KIND: Attribute(OneOf(frozenset(TASK_KINDS))),
    SITE_ID: Attribute(Name()),
    ATTEMPT: Attribute(Count(), "{attempt}"),
    MODEL_DIGEST: Attribute(_DIGEST),
    MODEL_BYTES: Attribute(Count(), "By"),
    UPDATE_BYTES: Attribute(Count(), "By"),
    UPDATE_SHA256: Attribute(_DIGEST),
    UPDATE_NORM: Attribute(Number(), "1"),
    UPDATE_CLIPPED: Attribute(Flag()),
    UPDATE_ENCODING: Attribute(OneOf(frozenset(ENCODINGS))),
    STEPS: Attribute(Count(), "{step}"),
    TILES_BUCKET: Attribute(OneOf(frozenset(TILES_BUCKETS))),
    RESUMED: Attribute(Flag()),
    SITES_ELIGIBLE: Attribute(Count(), "{site}"),
    SITES_SAMPLED: Attribute(Count(), "{site}"),
    UPDATES_ADMITTED: Attribute(Count(), "{update}"),
    UPDATES_REFUSED: Attribute(Count(), "{update}"),
    OUTCOME: Attribute(OneOf(OUTCOMES)),
    ERROR_CODE: Attribute(Count()),
    ERROR_TYPE: Attribute(OneOf(ERROR_TYPES)),
}
"""Every attribute of a span."""

# -- attributes of a process ---------------------------------------------------------------------------------------------

RESOURCE: Final[Mapping[str, Attribute]] = {
    "service.namespace": Attribute(OneOf(frozenset({"histofed"}))),
    "service.name": Attribute(OneOf(frozenset({"histofed-agent", "histofed-aggregator"}))),
    "service.version": Attribute(Pattern(re.compile(r"\d{1,4}(?:\.\d{1,4}){1,3}(?:[.+-]?(?:a|b|rc|dev|post)\d{0,4})?"))),
    "service.instance.id": Attribute(Name()),
    "deployment.environment.name": Attribute(Name()),
}
"""Every attribute of a resource."""

# -- metrics -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A metric's name (Prometheus form, unit in the name), kind, help sentence, and what its labels' values may be."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, Rule]
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram."""


_ROUND_STATES: Final = OneOf(frozenset({"planned", "open", "aggregating", "committed", "abandoned"}))
_TASK_STATES: Final = OneOf(
    frozenset({"offered", "accepted", "uploading", "received", "admitted", "rejected", "declined", "expired"})
)

ROUNDS_TOTAL: Final = Metric("histofed_rounds_total", "counter", "Rounds that reached a state.", {"state": _ROUND_STATES})
ROUND_SECONDS: Final = Metric(
    "histofed_round_seconds",
    "histogram",
    "Time from the opening of a round to its commit, in seconds.",
    {},
    (1, 5, 15, 60, 300, 900, 3600, 14400, 86400),
)
TASKS_TOTAL: Final = Metric("histofed_tasks_total", "counter", "Tasks that reached a state.", {"state": _TASK_STATES})
UPDATES_BYTES_TOTAL: Final = Metric("histofed_updates_bytes_total", "counter", "Bytes of updates received.", {})
TRANSFER_BYTES_TOTAL: Final = Metric(
    "histofed_transfer_bytes_total",
    "counter",
    "Bytes of models and updates, by how they moved: sent over the wire, or copied from a blob that both ends hold.",
    {"direction": OneOf(frozenset({"upload", "download"})), "how": OneOf(frozenset({"sent", "copied"}))},
)
SITES_CONNECTED: Final = Metric("histofed_sites_connected", "gauge", "Sites that wait for work or work.", {})
SITE_CONNECTED: Final = Metric(
    "histofed_site_connected", "gauge", "1 while the site waits for work or works, else 0.", {"site": Name()}
)
ROUND_DEADLINE: Final = Metric(
    "histofed_round_deadline_seconds",
    "gauge",
    "Seconds until the deadline of an experiment's open round; below 0 it should have been closed.",
    {"experiment": Name()},
)
CONDITION: Final = Metric(
    "histofed_condition", "gauge", "1 while a condition of `histofed status` is good, else 0.", {"condition": Name()}
)
DISK_FREE_BYTES: Final = Metric("histofed_disk_free_bytes", "gauge", "Free space where the state directory is.", {})
CERTIFICATE_EXPIRY: Final = Metric(
    "histofed_certificate_expiry_seconds", "gauge", "Seconds until the aggregator's own certificate ends.", {}
)
SITE_CERTIFICATE_EXPIRY: Final = Metric(
    "histofed_site_certificate_expiry_seconds", "gauge", "Seconds until a site's certificate ends.", {"site": Name()}
)
JOURNAL_RECORDS_TOTAL: Final = Metric("histofed_journal_records_total", "counter", "Audit records written.", {})
TELEMETRY_DROPPED_TOTAL: Final = Metric(
    "histofed_telemetry_dropped_total", "counter", "Names and values that the allow-list kept back.", {}
)

METRICS: Final = (
    ROUNDS_TOTAL,
    ROUND_SECONDS,
    TASKS_TOTAL,
    UPDATES_BYTES_TOTAL,
    TRANSFER_BYTES_TOTAL,
    SITES_CONNECTED,
    SITE_CONNECTED,
    ROUND_DEADLINE,
    CONDITION,
    DISK_FREE_BYTES,
    CERTIFICATE_EXPIRY,
    SITE_CERTIFICATE_EXPIRY,
    JOURNAL_RECORDS_TOTAL,
    TELEMETRY_DROPPED_TOTAL,
)
"""Every metric."""

# -- the door ------------------------------------------------------------------------------------------------------------


def keep(attributes: Mapping[str, object], allowed: Mapping[str, Attribute]) -> tuple[dict[str, Value], int]:
    """Those attributes that may be told, and how many were dropped."""
    kept = {
        name: value
        for name, value in attributes.items()
        if isinstance(value, bool | int | float | str) and name in allowed and allowed[name].rule.allows(value)
    }
    return kept, len(attributes) - len(kept)


def span_name(name: str) -> str:
    """The name of a span, or `other` for one that is not on the list."""
    return name if name in SPANS else OTHER


def error_type(error: BaseException) -> str:
    """The class of an error, or the nearest class above it that may be told."""
    return next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in ERROR_TYPES)


def tiles_bucket(count: int) -> str:
    """The order of magnitude of a cohort: the number itself says too much about a small one."""
    for bucket in TILES_BUCKETS[:-1]:
        if count <= int(bucket.partition("-")[2]):
            return bucket
    return TILES_BUCKETS[-1]
