"""Resumable uploads: a body in chunks, and after a break only what the service has not acknowledged.

A session outlives the attempt that broke: the next attempt with the same body asks how far it has come and goes on
there. How large chunks are, :mod:`asyncsync.stores.gcs_window` says; a body that is no larger than one goes in one
request, which saves the round trip that opens a session, unless it is to go on in another process: the session of a
part or a file is kept in the journal (``FileRange.progress``).

The condition of an upload, its name and its checksum are told when a session is opened, so only the very same request
goes on in it: what the journal keeps names that too.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace

from asyncsync.disk.files import FileRange
from asyncsync.errors import IntegrityError, NotFoundError, StoreError, ThrottledError, UnavailableError
from asyncsync.stores.gcs_answers import kept_bytes
from asyncsync.stores.gcs_documents import Resource, written_of
from asyncsync.stores.gcs_plane import INCOMPLETE
from asyncsync.stores.gcs_window import Window, Windows
from asyncsync.stores.gcs_wire import Wire, is_session
from asyncsync.stores.http1_answer import Answer, BrokenError

KEPT = 256
"""Most broken sessions that are remembered; the service forgets each after a week."""

REFUSALS = 3
"""After so many errors in a row for an answer to how far it is, a session is given up. That nobody answers is none."""

_Key = tuple[str, str, int, int]
_PASSING = (asyncio.CancelledError, UnavailableError, ThrottledError)


@dataclass(frozen=True, slots=True)
class Insert:
    """What a session makes: the request that opens it, and its body. ``document`` tells name and CRC32C."""

    name: str
    target: str
    document: bytes
    body: FileRange
    crc32c: int

    def mark(self) -> str:
        """Of the request, for the journal."""
        return hashlib.blake2b(b"\0".join((self.target.encode(), self.document)), digest_size=8).hexdigest()

    def key(self) -> _Key:
        """Who sends the same again gives the same."""
        return self.mark(), self.body.path, self.body.offset, self.body.size


@dataclass(frozen=True, slots=True)
class _Broken:
    """A session to go on with. ``sent``: up to where this process has sent the body; None: another one opened it."""

    session: str
    sent: int | None
    refusals: int = 0


class Sessions:
    """The sessions of one store."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._broken: dict[_Key, _Broken] = {}
        self._windows = Windows(wire.trips)

    async def upload(self, insert: Insert) -> Resource:
        """What was made. IntegrityError if it is something else than ``insert.body``."""
        with self._windows.of(insert.body.path) as window:
            return await self._upload(insert, window)

    async def _upload(self, insert: Insert, window: Window) -> Resource:
        body = insert.body
        broken = self._broken.pop(insert.key(), None) or _earlier(insert)
        known = None
        if broken is not None:
            try:
                known = await self._how_far(insert, broken)
            except _PASSING as error:
                self._remember(insert, replace(broken, refusals=broken.refusals + _was_answered(error)))
                raise
        ours = broken is not None and broken.sent is not None and known is not None
        if broken is None or known is None:
            session = await self._wire.start_session(insert.name, insert.target, insert.document, body.size)
        else:
            session = broken.session
        at = body.size if isinstance(known, Resource) else known or 0
        if body.progress is not None and not ours:
            body.progress.there = at
            if known is None:
                body.progress.keep(f"{session}#{insert.mark()}")
        return known if isinstance(known, Resource) else await self._fill(insert, session, at, window)

    def _remember(self, insert: Insert, broken: _Broken) -> None:
        if broken.refusals == REFUSALS:
            return
        while len(self._broken) >= KEPT:
            del self._broken[next(iter(self._broken))]
        self._broken[insert.key()] = broken

    async def _how_far(self, insert: Insert, broken: _Broken) -> int | Resource | None:
        """Bytes that the service has or, if it was the last answer that was lost, what was made. None: the session is
        gone, or of no use; what else is wrong, a new one meets too."""
        size = insert.body.size
        try:
            answer = await self._wire.continue_session(insert.name, broken.session, None, f"bytes */{size}")
        except StoreError as error:
            if error.retryable:
                raise
            return None
        if answer.status == INCOMPLETE:
            return self._kept(insert, answer, 0, size if broken.sent is None else broken.sent)
        try:
            made = self._made(insert, answer)
        except IntegrityError:
            return None  # it made something else of what it had
        return made if await self._is_live(made) else None

    async def _is_live(self, made: Resource) -> bool:
        """A session tells for a week what it made, also when something else has replaced that since."""
        return await self._wire.generation(made.name) == made.generation

    def _made(self, insert: Insert, answer: Answer) -> Resource:
        where = f"insert {self._wire.where(insert.name)}"
        return written_of(where, answer.content, insert.name, self._wire.bucket, insert.body.size, insert.crc32c)

    async def _fill(self, insert: Insert, session: str, at: int, window: Window) -> Resource:
        size, sent, lease = insert.body.size, at, insert.body.lease
        try:
            while True:
                taken = await window.take(size - at)
                try:
                    if lease is not None:
                        await lease.keep()  # it may have waited for its turn
                    sent = at + taken
                    answer = await self._chunk(insert, session, at, sent)
                finally:
                    window.give(taken)
                if answer.status != INCOMPLETE:
                    return self._made(insert, answer)
                at = self._kept(insert, answer, at + 1, sent)
        except _PASSING:
            self._remember(insert, _Broken(session, sent))
            raise

    async def _chunk(self, insert: Insert, session: str, at: int, end: int) -> Answer:
        body = insert.body
        chunk = replace(body, offset=body.offset + at, size=end - at)
        try:
            return await self._wire.continue_session(insert.name, session, chunk, f"bytes {at}-{end - 1}/{body.size}")
        except NotFoundError as error:
            raise UnavailableError(f"{error}: the upload session is gone") from error

    def _kept(self, insert: Insert, answer: Answer, least: int, sent: int) -> int:
        """Bytes that the service has for good: never more than were sent, and never all of them, for then it would have
        made something of them."""
        kept = kept_bytes(answer.headers)
        if least <= kept <= sent and kept < insert.body.size:
            return kept
        where = f"insert {self._wire.where(insert.name)}"
        raise UnavailableError(f"{where}: the store kept {kept} bytes of {sent} that were sent")


def _earlier(insert: Insert) -> _Broken | None:
    """The session of another process, once: where that leads nowhere the next attempt begins anew."""
    progress = insert.body.progress
    if progress is None:
        return None
    token, progress.token = progress.token, None
    session, _, mark = (token or "").rpartition("#")
    return _Broken(session, None) if mark == insert.mark() and is_session(session) else None


def _was_answered(error: BaseException) -> bool:
    return isinstance(error, StoreError) and not isinstance(error.__cause__, BrokenError)
