"""Buckets and objects: generations, preconditions, checksums, names."""

from __future__ import annotations

import base64
import hashlib
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import google_crc32c

from gcs_fake.replies import ApiError

WRITABLE = (
    "cacheControl",
    "contentDisposition",
    "contentEncoding",
    "contentLanguage",
    "contentType",
    "metadata",
    "storageClass",
    "kmsKeyName",
    "customTime",
    "temporaryHold",
    "eventBasedHold",
)
HOLDS = ("temporaryHold", "eventBasedHold")
CLASSES = ("STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE")


def crc32c_text(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def md5_text(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def key_in(headers: Mapping[str, str], prefix: str = "x-goog-encryption") -> str | None:
    """SHA-256 of the customer's key in a request (documentation, "Customer-supplied encryption keys")."""
    given = {name.lower(): value for name, value in headers.items()}
    found = [given.get(f"{prefix}-{end}") for end in ("algorithm", "key", "key-sha256")]
    if found == [None] * 3:
        return None
    if None in found or found[0] != "AES256":
        raise ApiError(400, "Missing an encryption header, or an unknown algorithm")
    key = base64.b64decode(found[1] or "", validate=True)
    if len(key) != 32 or base64.b64encode(hashlib.sha256(key).digest()).decode() != found[2]:
        raise ApiError(400, "The encryption key is not 256 bits long, or its hash is another one")
    return found[2]


@dataclass
class StoredObject:
    """One live object. ``components``: 0 if uploaded, else the number of objects it was composed of. ``key``: SHA-256
    of the customer's key that encrypts it."""

    name: str
    data: bytes
    generation: int
    properties: dict[str, Any] = field(default_factory=dict)
    metageneration: int = 1
    components: int = 0
    created: float = 0.0
    key: str | None = None

    @property
    def storage_class(self) -> str:
        return str(self.properties.get("storageClass", "STANDARD"))

    def check_key(self, given: str | None) -> None:
        if self.key is None and given is not None:
            raise ApiError(400, "The target object is not encrypted by a customer-supplied encryption key.")
        if self.key != given:
            raise ApiError(400, "The target object is encrypted by a customer-supplied encryption key.")

    def resource(self, bucket: str, key: str | None = None) -> dict[str, Any]:
        """``key``: the one in the request. Without it, an encrypted object shows no checksum."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.created)) + ".000Z"
        resource = {
            "kind": "storage#object",
            "id": f"{bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": bucket,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "storageClass": self.storage_class,
            "size": str(len(self.data)),
            "crc32c": crc32c_text(self.data),
            "etag": base64.b64encode(f"{self.generation}".encode()).decode(),
            "timeCreated": when,
            "updated": when,
            **self.properties,
        }
        if self.components:
            resource["componentCount"] = self.components
        else:
            resource["md5Hash"] = md5_text(self.data)
        if self.key is not None:
            resource["customerEncryption"] = {"encryptionAlgorithm": "AES256", "keySha256": self.key}
            if key != self.key:
                resource.pop("md5Hash", None)
                del resource["crc32c"]
        return resource


_generations = itertools.count(1_700_000_000_000_000)


class Bucket:
    """Objects by name. ``storage_class`` applies to objects that name none."""

    def __init__(self, name: str, storage_class: str = "STANDARD") -> None:
        self.name, self.storage_class = name, storage_class
        self.objects: dict[str, StoredObject] = {}

    def get(self, name: str, query: Mapping[str, str], *, prefix: str = "if") -> StoredObject:
        """The live object; 404, 412 or 304 as the query demands."""
        found = self.objects.get(name)
        wanted = query.get("generation")
        if found is None or (wanted is not None and number(wanted) != found.generation):
            raise ApiError(404, f"No such object: {self.name}/{name}")
        check_preconditions(found, query, prefix=prefix, reading=True)
        return found

    def put(
        self,
        name: str,
        data: bytes,
        properties: Mapping[str, Any],
        query: Mapping[str, str],
        *,
        components: int = 0,
        key: str | None = None,
    ) -> StoredObject:
        """Write an object if its name, checksums and preconditions allow it."""
        check_name(name)
        check_preconditions(self.objects.get(name), query)
        self._check_hold(name)
        if key is not None and "kmsKeyName" in query:
            raise ApiError(400, "A customer-supplied key and a Cloud KMS key exclude each other.")
        if not components:
            check_hashes(properties, data)
        kept = {key: properties[key] for key in WRITABLE if key in properties}
        kept.setdefault("storageClass", self.storage_class)
        if kept["storageClass"] not in CLASSES:
            raise ApiError(400, f"Invalid storage class {kept['storageClass']}")
        if any(not isinstance(value, str) for value in kept.get("metadata", {}).values()):
            raise ApiError(400, "Custom metadata values must be strings")
        made = StoredObject(name, data, next(_generations), kept, components=components, created=time.time(), key=key)
        self.objects[name] = made
        return made

    def delete(self, name: str, query: Mapping[str, str]) -> None:
        found = self.objects.get(name)
        wanted = query.get("generation")
        if found is None or (wanted is not None and number(wanted) != found.generation):
            raise ApiError(404, f"No such object: {self.name}/{name}")
        check_preconditions(found, query)
        self._check_hold(name)
        del self.objects[name]

    def _check_hold(self, name: str) -> None:
        found = self.objects.get(name)
        if found is not None and any(found.properties.get(hold) for hold in HOLDS):
            raise ApiError(
                403, f"Object '{self.name}/{name}' is under active Temporary hold and cannot be deleted, overwritten"
            )


def number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ApiError(400, f"Invalid value {text!r}: not an int64")
    return int(text)


def check_preconditions(
    found: StoredObject | None, query: Mapping[str, str], *, prefix: str = "if", reading: bool = False
) -> None:
    """``ifGenerationMatch=0`` means that there must be no live object. Reads respond 304 to a failed NotMatch."""
    generation = found.generation if found else 0
    metageneration = found.metageneration if found else 0
    for name, have in (("Generation", generation), ("Metageneration", metageneration)):
        wanted = query.get(f"{prefix}{name}Match")
        if wanted is not None and number(wanted) != have:
            raise ApiError(412, "At least one of the pre-conditions you specified did not hold.")
        unwanted = query.get(f"{prefix}{name}NotMatch")
        if unwanted is not None and number(unwanted) == have:
            raise ApiError(304 if reading else 412, "At least one of the pre-conditions you specified did not hold.")


def check_hashes(properties: Mapping[str, Any], data: bytes) -> None:
    for name, right in (("crc32c", crc32c_text), ("md5Hash", md5_text)):
        given = properties.get(name)
        if given is not None and given != right(data):
            kind = name.removesuffix("Hash").upper()
            raise ApiError(
                400, f'Provided {kind} hash "{given}" doesn\'t match calculated {kind} hash "{right(data)}".'
            )


def check_name(name: str) -> None:
    size = len(name.encode())
    if not 1 <= size <= 1024:
        raise ApiError(400, "The specified object name is not valid: it must be 1-1024 bytes long in UTF-8.")
    if "\r" in name or "\n" in name or name in (".", "..") or name.startswith(".well-known/acme-challenge/"):
        raise ApiError(400, "The specified object name is not valid.")
