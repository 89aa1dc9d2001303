"""Maps error responses of S3 to :mod:`asyncsync.errors`. Errors of aiobotocore itself are mapped in
:mod:`asyncsync.stores.s3.sdk.aiobotocore_errors`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
from asyncsync.stores.s3.header_negotiation import RefusedHeaderError
from asyncsync.stores.xml_reader import document, local_name, text_of

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
SKEWED = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
MISDIRECTED = frozenset({"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301", "307", "308"})
EXPLAINED_BY_GET = frozenset({400, 401, 403, 501})
"""Statuses of a refused HEAD whose reason only the document of a GET gives."""
_NO_SUCH_BUCKET = "NoSuchBucket"
_INVALID_RANGE = "InvalidRange"
_THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"})
_MISSING = frozenset({"NoSuchKey", "NoSuchUpload", "NotFound"})
_TRANSIENT = frozenset(
    {"RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "InternalError", "ServiceUnavailable"}
)
"""ConditionalRequestConflict: two writes conflicted, and the condition was not evaluated."""
_DAMAGED = frozenset({"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
_DENIED = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AllAccessDisabled"} | EXPIRED
)
_UNSPECIFIC = frozenset({"", "400", "InvalidRequest", "InvalidArgument", "BadRequest"})
"""Codes of a 400 that say nothing about its cause; only the message does."""
_REFUSED_HEADER_WORDS = (
    ("not supported", "unsupported", "not implemented", "notimplemented", "unknown", "unrecognized", "unexpected"),
    ("header", "x-amz-", "checksum"),
)
"""A header that the server does not implement: a word of each group. Backblaze B2 sends InvalidArgument, "Unsupported
header 'x-amz-checksum-crc32' received for this API call." (iterate-ch/cyberduck#16107); other servers have other
words."""
_CHECKSUM_WORDS = (("checksum",),)
"""A wrong checksum. AWS sends InvalidRequest, "Value for x-amz-checksum-crc32c header is invalid."."""
_HEADER_NAME = re.compile(r"x-amz-[a-z0-9-]+")
_REDIRECT_ADVICE = (
    "redirects are followed only to other regions of the same service, and never from https to http; if the bucket is "
    "there, set endpoint_url or region"
)


class MalformedError(StoreError):
    """The server cannot parse the document of the request."""


class InvalidPartError(StoreError):
    """The server refuses the parts of an upload."""


class ContentMd5RequiredError(StoreError):
    """The bucket has Object Lock, and the body had neither Content-MD5 nor a checksum header."""


_ERRORS_BY_CODE = {"MalformedXML": MalformedError, "InvalidPart": InvalidPartError, "InvalidPartSize": InvalidPartError}


@dataclass(frozen=True, slots=True)
class S3Failure:
    """One response that is not a success. ``where`` is ``s3://bucket/key``."""

    operation: str
    where: str
    status: int
    code: str
    message: str
    headers: Mapping[str, str]
    region: str = ""
    """The bucket's region, if the response gives it."""

    @property
    def bucket(self) -> str:
        return self.where.removeprefix("s3://").partition("/")[0]

    @property
    def location(self) -> str:
        """The address of a redirect; it may be any text."""
        return self.headers.get("location", "") if 300 <= self.status < 400 else ""

    def error(self) -> StoreError:
        """The error to raise; its ``code`` is the store's."""
        error = self._error()
        error.code = _INVALID_RANGE if self.status == 416 else self.code
        return error

    def _error(self) -> StoreError:
        reason = f"{self.code}: {self.message}" if self.message else self.code
        text = f"{self.operation} {self.where}: {reason or 'no reason given'} (HTTP {self.status})"
        code, status = self.code, self.status
        if status == 416 or code == _INVALID_RANGE:
            return RangeNotSatisfiedError(text)
        if code == _NO_SUCH_BUCKET:
            return NoSuchBucketError(f"{text}: there is no bucket {self.bucket!r}")
        if code in _MISSING or status == 404:
            return NotFoundError(text)
        if status == 412 or code == "PreconditionFailed":
            return PreconditionError(text)
        if self._requires_content_md5():
            return ContentMd5RequiredError(text)
        if status in (405, 501) or code == "NotImplemented":
            return self._unsupported(text)
        if self._is_customer_encrypted():
            return StoreError(f"{text}: the object is encrypted with a customer's key: check sse_customer_key")
        if code == "InvalidObjectState":
            return self._archived(text)
        if code in _DAMAGED:
            return IntegrityError(text, retryable=True)
        if status == 429 or code in _THROTTLED or (status == 503 and code in ("", "503", "SlowDown")):
            return ThrottledError(text, retry_after(self.headers))
        if status in (401, 403) or code in _DENIED:
            return AccessDeniedError(text)
        if status >= 500 or code in _TRANSIENT or (status < 300 and not code):
            return UnavailableError(text)
        if self.location:
            return StoreError(f"{text}: it redirects to {shown(self.location)}; {_REDIRECT_ADVICE}")
        if code in _ERRORS_BY_CODE:
            return _ERRORS_BY_CODE[code](text)
        return self._from_message(text) if status == 400 else StoreError(text)

    def _from_message(self, text: str) -> StoreError:
        """The error of a 400 whose code is not among those above."""
        if self.operation == "HeadObject" and self.code in ("", "400"):
            return self._unsupported(text)  # the response to a HEAD has no document, so it may mean this
        words = f"{self.code} {self._message_without_key()}".lower()
        if _has_words(words, _REFUSED_HEADER_WORDS):
            return self._unsupported(text)
        if _has_words(words if self.code in _UNSPECIFIC else self.code.lower(), _CHECKSUM_WORDS):
            return IntegrityError(text, retryable=True)
        return StoreError(text)

    def _unsupported(self, text: str) -> UnsupportedError:
        header = _HEADER_NAME.search(self._message_without_key().lower())
        return UnsupportedError(text) if header is None else RefusedHeaderError(text, header[0])

    def _requires_content_md5(self) -> bool:
        """AWS: InvalidRequest, "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with
        Object Lock parameters"; others have a code of their own."""
        words = f"{self.code} {self._message_without_key()}".lower().replace("-", "")
        return self.status == 400 and "contentmd5" in words and ("required" in words or "missing" in words)

    def _is_customer_encrypted(self) -> bool:
        """AWS: InvalidRequest, "The object was stored using a form of Server Side Encryption. The correct parameters
        must be provided to retrieve the object"."""
        words = self._message_without_key().lower()
        return self.status == 400 and ("form of server side encryption" in words or "sse-c" in words)

    def _archived(self, text: str) -> StoreError:
        """Not a matter of permissions, although the status is 403. If it cannot be copied, its bytes can be sent."""
        text += ": it is in an archive class and must be restored before it can be read"
        return PreconditionError(text) if self.operation in ("CopyObject", "UploadPartCopy") else StoreError(text)

    def _message_without_key(self) -> str:
        """A key may contain any word."""
        return self.message.replace(self.where.removeprefix("s3://").partition("/")[2] or "\n", "")


def _has_words(text: str, groups: Iterable[Iterable[str]]) -> bool:
    """Whether ``text`` has a word of each group."""
    return all(any(word in text for word in group) for group in groups)


def parse_failure(operation: str, where: str, status: int, headers: Mapping[str, str], body: bytes) -> S3Failure:
    """Read an error document, even if it is cut off. Without one (HEAD, proxies), code and message are empty."""
    root = document(body, cut=True)
    error = next((one for one in root.iter() if local_name(one) == "Error"), None) if root is not None else None
    if error is None:
        return S3Failure(operation, where, status, "", "", headers, headers.get("x-amz-bucket-region", ""))
    return failure_in(error, operation, where, status, headers)


def failure_in(error: Element, operation: str, where: str, status: int, headers: Mapping[str, str]) -> S3Failure:
    """The failure in an error element."""
    region = headers.get("x-amz-bucket-region") or text_of(error, "Region")
    return S3Failure(operation, where, status, text_of(error, "Code"), text_of(error, "Message"), headers, region)


def server_time(headers: Mapping[str, str]) -> float | None:
    """The ``Date`` of a response in Unix seconds."""
    return unix_of(headers.get("date", ""))
