"""Resumable uploads: a body in chunks, and after a break only what the service has not acknowledged.

A session outlives the attempt that broke: the next attempt with the same body asks how far it has come and goes on
there. How large chunks are, :mod:`asyncsync.stores.gcs.resumable` says; a body that is no larger than one goes in one
request, which saves the round trip that opens a session, unless it is to go on in another process: the session of a
part or a file is kept in the journal (``FileRange.progress``).

The condition of an upload, its name and its checksum are told when a session is opened, so only the very same request
goes on in it: what the journal keeps names that too.

How much of a file may be on its way to Cloud Storage without an answer.

Parts of a file travel side by side, and a crash costs what none of them had acknowledged; a server that keeps nothing
of a request that broke off makes that whole chunks. So all parts of a file together have as much under way as one
chunk of one upload would.

To a service that is far that would leave the way idle while answers travel: there each part has a chunk of its own, and
the service keeps what has come of it (Cloud Storage documentation, "Resumable uploads").
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from asyncsync.disk.files import FileRange
from asyncsync.errors import IntegrityError, NotFoundError, StoreError, ThrottledError, UnavailableError
from asyncsync.stores.gcs.requests import GcsRequests, is_session
from asyncsync.stores.gcs.responses import ObjectResource, kept_bytes, written_of
from asyncsync.stores.gcs.transport import RESUME_INCOMPLETE
from asyncsync.stores.http.response import BrokenError, Response

CHUNK_SIZE = 8 << 20
"""Bytes of a file that may be sent again after a break, and most in one request. (Google advises 8 MiB: documentation
as above.)"""
MIN_CHUNK_SIZE = 4 << 20
"""Bytes below which a request costs more than it is good for: 1 GiB took 0.67 s in chunks of 4 MiB, two at a time, and
0.74 s in chunks of 512 KiB, sixteen at a time (the sink of benchmarks/, 2 cores)."""
CHUNK_MULTIPLE = 1 << 18
"""A chunk that is not the last has a multiple of this (documentation as above)."""
FAR_ROUND_TRIP = 0.01
"""Seconds of a round trip from which on a service is far. A nearer one takes 800 MB/s of a file with one chunk under
way; behind 30 ms that made 1 GiB take 4.6 s instead of 1.1 s (the same sink)."""


class UploadWindow:
    """That of one file. ``trips``: seconds that the latest round trips took; the quickest counts, because a busy server
    answers late."""

    def __init__(self, trips: Collection[float]) -> None:
        self.bodies = 0
        """Parts that are being sent."""
        self._trips = trips
        self._used = 0
        self._freed = asyncio.Event()

    async def take(self, rest: int) -> int:
        """Wait until a part of which ``rest`` bytes are left may send its next chunk; how many bytes that has. They
        are under way until :meth:`give`."""
        while self._used + (size := min(rest, self._share())) > self._limit():
            await self._freed.wait()
        self._used += size
        return size

    def give(self, size: int) -> None:
        """They were answered for, or broke off."""
        self._used -= size
        self._freed.set()
        self._freed.clear()  # who waited looks again; who comes later waits

    def _limit(self) -> int:
        far = min(self._trips, default=0.0) >= FAR_ROUND_TRIP
        return CHUNK_SIZE * self.bodies if far else CHUNK_SIZE

    def _share(self) -> int:
        return min(CHUNK_SIZE, max(MIN_CHUNK_SIZE, self._limit() // self.bodies // CHUNK_MULTIPLE * CHUNK_MULTIPLE))


class UploadWindows:
    """Those of all files that are being sent, by path."""

    def __init__(self, trips: Collection[float]) -> None:
        self._files: dict[str, UploadWindow] = {}
        self._trips = trips

    @contextmanager
    def of(self, path: str) -> Iterator[UploadWindow]:
        """For one part of the file, as long as that is being sent."""
        window = self._files.setdefault(path, UploadWindow(self._trips))
        window.bodies += 1
        try:
            yield window
        finally:
            window.bodies -= 1
            if not window.bodies:
                del self._files[path]


MAX_BROKEN_SESSIONS = 256
"""Most broken sessions that are remembered; the service forgets each after a week."""

MAX_REFUSALS = 3
"""After so many errors in a row for an answer to how far it is, a session is given up. That nobody answers is none."""

_Key = tuple[str, str, int, int]
_TRANSIENT = (asyncio.CancelledError, UnavailableError, ThrottledError)


@dataclass(frozen=True, slots=True)
class ResumableUpload:
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
class _BrokenSession:
    """A session to go on with. ``sent``: up to where this process has sent the body; None: another one opened it."""

    session: str
    sent: int | None
    refusals: int = 0


class ResumableUploads:
    """The sessions of one store."""

    def __init__(self, wire: GcsRequests) -> None:
        self._wire = wire
        self._broken: dict[_Key, _BrokenSession] = {}
        self._windows = UploadWindows(wire.trips)

    async def upload(self, insert: ResumableUpload) -> ObjectResource:
        """What was made. IntegrityError if it is something else than ``insert.body``."""
        with self._windows.of(insert.body.path) as window:
            return await self._upload(insert, window)

    async def _upload(self, insert: ResumableUpload, window: UploadWindow) -> ObjectResource:
        body = insert.body
        broken = self._broken.pop(insert.key(), None) or _earlier(insert)
        known = None
        if broken is not None:
            try:
                known = await self._how_far(insert, broken)
            except _TRANSIENT as error:
                self._remember(insert, replace(broken, refusals=broken.refusals + _was_answered(error)))
                raise
        ours = broken is not None and broken.sent is not None and known is not None
        if broken is None or known is None:
            session = await self._wire.start_session(insert.name, insert.target, insert.document, body.size)
        else:
            session = broken.session
        at = body.size if isinstance(known, ObjectResource) else known or 0
        if body.progress is not None and not ours:
            body.progress.there = at
            if known is None:
                body.progress.keep(f"{session}#{insert.mark()}")
        return known if isinstance(known, ObjectResource) else await self._fill(insert, session, at, window)

    def _remember(self, insert: ResumableUpload, broken: _BrokenSession) -> None:
        if broken.refusals == MAX_REFUSALS:
            return
        while len(self._broken) >= MAX_BROKEN_SESSIONS:
            del self._broken[next(iter(self._broken))]
        self._broken[insert.key()] = broken

    async def _how_far(self, insert: ResumableUpload, broken: _BrokenSession) -> int | ObjectResource | None:
        """Bytes that the service has or, if it was the last answer that was lost, what was made. None: the session is
        gone, or of no use; what else is wrong, a new one meets too."""
        size = insert.body.size
        try:
            answer = await self._wire.continue_session(insert.name, broken.session, None, f"bytes */{size}")
        except StoreError as error:
            if error.retryable:
                raise
            return None
        if answer.status == RESUME_INCOMPLETE:
            return self._kept(insert, answer, 0, size if broken.sent is None else broken.sent)
        try:
            made = self._made(insert, answer)
        except IntegrityError:
            return None  # it made something else of what it had
        return made if await self._is_live(made) else None

    async def _is_live(self, made: ObjectResource) -> bool:
        """A session tells for a week what it made, also when something else has replaced that since."""
        return await self._wire.generation(made.name) == made.generation

    def _made(self, insert: ResumableUpload, answer: Response) -> ObjectResource:
        where = f"insert {self._wire.where(insert.name)}"
        return written_of(where, answer.content, insert.name, self._wire.bucket, insert.body.size, insert.crc32c)

    async def _fill(self, insert: ResumableUpload, session: str, at: int, window: UploadWindow) -> ObjectResource:
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
                if answer.status != RESUME_INCOMPLETE:
                    return self._made(insert, answer)
                at = self._kept(insert, answer, at + 1, sent)
        except _TRANSIENT:
            self._remember(insert, _BrokenSession(session, sent))
            raise

    async def _chunk(self, insert: ResumableUpload, session: str, at: int, end: int) -> Response:
        body = insert.body
        chunk = replace(body, offset=body.offset + at, size=end - at)
        try:
            return await self._wire.continue_session(insert.name, session, chunk, f"bytes {at}-{end - 1}/{body.size}")
        except NotFoundError as error:
            raise UnavailableError(f"{error}: the upload session is gone") from error

    def _kept(self, insert: ResumableUpload, answer: Response, least: int, sent: int) -> int:
        """Bytes that the service has for good: never more than were sent, and never all of them, for then it would have
        made something of them."""
        kept = kept_bytes(answer.headers)
        if least <= kept <= sent and kept < insert.body.size:
            return kept
        where = f"insert {self._wire.where(insert.name)}"
        raise UnavailableError(f"{where}: the store kept {kept} bytes of {sent} that were sent")


def _earlier(insert: ResumableUpload) -> _BrokenSession | None:
    """The session of another process, once: where that leads nowhere the next attempt begins anew."""
    progress = insert.body.progress
    if progress is None:
        return None
    token, progress.token = progress.token, None
    session, _, mark = (token or "").rpartition("#")
    return _BrokenSession(session, None) if mark == insert.mark() and is_session(session) else None


def _was_answered(error: BaseException) -> bool:
    return isinstance(error, StoreError) and not isinstance(error.__cause__, BrokenError)
