"""What can be said about an S3 store: ``storage_options``, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from asyncsync.errors import ConfigError
from asyncsync.stores.options import StoreOptions, given
from asyncsync.stores.s3_features import Features


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

    def features(self) -> Features:
        """The optional headers that are sent until the store refuses them."""
        checksum = self.checksum != "none"
        return Features(checksum, checksum and self.full_object_checksum, checksum and self.mp_object_size)

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
