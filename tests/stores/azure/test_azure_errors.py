"""Every error response of the service becomes one error of asyncsync, without a secret in its text."""

import pytest

from asyncsync.errors import (
    AccessDeniedError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    PreconditionError,
    RangeNotSatisfiedError,
    StoreError,
    ThrottledError,
    UnavailableError,
    UnsupportedError,
)
from asyncsync.stores.azure.errors import ForeignBlocksError, MissingBlockError, failure


def fail(status, code="", message="m", headers=None, body=None):
    document = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return failure("Put Blob", "az://box/key", status, headers or {}, document if body is None else body)


@pytest.mark.parametrize(
    ("status", "code", "kind", "retryable"),
    [
        (404, "BlobNotFound", NotFoundError, False),
        (404, "ContainerNotFound", NoSuchBucketError, False),
        (404, "", NotFoundError, False),
        (409, "BlobAlreadyExists", PreconditionError, False),
        (412, "ConditionNotMet", PreconditionError, False),
        (412, "SourceConditionNotMet", PreconditionError, False),
        (412, "TargetConditionNotMet", PreconditionError, False),
        (412, "LeaseIdMissing", AccessDeniedError, False),
        (409, "LeaseAlreadyPresent", AccessDeniedError, False),
        (403, "AuthenticationFailed", AccessDeniedError, False),
        (403, "AuthorizationPermissionMismatch", AccessDeniedError, False),
        (401, "InvalidAuthenticationInfo", AccessDeniedError, False),
        (400, "Crc64Mismatch", IntegrityError, True),
        (400, "Md5Mismatch", IntegrityError, True),
        (416, "InvalidRange", RangeNotSatisfiedError, False),
        (400, "InvalidBlockList", MissingBlockError, False),
        (400, "InvalidBlobOrBlock", ForeignBlocksError, False),
        (409, "InvalidBlobType", UnsupportedError, False),
        (405, "UnsupportedHttpVerb", UnsupportedError, False),
        (503, "ServerBusy", ThrottledError, True),
        (429, "", ThrottledError, True),
        (500, "InternalError", UnavailableError, True),
        (500, "OperationTimedOut", UnavailableError, True),
        (502, "", UnavailableError, True),
        (409, "ContainerBeingDeleted", UnavailableError, True),
        (409, "BlobArchived", StoreError, False),
        (400, "InvalidHeaderValue", StoreError, False),
        (418, "", StoreError, False),
    ],
)
def test_each_code_has_one_error(status, code, kind, retryable):
    error = fail(status, code)
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.code == code
    assert "Put Blob az://box/key" in str(error)
    assert f"HTTP {status}" in str(error)


def test_a_head_has_its_code_in_a_header():
    error = fail(404, headers={"x-ms-error-code": "ContainerNotFound"}, body=b"")
    assert type(error) is NoSuchBucketError


def test_a_throttled_request_says_how_long_to_wait():
    assert fail(503, "ServerBusy", headers={"retry-after": "7"}).retry_after == 7.0


@pytest.mark.parametrize(
    "message",
    [
        "Signature did not match. az://x?sv=1&sig=TOPSECRET%3D&sp=r",
        "The MAC signature found in the HTTP request 'TOPSECRET' is not the same",
        "Server used following string to sign: 'PUT\n\nTOPSECRET",
        "Authorization: SharedKey account:TOPSECRET",
        "Bearer TOPSECRET is expired",
    ],
)
def test_a_message_of_the_service_shows_no_signature(message):
    for body in (None, message.encode()):
        error = fail(403, "AuthenticationFailed", message, body=body)
        assert "TOPSECRET" not in str(error)


@pytest.mark.parametrize("body", [b"", b"<html>login</html>", b"\xff\xfe", b"<Error><Code>BlobNotF", b"<a>" * 5000])
def test_any_body_gives_an_error(body):
    assert isinstance(fail(500, body=body), UnavailableError)


def test_a_lease_of_another_program_is_named():
    assert "lease" in str(fail(412, "LeaseIdMissing"))
