"""What can be said about an S3 store: ``storage_options``, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from asyncsync.errors import ConfigError

_CHOICES: dict[str, tuple[str, ...]] = {
    "addressing_style": ("auto", "path", "virtual"),
    "sse": ("AES256", "aws:kms"),
    "checksum": ("auto", "crc32c", "none"),
    "request_payer": ("requester",),
}
_SECRETS = frozenset({"access_key", "secret_key", "session_token"})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class S3Options:
    """Options of an S3 store. Without any, the usual environment variables (``AWS_ENDPOINT_URL`` too), configuration
    files and the credential chain apply."""

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

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name not in _SECRETS)
        return f"S3Options({', '.join(shown)})"

    @classmethod
    def parse(cls, options: Mapping[str, object]) -> S3Options:
        """Raises ConfigError for an unknown key or an unusable value."""
        known = {f.name: f for f in fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise ConfigError(f"storage option {name!r} is not known; an S3 store knows {', '.join(sorted(known))}")
            _check(name, value)
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        parsed = cls(**given)
        if (parsed.access_key is None) != (parsed.secret_key is None):
            raise ConfigError("storage options access_key and secret_key go together: give both or none")
        return parsed

    def object_headers(self) -> dict[str, str]:
        """Headers of a request that makes an object (PutObject)."""
        return _given(
            {
                "x-amz-acl": self.acl,
                "x-amz-storage-class": self.storage_class,
                "x-amz-server-side-encryption": self.sse,
                "x-amz-server-side-encryption-aws-kms-key-id": self.sse_kms_key_id,
            }
        )

    def object_params(self) -> dict[str, str]:
        """The same for aiobotocore."""
        return _given(
            {
                "ACL": self.acl,
                "StorageClass": self.storage_class,
                "ServerSideEncryption": self.sse,
                "SSEKMSKeyId": self.sse_kms_key_id,
            }
        )

    def request_headers(self) -> dict[str, str]:
        """Headers of every request."""
        return _given({"x-amz-request-payer": self.request_payer})

    def request_params(self) -> dict[str, str]:
        """The same for aiobotocore."""
        return _given({"RequestPayer": self.request_payer})


def _given(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _check(name: str, value: object) -> None:
    if value is None:
        return
    shown = "that value" if name in _SECRETS else repr(value)
    if name == "anonymous" and not isinstance(value, bool):
        raise ConfigError(f"storage option anonymous={shown} must be True or False")
    if name == "verify" and not isinstance(value, bool | str):
        raise ConfigError(f"storage option verify={shown} must be True, False or the path of a CA bundle")
    if name not in ("anonymous", "verify") and (not isinstance(value, str) or not value):
        raise ConfigError(f"storage option {name}: {shown} must be text that is not empty")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigError(f"storage option {name}={shown} must be one of {', '.join(_CHOICES[name])}")
    if name == "endpoint_url" and not str(value).startswith(("http://", "https://")):
        raise ConfigError(f"storage option endpoint_url={shown} must start with http:// or https://")
