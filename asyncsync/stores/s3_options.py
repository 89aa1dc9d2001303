"""What can be said about an S3 store: ``storage_options``, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from asyncsync.errors import ConfigError
from asyncsync.stores.options import StoreOptions, given


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class S3Options(StoreOptions):
    """Options of an S3 store. Without any, the usual environment variables (``AWS_ENDPOINT_URL`` too), configuration
    files and the credential chain apply."""

    STORE: ClassVar[str] = "an S3 store"
    SECRETS: ClassVar[frozenset[str]] = frozenset({"access_key", "secret_key", "session_token"})
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
    """Such as ``STANDARD_IA``; default: the bucket's."""
    acl: str | None = None
    """A canned ACL, such as ``bucket-owner-full-control``."""
    request_payer: str | None = None
    """``requester`` for buckets whose reader pays."""
    checksum: str = "auto"
    """``auto``: CRC32C with every body, and of the whole object where the store understands that;
    ``crc32c``: the same, and insist on it; ``none``: for stores that refuse the header."""

    def __post_init__(self) -> None:
        if (self.access_key is None) != (self.secret_key is None):
            raise ConfigError("storage options access_key and secret_key go together: give both or none")

    def object_headers(self) -> dict[str, str]:
        """Headers of a request that makes an object (PutObject)."""
        return given(
            {
                "x-amz-acl": self.acl,
                "x-amz-storage-class": self.storage_class,
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
