"""Resumable uploads: a body is sent in chunks, and after a break only the bytes that the service has not persisted.

An upload session outlives a broken attempt: the next attempt with the same body asks for its progress and resumes
there. A body of at most one chunk is sent in a single request instead, which saves the round trip that opens a session,
unless another process may have to resume it: the session of a part or a file is kept in the journal
(``FileRange.progress``). A session fixes the precondition, the name and the checksum of the upload, so only the same
request can resume it; the journal keeps a fingerprint of the request for this.

The parts of one file are sent in parallel and share an upload window. A crash loses the bytes that were not
acknowledged, and a server that persists nothing of a broken request loses whole chunks; so all parts of a file together
have only as much in flight as one chunk. With a distant service this would leave the network idle while responses
travel: there each part has its own chunk in flight, and the service persists the bytes of it that arrived (Cloud
Storage documentation, "Resumable uploads").
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
from asyncsync.stores.gcs.responses import ObjectResource, persisted_bytes, written_of
from asyncsync.stores.gcs.transport import RESUME_INCOMPLETE
from asyncsync.stores.http.errors import BrokenError
from asyncsync.stores.http.response import Response

CHUNK_SIZE = 8 << 20
"""Largest chunk in bytes, which is also the most that is sent again after a break. (Google advises 8 MiB:
documentation, "Resumable uploads".)"""
MIN_CHUNK_SIZE = 4 << 20
"""Below this size a request costs more than it helps: 1 GiB took 0.67 s in chunks of 4 MiB, two at a time, and 0.74 s
in chunks of 512 KiB, sixteen at a time (the sink of benchmarks/, 2 cores)."""
CHUNK_MULTIPLE = 1 << 18
"""Every chunk but the last is a multiple of this (same documentation)."""
FAR_ROUND_TRIP = 0.01
"""Round trip (s) from which a service counts as distant. A nearer one takes 800 MB/s of a file with one chunk in
flight; behind 30 ms that made 1 GiB take 4.6 s instead of 1.1 s (the same sink)."""
MAX_BROKEN_SESSIONS = 256
"""Broken sessions that are remembered; the service forgets each after a week."""
MAX_REFUSALS = 3
"""A session is given up after this many error responses in a row to the request for its progress. A missing response
does not count."""

_TRANSIENT = (asyncio.CancelledError, UnavailableError, ThrottledError)


class UploadWindow:
    """The bytes of one file in flight. ``round_trips``: durations (s) of the latest round trips; the shortest counts,
    because a busy server responds late."""

    def __init__(self, round_trips: Collection[float]) -> None:
        self.bodies = 0
        """Parts that are being sent."""
        self._round_trips = round_trips
        self._used = 0
        self._freed = asyncio.Event()

    async def take(self, rest: int) -> int:
        """Wait until a part with ``rest`` bytes left may send its next chunk; the size of that chunk. It counts as in
        flight until :meth:`give`."""
        while self._used + (size := min(rest, self._share())) > self._limit():
            await self._freed.wait()
        self._used += size
        return size

    def give(self, size: int) -> None:
        """A chunk was acknowledged, or its request broke."""
        self._used -= size
        self._freed.set()
        self._freed.clear()  # wakes those that wait now; later ones wait for the next

    def _limit(self) -> int:
        far = min(self._round_trips, default=0.0) >= FAR_ROUND_TRIP
        return CHUNK_SIZE * self.bodies if far else CHUNK_SIZE

    def _share(self) -> int:
        return min(CHUNK_SIZE, max(MIN_CHUNK_SIZE, self._limit() // self.bodies // CHUNK_MULTIPLE * CHUNK_MULTIPLE))


class UploadWindows:
    """The windows of all files that are being sent, by path."""

    def __init__(self, round_trips: Collection[float]) -> None:
        self._files: dict[str, UploadWindow] = {}
        self._round_trips = round_trips

    @contextmanager
    def of(self, path: str) -> Iterator[UploadWindow]:
        """The window of a file, while one part of it is sent."""
        window = self._files.setdefault(path, UploadWindow(self._round_trips))
        window.bodies += 1
        try:
            yield window
        finally:
            window.bodies -= 1
            if not window.bodies:
                del self._files[path]


_UploadKey = tuple[str, str, int, int]


@dataclass(frozen=True, slots=True)
class ResumableUpload:
    """The request that opens a session, and its body. ``document`` contains the name and the CRC32C."""

    name: str
    target: str
    document: bytes
    body: FileRange
    crc32c: int

    def fingerprint(self) -> str:
        """Identifies the request in the journal."""
        return hashlib.blake2b(b"\0".join((self.target.encode(), self.document)), digest_size=8).hexdigest()

    def key(self) -> _UploadKey:
        """Equal for the same request with the same body."""
        return self.fingerprint(), self.body.path, self.body.offset, self.body.size


@dataclass(frozen=True, slots=True)
class _BrokenSession:
    """A session to resume. ``sent``: how much of the body this process has sent; None: another process opened it."""

    session: str
    sent: int | None
    refusals: int = 0


class ResumableUploads:
    """The upload sessions of one store."""

    def __init__(self, requests: GcsRequests) -> None:
        self._requests = requests
        self._broken: dict[_UploadKey, _BrokenSession] = {}
        self._windows = UploadWindows(requests.round_trips)

    async def upload(self, upload: ResumableUpload) -> ObjectResource:
        """Send the body, and return the new object. IntegrityError if that does not match the body."""
        with self._windows.of(upload.body.path) as window:
            return await self._upload(upload, window)

    async def _upload(self, upload: ResumableUpload, window: UploadWindow) -> ObjectResource:
        body = upload.body
        broken = self._broken.pop(upload.key(), None) or _from_journal(upload)
        known = None
        if broken is not None:
            try:
                known = await self._ask_progress(upload, broken)
            except _TRANSIENT as error:
                self._remember(upload, replace(broken, refusals=broken.refusals + _was_refused(error)))
                raise
        ours = broken is not None and broken.sent is not None and known is not None
        if broken is None or known is None:
            session = await self._requests.start_resumable(upload.name, upload.target, upload.document, body.size)
        else:
            session = broken.session
        at = body.size if isinstance(known, ObjectResource) else known or 0
        if body.progress is not None and not ours:
            body.progress.there = at
            if known is None:
                body.progress.keep(f"{session}#{upload.fingerprint()}")
        return known if isinstance(known, ObjectResource) else await self._send_chunks(upload, session, at, window)

    def _remember(self, upload: ResumableUpload, broken: _BrokenSession) -> None:
        if broken.refusals == MAX_REFUSALS:
            return
        while len(self._broken) >= MAX_BROKEN_SESSIONS:
            del self._broken[next(iter(self._broken))]
        self._broken[upload.key()] = broken

    async def _ask_progress(self, upload: ResumableUpload, broken: _BrokenSession) -> int | ObjectResource | None:
        """Bytes that the service has persisted, or the new object if only the last response was lost. None: the session
        is missing or useless; any other error would hit a new session too."""
        size = upload.body.size
        try:
            response = await self._requests.continue_resumable(upload.name, broken.session, None, f"bytes */{size}")
        except StoreError as error:
            if error.retryable:
                raise
            return None
        if response.status == RESUME_INCOMPLETE:
            return self._persisted(upload, response, 0, size if broken.sent is None else broken.sent)
        try:
            made = self._made(upload, response)
        except IntegrityError:
            return None  # the object does not match the body
        return made if await self._is_live(made) else None

    async def _is_live(self, made: ObjectResource) -> bool:
        """A session returns its object for a week, even after another object has replaced it."""
        return await self._requests.generation(made.name) == made.generation

    def _made(self, upload: ResumableUpload, response: Response) -> ObjectResource:
        where = f"insert {self._requests.where(upload.name)}"
        size, crc32c = upload.body.size, upload.crc32c
        return written_of(where, response.content, upload.name, self._requests.bucket, size, crc32c)

    async def _send_chunks(
        self, upload: ResumableUpload, session: str, at: int, window: UploadWindow
    ) -> ObjectResource:
        size, sent, lease = upload.body.size, at, upload.body.lease
        try:
            while True:
                taken = await window.take(size - at)
                try:
                    if lease is not None:
                        await lease.keep()  # the window may have made us wait
                    sent = at + taken
                    response = await self._send_chunk(upload, session, at, sent)
                finally:
                    window.give(taken)
                if response.status != RESUME_INCOMPLETE:
                    return self._made(upload, response)
                at = self._persisted(upload, response, at + 1, sent)
        except _TRANSIENT:
            self._remember(upload, _BrokenSession(session, sent))
            raise

    async def _send_chunk(self, upload: ResumableUpload, session: str, at: int, end: int) -> Response:
        body = upload.body
        chunk, content_range = (
            replace(body, offset=body.offset + at, size=end - at),
            f"bytes {at}-{end - 1}/{body.size}",
        )
        try:
            return await self._requests.continue_resumable(upload.name, session, chunk, content_range)
        except NotFoundError as error:
            raise UnavailableError(f"{error}: the upload session is missing; a retry opens a new one") from error

    def _persisted(self, upload: ResumableUpload, response: Response, least: int, sent: int) -> int:
        """Bytes that the service has persisted: never more than were sent, and never all, because all bytes make an
        object."""
        kept = persisted_bytes(response.headers)
        if least <= kept <= sent and kept < upload.body.size:
            return kept
        where = f"insert {self._requests.where(upload.name)}"
        raise UnavailableError(f"{where}: the store kept {kept} bytes of {sent} that were sent")


def _from_journal(upload: ResumableUpload) -> _BrokenSession | None:
    """The session of another process. It is used once: if it cannot be resumed, the next attempt starts anew."""
    progress = upload.body.progress
    if progress is None:
        return None
    token, progress.token = progress.token, None
    session, _, fingerprint = (token or "").rpartition("#")
    return _BrokenSession(session, None) if fingerprint == upload.fingerprint() and is_session(session) else None


def _was_refused(error: BaseException) -> bool:
    """Whether the service responded with an error, rather than not at all."""
    return isinstance(error, StoreError) and not isinstance(error.__cause__, BrokenError)
