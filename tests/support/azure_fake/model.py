"""Containers and blobs: versions, conditions, checksums, blocks, leases, directories."""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate

from awscrt.checksums import crc64nvme

MAX_BLOCKS = 50_000
MIB = 1 << 20

_etags = itertools.count(0x8DD000000000000)


class ApiError(Exception):
    """Becomes an error response with the service's code."""

    def __init__(self, status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.headers = status, code, message or code, dict(headers or {})


def crc64_text(data: bytes) -> str:
    return base64.b64encode(crc64nvme(data).to_bytes(8, "little")).decode()


def md5_text(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@dataclass
class Blob:
    """One committed blob. ``blocks``: names and sizes; empty if it was written in one request."""

    data: bytes
    headers: dict[str, str] = field(default_factory=dict)
    """Metadata and properties that a read returns."""
    blocks: list[tuple[str, int]] = field(default_factory=list)
    directory: bool = False
    etag: str = field(default_factory=lambda: f'"0x{next(_etags):X}"')
    modified: float = field(default_factory=time.time)

    @property
    def read_headers(self) -> dict[str, str]:
        return {
            "ETag": self.etag,
            "Last-Modified": formatdate(self.modified, usegmt=True),
            "x-ms-blob-type": "BlockBlob",
            **self.headers,
        }


class Container:
    """Blobs by name. ``hierarchical``: the account has directories. ``max_copy``: of one Copy Blob From URL."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.blobs: dict[str, Blob] = {}
        self.uncommitted: dict[str, dict[str, bytes]] = {}
        self.leased: set[str] = set()
        self.hierarchical = False
        self.max_copy = 256 * MIB
        self.through_dfs: set[str] = set()
        """Files that were written through the other protocol: their blocks are not visible, and none can be added."""

    def get(self, name: str) -> Blob:
        found = self.blobs.get(name)
        if found is None:
            raise ApiError(404, "BlobNotFound", "The specified blob does not exist.")
        return found

    def write(self, name: str, made: Blob, headers: Mapping[str, str]) -> Blob:
        """Replace a blob if name, lease and conditions allow it; its uncommitted blocks are dropped."""
        self.check_write(name, headers)
        self._make_directories(name)
        self.blobs[name] = made
        self.uncommitted.pop(name, None)
        self.through_dfs.discard(name)
        return made

    def check_write(self, name: str, headers: Mapping[str, str]) -> None:
        check_name(name)
        found = self.blobs.get(name)
        if found is not None and found.directory:
            raise ApiError(409, "ResourceTypeMismatch", "The specified resource type does not match.")
        check_conditions(found, headers, writes=True)
        if name in self.leased:
            raise ApiError(412, "LeaseIdMissing", "There is currently a lease on the blob and no lease ID was given.")

    def _make_directories(self, name: str) -> None:
        parts = name.split("/")[:-1] if self.hierarchical else []
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            self.blobs.setdefault(path, Blob(b"", {"x-ms-meta-hdi_isfolder": "true"}, directory=True))

    def put_block(self, name: str, block: str, data: bytes) -> None:
        check_name(name)
        if name in self.through_dfs:
            raise ApiError(409, "InvalidBlobType", "The blob type is invalid for this operation.")
        if name in self.leased:
            raise ApiError(412, "LeaseIdMissing", "There is currently a lease on the blob and no lease ID was given.")
        waiting = self.uncommitted.setdefault(name, {})
        if any(len(other) != len(block) for other in waiting):
            raise ApiError(400, "InvalidBlobOrBlock", "The specified blob or block content is invalid.")
        waiting[block] = data

    def commit(self, name: str, listed: list[tuple[str, str]], headers: Mapping[str, str]) -> Blob:
        """Put Block List. ``listed``: the element's name, and the name of the block."""
        if len(listed) > MAX_BLOCKS:
            raise ApiError(400, "BlockListTooLong", "The block list may not contain more than 50,000 blocks.")
        if len({len(block) for _, block in listed}) > 1:
            raise ApiError(400, "InvalidBlockList", "The specified block list is invalid.")
        self.check_write(name, headers)
        old, waiting = self.blobs.get(name), self.uncommitted.get(name, {})
        committed = self._committed(old)
        pieces: list[tuple[str, bytes]] = []
        for kind, block in listed:
            sources = {"Committed": (committed,), "Uncommitted": (waiting,), "Latest": (waiting, committed)}[kind]
            found = next((source[block] for source in sources if block in source), None)
            if found is None:
                raise ApiError(400, "InvalidBlockList", "The specified block list is invalid.")
            pieces.append((block, found))
        data = b"".join(piece for _, piece in pieces)
        return self.write(name, Blob(data, kept_headers(headers), [(block, len(p)) for block, p in pieces]), headers)

    @staticmethod
    def _committed(blob: Blob | None) -> dict[str, bytes]:
        found, at = {}, 0
        for block, size in blob.blocks if blob else ():
            found[block] = blob.data[at : at + size]
            at += size
        return found

    def delete(self, name: str, headers: Mapping[str, str]) -> None:
        found = self.get(name)
        if found.directory and any(other.startswith(f"{name}/") for other in self.blobs):
            raise ApiError(409, "DirectoryIsNotEmpty", "This operation is not permitted on a non-empty directory.")
        check_conditions(found, headers, writes=True)
        if name in self.leased:
            raise ApiError(412, "LeaseIdMissing", "There is currently a lease on the blob and no lease ID was given.")
        del self.blobs[name]
        self.uncommitted.pop(name, None)


def check_conditions(found: Blob | None, headers: Mapping[str, str], *, writes: bool, source: bool = False) -> None:
    prefix = "x-ms-source-" if source else ""
    code = "SourceConditionNotMet" if source else "ConditionNotMet"
    match, none_match = headers.get(f"{prefix}if-match"), headers.get(f"{prefix}if-none-match")
    if match is not None and (found is None or match not in ("*", found.etag)):
        raise ApiError(412, code, "The condition specified using HTTP conditional header(s) is not met.")
    if none_match == "*" and found is not None:
        if writes:
            raise ApiError(409, "BlobAlreadyExists", "The specified blob already exists.")
        raise ApiError(304, code)
    if none_match not in (None, "*") and found is not None and found.etag == none_match:
        raise ApiError(412 if writes else 304, code)


def check_body(headers: Mapping[str, str], body: bytes) -> None:
    """A wrong checksum is refused; both at once are not allowed."""
    crc64, md5 = headers.get("x-ms-content-crc64"), headers.get("content-md5")
    if crc64 and md5:
        raise ApiError(400, "InvalidInput", "Only one of MD5 and CRC64 may be given.")
    if crc64 and crc64 != crc64_text(body):
        raise ApiError(400, "Crc64Mismatch", "The CRC64 value specified in the request did not match.")
    if md5 and md5 != md5_text(body):
        raise ApiError(400, "Md5Mismatch", "The MD5 value specified in the request did not match.")


def check_block_name(text: str) -> None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, "InvalidQueryParameterValue", "blockid is not base64") from error
    if not 1 <= len(raw) <= 64:
        raise ApiError(400, "OutOfRangeQueryParameterValue", "blockid has more than 64 bytes")


def check_name(name: str) -> None:
    if not 1 <= len(name) <= 1024 or name.count("/") > 254:
        raise ApiError(400, "InvalidResourceName", "The specified resource name contains invalid characters.")


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Metadata and properties that a write sets. Names of metadata are those of C# identifiers."""
    kept = {name: value for name, value in headers.items() if name.startswith("x-ms-meta-")}
    for name in kept:
        if not re.fullmatch("[a-z_][a-z0-9_]*", name.removeprefix("x-ms-meta-")):
            raise ApiError(400, "InvalidMetadata", "The specified metadata is invalid.")
    kept["Content-Type"] = headers.get("x-ms-blob-content-type", "application/octet-stream")
    if "x-ms-access-tier" in headers:
        kept["x-ms-access-tier"] = headers["x-ms-access-tier"]
    if "x-ms-encryption-scope" in headers:
        kept["x-ms-encryption-scope"] = headers["x-ms-encryption-scope"]
    return kept
