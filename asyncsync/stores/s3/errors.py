"""What S3 says, in the words of :mod:`asyncsync.errors`. Mapped here and nowhere else; the SDK's own failures are
in :mod:`asyncsync.stores.s3.aiobotocore_errors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element

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
from asyncsync.stores.http.dates import retry_after, unix_of
from asyncsync.stores.s3.endpoint import shown
from asyncsync.stores.s3.xml import document, local_name, text_of

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
SKEWED = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
MISDIRECTED = frozenset({"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301", "307", "308"})
_THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"})
_ELSEWHERE = (
    "redirects are followed only to other regions of the same service, and never from https to http; if this is where "
    "the bucket is, set endpoint_url, or region"
)
_UNSPECIFIC = frozenset({"", "InvalidRequest", "InvalidArgument", "BadRequest"})
_MISSING = frozenset({"NoSuchKey", "NoSuchUpload", "NotFound"})
_TRANSIENT = frozenset(
    {"RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "InternalError", "ServiceUnavailable"}
)
"""ConditionalRequestConflict: two writes met, and the condition was not looked at."""
_DAMAGED = frozenset({"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
_DENIED = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AllAccessDisabled"} | EXPIRED
)


_REFUSALS = (
    "not supported",
    "unsupported",
    "not implemented",
    "notimplemented",
    "unknown",
    "unrecognized",
    "unexpected",
)
_ABOUT = ("header", "x-amz-", "checksum")


class MalformedError(StoreError):
    """The server cannot read the document that we sent."""


class InvalidPartError(StoreError):
    """The parts of an upload are not what the server wants."""


_OWN = {
    "MalformedXML": MalformedError,
    "InvalidPart": InvalidPartError,
    "InvalidPartSize": InvalidPartError,
    "InvalidRange": RangeNotSatisfiedError,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One answer that is not a success. ``where`` is ``s3://bucket/key``."""

    operation: str
    where: str
    status: int
    code: str
    message: str
    headers: Mapping[str, str]
    region: str = ""
    """Where the bucket is, if the answer says so."""

    @property
    def bucket(self) -> str:
        return self.where.removeprefix("s3://").partition("/")[0]

    @property
    def location(self) -> str:
        """Where a redirect leads; it may be anything."""
        return self.headers.get("location", "") if 300 <= self.status < 400 else ""

    def error(self) -> StoreError:
        """What it means; its ``code`` is the store's."""
        error = self._error()
        error.code = self.code
        return error

    def _error(self) -> StoreError:
        said = f"{self.code}: {self.message}" if self.message else self.code
        text = f"{self.operation} {self.where}: {said or 'no reason given'} (HTTP {self.status})"
        code, status = self.code, self.status
        if code == "NoSuchBucket":
            return NoSuchBucketError(f"{text}: there is no bucket {self.bucket!r}")
        if code in _MISSING or status == 404:
            return NotFoundError(text)
        if status == 412 or code == "PreconditionFailed":
            return PreconditionError(text)
        if self._is_unsupported():
            return UnsupportedError(text)
        if code == "InvalidObjectState":
            return self._archived(text)
        if code in _DAMAGED or (status == 400 and self._names_a_checksum()):
            return IntegrityError(text, retryable=True)
        if status == 429 or code in _THROTTLED or (status == 503 and code in ("", "503", "SlowDown")):
            return ThrottledError(text, retry_after(self.headers))
        if status in (401, 403) or code in _DENIED:
            return AccessDeniedError(text)
        if status >= 500 or code in _TRANSIENT or (status < 300 and not code):
            return UnavailableError(text)
        if status == 416:
            return RangeNotSatisfiedError(text)
        if self.location:
            return StoreError(f"{text}: it leads to {shown(self.location)}; {_ELSEWHERE}")
        return _OWN.get(code, StoreError)(text)

    def _is_unsupported(self) -> bool:
        if self.status in (405, 501) or self.code == "NotImplemented":
            return True
        if self.status != 400 or self.code in _DAMAGED:
            return False
        if self.operation == "HeadObject" and self.code in ("", "400"):
            return True  # it says nothing, as no answer to HEAD does
        said = f"{self.code} {self._own_words()}".lower()
        return any(word in said for word in _REFUSALS) and any(word in said for word in _ABOUT)

    def _archived(self, text: str) -> StoreError:
        """Not a matter of permissions, though the status is 403. What cannot be copied can be sent instead."""
        text += ": it is in an archive class and must be restored before it can be read"
        return PreconditionError(text) if self.operation in ("CopyObject", "UploadPartCopy") else StoreError(text)

    def _names_a_checksum(self) -> bool:
        """AWS says InvalidRequest of a checksum that does not fit, and names the header; the key is no word of it."""
        words = self._own_words().lower()
        return "checksum" in self.code.lower() or (self.code in _UNSPECIFIC and "checksum" in words)

    def _own_words(self) -> str:
        """The message without the key, which may hold any word."""
        return self.message.replace(self.where.removeprefix("s3://").partition("/")[2] or "\n", "")


def parse_failure(operation: str, where: str, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """Read an error document, also one that was cut off; without one (HEAD, proxies) code and message are empty."""
    root = document(body, cut=True)
    error = next((one for one in root.iter() if local_name(one) == "Error"), None) if root is not None else None
    if error is None:
        return Failure(operation, where, status, "", "", headers, headers.get("x-amz-bucket-region", ""))
    return failure_in(error, operation, where, status, headers)


def failure_in(error: Element, operation: str, where: str, status: int, headers: Mapping[str, str]) -> Failure:
    """What an error element says."""
    region = headers.get("x-amz-bucket-region") or text_of(error, "Region")
    return Failure(operation, where, status, text_of(error, "Code"), text_of(error, "Message"), headers, region)


def server_time(headers: Mapping[str, str]) -> float | None:
    """The ``Date`` of an answer in unix seconds."""
    return unix_of(headers.get("date", ""))
