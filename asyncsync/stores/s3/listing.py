"""Listings of objects, parts and uploads, page by page.

A page that is not the last must give the token of the next one, and the tokens must not repeat; an unreadable entry is
an error, never a shorter listing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from asyncsync.errors import UnavailableError
from asyncsync.stores.base import ObjectInfo, Page, Part, Upload
from asyncsync.stores.listing_position import ListingPosition
from asyncsync.stores.s3.bucket import S3Bucket
from asyncsync.stores.s3.responses import object_crc32c
from asyncsync.stores.xml_reader import unquoted_etag


class S3Listings:
    """The listings of one bucket and prefix."""

    def __init__(self, bucket: S3Bucket, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix

    async def objects(self, prefix: str, delimiter: str, token: str | None) -> Page:
        """One page of objects. See :meth:`asyncsync.stores.base.Store.list`."""
        position = ListingPosition.parse(token)
        requests = await self._bucket.requests()
        page = await requests.list_objects(self._prefix + prefix, delimiter, position.token)
        where = f"ListObjectsV2 {self._bucket.uri}/{prefix}"
        named = [(below(where, text_in(where, one, "Key"), self._prefix), one) for one in page.get("Contents", ())]
        folded = [text_in(where, one, "Prefix") for one in page.get("CommonPrefixes", ())]
        objects = tuple(_object_info(where, key, one) for key, one in named if key)
        prefixes = tuple(below(where, one, self._prefix) for one in folded)
        if not has_next(page):
            return Page(objects, prefixes)
        first = next(iter([*(key for key, _ in named), *prefixes]), "")
        following = position.further(where, page.get("NextContinuationToken") or "", first)
        return Page(objects, prefixes, following.text())

    async def parts(self, upload: Upload, on_checksum_type: Callable[[str | None], None]) -> Sequence[Part]:
        """All parts of an upload, by number. ``on_checksum_type`` takes the checksum type of each page."""
        found: dict[int, Part] = {}
        key = self._prefix + upload.key
        where, last = f"ListParts {self._bucket.uri}/{upload.key}", 0
        params: dict[str, Any] = {"Key": key, "UploadId": upload.upload_id}
        while True:
            page = await self._bucket.call("list_parts", key, **params)
            on_checksum_type(page.get("ChecksumType"))
            for item in page.get("Parts", ()):
                part = _part(where, item)
                found[part.number] = part
            if not page.get("IsTruncated"):
                return [found[number] for number in sorted(found)]
            following = page.get("NextPartNumberMarker")
            if not isinstance(following, int) or following <= last:
                raise UnavailableError(f"{where}: the page after part {last} continues at {following!r}")
            params["PartNumberMarker"] = last = following

    async def uploads(self, prefix: str) -> Sequence[Upload]:
        """All open uploads below ``prefix``."""
        found: list[Upload] = []
        where, position = f"ListMultipartUploads {self._bucket.uri}/{prefix}", ListingPosition()
        params: dict[str, Any] = {"Prefix": self._prefix + prefix}
        while True:
            page = await self._bucket.call("list_multipart_uploads", params["Prefix"], **params)
            uploads = page.get("Uploads", ())
            for item in uploads:
                key = below(where, text_in(where, item, "Key"), self._prefix)
                found.append(Upload(key, text_in(where, item, "UploadId"), _unix(item.get("Initiated"))))
            if not page.get("IsTruncated"):
                return found
            key, upload_id = page.get("NextKeyMarker") or "", page.get("NextUploadIdMarker") or ""
            token = f"{key}\n{upload_id}" if key and upload_id else ""
            first = f"{found[-len(uploads)].key}\n{found[-len(uploads)].upload_id}" if uploads else ""
            position = position.further(where, token, first)
            params |= {"KeyMarker": key, "UploadIdMarker": upload_id}


def has_next(page: Mapping[str, Any]) -> bool:
    """Whether a page of objects is not the last: IsTruncated, or without that the token of a next page."""
    truncated = page.get("IsTruncated")
    return bool(page.get("NextContinuationToken") if truncated is None else truncated)


def text_in(where: str, item: Mapping[str, Any], name: str) -> str:
    """A required text of an entry. UnavailableError if it is missing."""
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise UnavailableError(f"{where}: an entry of the list has no {name}")
    return value


def number_in(where: str, item: Mapping[str, Any], name: str, least: int = 0) -> int:
    """A required number of an entry. UnavailableError if it is missing or below ``least``."""
    value = item.get(name)
    if not isinstance(value, int) or not least <= value < 1 << 60:
        raise UnavailableError(f"{where}: an entry of the list has {name} {str(value)[:60]!r}")
    return value


def below(where: str, name: str, prefix: str) -> str:
    """``name`` without the requested prefix. UnavailableError if it has another one."""
    if not name.startswith(prefix):
        raise UnavailableError(f"{where}: the list names {name[:60]!r}, which is outside the requested prefix")
    return name[len(prefix) :]


def _object_info(where: str, key: str, item: Mapping[str, Any]) -> ObjectInfo:
    version, modified = unquoted_etag(item.get("ETag")), _unix(item.get("LastModified"))
    return ObjectInfo(key, number_in(where, item, "Size"), version, None, modified)


def _part(where: str, item: Mapping[str, Any]) -> Part:
    number, size = number_in(where, item, "PartNumber", 1), number_in(where, item, "Size")
    crc = object_crc32c(item.get("ChecksumCRC32C"), None, "")
    return Part(number, -1, size, unquoted_etag(text_in(where, item, "ETag")), crc)


def _unix(when: datetime | None) -> float | None:
    return None if when is None else when.timestamp()
