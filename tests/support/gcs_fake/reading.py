"""Objects: get (metadata and media), list, delete, compose, rewrite."""

from __future__ import annotations

import base64
import gzip
import json
import re
import secrets
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

from gcs_fake.model import (
    HOLDS,
    Bucket,
    StoredObject,
    check_preconditions,
    crc32c_text,
    key_in,
    md5_text,
    number,
)
from gcs_fake.replies import ApiError, Reply, as_json

MOST_SOURCES = 32
MOST_RESULTS = 1000


def get(bucket: Bucket, name: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
    found, key = bucket.get(name, query), key_in(headers)
    if key is not None or query.get("alt") == "media":
        found.check_key(key)
    if query.get("alt", "json") == "media":
        return media(found, headers)
    return as_json(found.resource(bucket.name, key), fields=query.get("fields"))


def media(found: StoredObject, headers: Mapping[str, str]) -> Reply:
    """The bytes. Gzip is undone for clients that do not accept it, unless ``no-transform`` forbids that."""
    said = _media_headers(found)
    accepts = "gzip" in headers.get("Accept-Encoding", "")
    encoding = found.properties.get("contentEncoding", "")
    if encoding == "gzip" and not accepts and "no-transform" not in said["Cache-Control"]:
        said["Warning"] = "214 UploadServer gunzipped"
        return Reply(200, gzip.decompress(found.data), said)  # the service ignores a range then
    if encoding:
        said["Content-Encoding"] = encoding
    wanted = headers.get("Range")
    if wanted is None:
        return Reply(200, found.data, said)
    start, stop = _range(wanted, len(found.data))
    said["Content-Range"] = f"bytes {start}-{stop - 1}/{len(found.data)}"
    return Reply(206, found.data[start:stop], said)


def _media_headers(found: StoredObject) -> dict[str, str]:
    hashes = f"crc32c={crc32c_text(found.data)}" + ("" if found.components else f",md5={md5_text(found.data)}")
    return {
        "x-goog-generation": str(found.generation),
        "x-goog-metageneration": str(found.metageneration),
        "x-goog-hash": hashes,
        "x-goog-storage-class": found.storage_class,
        "x-goog-stored-content-encoding": found.properties.get("contentEncoding", "identity"),
        "x-goog-stored-content-length": str(len(found.data)),
        "Cache-Control": found.properties.get("cacheControl", "no-cache, no-store, max-age=0, must-revalidate"),
        "Content-Type": found.properties.get("contentType", "application/octet-stream"),
        "Last-Modified": formatdate(found.created, usegmt=True),
    }


def _range(wanted: str, size: int) -> tuple[int, int]:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    start = int(match[1]) if match else size
    if match is None or start >= size:
        raise ApiError(416, "The requested range cannot be satisfied.", {"Content-Range": f"bytes */{size}"})
    return start, min(size, int(match[2]) + 1) if match[2] else size


def listing(bucket: Bucket, query: Mapping[str, str]) -> Reply:
    """Names in the order of their UTF-8 bytes; items and prefixes of a page together are at most ``maxResults``."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    most = min(number(query.get("maxResults", str(MOST_RESULTS))), MOST_RESULTS) or MOST_RESULTS
    after = _after(query.get("pageToken"))
    items: list[dict[str, Any]] = []
    prefixes: list[str] = []
    last, token = "", None
    for name in sorted(bucket.objects, key=str.encode):
        if not name.startswith(prefix):
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        entry = name if cut < 0 else name[: cut + len(delimiter)]
        if entry == last or (after and entry.encode() <= after.encode()):
            continue
        if len(items) + len(prefixes) == most:
            token = base64.urlsafe_b64encode(last.encode()).decode()
            break
        last = entry
        if cut < 0:
            items.append(bucket.objects[name].resource(bucket.name))
        else:
            prefixes.append(entry)
    page: dict[str, Any] = {"kind": "storage#objects"}
    page |= {
        name: value for name, value in (("items", items), ("prefixes", prefixes), ("nextPageToken", token)) if value
    }
    return as_json(page, fields=query.get("fields"))


def _after(token: str | None) -> str:
    if not token:
        return ""
    try:
        return base64.urlsafe_b64decode(token.encode()).decode()
    except ValueError as error:
        raise ApiError(400, f"Invalid page token {token!r}") from error


def delete(bucket: Bucket, name: str, query: Mapping[str, str]) -> Reply:
    bucket.delete(name, query)
    return Reply(204)


def compose(bucket: Bucket, name: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Reply:
    document = _document(headers, body)
    sources = document.get("sourceObjects", [])
    if not 1 <= len(sources) <= MOST_SOURCES:
        raise ApiError(400, f"The number of source components provided ({len(sources)}) must be between 1 and 32.")
    found, key = [_source(bucket, source) for source in sources], key_in(headers)
    for source in found:
        source.check_key(key)
    if len({source.storage_class for source in found}) > 1:
        raise ApiError(400, "All source objects must have the same storage class.")
    properties = dict(document.get("destination", {}))
    properties.setdefault("contentType", found[0].properties.get("contentType", "application/octet-stream"))
    properties["storageClass"] = found[0].storage_class
    data = b"".join(source.data for source in found)
    count = sum(source.components or 1 for source in found)
    made = bucket.put(name, data, properties, query, components=count, key=key)
    return as_json(made.resource(bucket.name, key), fields=query.get("fields"))


def _source(bucket: Bucket, source: Mapping[str, Any]) -> StoredObject:
    query = {"generation": str(source["generation"])} if "generation" in source else {}
    found = bucket.get(source["name"], query)
    wanted = source.get("objectPreconditions", {}).get("ifGenerationMatch")
    if wanted is not None and int(wanted) != found.generation:
        raise ApiError(412, "At least one of the pre-conditions you specified did not hold.")
    return found


class Rewrites:
    """Copies in steps of ``step`` bytes; a token resumes where the previous call stopped."""

    def __init__(self) -> None:
        self.step = 1 << 40
        self._open: dict[str, tuple[tuple[str, ...], int]] = {}

    def run(
        self,
        source: Bucket,
        name: str,
        target: Bucket,
        new: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
    ) -> Reply:
        wanted = {"generation": query["sourceGeneration"]} if "sourceGeneration" in query else {}
        found = source.get(name, {**query, **wanted}, prefix="ifSource")
        check_preconditions(target.objects.get(new), query)
        found.check_key(key_in(headers, "x-goog-copy-source-encryption"))
        key = key_in(headers)
        same = (source.name, name, target.name, new, str(found.generation))
        done = self._done(query.get("rewriteToken"), same) + self.step
        size = len(found.data)
        answer: dict[str, Any] = {
            "kind": "storage#rewriteResponse",
            "totalBytesRewritten": str(min(done, size)),
            "objectSize": str(size),
            "done": done >= size,
        }
        if done < size:
            answer["rewriteToken"] = secrets.token_urlsafe(12)
            self._open[answer["rewriteToken"]] = (same, done)
        else:
            copied = {name: value for name, value in found.properties.items() if name not in HOLDS}
            properties = _document(headers, body) if body else copied  # a resource replaces the source's metadata
            made = target.put(new, found.data, properties, query, key=key)
            answer["resource"] = made.resource(target.name, key)
        return as_json(answer, fields=query.get("fields"))

    def _done(self, token: str | None, same: tuple[str, ...]) -> int:
        if token is None:
            return 0
        known, done = self._open.pop(token, ((), 0))
        if known != same:
            raise ApiError(400, "Invalid rewrite token")
        return done


def _document(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    if headers.get("Content-Type", "").partition(";")[0] != "application/json":
        raise ApiError(400, "Media type is not supported: Content-Type must be application/json")
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ApiError(400, "Parse Error") from error
    if not isinstance(document, dict):
        raise ApiError(400, "Parse Error")
    return document
