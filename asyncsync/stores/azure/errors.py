"""Maps error responses of Azure Blob Storage to :mod:`asyncsync.errors`. No other module does this."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
from asyncsync.stores.http.dates import retry_after
from asyncsync.stores.xml_reader import document, local_name, text_of

MAX_SHOWN_MESSAGE = 500
"""Characters of a server's message that an error shows."""


class MissingBlockError(NotFoundError):
    """A block list names a block that the service does not have: another upload was committed, or it expired."""


class ForeignBlocksError(StoreError):
    """The blob has uncommitted blocks of another program, whose names have another length."""


_CODES: dict[str, type[StoreError]] = {
    "AuthenticationFailed": AccessDeniedError,
    "AuthorizationFailure": AccessDeniedError,
    "BlobAlreadyExists": PreconditionError,
    "BlobArchived": StoreError,
    "BlobNotFound": NotFoundError,
    "ConditionNotMet": PreconditionError,
    "ContainerBeingDeleted": UnavailableError,
    "ContainerNotFound": NoSuchBucketError,
    "CannotVerifyCopySource": NotFoundError,
    "Crc64Mismatch": IntegrityError,
    "FeatureNotSupportedForAccount": UnsupportedError,
    "InternalError": UnavailableError,
    "InvalidBlobOrBlock": ForeignBlocksError,
    "InvalidBlobType": UnsupportedError,
    "InvalidBlockId": ForeignBlocksError,
    "InvalidBlockList": MissingBlockError,
    "InvalidCrc64": IntegrityError,
    "InvalidMd5": IntegrityError,
    "InvalidRange": RangeNotSatisfiedError,
    "LeaseAlreadyPresent": AccessDeniedError,
    "LeaseIdMissing": AccessDeniedError,
    "LeaseLost": AccessDeniedError,
    "Md5Mismatch": IntegrityError,
    "OperationTimedOut": UnavailableError,
    "PathConflict": UnsupportedError,
    "PathNotFound": NotFoundError,
    "ResourceNotFound": NotFoundError,
    "ServerBusy": ThrottledError,
    "SourceConditionNotMet": PreconditionError,
    "TargetConditionNotMet": PreconditionError,
    "UnsupportedHeader": UnsupportedError,
}
"""Error codes of the service (Azure documentation, "Blob service error codes"); others are judged by their status."""
_STATUSES: dict[int, type[StoreError]] = {
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: NotFoundError,
    405: UnsupportedError,
    408: UnavailableError,
    412: PreconditionError,
    416: RangeNotSatisfiedError,
    429: ThrottledError,
    501: UnsupportedError,
    503: ThrottledError,
}
_LEASED = ": another program holds a lease on it; end the lease, or write to another path"
_ARCHIVED = ": it is in the archive tier and must be rehydrated before it can be read"
_FOREIGN = ": another program has an unfinished upload of it; finish it there, or delete the blob"
_ADVICE = {
    "BlobArchived": _ARCHIVED,
    "InvalidBlobOrBlock": _FOREIGN,
    "InvalidBlobType": ": a page or append blob, or a file written through another protocol, is in its place",
    "LeaseIdMissing": _LEASED,
    "LeaseAlreadyPresent": _LEASED,
    "LeaseLost": _LEASED,
}
_SECRET = re.compile(r"(sig=|SharedKey [^:\s]*:|Bearer )[^&\s'\"<]+")
_SIGNED_TEXT = re.compile(r"(The MAC signature found|Server used following string to sign).*", re.DOTALL)


def failure(operation: str, where: str, status: int, headers: Mapping[str, str], body: bytes) -> StoreError:
    """The error for a response that is not a success; its ``code`` is the service's. Names of ``headers`` are in lower
    case. The response to a HEAD has its code in a header only."""
    code, message = _code_and_message(headers, body)
    reason = f"{code}: {message}" if code and message else code or message or "no reason given"
    return error_of(f"{operation} {where}: {reason} (HTTP {status})", status, code, headers)


def error_of(text: str, status: int, code: str, headers: Mapping[str, str]) -> StoreError:
    """The error for a status and an error code of the service; ``text`` is its message."""
    kind = _CODES.get(code) or _STATUSES.get(status) or (UnavailableError if status >= 500 else StoreError)
    text += _ADVICE.get(code, "")
    error: StoreError
    if kind is IntegrityError:
        error = IntegrityError(text, retryable=True)
    elif kind is ThrottledError:
        error = ThrottledError(text, retry_after(headers))
    else:
        error = kind(text)
    error.code = code
    return error


def _code_and_message(headers: Mapping[str, str], body: bytes) -> tuple[str, str]:
    """Code and message of an error document, even if it is cut off. Proxies respond with anything."""
    root = document(body, cut=True)
    if root is None or local_name(root) != "Error":
        shown = body[:MAX_SHOWN_MESSAGE].decode("utf-8", "replace").strip()
        return headers.get("x-ms-error-code", "")[:80], without_secrets(shown)
    code = headers.get("x-ms-error-code", "") or text_of(root, "Code")
    message = text_of(root, "Message").partition("\nRequestId:")[0]
    if detail := text_of(root, "AuthenticationErrorDetail"):
        message += f" {detail}"
    return code[:80], without_secrets(message)[:MAX_SHOWN_MESSAGE]


def without_secrets(text: str) -> str:
    """A server's text without signatures: services repeat the address of a refused request, and the text it signs."""
    return _SECRET.sub(r"\1***", _SIGNED_TEXT.sub(r"\1 ***", text))
