"""Who may call what: one table of every RPC. What is not in it is refused.

The role comes from the caller's certificate (`pki/identity.py`). Which site's task, or whose blob, is a matter of the
handler. A test holds this table against the service descriptors, both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from histofed.base.errors import NotAuthorised
from histofed.pki.identity import Identity, Role

_SITE: Final = frozenset({Role.SITE})
_OPERATOR: Final = frozenset({Role.OPERATOR})
_BOTH: Final = _SITE | _OPERATOR

ROLES: Final[Mapping[str, frozenset[Role]]] = {
    "/histofed.v1.FleetService/Hello": _SITE,
    "/histofed.v1.FleetService/WaitForWork": _SITE,
    "/histofed.v1.FleetService/AcceptTask": _SITE,
    "/histofed.v1.FleetService/DeclineTask": _SITE,
    "/histofed.v1.FleetService/ReportProgress": _SITE,
    "/histofed.v1.FleetService/SubmitUpdate": _SITE,
    "/histofed.v1.FleetService/FailTask": _SITE,
    "/histofed.v1.BlobService/GetUpload": _SITE,
    "/histofed.v1.BlobService/Upload": _SITE,
    "/histofed.v1.BlobService/Download": _BOTH,
    "/histofed.v1.EnrollmentService/Renew": _SITE,
    "/histofed.v1.OperatorService/GetStatus": _OPERATOR,
    "/histofed.v1.OperatorService/SubmitExperiment": _OPERATOR,
    "/histofed.v1.OperatorService/ListExperiments": _OPERATOR,
    "/histofed.v1.OperatorService/GetExperiment": _OPERATOR,
    "/histofed.v1.OperatorService/PauseExperiment": _OPERATOR,
    "/histofed.v1.OperatorService/ResumeExperiment": _OPERATOR,
    "/histofed.v1.OperatorService/CancelExperiment": _OPERATOR,
    "/histofed.v1.OperatorService/ListRounds": _OPERATOR,
    "/histofed.v1.OperatorService/GetRound": _OPERATOR,
    "/histofed.v1.OperatorService/WatchRounds": _OPERATOR,
    "/histofed.v1.OperatorService/ListSites": _OPERATOR,
    "/histofed.v1.OperatorService/ListModels": _OPERATOR,
    "/histofed.v1.OperatorService/GetModel": _OPERATOR,
    "/histofed.v1.OperatorService/CreateToken": _OPERATOR,
}
"""The mTLS port: method → roles."""

OPEN: Final = frozenset({"/histofed.v1.EnrollmentService/Enroll"})
"""The enrolment port: methods for whoever connects; the join token is checked by the handler."""


def check(identity: Identity, method: str) -> None:
    """Raises `NotAuthorised` unless `identity` may call `method` on the mTLS port."""
    allowed = ROLES.get(method, frozenset())
    if identity.role in allowed:
        return
    short = method.rpartition("v1.")[2]
    if not allowed:
        raise NotAuthorised(f"{short} cannot be called on this port")
    whose = " or ".join(f"{_with_article(role)}'s" for role in sorted(allowed))
    raise NotAuthorised(f"{identity} may not call {short}: it needs {whose} certificate")


def _with_article(role: Role) -> str:
    return f"{'an' if role[0] in 'aeiou' else 'a'} {role}"


def check_open(method: str) -> None:
    """Raises `NotAuthorised` unless anybody may call `method` on the enrolment port."""
    if method not in OPEN:
        raise NotAuthorised(f"{method.rpartition('v1.')[2]} cannot be called on the enrolment port")
