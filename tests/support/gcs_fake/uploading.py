"""Objects: insert. ``media``, ``multipart`` and ``resumable`` uploads."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from gcs_fake.model import Bucket, check_name, check_preconditions, key_in
from gcs_fake.replies import ApiError, Reply, as_json

GRAIN = 256 << 10
"""A session keeps a multiple of this, and every chunk but the last is a multiple of it."""


def single(bucket: Bucket, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Reply:
    """``uploadType=media`` or ``multipart``."""
    kind = query.get("uploadType")
    if kind == "media":
        properties: dict[str, Any] = {"contentType": headers.get("Content-Type", "application/octet-stream")}
        data = body
    elif kind == "multipart":
        properties, data = _related(headers.get("Content-Type", ""), body)
    else:
        raise ApiError(400, f"Invalid upload type {kind!r}")
    key = key_in(headers)
    made = bucket.put(_name(query, properties), data, properties, query, key=key)
    return as_json(made.resource(bucket.name, key), fields=query.get("fields"))


def _name(query: Mapping[str, str], properties: Mapping[str, Any]) -> str:
    name = query.get("name", properties.get("name"))
    if not name:
        raise ApiError(400, "Required parameter: name")
    return str(name)


def _related(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The two parts of a multipart/related body: a JSON document and the media (RFC 2387)."""
    match = re.fullmatch(r'multipart/related;\s*boundary="?([^";]+)"?', content_type)
    if match is None:
        raise ApiError(400, "Content-Type must be multipart/related with a boundary")
    mark = b"--" + match[1].encode()
    if not body.startswith(mark + b"\r\n") or not body.rstrip(b"\r\n").endswith(b"\r\n" + mark + b"--"):
        raise ApiError(400, "Malformed multipart body.")
    first, found, rest = body[len(mark) + 2 :].partition(b"\r\n" + mark + b"\r\n")
    head, empty, document = first.partition(b"\r\n\r\n")
    media_head, media_empty, media = rest[: rest.rfind(b"\r\n" + mark + b"--")].partition(b"\r\n\r\n")
    if not found or not empty or not media_empty or b"application/json" not in head.lower():
        raise ApiError(400, "Malformed multipart body.")
    try:
        properties = json.loads(document)
    except ValueError as error:
        raise ApiError(400, "Parse Error") from error
    kind = re.search(rb"(?i)content-type:\s*([^\r\n]+)", media_head)
    if kind:
        properties.setdefault("contentType", kind[1].decode())
    return properties, media


@dataclass
class Session:
    """A resumable upload: its bytes so far, and the object that it becomes."""

    bucket: Bucket
    name: str
    properties: dict[str, Any]
    query: dict[str, str]
    data: bytearray = field(default_factory=bytearray)
    total: int | None = None
    answer: Reply | None = None
    key: str | None = None


class Sessions:
    """Open resumable uploads by id."""

    def __init__(self) -> None:
        self.open: dict[str, Session] = {}
        self.forgetful = False
        """Whether the server keeps nothing of an interrupted chunk; the service may do either."""

    def start(self, bucket: Bucket, query: dict[str, str], headers: Mapping[str, str], body: bytes, base: str) -> Reply:
        properties = json.loads(body) if body else {}
        properties.setdefault("contentType", headers.get("X-Upload-Content-Type", "application/octet-stream"))
        name = _name(query, properties)
        check_name(name)
        check_preconditions(bucket.objects.get(name), query)
        upload_id = secrets.token_urlsafe(24)
        session = Session(bucket, name, properties, query, key=key_in(headers))
        declared = headers.get("X-Upload-Content-Length")
        session.total = int(declared) if declared else None
        self.open[upload_id] = session
        where = f"{base}/upload/storage/v1/b/{bucket.name}/o?uploadType=resumable&name={quote(name, safe='')}"
        return Reply(200, b"", {"Location": f"{where}&upload_id={upload_id}", "X-GUploader-UploadID": upload_id})

    def cancel(self, upload_id: str) -> Reply:
        self._find(upload_id)
        del self.open[upload_id]
        return Reply(499)

    def _find(self, upload_id: str) -> Session:
        if upload_id not in self.open:
            raise ApiError(404, "Upload session not found")
        return self.open[upload_id]

    async def chunk(self, upload_id: str, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> Reply:
        """A chunk, or a status query of the upload."""
        session = self._find(upload_id)
        start, stop, total = _content_range(headers)
        if session.answer is not None:
            return session.answer
        if None not in (total, session.total) and total != session.total:
            raise ApiError(400, "The total size differs from what was announced")
        if start is not None:
            await self._take(session, start, stop, total, pieces)
        session.total = total if session.total is None else session.total
        if session.total is not None and len(session.data) == session.total:
            return self._finish(session)
        return _incomplete(session)

    async def _take(
        self, session: Session, start: int, stop: int | None, total: int | None, pieces: AsyncIterator[bytes]
    ) -> None:
        have = len(session.data)
        if start > have:
            raise ApiError(503, f"Got bytes from {start}, but only {have} are there")
        if stop is not None and stop != total and (stop - start) % GRAIN:
            raise ApiError(400, "A chunk that is not the last must be a multiple of 256 KiB")
        at = start
        try:
            async for piece in pieces:
                fresh = piece[max(0, len(session.data) - at) :]
                at += len(piece)
                session.data += fresh
        except BaseException:  # interrupted: the kept bytes are a multiple of 256 KiB
            del session.data[have if self.forgetful else max(have, len(session.data) // GRAIN * GRAIN) :]
            raise
        if stop is not None and at != stop:
            del session.data[have:]
            raise ApiError(400, f"Content-Range announced {stop - start} bytes, {at - start} came")
        if stop is None:
            session.total = len(session.data)

    def _finish(self, session: Session) -> Reply:
        query = session.query
        made = session.bucket.put(session.name, bytes(session.data), session.properties, query, key=session.key)
        session.data = bytearray()
        session.answer = as_json(made.resource(session.bucket.name, session.key), fields=query.get("fields"))
        return session.answer


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
    """(first byte, byte after the last, total); a status query has no first byte, an open end no stop."""
    text = headers.get("Content-Range")
    if text is None:
        return 0, None, None
    match = re.fullmatch(r"bytes (?:\*|(\d+)-(\d+))/(\*|\d+)", text)
    if match is None:
        raise ApiError(400, f"Invalid Content-Range {text!r}")
    total = None if match[3] == "*" else int(match[3])
    if match[1] is None:
        return None, None, total
    return int(match[1]), int(match[2]) + 1, total


def _incomplete(session: Session) -> Reply:
    """308 with the range of the received bytes; without a Range header if there are none."""
    have = len(session.data)
    return Reply(308, b"", {"Range": f"bytes=0-{have - 1}"} if have else {})
