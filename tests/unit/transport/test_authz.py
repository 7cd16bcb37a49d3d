"""The table of who may call what covers every RPC there is, and nothing else."""

from __future__ import annotations

import pytest

from histofed.base.errors import NotAuthorised
from histofed.pki.identity import Identity, Role
from histofed.transport import authz
from histofed.v1 import admin_pb2, enrollment_pb2, rounds_pb2, transfer_pb2, types_pb2

MODULES = (admin_pb2, enrollment_pb2, rounds_pb2, transfer_pb2, types_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}"
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
WHO = {
    Role.SITE: Identity("f", Role.SITE, "north"),
    Role.OPERATOR: Identity("f", Role.OPERATOR, "ada"),
    Role.AGGREGATOR: Identity("f", Role.AGGREGATOR, ""),
}


def test_every_rpc_is_in_exactly_one_table() -> None:
    assert set(authz.ROLES) | authz.OPEN == METHODS
    assert not set(authz.ROLES) & authz.OPEN
    assert all(authz.ROLES.values()), "a method nobody may call would be a mistake"


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_is_not_granted_is_refused(method: str, role: Role) -> None:
    service = method.split("/")[1]
    expected = {
        "histofed.v1.FleetService": {Role.SITE},
        "histofed.v1.OperatorService": {Role.OPERATOR},
        "histofed.v1.BlobService": {Role.SITE, Role.OPERATOR} if method.endswith("/Download") else {Role.SITE},
        "histofed.v1.EnrollmentService": {Role.SITE} if method.endswith("/Renew") else set(),
    }[service]
    if role in expected:
        authz.check(WHO[role], method)
    else:
        with pytest.raises(NotAuthorised):
            authz.check(WHO[role], method)


def test_the_refusal_says_whose_certificate_is_needed() -> None:
    with pytest.raises(
        NotAuthorised, match=r"^spiffe://f/site/north may not call OperatorService/ListRounds: .*$"
    ) as caught:
        authz.check(WHO[Role.SITE], "/histofed.v1.OperatorService/ListRounds")
    assert str(caught.value).endswith(": it needs an operator's certificate")
    with pytest.raises(NotAuthorised, match="it needs a site's certificate"):
        authz.check(WHO[Role.OPERATOR], "/histofed.v1.FleetService/Hello")
    with pytest.raises(NotAuthorised, match="it needs an operator's or a site's certificate"):
        authz.check(WHO[Role.AGGREGATOR], "/histofed.v1.BlobService/Download")


def test_the_enrolment_port_knows_one_method() -> None:
    authz.check_open("/histofed.v1.EnrollmentService/Enroll")
    for method in METHODS - authz.OPEN:
        with pytest.raises(NotAuthorised, match="enrolment port"):
            authz.check_open(method)
