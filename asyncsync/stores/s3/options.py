"""The ``storage_options`` of an S3 store, validated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from asyncsync.errors import ConfigError
from asyncsync.stores.options import StoreOptions, given
from asyncsync.stores.s3.optional_headers import OptionalHeaders


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class S3Options(StoreOptions):
    """Options of an S3 store. By default, the usual environment variables (including ``AWS_ENDPOINT_URL``),
    configuration files and the credential chain apply."""

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
    """``http://host:port`` or ``https://...`` of a store other than AWS."""
    region: str | None = None
    """Default: from the environment or the profile, else ``us-east-1``."""
    profile: str | None = None
    """A profile of the AWS configuration files."""
    access_key: str | None = None
    """With ``secret_key``. Default: the credential chain."""
    secret_key: str | None = None
    session_token: str | None = None
    """Of temporary credentials."""
    anonymous: bool = False
    """Send unsigned requests: for public buckets."""
    addressing_style: str = "auto"
    """``path`` (http://host/bucket/key), ``virtual`` (http://bucket.host/key) or ``auto``."""
    verify: bool | str = True
    """TLS: True verifies the certificate; a path names the CA bundle for this; False does not verify it."""
    sse: str | None = None
    """Server-side encryption: ``AES256`` or ``aws:kms``."""
    sse_kms_key_id: str | None = None
    """The key for ``aws:kms``. Default: the account's own."""
    storage_class: str | None = None
    """Such as ``STANDARD_IA``. Default: the bucket's. It applies to data only: manifests and records, which are read
    often, are in the bucket's own class."""
    acl: str | None = None
    """A canned ACL, such as ``bucket-owner-full-control``."""
    request_payer: str | None = None
    """``requester`` for requester-pays buckets."""
    checksum: str = "auto"
    """``auto``: send the CRC32C of every body, and of the whole object if the store supports it; ``crc32c``: the same,
    but fail if the store refuses it; ``none``: send neither checksum nor size headers."""
    full_object_checksum: bool = True
    """Send the CRC32C of a whole multipart object. If the store refuses it, it is left out from then on."""
    mp_object_size: bool = True
    """Send the size of a whole multipart object. If the store refuses it, it is left out from then on."""
    conditional_writes: bool = True
    """False: for stores that refuse ``If-None-Match`` and ``If-Match`` of a write. Then asyncsync cannot detect two
    processes that write to the same trial."""
    multi_delete: bool = True
    """Delete many objects with one request (DeleteObjects). A store without it is detected."""
    equal_parts: bool = False
    """All parts of an upload except the last have the same size. A store that requires this (Cloudflare R2) is detected
    when it refuses the first upload with other parts."""

    def __post_init__(self) -> None:
        if (self.access_key is None) != (self.secret_key is None):
            raise ConfigError("storage options access_key and secret_key go together: give both or none")

    def optional_headers(self) -> OptionalHeaders:
        """Optional headers that are sent until the store refuses them."""
        checksum = self.checksum != "none"
        return OptionalHeaders(checksum, checksum and self.full_object_checksum, checksum and self.mp_object_size)

    def object_headers(self, *, data: bool = True) -> dict[str, str]:
        """Headers of a request that writes an object. ``data``: False for manifests, records and probes."""
        return given(
            {
                "x-amz-acl": self.acl,
                "x-amz-storage-class": self.storage_class if data else None,
                "x-amz-server-side-encryption": self.sse,
                "x-amz-server-side-encryption-aws-kms-key-id": self.sse_kms_key_id,
            }
        )

    def request_headers(self) -> dict[str, str]:
        """Headers of every request."""
        return given({"x-amz-request-payer": self.request_payer})

    def request_params(self) -> dict[str, str]:
        """The same for aiobotocore."""
        return given({"RequestPayer": self.request_payer})
