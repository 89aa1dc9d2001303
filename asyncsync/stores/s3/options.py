"""What can be said about an S3 store: ``storage_options``, checked once.

Which of the newer headers an S3 server knows. Each of them can be left out; which ones have to be is found out by
leaving out one after the other. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from asyncsync.errors import ConfigError
from asyncsync.stores.options import StoreOptions, given

_SENT = {
    "CreateMultipartUpload": ("whole", "checksum"),
    "CompleteMultipartUpload": ("size", "whole", "checksum"),
}
"""What each operation sends, in the order in which it is left out; others send the checksum only."""
_HEADERS = {"size": "x-amz-mp-object-size", "whole": "x-amz-checksum"}
_SWITCHES = {
    "size": "mp_object_size=False",
    "whole": "full_object_checksum=False",
    "checksum": 'checksum="none"',
}


@dataclass(frozen=True, slots=True)
class OptionalHeaders:
    """Which optional headers are sent."""

    checksum: bool = True
    """A CRC32C with every body."""
    whole: bool = True
    """The CRC32C of a whole multipart object."""
    size: bool = True
    """The size of a whole multipart object."""

    def common(self, other: OptionalHeaders) -> OptionalHeaders:
        """What both have."""
        return OptionalHeaders(*(getattr(self, f.name) and getattr(other, f.name) for f in fields(self)))

    def below(self, operation: str, refusal: str, *, insist: bool) -> Iterator[OptionalHeaders]:
        """What to try after a refusal: without what it names, without each by itself, with less and less. ``insist``:
        checksums are always sent."""
        usable = [name for name in _SENT.get(operation, ("checksum",)) if not insist or name == "size"]
        tried = {self}
        named = [self._less(name) for name in usable if _HEADERS.get(name, "?") in refusal.lower()]
        less, steps = self, []
        for name in usable:
            less = less._less(name)
            steps.append(less)
        for each in (*named, *map(self._less, usable), *steps):
            if each not in tried:
                tried.add(each)
                yield each

    def _less(self, name: str) -> OptionalHeaders:
        return replace(self, checksum=False, whole=False) if name == "checksum" else replace(self, **{name: False})

    def lost(self, now: OptionalHeaders) -> list[str]:
        """The storage options that say from the beginning what was found out."""
        return [switch for name, switch in _SWITCHES.items() if getattr(self, name) and not getattr(now, name)]


def advice(headers: Mapping[str, str], *, insist: bool) -> str:
    """What to do about a request that was refused as a whole, for the end of its error."""
    options = []
    if "if-none-match" in headers or "if-match" in headers:
        options.append("conditional_writes=False if the store has no conditional writes")
    if insist:
        options.append('checksum="auto" if it does not know the checksum')
    return f"; storage options that help: {', '.join(options)}" if options else ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class S3Options(StoreOptions):
    """Options of an S3 store. Without any, the usual environment variables (``AWS_ENDPOINT_URL`` too), configuration
    files and the credential chain apply."""

    STORE: ClassVar[str] = "an S3 store"
    SECRETS: ClassVar[frozenset[str]] = frozenset({"access_key", "secret_key", "session_token"})
    FLAGS: ClassVar[frozenset[str]] = frozenset(
        {"anonymous", "conditional_writes", "multi_delete", "equal_parts", "mp_object_size", "full_object_checksum"}
    )
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "addressing_style": ("auto", "path", "virtual"),
        "sse": ("AES256", "aws:kms"),
        "checksum": ("auto", "crc32c", "none"),
        "request_payer": ("requester",),
    }

    endpoint_url: str | None = None
    """``http://host:port`` or ``https://...`` of a store that is not AWS."""
    region: str | None = None
    """Default: what the environment or the profile says, else ``us-east-1``."""
    profile: str | None = None
    """A profile of the AWS configuration files."""
    access_key: str | None = None
    """With ``secret_key``; else the credential chain is asked."""
    secret_key: str | None = None
    session_token: str | None = None
    """Of temporary credentials."""
    anonymous: bool = False
    """Send requests unsigned: public buckets."""
    addressing_style: str = "auto"
    """``path`` (http://host/bucket/key), ``virtual`` (http://bucket.host/key) or ``auto``."""
    verify: bool | str = True
    """TLS: True checks the certificate, a path names the CA bundle to check with, False checks nothing."""
    sse: str | None = None
    """Server-side encryption: ``AES256`` or ``aws:kms``."""
    sse_kms_key_id: str | None = None
    """The key for ``aws:kms``; default: the account's own."""
    storage_class: str | None = None
    """Such as ``STANDARD_IA``, for data only: manifests and records, which are read again all the time, are in the
    bucket's own class. Default: that too."""
    acl: str | None = None
    """A canned ACL, such as ``bucket-owner-full-control``."""
    request_payer: str | None = None
    """``requester`` for buckets whose reader pays."""
    checksum: str = "auto"
    """``auto``: CRC32C with every body, and of the whole object where the store understands that;
    ``crc32c``: the same, and insist on it; ``none``: no such header is sent, nor one of the size."""
    full_object_checksum: bool = True
    """Send the CRC32C of a whole multipart object. What a store refuses is left out from then on."""
    mp_object_size: bool = True
    """Send the size of a whole multipart object, likewise."""
    conditional_writes: bool = True
    """False: for stores that refuse ``If-None-Match`` and ``If-Match`` of a write. Then asyncsync cannot stop two
    processes that write to the same trial."""
    multi_delete: bool = True
    """Delete many objects with one request (DeleteObjects); a store without that is noticed."""
    equal_parts: bool = False
    """All parts of an upload but the last have the same size. A store that wants this (Cloudflare R2) is noticed when
    it refuses the first upload whose parts have not."""

    def __post_init__(self) -> None:
        if (self.access_key is None) != (self.secret_key is None):
            raise ConfigError("storage options access_key and secret_key go together: give both or none")

    def features(self) -> OptionalHeaders:
        """The optional headers that are sent until the store refuses them."""
        checksum = self.checksum != "none"
        return OptionalHeaders(checksum, checksum and self.full_object_checksum, checksum and self.mp_object_size)

    def object_headers(self, *, data: bool = True) -> dict[str, str]:
        """Headers of a request that makes an object (PutObject). ``data``: it is no manifest, record or probe."""
        return given(
            {
                "x-amz-acl": self.acl,
                "x-amz-storage-class": self.storage_class if data else None,
                "x-amz-server-side-encryption": self.sse,
                "x-amz-server-side-encryption-aws-kms-key-id": self.sse_kms_key_id,
            }
        )

    def object_params(self) -> dict[str, str]:
        """The same for aiobotocore."""
        return given(
            {
                "ACL": self.acl,
                "StorageClass": self.storage_class,
                "ServerSideEncryption": self.sse,
                "SSEKMSKeyId": self.sse_kms_key_id,
            }
        )

    def request_headers(self) -> dict[str, str]:
        """Headers of every request."""
        return given({"x-amz-request-payer": self.request_payer})

    def request_params(self) -> dict[str, str]:
        """The same for aiobotocore."""
        return given({"RequestPayer": self.request_payer})
