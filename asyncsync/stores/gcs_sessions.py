"""Resumable uploads: a body in chunks, and after a break only what the service has not acknowledged.

A session outlives the attempt that broke: the next attempt with the same body asks how far it has come and goes on
there. How large chunks are, :mod:`asyncsync.stores.gcs_window` says; a body that is no larger than one goes in one
request, which saves the round trip that opens a session, unless it is to go on in another process: the session of a
part or a file is kept in the journal (``FileRange.progress``).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

from asyncsync.disk.files import FileRange
from asyncsync.errors import NotFoundError, StoreError, ThrottledError, UnavailableError
from asyncsync.stores.gcs_answers import document_of
from asyncsync.stores.gcs_window import Window, Windows
from asyncsync.stores.gcs_wire import INCOMPLETE, Wire
from asyncsync.stores.http1_answer import Answer, BrokenError

KEPT = 256
"""Most broken sessions that are remembered; the service forgets each after a week."""

REFUSALS = 3
"""After so many errors in a row for an answer to how far it is, a session is given up. That nobody answers is none."""

_Body = tuple[str, bytes, str, int, int]
_PASSING = (asyncio.CancelledError, UnavailableError, ThrottledError)


class Sessions:
    """The sessions of one store."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._broken: dict[_Body, tuple[str, int, bool]] = {}
        self._windows = Windows(wire.trips)

    async def upload(self, name: str, target: str, document: bytes, body: FileRange) -> dict[str, Any]:
        """What was made. ``document`` must tell the CRC32C: it says whether this is the same body as before."""
        with self._windows.of(body.path) as window:
            return await self._upload(name, target, document, body, window)

    async def _upload(self, name: str, target: str, document: bytes, body: FileRange, window: Window) -> dict[str, Any]:
        key = (target, document, body.path, body.offset, body.size)
        session, refusals, ours = self._broken.pop(key, ("", 0, False))
        session = session or _earlier(body)
        try:
            known = await self._how_far(name, session, body.size) if session else None
        except _PASSING as error:
            self._remember(key, session, refusals + _was_answered(error), ours=ours)
            raise
        if known is None:
            session = await self._wire.start_session(name, target, document, body.size)
        at = body.size if isinstance(known, dict) else known or 0
        if body.progress is not None and not (ours and known is not None):
            body.progress.there = at
            if known is None:
                body.progress.keep(session)
        if isinstance(known, dict):
            return known
        try:
            return await self._fill(name, session, body, at, window)
        except _PASSING:
            self._remember(key, session)
            raise

    def _remember(self, key: _Body, session: str, refusals: int = 0, *, ours: bool = True) -> None:
        if refusals == REFUSALS:
            return
        while len(self._broken) >= KEPT:
            del self._broken[next(iter(self._broken))]
        self._broken[key] = session, refusals, ours

    async def _how_far(self, name: str, session: str, size: int) -> int | dict[str, Any] | None:
        """Bytes that the service has or, if it was the last answer that was lost, what was made. None: the session is
        gone, or of no use; what else is wrong, a new one meets too."""
        try:
            answer = await self._wire.continue_session(name, session, None, f"bytes */{size}")
        except StoreError as error:
            if error.retryable:
                raise
            return None
        if answer.status == INCOMPLETE:
            return acknowledged(answer)
        made = self._made(name, answer)
        return made if await self._is_live(name, made) else None

    async def _is_live(self, name: str, made: dict[str, Any]) -> bool:
        """A session tells for a week what it made, also when something else has replaced that since."""
        return await self._wire.generation(name) == str(made.get("generation"))

    def _made(self, name: str, answer: Answer) -> dict[str, Any]:
        return document_of(f"insert {self._wire.where(name)}", answer.content)

    async def _fill(self, name: str, session: str, body: FileRange, at: int, window: Window) -> dict[str, Any]:
        while True:
            size = await window.take(body.size - at)
            try:
                answer = await self._chunk(name, session, body, at, at + size)
            finally:
                window.give(size)
            if answer.status != INCOMPLETE:
                return self._made(name, answer)
            at = self._kept(name, answer, at, at + size, body.size)

    async def _chunk(self, name: str, session: str, body: FileRange, at: int, end: int) -> Answer:
        chunk = replace(body, offset=body.offset + at, size=end - at)
        try:
            return await self._wire.continue_session(name, session, chunk, f"bytes {at}-{end - 1}/{body.size}")
        except NotFoundError as error:
            raise UnavailableError(f"{error}: the upload session is gone") from error

    def _kept(self, name: str, answer: Answer, at: int, end: int, size: int) -> int:
        kept = acknowledged(answer)
        if at < kept <= end and kept < size:
            return kept
        raise UnavailableError(f"insert {self._wire.where(name)}: the store kept {kept} bytes of {end} that were sent")


def _earlier(body: FileRange) -> str:
    """The session of another process, once: where that leads nowhere the next attempt begins anew."""
    progress = body.progress
    if progress is None:
        return ""
    token, progress.token = progress.token, None
    return token or ""


def _was_answered(error: BaseException) -> bool:
    return isinstance(error, StoreError) and not isinstance(error.__cause__, BrokenError)


def acknowledged(answer: Answer) -> int:
    """Bytes that the service has for good; without a Range header it has none. Nor with ``bytes=0-0``, as
    gcp-storage-emulator writes it: what is kept of an unfinished body is a multiple of 256 KiB."""
    found = re.fullmatch(r"bytes=0-(\d+)", answer.headers.get("range", "").replace(" ", ""))
    return int(found[1]) + 1 if found and int(found[1]) else 0
