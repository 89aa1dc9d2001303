"""The address of a storage."""

from __future__ import annotations

import json
from dataclasses import dataclass

PUBLIC_OPTIONS = frozenset(
    {
        "endpoint_url",
        "region",
        "profile",
        "anonymous",
        "addressing_style",
        "verify",
        "sse",
        "sse_kms_key_id",
        "storage_class",
        "acl",
        "request_payer",
        "checksum",
        "full_object_checksum",
        "mp_object_size",
        "conditional_writes",
        "multi_delete",
        "equal_parts",
        "user_project",
        "kms_key_name",
        "predefined_acl",
        "cache_control",
    }
)
"""Storage options that cannot be secret."""


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a storage. ``options`` is JSON, so that the address can be a key and costs few bytes when
    pickled."""

    uri: str
    options: str = "{}"

    @property
    def root(self) -> str:
        """The storage path as Ray sees it: without a scheme, ``bucket/prefix`` or ``/directory``."""
        scheme, separator, rest = self.uri.partition("://")
        return (rest if separator else scheme).rstrip("/") or "/"

    @property
    def is_public(self) -> bool:
        """Whether no option can be secret, so that the address may leave this process."""
        return PUBLIC_OPTIONS.issuperset(json.loads(self.options))
