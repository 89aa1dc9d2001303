"""Resumable uploads: a body in chunks, and after a break only what the service has not acknowledged.

A session outlives the attempt that broke: the next attempt with the same body asks how far it has come and goes on
there. A chunk has 8 MiB, so that a break costs at most 8 MiB, and a body that is no larger goes in one request, which
saves the round trip that opens a session. (Google asks for multiples of 256 KiB and advises 8 MiB: Cloud Storage
documentation, "Resumable uploads".) The session of a part is kept in the journal (``FileRange.progress``), so another
process goes on inside of it; others live in memory, for what is sent in one piece has at most ``multipart_threshold``.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

from asyncsync.disk.files import FileRange
from asyncsync.errors import NotFoundError, StoreError, ThrottledError, UnavailableError
from asyncsync.stores.gcs_wire import INCOMPLETE, Wire
from asyncsync.stores.http1_answer import Answer

CHUNK = 8 << 20
KEPT = 256
"""Most broken sessions that are remembered; the service forgets each after a week."""

_Body = tuple[str, bytes, str, int, int]


class Sessions:
    """The sessions of one store."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._broken: dict[_Body, str] = {}

    async def upload(self, name: str, target: str, document: bytes, body: FileRange) -> bytes:
        """The answer's JSON. ``document`` must tell the CRC32C: it says whether this is the same body as before."""
        key = (target, document, body.path, body.offset, body.size)
        ours, at = self._broken.pop(key, ""), 0
        session = ours or _earlier(body)
        answer = await self._how_far(name, session, body.size) if session else None
        if answer is not None:
            at = acknowledged(answer) if answer.status == INCOMPLETE else body.size
        else:
            session = await self._wire.start_session(name, target, document, body.size)
        if body.progress is not None and not (ours and answer):
            body.progress.there = at
            if answer is None:
                body.progress.keep(session)
        if answer is not None and answer.status != INCOMPLETE:
            return answer.content  # it was the answer that was lost
        try:
            return await self._fill(name, session, body, at)
        except (asyncio.CancelledError, UnavailableError, ThrottledError):
            self._remember(key, session)
            raise

    def _remember(self, key: _Body, session: str) -> None:
        while len(self._broken) >= KEPT:
            del self._broken[next(iter(self._broken))]
        self._broken[key] = session

    async def _how_far(self, name: str, session: str, size: int) -> Answer | None:
        """None: the session is gone, or of no use; what else is wrong, a new one meets too."""
        try:
            return await self._wire.continue_session(name, session, None, f"bytes */{size}")
        except StoreError as error:
            if error.retryable:
                raise
            return None

    async def _fill(self, name: str, session: str, body: FileRange, at: int) -> bytes:
        while True:
            end = min(at + CHUNK, body.size)
            chunk = replace(body, offset=body.offset + at, size=end - at)
            try:
                answer = await self._wire.continue_session(name, session, chunk, f"bytes {at}-{end - 1}/{body.size}")
            except NotFoundError as error:
                raise UnavailableError(f"{error}: the upload session is gone") from error
            if answer.status != INCOMPLETE:
                return answer.content
            kept = acknowledged(answer)
            if not at < kept <= end or kept == body.size:
                raise UnavailableError(
                    f"insert {self._wire.where(name)}: the store kept {kept} bytes of {end} that were sent"
                )
            at = kept


def _earlier(body: FileRange) -> str:
    """The session of another process, once: where that leads nowhere the next attempt begins anew."""
    progress = body.progress
    if progress is None:
        return ""
    token, progress.token = progress.token, None
    return token or ""


def acknowledged(answer: Answer) -> int:
    """Bytes that the service has for good; without a Range header it has none."""
    found = re.fullmatch(r"bytes=0-(\d+)", answer.headers.get("range", "").replace(" ", ""))
    return int(found[1]) + 1 if found else 0
