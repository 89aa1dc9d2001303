"""The ``storage_options`` of an S3 store, validated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from asyncsync.errors import ConfigError
from asyncsync.stores import option_values as forms
from asyncsync.stores.options import ObjectKind, StoreOptions, given
from asyncsync.stores.s3.endpoint import split
from asyncsync.stores.s3.header_negotiation import OptionalHeaders

MAX_METADATA_BYTES = 2048
"""Bytes of an object's own metadata (Amazon S3 User Guide, "Working with object metadata")."""
_WITH_CUSTOMER_KEY = frozenset(
    {
        "PutObject",
        "CreateMultipartUpload",
        "UploadPart",
        "UploadPartCopy",
        "CompleteMultipartUpload",
        "CopyObject",
        "GetObject",
        "HeadObject",
        "ListParts",
    }
)
"""Operations that need the customer's key."""
_COPIES = frozenset({"CopyObject", "UploadPartCopy"})
_CUSTOMER = "server-side-encryption-customer"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class S3Options(StoreOptions):
    """Options of an S3 store. By default, the usual environment variables (including ``AWS_ENDPOINT_URL``),
    configuration files and the credential chain apply."""

    STORE: ClassVar[str] = "an S3 store"
    SECRETS: ClassVar[frozenset[str]] = frozenset(
        {"access_key", "secret_key", "session_token", "sse_customer_key", "external_id", "proxy"}
    )
    FLAGS: ClassVar[frozenset[str]] = frozenset(
        {"anonymous", "conditional_writes", "multi_delete", "equal_parts", "mp_object_size", "full_object_checksum"}
        | {"sse_bucket_key", "object_lock_legal_hold", "accelerate", "dual_stack", "fips"}
    )
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "addressing_style": ("auto", "path", "virtual"),
        "sse": ("AES256", "aws:kms", "aws:kms:dsse"),
        "checksum": ("auto", "crc32c", "none"),
        "request_payer": ("requester",),
        "object_lock_mode": ("GOVERNANCE", "COMPLIANCE"),
    }
    FORMS: ClassVar[Mapping[str, Callable[[object], Any]]] = {
        "sse_kms_key_id": forms.header_text,
        "sse_context": forms.encryption_context,
        "sse_customer_key": forms.customer_key,
        "storage_class": forms.header_text,
        "acl": forms.header_text,
        "content_type": forms.header_text,
        "cache_control": forms.header_text,
        "metadata": forms.metadata_pairs(MAX_METADATA_BYTES),
        "tags": forms.tag_set,
        "object_lock_retain_until": forms.future_date,
        "expected_bucket_owner": forms.matching("[0-9]{12}", "the 12 digits of an AWS account"),
        "role_arn": forms.matching("arn:[!-~]{1,2000}", "the ARN of a role, such as arn:aws:iam::123456789012:role/x"),
        "external_id": forms.matching(r"[\w+=,.@:/-]{2,1224}", "2 to 1224 letters, digits or characters of +=,.@:/-"),
        "role_session_name": forms.matching(r"[\w+=,.@-]{2,64}", "2 to 64 letters, digits or characters of +=,.@-"),
        "sts_endpoint_url": forms.http_url,
        "proxy": forms.http_url,
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
    client_certificate: str | None = None
    """TLS: path of a PEM file with the client's certificate and, without ``client_key``, its private key."""
    client_key: str | None = None
    """TLS: path of a PEM file with the private key of ``client_certificate``, not encrypted."""
    proxy: str | None = None
    """``http://host:port`` of a proxy for all requests. Default: from the environment."""
    accelerate: bool = False
    """Use the bucket's endpoint of S3 Transfer Acceleration."""
    dual_stack: bool = False
    """Use AWS endpoints that have IPv6 and IPv4 addresses."""
    fips: bool = False
    """Use AWS endpoints with FIPS 140 cryptography."""
    role_arn: str | None = None
    """A role to assume by STS with the credentials found otherwise. Its own credentials are renewed when due."""
    external_id: str | None = None
    """The external id that the role's trust policy asks for."""
    role_session_name: str | None = None
    """Names the session of the role, in the logs of AWS. Default: a generated name."""
    sts_endpoint_url: str | None = None
    """Address of an STS server that is not AWS. Default: that of the region."""
    expected_bucket_owner: str | None = None
    """The AWS account (12 digits) that must own the bucket; otherwise each request is refused."""
    sse: str | None = None
    """Server-side encryption: ``AES256``, ``aws:kms`` or ``aws:kms:dsse``. Default: the bucket's."""
    sse_kms_key_id: str | None = None
    """The key for ``aws:kms`` and ``aws:kms:dsse``. Default: the account's own."""
    sse_bucket_key: bool | None = None
    """Whether ``aws:kms`` uses a bucket key, which saves requests to KMS. Default: as the bucket is configured."""
    sse_context: str | None = None
    """The encryption context for KMS: a mapping of text to text. It is not secret; KMS logs it."""
    sse_customer_key: str | None = None
    """SSE-C: a key of 256 bits, as 32 bytes or base64 of them. Every object is encrypted with it, and without it
    nothing can be read: the store does not keep it, and neither does asyncsync."""
    storage_class: str | None = None
    """Such as ``STANDARD_IA``. Default: the bucket's. It applies to data only: manifests and records, which are read
    often, are in the bucket's own class."""
    content_type: str | None = None
    """Content-Type of data objects. Default: the store's, usually ``binary/octet-stream``."""
    cache_control: str | None = None
    """Cache-Control of data objects."""
    metadata: Mapping[str, str] | None = None
    """Metadata of data objects: a mapping of text to text, at most 2 KiB."""
    tags: str | None = None
    """Tags of data objects: a mapping of text to text, at most 10."""
    object_lock_mode: str | None = None
    """``GOVERNANCE`` or ``COMPLIANCE``: data and manifests cannot be deleted until ``object_lock_retain_until``. The
    bucket must have Object Lock, and so keeps versions."""
    object_lock_retain_until: str | None = None
    """A date after now with its time zone, such as ``2027-01-31T00:00:00Z``, or a ``datetime``."""
    object_lock_legal_hold: bool = False
    """Put a legal hold on data and manifests, which has no end."""
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
        if (self.object_lock_mode is None) != (self.object_lock_retain_until is None):
            raise ConfigError(
                "storage options object_lock_mode and object_lock_retain_until go together: give both or none"
            )
        self._check_encryption()
        self._check_access()

    def _check_encryption(self) -> None:
        kms = {"sse_kms_key_id": self.sse_kms_key_id, "sse_context": self.sse_context}
        for name, value in kms.items():
            if value is not None and self.sse not in ("aws:kms", "aws:kms:dsse"):
                raise ConfigError(f"storage option {name} needs sse='aws:kms' or sse='aws:kms:dsse'")
        if self.sse_bucket_key is not None and self.sse != "aws:kms":
            raise ConfigError("storage option sse_bucket_key needs sse='aws:kms'")
        if self.sse_customer_key is None:
            return
        if self.sse is not None:
            raise ConfigError("storage options sse and sse_customer_key exclude each other: give one")
        self.check_endpoint(self.endpoint_url or "")

    def check_endpoint(self, address: str) -> None:
        """ConfigError for an address to which a customer's key must not be sent."""
        url = split(address)
        if url is None or self.sse_customer_key is None:
            return
        if url.scheme == "http" and not forms.is_loopback(url.hostname or ""):
            raise ConfigError(
                f"storage option sse_customer_key needs https, but the endpoint is http://{url.netloc}: anybody on the "
                "way could read the key"
            )

    def _check_access(self) -> None:
        for name in ("external_id", "role_session_name", "sts_endpoint_url"):
            if getattr(self, name) is not None and self.role_arn is None:
                raise ConfigError(f"storage option {name} needs role_arn")
        if self.anonymous and self.role_arn is not None:
            raise ConfigError("storage options anonymous and role_arn exclude each other: give one")
        if self.client_key is not None and self.client_certificate is None:
            raise ConfigError("storage option client_key needs client_certificate")
        for name in ("accelerate", "dual_stack", "fips"):
            if getattr(self, name) and self.endpoint_url is not None:
                raise ConfigError(f"storage options {name} and endpoint_url exclude each other: {name} is for AWS")
        if self.accelerate and (self.addressing_style == "path" or self.fips):
            other = "fips" if self.fips else "addressing_style='path'"
            raise ConfigError(f"storage options accelerate and {other} exclude each other: give one")

    @property
    def needs_aiobotocore(self) -> bool:
        """Whether only aiobotocore can find the endpoint or the credentials."""
        return bool(self.profile or self.role_arn or self.proxy or self.accelerate or self.dual_stack or self.fips)

    @property
    def locks(self) -> bool:
        """Whether new objects are locked. Then the store requires a checksum of every body."""
        return self.object_lock_mode is not None or self.object_lock_legal_hold

    def optional_headers(self) -> OptionalHeaders:
        """Optional headers that are sent until the store refuses them."""
        checksum = self.checksum != "none"
        return OptionalHeaders(checksum, checksum and self.full_object_checksum, checksum and self.mp_object_size)

    def object_headers(self, kind: ObjectKind) -> dict[str, str]:
        """Headers of a request that writes an object of this kind."""
        headers = self._encryption_headers() | (self._data_headers() if kind in ("data", "report") else {})
        return headers | (self._lock_headers() if kind in ("data", "manifest") else {})

    def _encryption_headers(self) -> dict[str, str]:
        bucket_key = None if self.sse_bucket_key is None else str(self.sse_bucket_key).lower()
        return given(
            {
                "x-amz-acl": self.acl,
                "x-amz-server-side-encryption": self.sse,
                "x-amz-server-side-encryption-aws-kms-key-id": self.sse_kms_key_id,
                "x-amz-server-side-encryption-bucket-key-enabled": bucket_key,
                "x-amz-server-side-encryption-context": self.sse_context,
            }
        )

    def _data_headers(self) -> dict[str, str]:
        headers = given(
            {
                "x-amz-storage-class": self.storage_class,
                "content-type": self.content_type,
                "cache-control": self.cache_control,
                "x-amz-tagging": self.tags,
            }
        )
        return headers | {f"x-amz-meta-{name}": text for name, text in (self.metadata or {}).items()}

    def _lock_headers(self) -> dict[str, str]:
        return given(
            {
                "x-amz-object-lock-mode": self.object_lock_mode,
                "x-amz-object-lock-retain-until-date": self.object_lock_retain_until,
                "x-amz-object-lock-legal-hold": "ON" if self.object_lock_legal_hold else None,
            }
        )

    def copy_headers(self, kind: ObjectKind) -> dict[str, str]:
        """The same for CopyObject, which otherwise takes metadata and tags from the source."""
        headers = self.object_headers(kind)
        if any(name in ("content-type", "cache-control") or name.startswith("x-amz-meta-") for name in headers):
            headers["x-amz-metadata-directive"] = "REPLACE"
        return headers | ({"x-amz-tagging-directive": "REPLACE"} if "x-amz-tagging" in headers else {})

    def operation_headers(self, operation: str) -> dict[str, str]:
        """Headers of every request of one operation, such as ``GetObject``."""
        owner = self.expected_bucket_owner
        headers = {"x-amz-request-payer": self.request_payer, "x-amz-expected-bucket-owner": owner}
        if operation in _COPIES:
            headers["x-amz-source-expected-bucket-owner"] = owner
            headers |= self._customer_key_headers(f"x-amz-copy-source-{_CUSTOMER}")
        if operation in _WITH_CUSTOMER_KEY:
            headers |= self._customer_key_headers(f"x-amz-{_CUSTOMER}")
        return given(headers)

    def _customer_key_headers(self, prefix: str) -> dict[str, str]:
        key = self.sse_customer_key
        if key is None:
            return {}
        return {
            f"{prefix}-algorithm": "AES256",
            f"{prefix}-key": key,
            f"{prefix}-key-md5": forms.key_digest(key, "md5"),
        }
